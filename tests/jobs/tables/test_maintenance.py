"""Maintenance of real Delta tables: what readers, runs in progress and forgotten listeners find afterwards."""

import datetime as dt
import hashlib
import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from deltalake import DeltaTable

from jobs import cli
from jobs.commands import forget
from jobs.commands.maintain import render
from jobs.config import MaintainConfig
from jobs.tables import maintenance
from jobs.tables import recommendations as lists
from jobs.tables.maintenance import TableMaintenance, maintain
from pipelines import delta_tables, digests, leases, schema, storage
from pipelines.errors import BusyError
from pipelines.histories import vocabulary
from pipelines.schema import DS, METRICS_TABLE
from pipelines.workspace import Workspace, WorkspaceSpec, open_workspace

DAY = dt.date(2026, 3, 2)
WEEK = MaintainConfig()  # type: ignore[call-arg]
USERS = ["listener-0001", "listener-0002", "listener-0003"]


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return open_workspace(str(tmp_path / "a workspace"), WorkspaceSpec(buckets=4, user_id_type="string"))


def measure(workspace: Workspace, days: int, value: float = 0.5) -> None:
    """A commit of metrics a day."""
    for n in range(days):
        ds = DAY + dt.timedelta(n)
        row = dict.fromkeys(METRICS_TABLE.schema.names) | {"ds": ds, "protocol": "next_day", "value": value + n}
        delta_tables.overwrite(workspace.metrics, METRICS_TABLE, [row], {DS: ds, "protocol": "next_day"})


def part(workspace: Workspace, ds: dt.date = DAY, users: list[str] = USERS) -> lists.ListPart:
    columns = {
        "bucket": [0] * len(users),
        "user_id": users,
        "items": [[{"item_id": 7, "score": 0.5}]] * len(users),
        "source": ["model"] * len(users),
    }
    wanted = schema.recommendations_table("string", "int64").schema
    rows = pa.table(columns, schema=pa.schema([wanted.field(name) for name in columns]))
    absent = [field for field in wanted if field.name not in (DS, *columns)]
    for field in absent:
        rows = rows.append_column(field, pa.nulls(rows.num_rows, field.type))
    return lists.write_part(workspace.recommendations, ds, rows)


def publish(workspace: Workspace, ds: dt.date = DAY, key: int = 1) -> None:
    table = lists.open_lists(workspace)
    lists.commit(table, ds, [part(workspace, ds)], key=key, metadata={"ds": str(ds)})


def add_songs(workspace: Workspace, n: int) -> vocabulary.Vocabulary:
    ids = pa.array([100 + n])
    return vocabulary.append(workspace.vocabulary, ids, ds=DAY, item_id_type="int64", run_id="test")


def wait(workspace: Workspace, hours: float) -> None:
    """Make every commit, checkpoint and file older, as if the clock had gone on."""
    passed = int(hours * 3_600_000)
    for file in (path for path in Path(workspace.uri).rglob("*") if path.is_file()):
        stat = file.stat()
        if file.parent.name == "_delta_log" and file.suffix == ".json":
            times = r'("(?:timestamp|deletionTimestamp|modificationTime)":)(\d+)'
            file.write_text(re.sub(times, lambda match: f"{match[1]}{int(match[2]) - passed}", file.read_text()))
        elif file.name.endswith(".checkpoint.parquet"):
            actions = pq.read_table(file)
            aged = actions.to_pylist()
            for action in aged:
                if action["remove"]:
                    action["remove"]["deletionTimestamp"] -= passed
            pq.write_table(pa.Table.from_pylist(aged, actions.schema), file)
        os.utime(file, (stat.st_atime, stat.st_mtime - hours * 3600))
    for uri, _ in workspace.tables():
        if (noted := Path(uri, digests.NOTED_FILE)).exists():  # of the log as it was
            noted.unlink()
            digests.note_digests(uri)


def done(workspace: Workspace, **how: Any) -> dict[str, TableMaintenance]:
    return {table.name: table for table in maintain(workspace, WEEK, **how)}


def rows(uri: str, version: int | None = None) -> list[dict[str, Any]]:
    table = DeltaTable(uri, version, storage_options=storage.delta_options(uri)).to_pyarrow_table()
    return sorted(table.to_pylist(), key=str)


def tree(workspace: Workspace) -> dict[str, str]:
    files = (file for file in Path(workspace.uri).rglob("*") if file.is_file() and file.suffix != ".lock")
    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_a_reader_of_yesterdays_version_reads_on_and_one_of_last_month_does_not(workspace: Workspace) -> None:
    measure(workspace, 20)
    wait(workspace, 24)
    reader = DeltaTable(workspace.metrics)
    before, version = rows(workspace.metrics), reader.version()
    first = done(workspace)["metrics"]
    assert (first.files_before, first.files_after, first.removed_files) == (20, 1, 0)
    assert first.checkpoint
    assert sorted(reader.to_pyarrow_table().to_pylist(), key=str) == before == rows(workspace.metrics)

    wait(workspace, 167)  # longer than a week for the commits of the days, not for the compaction
    assert done(workspace)["metrics"].removed_files == 0
    assert rows(workspace.metrics, version) == before  # it was the newest one until the compaction
    wait(workspace, 2)
    last = done(workspace)["metrics"]
    assert (last.removed_files, last.kept_versions) == (20, 1)
    assert rows(workspace.metrics) == before
    with pytest.raises((FileNotFoundError, OSError)):
        rows(workspace.metrics, version)
    assert len(list(Path(workspace.metrics).glob("*.parquet"))) == 1


def test_a_version_is_kept_though_a_checkpoint_has_forgotten_when_its_files_were_removed(workspace: Workspace) -> None:
    """Delta-rs leaves files that were removed a week ago out of a checkpoint, and vacuum then goes by their age."""
    month = MaintainConfig(retention_hours=720)  # type: ignore[call-arg]
    measure(workspace, 20)
    before, version = rows(workspace.metrics), DeltaTable(workspace.metrics).version()
    wait(workspace, 100)
    delta_tables.compact(DeltaTable(workspace.metrics))
    wait(workspace, 700)
    DeltaTable(workspace.metrics).create_checkpoint()
    assert [table.removed_files for table in maintain(workspace, month)] == [0]
    assert rows(workspace.metrics, version) == before
    wait(workspace, 30)
    assert [table.removed_files for table in maintain(workspace, month)] == [20]


def test_lists_keep_their_files_and_lose_those_of_old_versions(workspace: Workspace) -> None:
    days = [DAY + dt.timedelta(n) for n in range(20)]
    for ds in days:
        publish(workspace, ds)
    publish(workspace, DAY, key=2)  # a day published again
    before, live = rows(workspace.recommendations), set(DeltaTable(workspace.recommendations).file_uris())
    wait(workspace, 24)
    assert done(workspace)["recommendations"].removed_files == 0
    assert len(rows(workspace.recommendations, 3)) == 6  # two days, the constraint is version 1
    wait(workspace, 150)
    result = done(workspace)["recommendations"]
    assert (result.files_before, result.files_after, result.removed_files) == (20, 20, 1)
    assert set(DeltaTable(workspace.recommendations).file_uris()) == live
    assert rows(workspace.recommendations) == before


def test_the_files_of_a_run_in_progress_stay_and_its_commit_succeeds(workspace: Workspace) -> None:
    publish(workspace)
    add_songs(workspace, 0)
    measure(workspace, 20)
    table, later = lists.open_lists(workspace), DAY + dt.timedelta(1)
    parts, known = [part(workspace, later)], vocabulary.read(workspace.vocabulary, "int64")
    wait(workspace, 167)  # the run takes nearly a week
    run = storage.join(workspace.run(later), "daily.lock")
    with leases.lease(run, purpose="fuxi recommend"):
        result = done(workspace)
        assert result["recommendations"].removed_files == 0
        assert "not compacted while a day runs" in result["metrics"].note and run in result["metrics"].note
        assert result["metrics"].files_after == 20
        lists.check_parts(workspace.recommendations, parts)
        lists.commit(table, later, parts, key=1, metadata={})
        songs = schema.vocabulary_rows(pa.array([200]), later, after=1)
        delta_tables.append(
            workspace.vocabulary, songs, base=known.version, transaction=("fuxi-vocabulary", 2), metadata={}
        )
    assert lists.published_days(workspace) == [DAY, later] and len(rows(workspace.vocabulary)) == 2
    assert done(workspace)["metrics"].files_after == 1


def test_parts_of_a_killed_run_go_when_they_are_older_than_the_retention(workspace: Workspace) -> None:
    publish(workspace)
    killed = part(workspace)
    half = Path(workspace.recommendations, f"{DS}={DAY}", f"part-x.parquet.{0:032x}.tmp")
    half.write_bytes(b"PAR1")
    wait(workspace, 167)
    young = part(workspace)
    assert done(workspace)["recommendations"].removed_files == 0
    wait(workspace, 2)
    result = done(workspace)["recommendations"]
    assert (result.removed_files, result.removed_bytes) == (2, killed.size + 4)
    live = [Path(uri).name for uri in DeltaTable(workspace.recommendations).file_uris()]
    assert sorted(file.name for file in half.parent.iterdir()) == sorted([Path(young.path).name, *live])


def a_used_workspace(workspace: Workspace) -> None:
    """Tables with many files, old versions and a killed run's part."""
    measure(workspace, 20)
    measure(workspace, 3, value=0.1)
    for n in range(18):
        add_songs(workspace, n)
    publish(workspace)
    publish(workspace, key=2)
    part(workspace)
    wait(workspace, 200)


def test_a_dry_run_changes_nothing_and_says_what_the_run_will_do(workspace: Workspace) -> None:
    a_used_workspace(workspace)
    before = tree(workspace)
    planned = maintain(workspace, WEEK, dry_run=True)
    assert tree(workspace) == before and not Path(workspace.forget_lock).exists()
    assert {table.name: table.removed_files for table in planned} == {
        "vocabulary": 0,
        "recommendations": 2,
        "metrics": 3,
    }
    by_name = {table.name: table for table in maintain(workspace, WEEK)}
    for table in planned:
        real = by_name[table.name]
        counts = [(t.files_before, t.files_after, t.removed_files, t.removed_bytes) for t in (table, real)]
        assert counts[0] == counts[1] and table.checkpoint == real.checkpoint
    compacted = 2 * 4 + 1  # a file, its commit, a checkpoint and what points to it; digests of a table without any
    assert len(tree(workspace)) == len(before) - 5 + compacted


def test_run_again_it_does_nothing(workspace: Workspace) -> None:
    a_used_workspace(workspace)
    done(workspace)
    before = tree(workspace)
    again = done(workspace)
    assert tree(workspace) == before
    assert not any(table.removed_files or table.checkpoint for table in again.values())


def test_tables_that_are_not_there_are_passed_over(workspace: Workspace) -> None:
    assert done(workspace) == {}
    measure(workspace, 1)
    assert list(done(workspace)) == ["metrics"]
    assert not Path(workspace.quality).exists()


def test_versions_of_the_vocabulary_that_run_records_name_stay(workspace: Workspace) -> None:
    versions = [add_songs(workspace, n).version for n in range(18)]
    record = {"ds": str(DAY), "vocabulary_version": versions[4]}
    storage.write_json(storage.join(workspace.run(DAY), "run_record.json"), record)
    done(workspace)
    assert len(DeltaTable(workspace.vocabulary).file_uris()) == 1
    wait(workspace, 200)
    assert done(workspace)["vocabulary"].removed_files == 13
    assert [row["item_id"] for row in rows(workspace.vocabulary, versions[4])] == [100, 101, 102, 103, 104]
    assert vocabulary.read(workspace.vocabulary, "int64").size() == 18
    assert add_songs(workspace, 18).size() == 19


def test_it_does_not_run_beside_a_removal_nor_count_the_lease_of_its_own_day(workspace: Workspace) -> None:
    measure(workspace, 20)
    own = storage.join(workspace.run(DAY), "daily.lock")
    with leases.lease(workspace.forget_lock, purpose="fuxi forget"), pytest.raises(BusyError, match="fuxi forget"):
        done(workspace)
    with leases.lease(own, purpose="fuxi daily"):
        assert done(workspace)["metrics"].files_after == 20
        assert done(workspace, held=own)["metrics"].files_after == 1


def test_a_compaction_that_another_commit_overtakes_changes_nothing(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure(workspace, 20)
    compact = delta_tables.compact

    def overtaken(table: DeltaTable) -> bool:
        measure(workspace, 1, value=9.0)
        return compact(table)

    monkeypatch.setattr(delta_tables, "compact", overtaken)
    result = done(workspace)["metrics"]
    assert result.note == "not compacted: another run committed meanwhile"
    assert [row["value"] for row in delta_tables.read_days(workspace.metrics)] == [
        9.0,
        *(0.5 + n for n in range(1, 20)),
    ]


def mentions(workspace: Workspace, user: str) -> list[str]:
    """The files that hold a user id: rows of Parquet below the lists, the Delta log, and the bytes of everything."""
    found = []
    for file in (path for path in Path(workspace.uri).rglob("*") if path.is_file()):
        text = str(pq.ParquetFile(file).read().to_pylist()) if file.suffix == ".parquet" else ""
        if user in text or user.encode() in file.read_bytes():
            found.append(file.name)
    return found


def test_old_files_of_forgotten_listeners_go_and_no_log_gets_an_id(workspace: Workspace) -> None:
    for n in range(18):
        publish(workspace, DAY + dt.timedelta(n))
    table = lists.open_lists(workspace)
    files = pa.table(table.get_add_actions()).select(["path", "size_bytes"]).to_pylist()
    # As `fuxi forget` leaves it when a run begins before its last step.
    for n in range(18):
        ds = DAY + dt.timedelta(n)
        of_day = [(file["path"], file["size_bytes"]) for file in files if f"{DS}={ds}" in file["path"]]
        lists.replace_parts(table, ds, of_day, [part(workspace, ds, USERS[1:])])
    assert len(mentions(workspace, USERS[0])) == 18
    wait(workspace, 200)
    assert done(workspace)["recommendations"].removed_files == 18
    assert mentions(workspace, USERS[0]) == []
    log = Path(workspace.recommendations, "_delta_log")
    assert not [file for file in mentions(workspace, USERS[1]) if (log / file).exists()]


def test_forget_after_maintenance_leaves_nobody_and_maintenance_after_it_works(
    deployment: Callable[..., Any],
) -> None:
    made = deployment("sequences.user_id_type=string", "sequences.buckets=4", user_id_type="string")
    day = made.day(DAY)
    made.sessionized(DAY)
    for n in range(3):
        publish(day.workspace, DAY, key=n)
    done(day.workspace)
    assert len(mentions(day.workspace, USERS[0])) == 3
    forget.forget(made.config, pa.array([USERS[0]]))
    assert mentions(day.workspace, USERS[0]) == []
    assert done(day.workspace)["recommendations"].removed_files == 0
    assert {row["user_id"] for row in rows(day.workspace.recommendations)} == set(USERS[1:])


def test_on_an_object_store(s3: str) -> None:
    workspace = open_workspace(f"{s3}/music", WorkspaceSpec(buckets=4, user_id_type="string"))
    measure(workspace, 20)
    publish(workspace)
    part(workspace)
    before = rows(workspace.metrics), rows(workspace.recommendations)
    assert {name: (t.files_after, t.removed_files) for name, t in done(workspace).items()} == {
        "recommendations": (1, 0),
        "metrics": (1, 0),
    }
    time.sleep(1.1)  # times of an object store are seconds
    at_once = MaintainConfig.model_construct(every_days=7, retention_hours=0)
    removed = {table.name: table.removed_files for table in maintain(workspace, at_once)}
    assert removed == {"recommendations": 1, "metrics": 20}
    assert (rows(workspace.metrics), rows(workspace.recommendations)) == before
    assert not leases.lease_holder(workspace.forget_lock)


def test_the_command_prints_a_line_a_table_within_eighty_columns(workspace: Workspace) -> None:
    a_used_workspace(workspace)
    before = tree(workspace)
    command = ["maintain", "--workspace", workspace.uri]
    plan = CliRunner().invoke(cli.cli, [*command, "--dry-run"], env={"COLUMNS": "80"})
    assert plan.exit_code == 0 and "Would be done" in plan.stdout and tree(workspace) == before
    made = CliRunner().invoke(cli.cli, command, env={"COLUMNS": "80"})
    assert made.exit_code == 0 and tree(workspace) != before
    for text in (plan.stdout, made.stdout):
        assert max(map(len, text.splitlines())) <= 80
        assert re.search(r"metrics +20 +1 +3 +0\.0\d\d ", text)
        assert "new checkpoints: vocabulary, metrics" in text


def test_the_line_of_a_large_table_fits_too(capsys: pytest.CaptureFixture[str]) -> None:
    large = TableMaintenance("recommendations", 93_440, 93_440, True, 93_440, 4_000_000_000_000, 720)
    render([large], dry_run=False)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80 and any("4,000,000.000            720" in line for line in lines)


def test_every_table_of_a_workspace_is_maintained(workspace: Workspace) -> None:
    for uri, spec in workspace.tables():
        delta_tables.open_or_create(uri, spec)
    assert list(done(workspace)) == [spec.name for _, spec in workspace.tables()]
    assert maintenance.SURPLUS_FILES > 1  # else a table of one partition a day would always be written again


def test_a_checkpoint_is_what_readers_begin_with(workspace: Workspace) -> None:
    measure(workspace, maintenance.CHECKPOINT_COMMITS - 2)  # the table's creation is a commit, too
    assert not done(workspace)["metrics"].checkpoint
    measure(workspace, 1, value=0.7)
    assert done(workspace)["metrics"].checkpoint
    newest = json.loads(Path(workspace.metrics, "_delta_log", "_last_checkpoint").read_text())
    assert newest["version"] == DeltaTable(workspace.metrics).version()
