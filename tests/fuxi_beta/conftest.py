"""Tiny shard folders and random jagged batches for the tests of this package."""

import datetime as dt
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import schema
from pipelines.histories.shards import Manifest, ShardFile, write_manifest

Event = tuple[int, int, int]
"""(item index, Unix second, completion)."""


@pytest.fixture
def make_shards(tmp_path: Path) -> Callable[..., Manifest]:
    """A function that writes one shard file a bucket and publishes the manifest.

    buckets: a list of {user id: events}; row_group: rows of a row group; heard_before: {user id: songs}.
    """

    def make(
        buckets: list[dict[int, list[Event]]],
        *,
        vocabulary_size: int,
        data_end: int,
        ds: dt.date = dt.date(2026, 3, 4),
        row_group: int = 1000,
        heard_before: dict[int, list[int]] | None = None,
        timezone: str = "UTC",
    ) -> Manifest:
        folder, files = tmp_path / f"ds={ds}", []
        for number, users in enumerate(buckets):
            path = f"bucket={number:05d}/part-0.parquet"
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            rows = [
                {
                    schema.USER_ID: user,
                    schema.ITEM_INDEX: [event[0] for event in events],
                    schema.TIMESTAMP: [event[1] for event in events],
                    schema.COMPLETION: [event[2] for event in events],
                    schema.SESSION_INDEX: [0] * len(events),
                    schema.HEARD_BEFORE: (heard_before or {}).get(user, []),
                    schema.NUM_EVENTS: len(events),
                }
                for user, events in sorted(users.items())
            ]
            table = pa.Table.from_pylist(rows, schema=schema.sequence_schema("int64"))
            pq.write_table(table, folder / path, row_group_size=row_group)
            groups = tuple(min(row_group, len(rows) - start) for start in range(0, len(rows), row_group))
            events = sum(len(row[schema.ITEM_INDEX]) for row in rows)
            files.append(ShardFile(path, number, len(rows), events, 0, "", groups))
        manifest = Manifest(
            ds=ds,
            run_id="test",
            parent=None,
            buckets=len(buckets),
            max_history=2000,
            session_gap_s=1800,
            user_id_type="int64",
            item_id_type="int64",
            timezone=timezone,
            vocabulary_version=0,
            vocabulary_size=vocabulary_size,
            data_end=data_end,
            item_counts="item_counts.parquet",
            inputs="inputs.parquet",
            files=tuple(files),
        )
        return write_manifest(str(folder), manifest)

    return make
