"""Listeners leave shards, quarantine and later days, and nobody else changes; files are built as the job does it."""

import contextlib
import datetime as dt
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import storage
from pipelines.forget import blocklist
from pipelines.forget.blocklist import possible_users, without_names
from pipelines.forget.shards import (
    Held,
    Listeners,
    erase_from_quarantine,
    erase_from_shards,
    files_below,
    published,
    survey_shards,
    survey_unnamed,
    unnamed_shards,
)
from pipelines.histories.buckets import user_bucket
from pipelines.histories.build import BuildSpec, SongIndex, Tally, Task, build_buckets
from pipelines.histories.shards import (
    Manifest,
    inputs_table,
    listed_uris,
    read_item_counts,
    read_manifest,
    write_item_counts,
    write_manifest,
)
from pipelines.histories.shuffle import Exchange, Rows, RunWriter, parts_of
from pipelines.logs.files import LogFile, LogSpec, plan, read
from pipelines.logs.validate import QUARANTINE_SCHEMA, without_forgotten
from pipelines.schema import id_type
from pipelines.workspace import WorkspaceSpec, open_workspace

FIRST = dt.date(2026, 3, 3)
BUCKETS, SONGS, MAX_HISTORY, ROW_GROUP_EVENTS = 2, 15, 6, 12
SPREAD = Exchange(partitions=1, buckets=BUCKETS, max_history=MAX_HISTORY)


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
    found = Rows(
        pa.array([f"u{number:03d}" for number in user]) if kind == "string" else pa.array(user),
        pa.array(item),
        start(day(n)) - 86_400 + rng.integers(0, 24, rows) * 3600 - late,
        rng.integers(0, 101, rows).astype(np.uint8),
    )
    return Rows.concatenate([found, found.take(np.arange(rows // 10))])


def without(rows, gone):
    gone = set(gone)
    return rows.take(np.flatnonzero([user not in gone for user in rows.user_id.to_pylist()]))


def workspace_at(uri, kind="int64"):
    return open_workspace(str(uri), WorkspaceSpec(buckets=BUCKETS, user_id_type=kind))


def publish(workspace, n, rows, *, max_deltas=9):
    """A day laid over the day before, with the code of the job's tasks."""
    kind, ds = workspace.spec.user_id_type, day(n)
    parent = read_manifest(workspace.sequences(day(n - 1))) if n else None
    writer = RunWriter(SPREAD, storage.join(workspace.run(ds), "staging"), "plays")
    writer.write(rows)
    writer.flush()
    spec = BuildSpec(
        folder=workspace.sequences(ds),
        run=f"run{n}",
        buckets=BUCKETS,
        max_history=MAX_HISTORY,
        session_gap_s=1800,
        row_group_events=ROW_GROUP_EVENTS,
        user_id_type=kind,
        item_id_type="int64",
        vocabulary_size=SONGS,
        max_deltas=max_deltas,
        day_number=n,
        parent=parent,
    )
    tally = Tally(np.zeros(SONGS + 1, np.int64))
    parents = {file.bucket: file for file in parent.files} if parent else {}
    songs = np.arange(1, SONGS + 1)
    task = Task(0, SPREAD.buckets_of(0), parts_of(writer.runs, 0), parents)
    build_buckets(spec, task, SongIndex(pa.array(songs), songs.astype(np.int32)), tally)
    listeners = tally.listeners + (read_item_counts(parent) if parent else 0)
    manifest = Manifest(
        ds=ds,
        run_id="r",
        parent=parent.ds if parent else None,
        buckets=BUCKETS,
        max_history=MAX_HISTORY,
        session_gap_s=1800,
        user_id_type=kind,
        item_id_type="int64",
        timezone="UTC",
        vocabulary_version=0,
        vocabulary_size=SONGS,
        data_end=start(ds),
        item_counts="item_counts-a.parquet",
        inputs="inputs-a.parquet",
        files=tuple(tally.files),
    )
    write_item_counts(storage.join(spec.folder, manifest.item_counts), listeners)
    storage.write_table(storage.join(spec.folder, manifest.inputs), inputs_table([]))
    storage.delete_folder(storage.join(workspace.run(ds), "staging"))
    return write_manifest(spec.folder, manifest)


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
        for delta in file.deltas:
            assert len(delta.groups) == len(file.row_groups) and sum(delta.groups) == delta.rows > 0
        found |= {row["user_id"]: row for row in table.to_pylist()}
    return found


def erase(workspace, gone, *, hold=lambda _: contextlib.nullcontext(), tidy=True):
    listeners = Listeners(pa.array(gone, id_type(workspace.spec.user_id_type)), BUCKETS)
    expected = survey_shards(workspace, listeners)
    held = erase_from_shards(workspace, listeners, hold=hold, row_group_events=ROW_GROUP_EVENTS)
    assert held == expected
    if tidy:
        there = files_below(workspace, "sequences")
        storage.delete_files(unnamed_shards(workspace, there))
    return held, listeners


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
@pytest.mark.parametrize("max_deltas", [9, 2])
@pytest.mark.parametrize("choice", CHOICES)
def test_what_is_left_is_what_would_be_there_without_them(tmp_path, kind, max_deltas, choice, seed):
    """Every ds, the songs' listeners, and the day that is laid over it afterwards; deltas, compactions and all."""
    workspace = workspace_at(tmp_path / "a", kind)
    made = {"seed": seed, "kind": kind}
    for n in range(4):
        publish(workspace, n, plays(n, **made, users=60), max_deltas=max_deltas)
    before = published(workspace)
    gone = CHOICES[choice](before)
    assert gone
    expected = [{user: row for user, row in rows_of(m).items() if user not in set(gone)} for m in before]

    held, listeners = erase(workspace, gone)
    assert held.files > 0 and listeners.found.all()
    after = published(workspace)
    assert [rows_of(manifest) for manifest in after] == expected
    assert {str(file) for file in Path(workspace.uri, "sequences").rglob("*.parquet")} == set().union(
        *(listed_uris(manifest) for manifest in after)
    )

    other = workspace_at(tmp_path / "b", kind)
    for n in range(4):
        rebuilt = publish(other, n, without(plays(n, **made, users=60), gone), max_deltas=max_deltas)
        assert read_item_counts(after[n]).tolist() == read_item_counts(rebuilt).tolist()
    late = without(plays(4, **made, users=90), gone)
    next_day, rebuilt = (publish(w, 4, late, max_deltas=max_deltas) for w in (workspace, other))
    assert rows_of(next_day) == rows_of(rebuilt)
    assert read_item_counts(next_day).tolist() == read_item_counts(rebuilt).tolist()
    assert erase(workspace, gone)[0] == Held()


def test_a_file_of_several_days_is_rewritten_once_and_untouched_buckets_keep_theirs(tmp_path):
    workspace = workspace_at(tmp_path)
    for n in range(3):
        publish(workspace, n, plays(n, seed=4))
    before = published(workspace)
    user = users_in(before[:1])[0]
    bucket = int(user_bucket(pa.array([user]), BUCKETS)[0])
    erase(workspace, [user])
    after = published(workspace)
    bases = {m.uri_of(file) for m in after for file in m.files if file.bucket == bucket}
    assert len(bases) == 1 and not bases & set().union(*(listed_uris(m) for m in before))
    for old, new in zip(before, after, strict=True):
        assert [f for f in new.files if f.bucket != bucket] == [f for f in old.files if f.bucket != bucket]
        assert replace(new, files=(), item_counts="") == replace(old, files=(), item_counts="")


def test_a_day_that_another_run_publishes_meanwhile_is_left_to_the_next_look(tmp_path):
    workspace = workspace_at(tmp_path)
    publish(workspace, 0, plays(0, seed=5))
    [before] = published(workspace)
    user = users_in([before])[0]

    @contextlib.contextmanager
    def hold(_):
        write_manifest(before.folder, replace(before, run_id="another"))
        yield

    erase(workspace, [user], hold=hold)
    [kept] = published(workspace)
    assert (kept.run_id, kept.files) == ("another", before.files)
    erase(workspace, [user])
    assert user not in rows_of(published(workspace)[0])


@pytest.mark.parametrize("dies_at", range(1, 9))
def test_killed_before_any_manifest_or_deletion_and_run_again(tmp_path, monkeypatch, dies_at):
    workspace = workspace_at(tmp_path)
    for n in range(4):
        publish(workspace, n, plays(n, seed=6), max_deltas=2)
    before = published(workspace)
    gone = users_in(before)[::4]
    expected = [{user: row for user, row in rows_of(m).items() if user not in set(gone)} for m in before]
    counts = []
    with monkeypatch.context() as patch:
        for name in ("write_bytes", "delete_files"):
            patch.setattr(storage, name, _dying(getattr(storage, name), dies_at, counts))
        with pytest.raises(KeyboardInterrupt):
            erase(workspace, gone)
    for manifest, whole, rest in zip(published(workspace), before, expected, strict=True):
        assert rows_of(manifest) in (rows_of(whole), rest)  # a day is as it was or as it will be
    erase(workspace, gone)
    after = published(workspace)
    assert [rows_of(manifest) for manifest in after] == expected
    assert {str(file) for file in Path(workspace.uri, "sequences").rglob("*.parquet")} == set().union(
        *(listed_uris(manifest) for manifest in after)
    )


def _dying(write, at, counts):
    def call(*arguments):
        counts.append(1)
        if len(counts) >= at:
            raise KeyboardInterrupt
        return write(*arguments)

    return call


def test_leftovers_of_killed_runs_are_found_counted_and_only_they(tmp_path):
    workspace = workspace_at(tmp_path)
    publish(workspace, 0, plays(0, seed=7))
    [manifest] = published(workspace)
    user = users_in([manifest])[0]
    bucket = int(user_bucket(pa.array([user]), BUCKETS)[0])
    [file] = [file for file in manifest.files if file.bucket == bucket]
    folder = Path(workspace.sequences(day(1)), "bucket=00000")
    folder.mkdir(parents=True)
    (folder / "part-killed.parquet").write_bytes(Path(manifest.uri_of(file)).read_bytes())
    (folder / "part-half.parquet.0123.tmp").write_bytes(b"PAR1 half")
    pq.write_table(pa.table({"user_id": [10**15]}), folder / "part-of-others.parquet")
    unnamed = unnamed_shards(workspace, files_below(workspace, "sequences"))
    assert sorted(Path(uri).name for uri in unnamed) == [
        "part-half.parquet.0123.tmp",
        "part-killed.parquet",
        "part-of-others.parquet",
    ]
    assert survey_unnamed(unnamed, Listeners(pa.array([user]), BUCKETS)) == Held(2, 1)


def test_on_an_object_store(s3):
    workspace = workspace_at(f"{s3}/workspace")
    for n in range(2):
        publish(workspace, n, plays(n, seed=8))
    before = published(workspace)
    gone = users_in(before)[::5]
    expected = [{user: row for user, row in rows_of(m).items() if user not in set(gone)} for m in before]
    erase(workspace, gone)
    after = published(workspace)
    assert [rows_of(manifest) for manifest in after] == expected
    named = set().union(*(listed_uris(manifest) for manifest in after))
    assert {file.uri for file in storage.list_files(f"{workspace.uri}/sequences")} == named


# ---- quarantine ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "column", "kind", "expected"),
    [
        ('{"listener": 731, "plays": 42}', "listener", "int64", {731}),
        ('{"listener": "+731 ", "plays": "42"}', "listener", "int64", {731}),
        ('{"listener": 731.0}', "listener", "int64", {731}),
        ('{"listener": null, "plays": 42}', "listener", "int64", set()),
        ('{"listener": "731;42"}', "listener", "int64", {731, 42}),
        ('{"other": 731}', "listener", "int64", {731}),
        ('{"listener": 731, "broken', "listener", "int64", {731}),
        ("731,5,1,2,3,-4", "listener", "int64", {731, 5, 1, 2, 3, 4, -4}),
        ("8888888888888888888,9999999999999999999", "listener", "int64", {8888888888888888888}),
        ('{"u": "a b", "x": "c"}', "u", "string", {"a b"}),
        ('{"u": " a b "}', "u", "string", {" a b ", "a b"}),
    ],
)
def test_whose_a_rejected_row_is(text, column, kind, expected):
    assert set(possible_users(text, column, kind)) == expected


@pytest.mark.parametrize("text", ['"anna:7/x y",5,,,,', "5\tanna:7/x y\t\t9", '{"u": "anna:7/x y", "t": brok'])
def test_a_text_id_is_found_in_raw_text(text):
    assert "anna:7/x y" in possible_users(text, "u", "string")


def test_quarantined_rows_go_with_their_statistics_and_the_rest_stays(tmp_path):
    texts = [
        json.dumps({"listener": 7_310_559_002_218_347, "track": 5}),
        json.dumps({"listener": 7_310_559_002_218_348, "track": 7_310}),
        "7310559002218347,5,too,many,fields",
        "5,6,too,many,fields",
    ]
    uri = str(tmp_path / "part-a.parquet")
    fixed = [["unparseable"] * 4, [FIRST] * 4, ["log"] * 4]
    pq.write_table(pa.table([*fixed, texts], schema=QUARANTINE_SCHEMA), uri, row_group_size=2)
    alone = str(tmp_path / "part-b.parquet")
    pq.write_table(pa.table([[v[0]] for v in (*fixed, texts)], schema=QUARANTINE_SCHEMA), alone)
    listeners = Listeners(pa.array([7_310_559_002_218_347, 12]), BUCKETS)
    before = (tmp_path / "part-a.parquet").read_bytes()
    assert erase_from_quarantine([uri, alone], listeners, column="listener", dry_run=True) == Held(2, 3)
    assert (tmp_path / "part-a.parquet").read_bytes() == before
    assert erase_from_quarantine([uri, alone], listeners, column="listener") == Held(2, 3)
    assert pq.read_table(uri)["row"].to_pylist() == [texts[1], texts[3]]
    assert b"7310559002218347" not in Path(uri).read_bytes() and not Path(alone).exists()
    assert listeners.found.tolist() == [True, False]


def test_ids_are_blotted_out_of_messages_short_ones_only_where_it_says_whose_they_are():
    named = {"12", "731055900"}.__contains__
    assert without_names("user 12 has 12 plays; 731055900: bad", named) == (
        "user (forgotten) has 12 plays; (forgotten): bad"
    )


# ---- the list that later days read -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["int64", "string"])
def test_the_list_knows_exactly_those_on_it_and_names_nobody(tmp_path, kind):
    folder = str(tmp_path / "forgotten")
    everybody = [7_310_559_002_218_000 + n for n in range(2000)]
    ids = pa.array([f"u{n}" for n in everybody] if kind == "string" else everybody, id_type(kind))
    assert len(blocklist.load(folder)) == 0
    assert blocklist.add(folder, ids.slice(0, 900)) == 900
    assert blocklist.add(folder, ids.slice(800, 200)) == 100
    listed = blocklist.load(folder)
    assert np.array_equal(listed.mask(ids), np.arange(2000) < 1000)
    mixed = pa.array([None, ids[0].as_py(), ids[1999].as_py(), None, ids[999].as_py()], id_type(kind))
    assert listed.mask(mixed).tolist() == [False, True, False, False, True]
    content = b"".join(file.read_bytes() for file in Path(folder).rglob("*") if file.is_file())
    for user in everybody:
        assert str(user).encode() not in content and user.to_bytes(8, "little") not in content


def test_two_workspaces_have_nothing_in_common_and_many_small_files_become_one(tmp_path):
    one, other = str(tmp_path / "one"), str(tmp_path / "other")
    for user in range(40):
        blocklist.add(one, pa.array([user]))
    assert len(list(Path(one).glob("*.parquet"))) < 35
    blocklist.add(other, pa.array(range(40)))
    lists = [blocklist.load(folder) for folder in (one, other)]
    assert all(found.mask(pa.array(range(80))).tolist() == [n < 40 for n in range(80)] for found in lists)
    assert not {bytes(row) for row in lists[0].digests} & {bytes(row) for row in lists[1].digests}


def test_a_list_without_its_key_is_refused(tmp_path):
    blocklist.add(str(tmp_path), pa.array([1]))
    (tmp_path / "key.json").unlink()
    with pytest.raises(Exception, match=r"key\.json is lost.*restore it"):
        blocklist.load(str(tmp_path))


def log_batches(folder, name, content):
    """The rows of a log file without those of the listeners on the list: batches, and what each was before."""
    file = folder / "ds=2026-03-02" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        file.write_text(content)
    else:
        pq.write_table(content, file)
    spec = LogSpec(str(folder), columns={"user_id": "listener"})
    log = LogFile(str(file), file.stat().st_size, "", "2026-03-02")
    for split in plan(spec, [log]):
        for batch in read(spec, split):
            yield spec, batch


@pytest.mark.parametrize("format", ["parquet", "csv", "json"])
def test_rows_of_the_forgotten_are_dropped_from_batches_and_the_others_are_still_as_read(tmp_path, format):
    users = (3, 4, 3, 5)
    if format == "parquet":
        rows = [{"listener": user, "item_id": 5, "timestamp": 1, "more": n} for n, user in enumerate(users)]
        content = pa.Table.from_pylist(rows)
    elif format == "csv":
        lines = [f"{user},5,{'x' if user == 3 else 1}" for user in users]
        content = "\n".join(["listener,item_id,timestamp", *lines, "3,5,1,9,9", "8,5,1,9,9", ""])
    else:
        rows = [{"listener": user, "item_id": 5, "timestamp": "x" if user == 3 else 1} for user in users]
        content = "\n".join([*(json.dumps(row) for row in rows), '{"listener": 3, "item', '{"listener": 8, "item'])
    blocklist.add(str(tmp_path / "list"), pa.array([3, 77]))
    listed = blocklist.load(str(tmp_path / "list"))
    texts, left, dropped = [], [], 0
    for spec, batch in log_batches(tmp_path, f"a.{format}", content):
        assert without_forgotten(batch, blocklist.nobody(), spec) == (batch, 0)
        rest, number = without_forgotten(batch, listed, spec)
        dropped += number
        left += rest.columns["user_id"].to_pylist()
        texts += rest.as_read(np.arange(len(rest.unparseable)))
    unparsed = 0 if format == "parquet" else 1
    assert (dropped, left) == (2 + unparsed, [4, 5] + [None] * unparsed)
    assert len(texts) == 2 + unparsed and all(sign in text for sign, text in zip("458", texts, strict=False))
    if format == "parquet":
        assert [json.loads(text)["more"] for text in texts] == [1, 3]
