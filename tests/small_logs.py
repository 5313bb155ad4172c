"""Play logs of one landing day, written down in a test."""

import datetime as dt
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def write_logs(folder: Path, plays: int) -> Path:
    """So many plays of as many listeners and songs, landed on 2026-03-02; returns the folder."""
    day = folder / "ds=2026-03-02"
    day.mkdir(parents=True)
    start = int(dt.datetime(2026, 3, 2, tzinfo=dt.UTC).timestamp())
    columns = {"user_id": range(plays), "item_id": range(plays), "timestamp": range(start, start + plays)}
    pq.write_table(pa.table(columns), day / "part-0.parquet")
    return folder
