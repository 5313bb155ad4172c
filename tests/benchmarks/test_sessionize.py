"""The sessionize benchmark: baselines store what loops store, the reader finds errors, every process is measured."""

import dataclasses
import itertools
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.lib import processes
from benchmarks.lib.contestants import CONTESTANTS, MAX_HISTORY, OURS, SESSION_GAP_S, Work, histories_of, songs_of
from benchmarks.lib.industrial_logs import buckets_for
from benchmarks.lib.sequence_checksums import Checksums, checksums

DAY = 86_400
LANDED = 1_767_571_200  # 2026-01-05


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    """Two landing days: a listener with a history beyond the maximum, equal seconds, repeated plays, invalid rows."""
    root = tmp_path_factory.mktemp("logs")
    rng = np.random.default_rng(3)
    for number in range(2):
        user = np.concatenate([np.full(MAX_HISTORY, 7), rng.integers(0, 200, 3000)])
        item = rng.integers(10**12, 10**12 + 300, len(user))
        at = LANDED + number * DAY + rng.integers(-3 * DAY, DAY, len(user)) // 600 * 600
        at[:20], at[20:40] = LANDED + (number + 1) * DAY, LANDED + (number - 60) * DAY - 1
        table = pa.table(
            {"user_id": user, "item_id": pa.array(item, mask=rng.random(len(user)) < 0.01), "timestamp": at}
        )
        folder = root / f"ds=2026-01-0{5 + number}"
        folder.mkdir()
        pq.write_table(pa.concat_tables([table, table.slice(500, 100)]), folder / "part-0.parquet")
    return root


def reference(logs) -> Checksums:
    """The checksums of histories that are built by sets and loops."""
    plays: dict[int, set] = {}
    for number in range(2):
        first, end = LANDED + (number - 60) * DAY, LANDED + (number + 1) * DAY
        for row in pq.read_table(logs / f"ds=2026-01-0{5 + number}" / "part-0.parquet").to_pylist():
            if row["item_id"] is not None and first <= row["timestamp"] < end:
                plays.setdefault(row["user_id"], set()).add((row["timestamp"], row["item_id"]))
    ids = sorted({item for events in plays.values() for _, item in events})
    index = {item: place for place, item in enumerate(ids, 1)}
    rows = []
    for user, events in sorted(plays.items()):
        ordered = sorted(events)
        kept, older = ordered[-MAX_HISTORY:], ordered[:-MAX_HISTORY]
        session = [0]
        for before, after in itertools.pairwise(kept):
            session.append(session[-1] + (after[0] - before[0] > SESSION_GAP_S))
        rows.append(
            {
                "user_id": user,
                "item_index": [index[item] for _, item in kept],
                "timestamp": [at for at, _ in kept],
                "session_index": session,
                "heard_before": sorted({index[item] for _, item in older}),
                "num_events": len(kept),
            }
        )
    songs = pa.table({"item_id": ids, "item_index": list(index.values())})
    assert any(row["heard_before"] for row in rows)
    return checksums([pa.Table.from_pylist(rows)], songs, session_gap_s=SESSION_GAP_S)


def stored_by(name, logs, folder) -> tuple[Work, Checksums]:
    work = Work(str(logs), str(folder), "2026-01-07", buckets=8, cores=2, memory_gb=1)
    for place in (work.output, work.temp):
        place.mkdir(parents=True)
    CONTESTANTS[name](work)()
    return work, checksums(histories_of(name, work), songs_of(name, work), session_gap_s=SESSION_GAP_S)


@pytest.mark.parametrize("name", [name for name in CONTESTANTS if name not in OURS])
def test_a_baseline_stores_what_loops_store(name, logs, tmp_path):
    work, found = stored_by(name, logs, tmp_path)
    assert found.differences(reference(logs)) == []
    assert len(list(work.output.glob("bucket-*.parquet"))) == 8


def test_the_reader_refuses_unsorted_shards_and_wrong_sessions(logs, tmp_path):
    work, right = stored_by("duckdb", logs, tmp_path)
    songs = songs_of("duckdb", work)
    [table, *rest] = list(histories_of("duckdb", work))
    rows = table.to_pylist()

    def read(changed):
        return checksums(
            [pa.Table.from_pylist(changed, schema=table.schema), *rest], songs, session_gap_s=SESSION_GAP_S
        )

    assert read(rows) == right
    long = next(place for place, row in enumerate(rows) if row["num_events"] > 2)
    for column, problem in (("session_index", "not cut by the pauses"), ("timestamp", "not ascending")):
        changed = [dict(row) for row in rows]
        changed[long][column] = [*rows[long][column][1:], rows[long][column][0]]
        with pytest.raises(ValueError, match=problem):
            read(changed)
    with pytest.raises(ValueError, match="not ascending within a file"):
        read([rows[1], rows[0], *rows[2:]])
    with pytest.raises(ValueError, match="more than once"):
        checksums([table, table, *rest], songs, session_gap_s=SESSION_GAP_S)
    moved = [dict(row) for row in rows]
    moved[long]["timestamp"] = [at + 1 for at in rows[long]["timestamp"]]
    assert [difference.split()[0] for difference in right.differences(read(moved))] == ["plays"]
    assert dataclasses.replace(right, songs=1).differences(right) == [f"songs 1 and {right.songs}"]


SPAWNS = """
import os, signal, time

def burn(seconds):
    while time.process_time() < seconds: pass

def start(work):
    pid = os.fork()
    if pid == 0:
        work()
        os._exit(0)
    return pid

def careless():  # like PySpark's daemon: the kernel drops its children's time
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    start(lambda: (burn(0.5), time.sleep(1)))
    burn(0.5)
    time.sleep(2)

start(careless)                                                               # 1.0 s, outlives this process
os.waitpid(start(lambda: start(lambda: (time.sleep(0.5), burn(0.5)))), 0)     # 0.5 s, an orphan
os.waitpid(start(lambda: burn(0.5)), 0)                                       # 0.5 s
burn(0.5)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="orphans are adopted on Linux only")
def test_processor_time_of_orphans_and_of_children_without_a_waiting_parent_is_counted(tmp_path):
    script = tmp_path / "spawns.py"
    script.write_text(SPAWNS)
    started = time.monotonic()
    cost = processes.run([sys.executable, str(script)], folder=Path(tmp_path))
    assert cost.returncode == 0
    assert 2.4 < cost.cpu_s < 2.9, cost
    assert cost.wall_s < time.monotonic() - started


def test_buckets_are_a_power_of_two_that_grows_with_the_logs():
    assert [buckets_for(millions * 1_000_000) for millions in (1, 3, 10, 30, 100)] == [8, 8, 32, 64, 256]
