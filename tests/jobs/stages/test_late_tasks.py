"""A task that nobody waits for any more: Spark repeated it, its stage is over, and it goes on."""

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import storage
from pipelines.calendar import Calendar
from pipelines.histories.shuffle import Shuffle
from pipelines.logs import files as logs
from pipelines.logs.validate import CleanSpec, CleanTask, ValidationRules
from pipelines.schema import parse_ds

DAY = parse_ds("2026-03-02")


@pytest.fixture
def spec(tmp_path: Path) -> CleanSpec:
    """Logs of one file in which every tenth row is rejected, and the folders of a stage."""
    (tmp_path / f"logs/ds={DAY}").mkdir(parents=True)
    users = pa.array(np.arange(1000) % 50, mask=np.arange(1000) % 10 == 0)
    times = pa.array(Calendar().day_start(DAY) + np.arange(1000))
    rows = pa.table({"user_id": users, "item_id": pa.array(np.arange(1000) % 30), "timestamp": times})
    pq.write_table(rows, tmp_path / f"logs/ds={DAY}/part-0.parquet")
    (tmp_path / "staging").mkdir()
    shuffle = Shuffle(2, 4, max_history=100)
    source = logs.LogSpec(path=str(tmp_path / "logs"))
    return CleanSpec(source, ValidationRules(), shuffle, f"{tmp_path}/staging", f"{tmp_path}/quarantine")


def read(spec: CleanSpec, attempt: str) -> dict[str, Any]:
    task = CleanTask(spec, "00000", attempt=attempt)
    for split in logs.plan(spec.logs, logs.discover(spec.logs, before=parse_ds("2026-03-03"))):
        task.read(split)
    return task.finish()


def content(folder: str) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in Path(folder).rglob("*") if file.is_file()}


def test_a_repeated_task_rejects_the_same_rows_into_the_same_file_and_writes_other_runs(spec: CleanSpec) -> None:
    first = read(spec, "a")
    rejected = content(spec.quarantine)
    second = read(spec, "b")
    assert len(rejected) == 1 and content(spec.quarantine) == rejected
    assert first["quarantined"] == second["quarantined"] and first["rejected"] == second["rejected"] != {}
    assert {run.uri for run in first["runs"]}.isdisjoint(run.uri for run in second["runs"])


def test_a_task_that_goes_on_after_its_stage_leaves_nothing(spec: CleanSpec) -> None:
    read(spec, "a")
    rejected = content(spec.quarantine)
    storage.delete_folder(spec.staging)
    with pytest.raises(FileNotFoundError):
        read(spec, "b")
    assert not storage.exists(spec.staging)
    assert content(spec.quarantine) == rejected


def test_a_folder_is_deleted_while_somebody_writes_into_it(tmp_path: Path) -> None:
    """`Directory not empty` otherwise, which would end a day whose shards are published."""
    folder, stop = tmp_path / "staging", threading.Event()
    folder.mkdir()

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            try:
                (folder / f"plays-{number}").write_bytes(b"x")
            except FileNotFoundError:
                return
            time.sleep(0.0005)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        while len(list(folder.iterdir())) < 50:
            pass
        storage.delete_folder(str(folder))
    finally:
        stop.set()
        thread.join()
    assert not folder.exists()
