"""Delta tables: created as their specification says, on the local disk and on a real S3 server, and opened again."""

import datetime as dt
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from pipelines import delta_tables, digests, schema, storage
from pipelines.errors import BusyError, InputError
from pipelines.schema import METRICS_TABLE, TableSpec
from pipelines.workspace import WorkspaceSpec, open_workspace

ONE, TWO, THREE = (dt.date(2026, 3, day) for day in (1, 2, 3))
LISTS, VOCABULARY = schema.recommendations_table("int64", "string"), schema.vocabulary_table("string")
SPECS = schema.all_tables("int64", "string")


def metric(ds: dt.date, name: str, value: float, protocol: str = "next_day") -> dict[str, Any]:
    row = dict.fromkeys(METRICS_TABLE.schema.names) | {"ds": ds, "protocol": protocol, "metric": name, "value": value}
    return row | {"model_version": "1", "slice": "all", "listeners": 5}


def values(uri: str, **days: dt.date) -> list[tuple[dt.date, str, float]]:
    return [(row["ds"], row["metric"], row["value"]) for row in delta_tables.read_days(uri, **days)]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_a_table_is_created_as_specified_and_opened_as_it_is(spec: TableSpec, tmp_path: Path) -> None:
    uri = str(tmp_path / "workspace" / spec.name)
    assert delta_tables.open_table(uri) is None and delta_tables.version(uri) is None
    assert not Path(uri).exists()
    made = delta_tables.open_or_create(uri, spec)
    assert pa.schema(made.schema().to_arrow()) == spec.schema
    metadata = made.metadata()
    assert (metadata.name, metadata.partition_columns) == (spec.name, list(spec.partition_by))
    conditions = {f"delta.constraints.{name}": condition for name, condition in spec.constraints.items()}
    assert metadata.configuration == conditions
    assert delta_tables.open_or_create(uri, spec).version() == made.version()


def test_every_table_of_a_workspace_is_in_the_folder_of_its_name(tmp_path: Path) -> None:
    workspace = open_workspace(str(tmp_path), WorkspaceSpec())
    uris = {getattr(workspace, spec.name) for spec in SPECS}
    assert {uri for uri, _ in workspace.tables()} == uris
    assert [storage.name(uri) for uri, _ in workspace.tables()] == [spec.name for spec in SPECS]


def test_the_constraint_of_the_lists_keeps_its_name_and_is_added_where_it_is_missing(tmp_path: Path) -> None:
    spec, uri = schema.recommendations_table("int64", "int64"), str(tmp_path)
    DeltaTable.create(uri, spec.schema, partition_by=["ds"])
    configuration = delta_tables.open_or_create(uri, spec).metadata().configuration
    assert configuration == {"delta.constraints.items_at_most": "array_length(items) <= 1000"}


def replace_and_read(uri: str) -> None:
    assert delta_tables.read_days(uri) == []
    first = [metric(ONE, "recall_30", 0.2), metric(ONE, "ndcg_30", 0.1), metric(ONE, "ndcg_30", 0.9, "leave_one_out")]
    delta_tables.overwrite(uri, METRICS_TABLE, first, {"ds": ONE})
    version = delta_tables.overwrite(uri, METRICS_TABLE, [metric(TWO, "ndcg_30", 0.3)], {"ds": TWO})
    again = [metric(ONE, "ndcg_30", 0.4)]
    assert delta_tables.overwrite(uri, METRICS_TABLE, again, {"ds": ONE, "protocol": "next_day"}) == version + 1
    assert values(uri) == [(ONE, "ndcg_30", 0.9), (ONE, "ndcg_30", 0.4), (TWO, "ndcg_30", 0.3)]
    assert values(uri, since=TWO) == [(TWO, "ndcg_30", 0.3)]
    assert values(uri, before=TWO) == [(ONE, "ndcg_30", 0.9), (ONE, "ndcg_30", 0.4)]
    assert values(uri, since=THREE, before=dt.date.max) == []


def test_rows_are_replaced_where_their_columns_have_the_given_values(tmp_path: Path) -> None:
    replace_and_read(str(tmp_path / "metrics"))


def test_rows_are_replaced_though_the_table_is_compacted_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, opened = str(tmp_path / "metrics"), delta_tables.open_or_create
    for ds in (ONE, TWO):
        delta_tables.overwrite(uri, METRICS_TABLE, [metric(ds, "ndcg_30", 0.1)], {"ds": ds})
    compactions = []

    def open_then_compact(uri: str, spec: TableSpec) -> DeltaTable:
        table = opened(uri, spec)
        compactions.append(delta_tables.compact(DeltaTable(uri)) and len(DeltaTable(uri).file_uris()))
        return table

    monkeypatch.setattr(delta_tables, "open_or_create", open_then_compact)
    delta_tables.overwrite(uri, METRICS_TABLE, [metric(ONE, "ndcg_30", 0.4)], {"ds": ONE})
    assert compactions == [1, 1]  # the first attempt lost to a compaction
    assert values(uri) == [(ONE, "ndcg_30", 0.4), (TWO, "ndcg_30", 0.1)]


def test_rows_are_replaced_on_an_object_store(s3: str) -> None:
    replace_and_read(f"{s3}/metrics")


def flipped(file: Path, seed: int) -> bytes:
    """Flip a bit; returns what the file was."""
    whole, rng = file.read_bytes(), random.Random(seed)
    content = bytearray(whole)
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)
    return whole


@pytest.fixture(scope="module")
def some_days(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Days, then a checkpoint, then more of them: no reader needs the first commits."""
    uri = str(tmp_path_factory.mktemp("tables") / "metrics")
    for number in range(6):
        ds = ONE + dt.timedelta(number)
        version = delta_tables.overwrite(uri, METRICS_TABLE, [metric(ds, "ndcg_30", number)], {"ds": ds})
        if number == 2:
            DeltaTable(uri).create_checkpoint()
    assert version == 6
    return Path(uri)


@pytest.mark.parametrize("digests_noted", [True, False])
def test_a_flipped_bit_in_any_file_of_a_table_is_one_line_and_never_another_row(
    some_days: Path, tmp_path: Path, digests_noted: bool
) -> None:
    """Tables of earlier releases have no digests: of them damage that cannot be read is one line all the same."""
    root = tmp_path / "metrics"
    shutil.copytree(some_days, root)
    whole = values(str(root))
    if not digests_noted:
        (root / "_digests.json").unlink()
    refused = []
    for file in sorted(file for file in root.rglob("*") if file.is_file()):
        for seed in range(4):
            content = flipped(file, seed)
            storage.forget_digests()
            try:
                found = values(str(root))
                assert found == whole or not digests_noted
            except InputError as error:
                assert "\n" not in str(error) and str(root) in str(error)
                assert not digests_noted or file.name in str(error) or file.name == "_last_checkpoint"
                refused.append(file.relative_to(root).as_posix())
            file.write_bytes(content)
    kinds = {re.sub(r"[-0-9].*?(?=\.\w+$)", "", name) for name in refused}
    assert kinds >= {"_delta_log/.json", "part.parquet"}
    assert not digests_noted or len(refused) > 30


def test_a_lost_file_of_a_table_never_makes_an_earlier_version_of_it(some_days: Path, tmp_path: Path) -> None:
    root = tmp_path / "metrics"
    shutil.copytree(some_days, root)
    whole, refused = values(str(root)), []
    for file in sorted(file for file in root.rglob("*") if file.is_file() and file.name != "_digests.json"):
        content = file.read_bytes()
        file.unlink()
        try:
            assert values(str(root)) == whole
        except InputError as error:
            assert str(root) in str(error)
            refused.append(file.name)
        file.write_bytes(content)
    assert "00000000000000000006.json" in refused and any(name.endswith(".parquet") for name in refused)
    shutil.rmtree(root / "_delta_log")
    with pytest.raises(InputError, match="is missing, the newest of its log"):
        values(str(root))


@pytest.mark.parametrize("where", [{"ds": TWO}, {"ds": "2026-03-02"}, {"ds": TWO, "protocol": "next_day"}])
def test_damage_is_not_written_again_with_the_rows_of_another_day(
    some_days: Path, tmp_path: Path, where: dict[str, object]
) -> None:
    root = tmp_path / "metrics"
    shutil.copytree(some_days, root)
    delta_tables.compact(DeltaTable(root))
    [file] = map(Path, DeltaTable(root).file_uris())
    digests.note_digests(str(root))
    flipped(file, 1)
    with pytest.raises(InputError, match=f"{file.name} is damaged, .*fuxi verify"):
        delta_tables.overwrite(str(root), METRICS_TABLE, [metric(TWO, "ndcg_30", 0.5)], where)


RUN = """
import contextlib, os, signal, sys
from pipelines import delta_tables, leases
from pipelines.errors import FencedError
from pipelines.schema import METRICS_TABLE, parse_ds

lease, table, value, stops = sys.argv[1:]
check = leases.publishing


@contextlib.contextmanager
def stopped_behind_its_look_at_the_lease():
    with check():
        os.kill(os.getpid(), signal.SIGSTOP)
        yield


row = dict.fromkeys(METRICS_TABLE.schema.names) | {"ds": parse_ds("2026-03-02"), "protocol": "next_day"}
row |= {"metric": "hr_30", "value": float(value), "model_version": "1", "slice": "all", "listeners": 5}
signal.signal(signal.SIGINT, signal.SIG_IGN)  # the lease's own thread would end the work before the table can refuse it
with leases.lease(lease, purpose="run", seconds=6.0 if stops else 60.0, wait=lambda _: None):
    if stops:
        leases.publishing = stopped_behind_its_look_at_the_lease
    try:
        delta_tables.overwrite(table, METRICS_TABLE, [row], {"ds": "2026-03-02"})
        print("committed", flush=True)
    except FencedError as error:
        print(error, flush=True)
        os._exit(0)
"""


def test_the_commit_of_a_run_whose_lease_another_process_has_taken_over_is_refused(s3: str) -> None:
    """The first process is stopped between its look at the lease and its commit, until the second has committed."""
    uri, lease = f"{s3}/metrics", f"{s3}/runs/ds={TWO}/daily.lock"
    delta_tables.overwrite(uri, METRICS_TABLE, [metric(ONE, "hr_30", 0.1)], {"ds": ONE})
    command = [sys.executable, "-c", RUN, lease, uri]
    with subprocess.Popen([*command, "0.2", "stops"], stdout=subprocess.PIPE, text=True) as late:
        try:
            until = time.monotonic() + 60
            while psutil.Process(late.pid).status() != psutil.STATUS_STOPPED:
                assert late.poll() is None and time.monotonic() < until
                time.sleep(0.05)
            second = subprocess.run([*command, "0.3", ""], capture_output=True, text=True, check=True, timeout=60)
            assert second.stdout == "committed\n"
            late.send_signal(signal.SIGCONT)
            said, _ = late.communicate(timeout=60)
        finally:
            late.kill()
    assert "was changed by a later run of ds=2026-03-02, which has taken over: nothing is published here" in said
    assert values(uri) == [(ONE, "hr_30", 0.1), (TWO, "hr_30", 0.3)]


def test_rows_outside_what_is_replaced_are_refused(tmp_path: Path) -> None:
    uri = str(tmp_path)
    with pytest.raises(DeltaError, match="failed validation"):
        delta_tables.overwrite(uri, METRICS_TABLE, [metric(TWO, "ndcg_30", 0.3)], {"ds": ONE})
    assert values(uri) == []


def test_of_two_appends_on_one_version_the_second_is_refused(tmp_path: Path) -> None:
    uri, rows = str(tmp_path / "table"), pa.table({"n": [1]})
    delta_tables.append(uri, rows, base=None, transaction=("app", 1), metadata={"run_id": "a"})
    with pytest.raises(BusyError, match="run again"):
        delta_tables.append(uri, rows, base=None, transaction=("app", 1), metadata={"run_id": "b"})
    delta_tables.append(uri, rows, base=0, transaction=("app", 2), metadata={"run_id": "b"})
    with pytest.raises(BusyError, match="run again"):
        delta_tables.append(uri, rows, base=0, transaction=("app", 2), metadata={"run_id": "c"})
    assert delta_tables.version(uri) == 1
    assert [entry["run_id"] for entry in DeltaTable(uri).history()] == ["b", "a"]


def test_deltalake_is_imported_only_where_a_table_is_opened() -> None:
    code = "import sys, jobs.cli, pipelines.histories.vocabulary, jobs.tables.recommendations; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert "pipelines.delta_tables" in modules and "deltalake" not in modules
