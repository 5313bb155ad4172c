"""Synthetic industrial logs, written once into a folder: 25 landing days, one row in a hundred invalid or repeated."""

import contextlib
import datetime as dt
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.calendar import DAY_SECONDS
from pipelines.errors import InputError
from pipelines.synthetic.industrial.config import BASE_DAYS, industrial_config
from pipelines.synthetic.industrial.plan import BYTES_A_PLAY, plan, write

PRESET = "daily-recommendations"


def synth(out: Path, *, scale: float, days: int) -> None:
    """Make the days of the preset that are missing below `out` (plays and catalogue), as a user would."""
    command = [sys.executable, "-m", "jobs.cli", "synth", "--preset", PRESET, "--scale", str(scale)]
    command += ["--days", str(days), "--out", str(out)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def day_folders(logs: Path) -> list[Path]:
    """The folders of the landing days, oldest first."""
    return sorted(logs.glob("ds=*"))


def serving_day(logs: Path) -> str:
    """The day after the newest landing day."""
    newest = dt.date.fromisoformat(day_folders(logs)[-1].name.removeprefix("ds="))
    return str(newest + dt.timedelta(days=1))


def logs_of(root: Path, *, events: int, workers: int) -> Path:
    """Write the logs of a size below `root` unless they exist. Returns the folder of the landing days.

    Half a percent of the plays of a day are repeated; a quarter of a percent each have no song, or lie ten days in the
    future.
    """
    folder = root / f"{PRESET}-{events}"
    done = folder / "complete.json"
    if not done.exists():
        check_space(root, int(events * BYTES_A_PLAY * 1.1), f"logs of {events:,} plays")
        config = industrial_config(PRESET, interactions=events)
        write(plan(config, str(folder), days=BASE_DAYS), workers=workers)
        for day in day_folders(folder / "plays"):
            _add_dirt(day)
        done.write_text(json.dumps({"preset": PRESET, "events": events}))
    return folder / "plays"


def rows_in(logs: Path) -> int:
    """Rows of all files, from their footers."""
    return sum(pq.ParquetFile(file).metadata.num_rows for file in logs.rglob("*.parquet"))


def into_page_cache(logs: Path) -> None:
    """Read every file once, after pending writes of the run before have reached the disk."""
    os.sync()
    for file in logs.rglob("*.parquet"):
        with file.open("rb") as stream:
            while stream.read(8 << 20):
                pass


def check_space(folder: Path, needed: int, purpose: str) -> None:
    """Refuse with one line if a disk has less than `needed` bytes free."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InputError(
            f"{folder}: {free / 1e9:.1f} GB free, {purpose} need {needed / 1e9:.1f} GB: "
            "free some space, or name another place with --data or TMPDIR"
        )


def _add_dirt(day: Path) -> None:
    """Write one more file for a day: repeated plays, plays without a song, plays from the future."""
    table = pq.ParquetFile(sorted(day.glob("part-*.parquet"))[0]).read_row_group(0)
    count = sum(pq.ParquetFile(file).metadata.num_rows for file in day.glob("part-*.parquet")) // 400
    rng = np.random.default_rng(int(day.name.replace("ds=", "").replace("-", "")))
    rows = table.take(np.sort(rng.permutation(len(table))[: 4 * count]))
    again = rows.slice(0, 2 * count)
    nameless = rows.slice(2 * count, count)
    nameless = nameless.set_column(1, nameless.schema.field(1), pa.nulls(len(nameless), pa.int64()))
    future = rows.slice(3 * count)
    future = future.set_column(2, future.schema.field(2), pa.array(future["timestamp"].to_numpy() + 10 * DAY_SECONDS))
    pq.write_table(pa.concat_tables([again, nameless, future]), day / "part-99999-dirt.parquet", compression="zstd")


EVENTS_A_BUCKET = 500_000


FEWEST_BUCKETS = 8


def buckets_for(events: int) -> int:
    """A power of two with about half a million events a bucket: 8 for 3M, 256 for 100M."""
    return max(2 ** math.ceil(math.log2(events / EVENTS_A_BUCKET)), FEWEST_BUCKETS)


@contextlib.contextmanager
def folder_for(data: str | None) -> Iterator[Path]:
    """The folder for logs: the given one, which is kept, or a temporary one."""
    if data:
        yield Path(data)
        return
    with tempfile.TemporaryDirectory(prefix="sessionize-logs-") as folder:
        yield Path(folder)
