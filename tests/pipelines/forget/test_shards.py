"""Listeners are removed from shards, and all others stay as they were; files are built as the job builds them."""

import contextlib
import datetime as dt
import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import storage
from pipelines.forget.listeners import ListenersToForget, Matches
from pipelines.forget.shards import (
    erase_from_shards,
    files_below,
    find_in_shards,
    find_in_unlisted,
    published_manifests,
    unlisted_shards,
)
from pipelines.histories.buckets import user_bucket
from pipelines.histories.build import BuildTask, SongIndex, build_buckets
from pipelines.histories.publish import BuildSpec, publish_shards
from pipelines.histories.shards import (
    listed_uris,
    read_item_counts,
    read_manifest,
    write_manifest,
)
from pipelines.histories.shuffle import Shuffle, ShuffleRows, ShuffleWriter, ranges_of
from pipelines.schema import id_type
from pipelines.workspace import WorkspaceSpec, open_workspace

FIRST = dt.date(2026, 3, 5)  # with 9 increments allowed, no bucket is compacted in the days after
BUCKETS, SONGS, MAX_HISTORY, ROW_GROUP_EVENTS = 2, 15, 6, 12
SPREAD = Shuffle(partitions=1, buckets=BUCKETS, max_history=MAX_HISTORY)


def day(n):
    return FIRST + dt.timedelta(days=n)


def start(ds):
    return int(dt.datetime(ds.year, ds.month, ds.day, tzinfo=dt.UTC).timestamp())


def plays(n, *, seed, kind="int64", rows=70, users=30):
    """A day's plays of a third of the listeners: some of the same second, some late, some again."""
    rng = np.random.default_rng([seed, n])
    user = rng.choice(rng.choice(users, users // 3, replace=False), rows) * 7
    item = rng.integers(1, SONGS + 1, rows)
    late = np.where((rng.random(rows) < 0.3) & (n > 0), 86_400, 0)
    found = ShuffleRows(
        pa.array([f"u{number:03d}" for number in user]) if kind == "string" else pa.array(user),
        pa.array(item),
        start(day(n)) - 86_400 + rng.integers(0, 24, rows) * 3600 - late,
        rng.integers(0, 101, rows).astype(np.uint8),
    )
    return ShuffleRows.concatenate([found, found.take(np.arange(rows // 10))])


def without(rows, gone):
    gone = set(gone)
    return rows.take(np.flatnonzero([user not in gone for user in rows.user_id.to_pylist()]))


def workspace_at(uri, kind="int64"):
    return open_workspace(str(uri), WorkspaceSpec(buckets=BUCKETS, user_id_type=kind))


def publish(workspace, n, rows, *, max_increments=9):
    """A day laid over the day before, with the code of the job's tasks."""
    kind, ds = workspace.spec.user_id_type, day(n)
    parent = read_manifest(workspace.sequences(day(n - 1))) if n else None
    staging = storage.join(workspace.run(ds), "staging")
    storage.make_folder(staging)
    writer = ShuffleWriter(SPREAD, staging, "plays")
    writer.write(rows)
    writer.flush()
    spec = BuildSpec(
        folder=workspace.sequences(ds),
        ds=ds,
        data_end=start(ds),
        attempt=f"run{n}",
        buckets=BUCKETS,
        max_history=MAX_HISTORY,
        row_group_events=ROW_GROUP_EVENTS,
        user_id_type=kind,
        vocabulary_size=SONGS,
        max_increments=max_increments,
        parent=parent,
    )
    built = spec.nothing_built()
    parents = {file.bucket: file for file in parent.files} if parent else {}
    songs = np.arange(1, SONGS + 1)
    task = BuildTask(0, SPREAD.buckets_of(0), ranges_of(writer.runs, 0), parents)
    build_buckets(spec, task, SongIndex(pa.array(songs), songs.astype(np.int32)), built)
    storage.delete_folder(staging)
    return publish_shards(spec, built)


def rows_of(manifest):
    """user -> row as it is read; checks the manifest against the files on the way."""
    found = {}
    for file in manifest.files:
        groups = [manifest.read(file, group) for group in range(len(file.row_groups))]
        assert tuple(table.num_rows for table in groups) == file.row_groups
        table = pa.concat_tables(groups)
        users = table["user_id"].to_pylist()
        assert users == sorted(set(users)) and users
        assert set(user_bucket(table["user_id"].combine_chunks(), BUCKETS)) == {file.bucket}
        assert (file.rows, file.events) == (table.num_rows, sum(table["num_events"].to_pylist()))
        for layer in file.layers:
            content = storage.read_bytes(manifest.uri_of(layer))
            assert (layer.bytes, layer.sha256) == (len(content), hashlib.sha256(content).hexdigest())
        for increment in file.increments:
            assert len(increment.groups) == len(file.row_groups) and sum(increment.groups) == increment.rows > 0
        found |= {row["user_id"]: row for row in table.to_pylist()}
    return found


def erase(workspace, gone, *, lock_day=lambda _: contextlib.nullcontext(), tidy=True):
    listeners = ListenersToForget(pa.array(gone, id_type(workspace.spec.user_id_type)))
    expected = find_in_shards(workspace, listeners)
    matches = erase_from_shards(workspace, listeners, lock_day=lock_day, row_group_events=ROW_GROUP_EVENTS)
    assert matches == expected
    if tidy:
        there = files_below(workspace, "sequences")
        storage.delete_files(unlisted_shards(workspace, there))
    return matches, listeners


def users_in(manifests):
    return sorted({user for manifest in manifests for user in rows_of(manifest)})


def ends_of_row_groups(manifests):
    """The last listener of every row group of every base: those whose going moves a bound."""
    return sorted(
        {
            manifest.base_users(file, group)[-1]
            for manifest in manifests
            for file in manifest.files
            for group in range(len(file.row_groups))
        }
    )


CHOICES = {
    "one": lambda manifests: users_in(manifests)[3:4],
    "a third": lambda manifests: users_in(manifests)[::3],
    "the end of a row group": lambda manifests: ends_of_row_groups(manifests[:1])[:1],
    "the ends of row groups": ends_of_row_groups,
    "everybody of the first day": lambda manifests: users_in(manifests[:1]),
    "all but one": lambda manifests: users_in(manifests)[:-1],
    "everybody": users_in,
}


@pytest.mark.parametrize(("kind", "seed"), [("int64", 2), ("int64", 3), ("string", 1)])
@pytest.mark.parametrize("max_increments", [9, 2])
@pytest.mark.parametrize("choice", CHOICES)
def test_what_is_left_is_what_would_be_there_without_them(tmp_path, kind, max_increments, choice, seed):
    """Every ds, the songs' listeners, and the day that is laid over it afterwards; deltas, compactions and all."""
    workspace = workspace_at(tmp_path / "a", kind)
    made = {"seed": seed, "kind": kind}
    for n in range(4):
        publish(workspace, n, plays(n, **made, users=60), max_increments=max_increments)
    before = published_manifests(workspace)
    gone = CHOICES[choice](before)
    assert gone
    expected = [{user: row for user, row in rows_of(m).items() if user not in set(gone)} for m in before]

    matches, listeners = erase(workspace, gone)
    assert matches.files > 0 and listeners.found.all()
    after = published_manifests(workspace)
    assert [rows_of(manifest) for manifest in after] == expected
    assert {str(file) for file in Path(workspace.uri, "sequences").rglob("*.parquet")} == set().union(
        *(listed_uris(manifest) for manifest in after)
    )

    other = workspace_at(tmp_path / "b", kind)
    for n in range(4):
        rebuilt = publish(other, n, without(plays(n, **made, users=60), gone), max_increments=max_increments)
        assert read_item_counts(after[n]).tolist() == read_item_counts(rebuilt).tolist()
    late = without(plays(4, **made, users=90), gone)
    next_day, rebuilt = (publish(w, 4, late, max_increments=max_increments) for w in (workspace, other))
    assert rows_of(next_day) == rows_of(rebuilt)
    assert read_item_counts(next_day).tolist() == read_item_counts(rebuilt).tolist()
    assert erase(workspace, gone)[0] == Matches()


def test_a_file_of_several_days_is_rewritten_once_and_untouched_buckets_keep_theirs(tmp_path):
    workspace = workspace_at(tmp_path)
    for n in range(3):
        publish(workspace, n, plays(n, seed=4))
    before = published_manifests(workspace)
    user = users_in(before[:1])[0]
    bucket = int(user_bucket(pa.array([user]), BUCKETS)[0])
    erase(workspace, [user])
    after = published_manifests(workspace)
    bases = {m.uri_of(file) for m in after for file in m.files if file.bucket == bucket}
    assert len(bases) == 1 and not bases & set().union(*(listed_uris(m) for m in before))
    for old, new in zip(before, after, strict=True):
        assert [f for f in new.files if f.bucket != bucket] == [f for f in old.files if f.bucket != bucket]
        assert replace(new, files=(), item_counts="", digests={}) == replace(old, files=(), item_counts="", digests={})


def test_a_day_that_another_run_publishes_meanwhile_is_left_to_the_next_look(tmp_path):
    workspace = workspace_at(tmp_path)
    publish(workspace, 0, plays(0, seed=5))
    [before] = published_manifests(workspace)
    user = users_in([before])[0]

    @contextlib.contextmanager
    def lock_day(_):
        write_manifest(before.folder, replace(before, run_id="another"))
        yield

    erase(workspace, [user], lock_day=lock_day)
    [kept] = published_manifests(workspace)
    assert (kept.run_id, kept.files) == ("another", before.files)
    erase(workspace, [user])
    assert user not in rows_of(published_manifests(workspace)[0])


@pytest.mark.parametrize("dies_at", range(1, 9))
def test_killed_before_any_manifest_or_deletion_and_run_again(tmp_path, monkeypatch, dies_at):
    workspace = workspace_at(tmp_path)
    for n in range(4):
        publish(workspace, n, plays(n, seed=6), max_increments=2)
    before = published_manifests(workspace)
    gone = users_in(before)[::4]
    expected = [{user: row for user, row in rows_of(m).items() if user not in set(gone)} for m in before]
    counts = []
    with monkeypatch.context() as patch:
        for name in ("write_bytes", "delete_files"):
            patch.setattr(storage, name, _dying(getattr(storage, name), dies_at, counts))
        with pytest.raises(KeyboardInterrupt):
            erase(workspace, gone)
    for manifest, whole, rest in zip(published_manifests(workspace), before, expected, strict=True):
        assert rows_of(manifest) in (rows_of(whole), rest)  # a day is as it was or as it will be
    erase(workspace, gone)
    after = published_manifests(workspace)
    assert [rows_of(manifest) for manifest in after] == expected
    assert {str(file) for file in Path(workspace.uri, "sequences").rglob("*.parquet")} == set().union(
        *(listed_uris(manifest) for manifest in after)
    )


def _dying(write, at, counts):
    def call(*arguments, **named):
        counts.append(1)
        if len(counts) >= at:
            raise KeyboardInterrupt
        return write(*arguments, **named)

    return call


def test_leftovers_of_killed_runs_are_found_counted_and_only_they(tmp_path):
    workspace = workspace_at(tmp_path)
    publish(workspace, 0, plays(0, seed=7))
    [manifest] = published_manifests(workspace)
    user = users_in([manifest])[0]
    bucket = int(user_bucket(pa.array([user]), BUCKETS)[0])
    [file] = [file for file in manifest.files if file.bucket == bucket]
    folder = Path(workspace.sequences(day(1)), "bucket=00000")
    folder.mkdir(parents=True)
    (folder / "part-killed.parquet").write_bytes(Path(manifest.uri_of(file)).read_bytes())
    (folder / "part-half.parquet.0123.tmp").write_bytes(b"PAR1 half")
    pq.write_table(pa.table({"user_id": [10**15]}), folder / "part-of-others.parquet")
    unlisted = unlisted_shards(workspace, files_below(workspace, "sequences"))
    assert sorted(Path(uri).name for uri in unlisted) == [
        "part-half.parquet.0123.tmp",
        "part-killed.parquet",
        "part-of-others.parquet",
    ]
    assert find_in_unlisted(unlisted, ListenersToForget(pa.array([user]))) == Matches(2, 1)


def test_on_an_object_store(s3):
    workspace = workspace_at(f"{s3}/workspace")
    for n in range(2):
        publish(workspace, n, plays(n, seed=8))
    before = published_manifests(workspace)
    gone = users_in(before)[::5]
    expected = [{user: row for user, row in rows_of(m).items() if user not in set(gone)} for m in before]
    erase(workspace, gone)
    after = published_manifests(workspace)
    assert [rows_of(manifest) for manifest in after] == expected
    named = set().union(*(listed_uris(manifest) for manifest in after))
    assert {file.uri for file in storage.list_files(f"{workspace.uri}/sequences")} == named
