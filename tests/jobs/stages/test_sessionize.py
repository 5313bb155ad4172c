"""`fuxi sessionize` on real log files: builds, merges, freezes, refuses; Spark, Parquet and Delta are real."""

import datetime as dt
import hashlib
import itertools
import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake

from jobs.config import load_config
from jobs.day import open_day, run_stage
from jobs.stages import sessionize
from pipelines import leases, storage
from pipelines.calendar import Calendar
from pipelines.errors import InputError
from pipelines.histories import vocabulary
from pipelines.histories.buckets import user_bucket
from pipelines.histories.shards import listed_uris, read_item_counts, read_manifest

pytestmark = pytest.mark.usefixtures("spark")

FIRST = dt.date(2026, 3, 2)
MAX_HISTORY = 8
MEASURED = dict.fromkeys(("wall_s", "cpu_s", "cpu_s_per_million_rows", "task_cpu_s", "peak_gb"), None)


def start(day):
    return Calendar().day_start(day)


def days(count):
    return [FIRST + dt.timedelta(days=n) for n in range(count)]


def plays(day, *, seed, rows=150, text_ids=False):
    """A landing day's plays: equal seconds, late events, exact and near duplicates, every day a few new songs."""
    rng = np.random.default_rng([seed, day.toordinal()])
    age = np.where(rng.random(rows) < 0.2, rng.integers(0, 4, rows), 0)
    user, song = rng.integers(1, 13, rows), rng.integers(1, 25 + 5 * (day - FIRST).days, rows) * 10
    table = pa.table(
        {
            "user_id": [f"u{u}" for u in user] if text_ids else user,
            "item_id": [f"s{s}" for s in song] if text_ids else song,
            "timestamp": start(day) - age * 86_400 + rng.integers(0, 40, rows) * 600,
            "event_type": rng.choice(["play", "play", "play", "like"], rows),
            "play_ms": rng.integers(0, 250_000, rows),
            "duration_ms": np.full(rows, 200_000),
        }
    )
    again = table.slice(0, rows // 10)
    replayed = again.set_column(4, "play_ms", pa.array(rng.integers(0, 200_000, len(again))))
    return pa.concat_tables([table, again, replayed])


def put(logs, day, table, name="part-0.parquet"):
    file = Path(logs) / f"ds={day}" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file)
    return file


def config(tmp_path, *overrides):
    return load_config(
        environment={},
        overrides=[
            f"workspace={tmp_path}/workspace",
            f"logs.path={tmp_path}/logs",
            "sequences.buckets=4",
            f"sequences.max_history={MAX_HISTORY}",
            "sequences.row_group_events=20",
            "train.min_listeners=3",
            *overrides,
        ],
    )


def run(settings, ds, **flags):
    day = open_day(settings, ds, **flags)
    return run_stage(day, "sessionize", sessionize.run), read_manifest(day.workspace.sequences(ds))


def rows_of(manifest):
    """user -> row, with song ids in place of indices; checks that every row lies where the layout says."""
    workspace = storage.parent(storage.parent(manifest.folder))
    known = vocabulary.read(storage.join(workspace, "vocabulary"), manifest.item_id_type)
    ids = [None, *known.table["item_id"].to_pylist()]
    found = {}
    for file in manifest.files:
        table = manifest.read(file)
        users = table["user_id"].to_pylist()
        assert users == sorted(set(users))
        assert set(user_bucket(table["user_id"].combine_chunks(), manifest.buckets)) == {file.bucket}
        assert (file.rows, file.events) == (table.num_rows, sum(table["num_events"].to_pylist()))
        for row in table.to_pylist():
            row["item_index"] = [ids[index] for index in row["item_index"]]
            row["heard_before"] = sorted(ids[index] for index in row["heard_before"])
            found[row["user_id"]] = row
    return found


def reference(tables, index_of, max_history=MAX_HISTORY):
    """What the shards must hold, by dictionaries and loops; late limits and landing days are not its business."""
    events = defaultdict(dict)
    for row in pa.concat_tables(tables).to_pylist():
        if row["event_type"] != "play":
            continue
        percent = min(int(100 * row["play_ms"] / row["duration_ms"] + 0.5), 100)
        key = (row["timestamp"], index_of[row["item_id"]], row["item_id"])
        events[row["user_id"]][key] = max(percent, events[row["user_id"]].get(key, 0))
    rows = {}
    for user, seen in events.items():
        ordered = sorted(seen)
        kept, older = ordered[-max_history:], ordered[:-max_history]
        sessions = [0]
        for before, after in itertools.pairwise(kept):
            sessions.append(sessions[-1] + (after[0] - before[0] > 1800))
        rows[user] = {
            "user_id": user,
            "item_index": [song for _, _, song in kept],
            "timestamp": [timestamp for timestamp, _, _ in kept],
            "completion": [seen[key] for key in kept],
            "session_index": sessions,
            "heard_before": sorted({song for _, _, song in older}),
            "num_events": len(kept),
        }
    return rows


def index_of(manifest):
    workspace = storage.parent(storage.parent(manifest.folder))
    table = vocabulary.read(storage.join(workspace, "vocabulary"), manifest.item_id_type).table
    return dict(zip(table["item_id"].to_pylist(), table["item_index"].to_pylist(), strict=True))


def listeners_of(tables, manifest):
    heard = defaultdict(set)
    for row in pa.concat_tables(tables).to_pylist():
        if row["event_type"] == "play":
            heard[row["item_id"]].add(row["user_id"])
    counts = [0] * (manifest.vocabulary_size + 1)
    for song, users in heard.items():
        counts[index_of(manifest)[song]] = len(users)
    return counts


def tree(folder):
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(Path(folder).rglob("*")) if f.is_file()}


@pytest.mark.parametrize("text_ids", [False, True])
def test_merging_day_by_day_equals_a_rebuild_and_a_reference(tmp_path, text_ids):
    """Late events, equal seconds, duplicates across days, truncated histories, a day for a few buckets only."""
    kind = ["sequences.user_id_type=string", "sequences.item_id_type=string"] if text_ids else []
    settings = config(tmp_path, *kind)
    tables = [plays(day, seed=3, text_ids=text_ids) for day in days(3)]
    tables.append(plays(days(4)[3], seed=3, text_ids=text_ids).slice(0, 1))
    for day, table in zip(days(4), tables, strict=True):
        put(tmp_path / "logs", day, table)
    merged = [run(settings, day + dt.timedelta(days=1))[1] for day in days(4)]
    assert [manifest.parent for manifest in merged] == [None, *[m.ds for m in merged[:-1]]]
    for count, manifest in enumerate(merged, 1):
        assert rows_of(manifest) == reference(tables[:count], index_of(manifest))
        assert read_item_counts(manifest).tolist() == listeners_of(tables[:count], manifest)

    expected = rows_of(merged[-1]), read_item_counts(merged[-1]).tolist()
    for manifest in merged[:-1]:  # a rebuild: the last day again, from all logs, with the vocabulary that is there
        storage.delete_folder(manifest.folder)
    _, rebuilt = run(settings, merged[-1].ds, refresh_inputs=True)
    assert rebuilt.parent is None
    assert (rows_of(rebuilt), read_item_counts(rebuilt).tolist()) == expected


def test_a_day_is_published_with_counts_and_skipped_when_done(tmp_path):
    settings = config(tmp_path)
    table = plays(FIRST, seed=1)
    put(tmp_path / "logs", FIRST, table)
    ds = FIRST + dt.timedelta(days=1)
    result, manifest = run(settings, ds)
    likes = table["event_type"].to_pylist().count("like")
    assert (result["rows_read"], result["ignored"], result["rejected"]) == (len(table), likes, {})
    assert result["accepted"] == len(table) - likes
    distinct = {(r["user_id"], r["timestamp"], r["item_id"]) for r in table.to_pylist() if r["event_type"] == "play"}
    assert result["duplicates"] == result["accepted"] - len(distinct)
    assert (result["listeners"], result["events"]) == (manifest.rows, manifest.events)
    assert result["songs"] == result["new_songs"] == manifest.vocabulary_size
    assert result["eligible_songs"] == sum(count >= 3 for count in listeners_of([table], manifest))
    assert manifest.data_end == start(ds)
    assert run(settings, ds)[0]["skipped"] is True
    assert not list(Path(tmp_path, "workspace").rglob("*.tmp")) and not list(Path(tmp_path).rglob("staging"))


def test_rejected_rows_are_quarantined_as_read_and_replaced_by_a_second_run(tmp_path):
    settings = config(tmp_path)
    good = plays(FIRST, seed=1)
    bad = good.slice(0, 3).set_column(0, "user_id", pa.nulls(3, pa.int64()))
    bad = bad.set_column(3, "event_type", pa.array(["play"] * 3)).append_column("device", pa.array(["a", "b", "c"]))
    file = put(tmp_path / "logs", FIRST, pa.concat_tables([good, bad], promote_options="default"))
    ds = FIRST + dt.timedelta(days=1)
    result, _ = run(settings, ds)
    assert result["rejected"] == {"null_user_id": 3}
    run(settings, ds, force=True)
    stored = storage.list_files(f"{settings.workspace}/quarantine/ds={ds}")
    rows = [row for info in stored for row in storage.read_table(info.uri).to_pylist()]
    assert [(r["reason"], r["landing_day"], r["source_file"]) for r in rows] == [("null_user_id", FIRST, str(file))] * 3
    assert sorted(json.loads(row["row"])["device"] for row in rows) == ["a", "b", "c"]


def test_all_formats_give_the_same_histories(tmp_path, spark):
    import pyarrow.csv as pa_csv

    table = plays(FIRST, seed=4)
    results = {}
    for name in ("parquet", "csv", "json", "delta"):
        root = tmp_path / name
        folder = root / "logs" / f"ds={FIRST}"
        folder.mkdir(parents=True)
        if name == "parquet":
            pq.write_table(table, folder / "a.parquet")
        elif name == "csv":
            pa_csv.write_csv(table, folder / "a.csv")
        elif name == "json":
            (folder / "a.jsonl").write_text("\n".join(json.dumps(row) for row in table.to_pylist()))
        else:
            folder.rmdir()
            landed = table.append_column("ds", pa.array([str(FIRST)] * len(table)))
            write_deltalake(str(root / "logs"), landed.slice(5), partition_by=["ds"])
            write_deltalake(str(root / "logs"), landed, mode="overwrite", partition_by=["ds"])
        results[name] = rows_of(run(config(root), FIRST + dt.timedelta(days=1))[1])
    assert results["csv"] == results["json"] == results["delta"] == results["parquet"]


def test_the_first_day_again_after_the_second_gives_the_first_days_shards(tmp_path):
    settings = config(tmp_path)
    for day in days(2):
        put(tmp_path / "logs", day, plays(day, seed=2))
    (one, first), (_, second) = (run(settings, day + dt.timedelta(days=1)) for day in days(2))
    assert second.vocabulary_size > first.vocabulary_size
    trained = open_day(settings, first.ds).inputs("train")
    again, manifest = run(settings, first.ds, force=True)
    assert open_day(settings, first.ds).inputs("train") == trained  # the same histories: nothing else is stale
    assert {**again, **MEASURED} == {**one, **MEASURED}
    assert manifest.vocabulary_size == first.vocabulary_size
    assert [file.sha256 for file in manifest.files] == [file.sha256 for file in first.files]
    assert rows_of(read_manifest(second.folder)) == rows_of(second)
    # The second day was laid over the files that the first run of the first day wrote: they stay, and nothing else.
    listed = {manifest.uri_of(file) for file in manifest.files}
    still_read = {second.uri_of(file) for file in second.files}
    assert {str(f) for f in Path(manifest.folder).rglob("part-*.parquet")} == listed | still_read


def test_late_files_of_an_old_landing_day_are_merged_and_later_ones_left_for_later(tmp_path):
    settings = config(tmp_path)
    put(tmp_path / "logs", FIRST, plays(FIRST, seed=2))
    put(tmp_path / "logs", days(2)[1], plays(days(2)[1], seed=2))
    run(settings, days(2)[1])
    late = put(tmp_path / "logs", FIRST, plays(FIRST, seed=9), name="late.parquet")
    run(settings, days(3)[2])
    record = open_day(settings, days(3)[2]).record
    assert [Path(file.uri).name for file in record.files] == ["late.parquet", "part-0.parquet"]
    assert record.files[0].uri == str(late) and record.files[0].landing_day == str(FIRST)
    assert record.parent_sequences == str(days(2)[1])
    manifest = read_manifest(open_day(settings, days(3)[2]).workspace.sequences(days(3)[2]))
    tables = [plays(FIRST, seed=2), plays(days(2)[1], seed=2), plays(FIRST, seed=9)]
    assert rows_of(manifest) == reference(tables, index_of(manifest))
    assert storage.read_table(manifest.uri(manifest.inputs)).num_rows == 3


def test_a_day_between_two_and_one_before_the_first_are_built_from_the_logs_of_then(tmp_path):
    """The songs of both got their indices on later days: more than there were on theirs."""
    settings, landed = config(tmp_path), days(4)
    for day in landed:
        put(tmp_path / "logs", day, plays(day, seed=2))
    for ds in (days(3)[2], days(5)[4]):
        run(settings, ds)
    before = tree(Path(settings.workspace, "vocabulary"))
    for ds, parent in ((days(2)[1], None), (days(4)[3], days(3)[2])):
        _, manifest = run(settings, ds)
        assert manifest.parent == parent
        assert rows_of(manifest) == reference([plays(d, seed=2) for d in landed if d < ds], index_of(manifest))
        assert read_item_counts(manifest).tolist() == listeners_of(
            [plays(d, seed=2) for d in landed if d < ds], manifest
        )
    assert tree(Path(settings.workspace, "vocabulary")) == before
    _, last = run(settings, days(5)[4], refresh_inputs=True)  # on the day between, whose songs have later indices
    assert last.parent == days(4)[3]
    assert rows_of(last) == reference([plays(d, seed=2) for d in landed], index_of(last))


def test_shards_that_another_run_may_read_stay_until_it_has_ended(published):
    settings, logs, ds = published
    first = open_day(settings, days(2)[1])
    old = read_manifest(first.workspace.sequences(first.ds))
    with leases.lease(open_day(settings, ds).path("daily.lock"), purpose="fuxi daily"):  # it reads its parent's
        _, new = run(settings, first.ds, force=True)
        assert not listed_uris(old) & listed_uris(new)
        assert rows_of(old) == rows_of(new)  # whoever has read the old manifest reads on
    put(logs, days(2)[1], plays(days(2)[1], seed=2))
    run(settings, ds)
    assert not any(map(storage.exists, listed_uris(old)))
    assert all(map(storage.exists, listed_uris(new)))


@pytest.fixture
def published(tmp_path):
    """One published day, and a second whose logs are to be broken."""
    settings = config(tmp_path)
    put(tmp_path / "logs", FIRST, plays(FIRST, seed=2))
    run(settings, days(2)[1])
    return settings, tmp_path / "logs", days(3)[2]


def refused(settings, ds, message, **flags):
    """The day is refused in one line, and nothing published changes."""
    folders = [Path(settings.workspace, name) for name in ("sequences", "vocabulary", "quarantine")]
    before = [tree(folder) for folder in folders[:2]]
    with pytest.raises(InputError, match=message) as error:
        run(settings, ds, **flags)
    assert "\n" not in str(error.value)
    assert [tree(folder) for folder in folders[:2]] == before
    assert not Path(settings.workspace, "runs", f"ds={ds}", "staging").exists()


def test_a_day_without_new_files_names_the_folder_it_expected_and_runs_once_they_are_there(published):
    settings, logs, ds = published
    refused(settings, ds, rf"no new file landed since ds 2026-03-03, expected some in {logs}/ds=2026-03-03: wait")
    assert open_day(settings, ds).has_record
    put(logs, days(2)[1], plays(days(2)[1], seed=2))
    assert run(settings, ds)[0]["listeners"] > 0


@pytest.mark.parametrize("vacuumed", [False, True])
def test_what_a_tables_maintenance_wrote_is_nothing_new(tmp_path, vacuumed):
    settings, logs = config(tmp_path), str(tmp_path / "logs")

    def land(day, seed):
        rows = plays(day, seed=seed)
        landed = rows.append_column("ds", pa.array([day] * len(rows), pa.date32()))
        write_deltalake(logs, landed, partition_by=["ds"], mode="append")
        return len(rows)

    first, second = days(2)
    land(first, 0)
    land(first, 1)
    run(settings, first + dt.timedelta(days=1))
    late = land(first, 2)  # put together with rows that were taken in
    table = DeltaTable(logs)
    table.optimize.compact()
    if vacuumed:
        late = 3 * late  # the late rows are nowhere else, so all of the file is read again
        table.vacuum(0, enforce_retention_duration=False, dry_run=False)
    new = land(second, 3)
    result, _ = run(settings, second + dt.timedelta(days=1), accept_quality=True)
    assert result["rows_read"] == late + new
    third = land(second + dt.timedelta(days=1), 4)
    DeltaTable(logs).optimize.compact()
    result, _ = run(settings, second + dt.timedelta(days=2), accept_quality=True)
    assert result["rows_read"] == third
    assert result["duplicates"] < third


def test_a_first_day_without_any_logs_is_refused(tmp_path):
    refused(config(tmp_path), days(2)[1], r"logs.path: there is no folder .*/logs: correct it")


def test_a_day_with_empty_files_or_without_plays_is_refused(published):
    settings, logs, ds = published
    table = plays(days(2)[1], seed=2)
    put(logs, days(2)[1], table.slice(0, 0))
    refused(settings, ds, r"ds 2026-03-04: the new log files hold no plays \(0 rows, 0 other events\)")
    put(logs, days(2)[1], table.filter(pa.array([e == "like" for e in table["event_type"].to_pylist()])))
    refused(settings, ds, r"hold no plays \(\d+ rows, [1-9]\d* other events\)", refresh_inputs=True)


def test_too_many_rejected_rows_are_refused_with_counts_and_kept_for_inspection(published):
    settings, logs, ds = published
    table = plays(days(2)[1], seed=2, rows=100)
    shifted = table.set_column(2, "timestamp", pa.array(np.asarray(table["timestamp"]) + 5 * 86_400))
    put(logs, days(2)[1], shifted)
    refused(
        settings,
        ds,
        r"of 120 rows were rejected \(\d+%, .* allows 25%\): timestamp_after_landing \d+; .*: see logs.timestamp_unit",
    )
    assert storage.list_files(f"{settings.workspace}/quarantine/ds={ds}")


def test_a_refused_second_run_of_a_published_day_leaves_its_quarantine(published):
    settings, logs, _ = published
    before = tree(Path(settings.workspace, "quarantine"))
    put(logs, FIRST, plays(FIRST, seed=2).set_column(0, "user_id", pa.nulls(180, pa.int64())))
    refused(settings, days(2)[1], "rows were rejected", refresh_inputs=True)
    assert tree(Path(settings.workspace, "quarantine")) == before


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda t: t.drop(["item_id"]), r"part-0.parquet: column item_id \(item_id\) is missing"),
        (lambda t: t.set_column(2, "timestamp", pa.array([True] * len(t))), r"column timestamp .* is bool"),
        (lambda t: t.set_column(1, "item_id", pa.array([f"x{i}" for i in t["item_id"].to_pylist()])), "item_id has 'x"),
    ],
)
def test_a_file_with_wrong_columns_is_named(published, broken, message):
    settings, logs, ds = published
    put(logs, days(2)[1], broken(plays(days(2)[1], seed=2)))
    refused(settings, ds, message)


@pytest.mark.parametrize("damage", ["truncated", "pages"])
def test_an_unreadable_parquet_file_is_named(published, damage):
    settings, logs, ds = published
    file = put(logs, days(2)[1], plays(days(2)[1], seed=2))
    content = bytearray(file.read_bytes())
    if damage == "truncated":
        content = content[: len(content) // 2]
    else:
        content[4:1500] = b"\xff" * 1496  # footer intact: found by a task of Spark
    file.write_bytes(content)
    refused(settings, ds, rf"{file} cannot be read as parquet \(.*\): replace or remove the file")


def test_a_consumed_file_that_changes_is_named(published):
    settings, logs, ds = published
    put(logs, FIRST, plays(FIRST, seed=77))
    put(logs, days(2)[1], plays(days(2)[1], seed=2))
    refused(
        settings, ds, rf"{logs}/ds=2026-03-02/part-0.parquet has changed since an earlier ds took it in .*restore it"
    )


def test_a_run_record_is_kept_to_until_inputs_are_refreshed(published):
    settings, logs, ds = published
    file = put(logs, days(2)[1], plays(days(2)[1], seed=2))
    run(settings, ds)
    record = open_day(settings, ds).record
    put(logs, days(2)[1], plays(days(2)[1], seed=5), name="more.parquet")
    run(settings, ds, force=True)
    assert open_day(settings, ds).record == record
    file.touch()
    refused(
        settings, ds, rf"{file} has changed .* since the run record of ds {ds} was made.*--refresh-inputs", force=True
    )
    run(settings, ds, refresh_inputs=True)
    renewed = open_day(settings, ds).record
    assert renewed.run_id != record.run_id and len(renewed.files) == 2


def test_a_record_under_which_nothing_was_built_is_made_anew(tmp_path):
    """A misspelt column is corrected, a file repaired, a type set: the day runs, whatever its record says."""
    settings, ds = config(tmp_path, "logs.columns={user_id: listner}", "sequences.user_id_type=string"), days(2)[1]
    file = put(tmp_path / "logs", FIRST, plays(FIRST, seed=1))
    refused(settings, ds, r"column listner \(user_id\) is missing")
    record = open_day(settings, ds).record
    put(tmp_path / "logs", FIRST, plays(FIRST, seed=2))
    assert run(config(tmp_path), ds)[0]["listeners"] > 0
    renewed = open_day(config(tmp_path), ds).record
    assert renewed.run_id != record.run_id and renewed.files[0].etag == storage.file_info(str(file)).etag


def test_what_was_built_keeps_its_record_and_is_built_again_from_it_with_other_settings(published):
    settings, logs, ds = published
    put(logs, days(2)[1], plays(days(2)[1], seed=2))
    run(settings, ds)
    record = open_day(settings, ds).record
    other = config(logs.parent, "logs.max_late_days=0")
    result, _ = run(other, ds)
    assert result["rejected"]["timestamp_too_old"] and not result.get("skipped")
    assert open_day(other, ds).record == record


def test_a_changed_history_length_is_refused_on_a_merge(published):
    _, logs, ds = published
    put(logs, days(2)[1], plays(days(2)[1], seed=2))
    refused(
        config(logs.parent, "sequences.max_history=9"), ds, r"sequences.max_history is 9, .*ds 2026-03-03 .* with 8"
    )


def test_the_record_freezes_the_catalogue(tmp_path):
    (tmp_path / "catalogue").mkdir()
    (tmp_path / "catalogue" / "songs.parquet").write_bytes(b"x")
    settings = config(tmp_path, f"logs.catalogue={tmp_path}/catalogue")
    put(tmp_path / "logs", FIRST, plays(FIRST, seed=2))
    run(settings, days(2)[1])
    [file] = open_day(settings, days(2)[1]).record.catalogue_files
    assert file.uri.endswith("catalogue/songs.parquet") and file.size == 1


def test_logs_and_workspace_on_an_object_store(s3, tmp_path, spark):
    settings = config(tmp_path, f"workspace={s3}/workspace", f"logs.path={s3}/logs")
    for day in days(2):
        storage.write_table(f"{s3}/logs/ds={day}/part-0.parquet", plays(day, seed=6))
    run(settings, days(2)[1])
    _, manifest = run(settings, days(3)[2])
    tables = [plays(day, seed=6) for day in days(2)]
    assert rows_of(manifest) == reference(tables, index_of(manifest))


LOCAL_CLUSTER = """
import datetime as dt, sys
from jobs.stages import sessionize
from jobs.config import load_config
from jobs.day import open_day, run_stage
settings = load_config(environment={}, overrides=sys.argv[2:])
run_stage(open_day(settings, dt.date.fromisoformat(sys.argv[1])), "sessionize", sessionize.run)
"""


def test_on_two_executors_with_workers_of_their_own(tmp_path):
    """`local-cluster` in a process of its own: closures, broadcast and Python workers cross process borders."""
    settings = config(tmp_path)
    put(tmp_path / "logs", FIRST, plays(FIRST, seed=8))
    put(tmp_path / "logs", FIRST, plays(FIRST, seed=9), name="part-1.parquet")
    ds = FIRST + dt.timedelta(days=1)
    overrides = [
        f"workspace={settings.workspace}",
        f"logs.path={settings.logs.path}",
        "sequences.buckets=4",
        f"sequences.max_history={MAX_HISTORY}",
        "cluster.spark_master=local-cluster[2,1,1024]",
    ]
    done = subprocess.run(
        [sys.executable, "-c", LOCAL_CLUSTER, str(ds), *overrides],
        cwd=tmp_path,
        env={**os.environ, "SPARK_LOCAL_IP": "127.0.0.1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    manifest = read_manifest(f"{settings.workspace}/sequences/ds={ds}")
    assert rows_of(manifest) == reference([plays(FIRST, seed=8), plays(FIRST, seed=9)], index_of(manifest))
    assert all(
        hashlib.sha256(Path(manifest.uri(file.path)).read_bytes()).hexdigest() == file.sha256 for file in manifest.files
    )
