"""Days of the workspace's time zone, end to end: which window a play lands in, and where the sequences are cut.

Instants are written in UTC by hand, so that nothing here depends on the code that computes them.
"""

import datetime as dt
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.config import load_config
from jobs.day import open_day, run_stage
from jobs.stages import sessionize
from pipelines.histories.shards import Manifest, read_manifest

pytestmark = pytest.mark.usefixtures("spark")


@dataclass(frozen=True)
class Change:
    """Three days of a zone around a change of its clocks: where each starts, and where the third ends."""

    zone: str
    first: dt.date
    starts: tuple[str, str, str, str]

    def second(self, day: int) -> int:
        return int(dt.datetime.fromisoformat(self.starts[day]).timestamp())

    def date(self, day: int) -> dt.date:
        return self.first + dt.timedelta(days=day)


CHANGES = {
    "Berlin, 23 hours": Change(
        "Europe/Berlin",
        dt.date(2026, 3, 28),
        ("2026-03-27T23:00Z", "2026-03-28T23:00Z", "2026-03-29T22:00Z", "2026-03-30T22:00Z"),
    ),
    "Berlin, 25 hours": Change(
        "Europe/Berlin",
        dt.date(2026, 10, 24),
        ("2026-10-23T22:00Z", "2026-10-24T22:00Z", "2026-10-25T23:00Z", "2026-10-26T23:00Z"),
    ),
    "Santiago, no 00:00": Change(
        "America/Santiago",
        dt.date(2026, 9, 5),
        ("2026-09-05T04:00Z", "2026-09-06T04:00Z", "2026-09-07T03:00Z", "2026-09-08T03:00Z"),
    ),
    "Havana, 00:00 twice": Change(
        "America/Havana",
        dt.date(2026, 10, 31),
        ("2026-10-31T04:00Z", "2026-11-01T04:00Z", "2026-11-02T05:00Z", "2026-11-03T05:00Z"),
    ),
}


def write(folder: Path, day: dt.date, seconds: dict[int, int], kind: pa.DataType) -> None:
    """The plays that landed on a day: listener -> when. Every play is of the song that has the listener's number."""
    table = pa.table(
        {
            "user_id": list(seconds),
            "item_id": list(seconds),
            "timestamp": pa.array(list(seconds.values()), pa.int64()).cast(kind),
        }
    )
    (folder / f"ds={day}").mkdir(parents=True)
    pq.write_table(table, folder / f"ds={day}" / "part-0.parquet")


def sequences(manifest: Manifest) -> dict[int, list[tuple[int, int]]]:
    """listener -> [(timestamp, session)]."""
    rows = [row for file in manifest.files for row in manifest.read(file).to_pylist()]
    return {row["user_id"]: list(zip(row["timestamp"], row["session_index"], strict=True)) for row in rows}


def run(settings: Any, ds: dt.date) -> tuple[dict[str, Any], Manifest]:
    day = open_day(settings, ds)
    return run_stage(day, "sessionize", sessionize.run), read_manifest(day.workspace.sequences(ds))


@pytest.mark.parametrize("name", CHANGES)
def test_days_begin_when_the_zone_s_clocks_say_so(name: str, tmp_path: Path) -> None:
    """Plays in the last and first second of three days; a day late is allowed, two are not."""
    change = CHANGES[name]
    settings = load_config(
        environment={},
        overrides=[
            f"workspace={tmp_path}/workspace",
            f"logs.path={tmp_path}/logs",
            "logs.max_late_days=1",
            "logs.max_rejected_share=0.9",
            f"sequences.timezone={change.zone}",
            "sequences.buckets=2",
        ],
    )
    zero, one, two, three = (change.second(day) for day in range(4))
    # The day the clocks change is the second one. Landed on it: its window is that day and the one before.
    plays = {1: zero - 1, 2: zero, 3: one - 1, 4: one, 5: two - 1, 6: two}
    write(tmp_path / "logs", change.date(1), plays, pa.int64())
    result, manifest = run(settings, change.date(2))
    assert result["rejected"] == {"timestamp_too_old": 1, "timestamp_after_landing": 1}
    assert manifest.data_end == two and manifest.timezone == change.zone
    assert sequences(manifest) == {2: [(zero, 0)], 3: [(one - 1, 0)], 4: [(one, 0)], 5: [(two - 1, 0)]}

    # Landed on the day after; this time as timestamps of the zone, whose wall clock jumped.
    plays = {3: one - 1, 4: one, 5: two, 6: two + 1800, 7: three - 1, 8: three}
    write(tmp_path / "logs", change.date(2), plays, pa.timestamp("s", change.zone))
    result, manifest = run(settings, change.date(3))
    assert result["rejected"] == {"timestamp_too_old": 1, "timestamp_after_landing": 1}
    assert result["duplicates"] == 1  # listener 4's play landed twice
    assert manifest.data_end == three
    assert sequences(manifest) == {
        2: [(zero, 0)],
        3: [(one - 1, 0)],
        4: [(one, 0)],
        5: [(two - 1, 0), (two, 0)],  # a session goes on over midnight
        6: [(two + 1800, 0)],
        7: [(three - 1, 0)],
    }


def test_a_session_across_the_change_is_as_long_as_it_lasted(tmp_path: Path) -> None:
    """Berlin, 2026-10-25: 02:50 is followed by 02:10, twenty minutes later. Half an hour of wall clock is no pause."""
    starts = int(dt.datetime.fromisoformat("2026-10-25T00:50Z").timestamp())
    write(tmp_path / "logs", dt.date(2026, 10, 25), {1: starts}, pa.timestamp("s", "Europe/Berlin"))
    more = pa.table({"user_id": [1, 1], "item_id": [2, 3], "timestamp": [starts + 1200, starts + 1200 + 1801]})
    pq.write_table(more, tmp_path / "logs" / "ds=2026-10-25" / "part-1.parquet")
    settings = load_config(
        environment={},
        overrides=[
            f"workspace={tmp_path}/workspace",
            f"logs.path={tmp_path}/logs",
            "sequences.timezone=Europe/Berlin",
            "sequences.buckets=2",
        ],
    )
    _, manifest = run(settings, dt.date(2026, 10, 26))
    assert sequences(manifest) == {1: [(starts, 0), (starts + 1200, 0), (starts + 3001, 1)]}
