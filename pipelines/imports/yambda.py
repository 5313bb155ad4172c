"""Yambda: plays of Yandex Music, flat (a row a play) or sequential (a row a listener, with lists), in Parquet.

https://huggingface.co/datasets/yandex/yambda. Its times are seconds since a day that was not told.
"""

import datetime as dt
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.errors import InputError
from pipelines.imports import sources
from pipelines.imports.dataset import LINE, Chunk, Dataset, Published, Rejected, Rows
from pipelines.schema import ARTIST_ID, DURATION_MS, ITEM_ID, PLAY_MS, PLAY_SOURCE, TIMESTAMP, USER_ID

FILES = ("listens.parquet", "multi_event.parquet")
ARTISTS = "artist_item_mapping.parquet"
ORGANIC, RECOMMENDED = "organic", "recommended"
FIRST_DAY = dt.date(2020, 1, 1)
_LISTEN = "listen"
_NEEDED = ("uid", "timestamp", "item_id")
_OPTIONAL = ("is_organic", "played_ratio_pct", "track_length_seconds", "event_type")
_BATCH_ROWS = 1 << 20
_SEQUENCES = 4096
"""Listeners of a batch of the sequential files: some thousand plays each."""
_LISTENS = {"50m": 46_467_212, "500m": 466_512_103, "5b": 4_649_567_411}
_PAPER = "table 1 of https://arxiv.org/abs/2505.22238"


class Yambda(Dataset):
    """The plays (events `listen` of a file of several), and of each song its artist's number."""

    name = "yambda"
    columns = (USER_ID, ITEM_ID, TIMESTAMP, PLAY_MS, DURATION_MS, PLAY_SOURCE)
    unchosen_sources = (RECOMMENDED,)
    expected = f"{' or '.join(FILES)}, or a folder with one of them and {ARTISTS}"
    whole = FILES

    def __init__(self, first_day: dt.date = FIRST_DAY) -> None:
        self.first_day = first_day
        self._first_second = int(np.datetime64(first_day, "s").astype(int))

    def variant(self) -> dict[str, Any]:
        """The day that time 0 becomes."""
        return {"first-day": str(self.first_day)}

    def wanted(self, name: str) -> bool:
        """Whether a file of a folder is of the data set."""
        return name in (*FILES, ARTISTS)

    def chunks(self, download: sources.Download) -> Iterator[Chunk]:
        """Row groups, in pieces of about a million rows. InputError if a column is missing or of another type."""
        with pq.ParquetFile(download.path) as file:
            names = file.schema_arrow.names
            artists = "artist_id" in names
            missing = [name for name in (("artist_id", "item_id") if artists else _NEEDED) if name not in names]
            if missing:
                raise InputError(
                    f"{download.path}: column {missing[0]} is missing (found {', '.join(names)}): give {self.expected}"
                )
            wanted = ["artist_id", "item_id"] if artists else [*_NEEDED, *(n for n in _OPTIONAL if n in names)]
            lists = not artists and pa.types.is_list(file.schema_arrow.field("timestamp").type)
            number = 0
            for batch in file.iter_batches(_SEQUENCES if lists else _BATCH_ROWS, columns=wanted):
                first = number
                number += len(batch)
                yield Chunk(f"row {first:,}", lambda batch=batch, first=first: self._read(batch, first))

    def published(self, downloads: Sequence[sources.Download]) -> Sequence[Published]:
        """Plays of the three sizes, by the folder's name."""
        sizes = {Path(one.path).parent.name for one in downloads if Path(one.path).name in FILES}
        return [Published("plays_read", _LISTENS[size], _PAPER) for size in sizes if size in _LISTENS]

    def _read(self, batch: pa.RecordBatch, first: int) -> Rows:
        table = pa.Table.from_batches([batch])
        if "artist_id" in table.column_names:
            songs = {ITEM_ID: table["item_id"].cast(pa.int64()), ARTIST_ID: table["artist_id"].cast(pa.int64())}
            return Rows(songs=pa.table(songs))
        rejected: list[Rejected] = []
        line = pa.array(np.arange(first, first + table.num_rows))
        if pa.types.is_list(table["timestamp"].type):
            table, line, rejected = _flat(table, first)
        return self._plays(table, line, rejected)

    def _plays(self, table: pa.Table, line: pa.Array, rejected: list[Rejected]) -> Rows:
        ignored = 0
        if "event_type" in table.column_names:
            listens = pc.fill_null(pc.equal(table["event_type"].cast(pa.string()), _LISTEN), fill_value=False)
            ignored = table.num_rows - pc.sum(listens).as_py()
            table, line = table.filter(listens), line.filter(listens.combine_chunks())
        rows = table.num_rows
        length, ratio = (_numbers(table, name) for name in ("track_length_seconds", "played_ratio_pct"))
        source = pa.nulls(rows, pa.string())
        if "is_organic" in table.column_names:
            source = pc.if_else(table["is_organic"].cast(pa.bool_()), ORGANIC, RECOMMENDED)
        plays = {
            USER_ID: table["uid"].cast(pa.int64()),
            ITEM_ID: table["item_id"].cast(pa.int64()),
            TIMESTAMP: pc.add(table["timestamp"].cast(pa.int64()), self._first_second),
            PLAY_MS: pc.multiply(pc.multiply(ratio, length), 10),
            DURATION_MS: pc.multiply(length, 1000),
            PLAY_SOURCE: source,
            LINE: line,
        }
        return Rows(pa.table(plays), None, rejected, ignored)


def _numbers(table: pa.Table, name: str) -> Any:
    if name not in table.column_names:
        return pa.nulls(table.num_rows, pa.int64())
    return table[name].cast(pa.int64())


def _flat(table: pa.Table, first: int) -> tuple[pa.Table, pa.Array, list[Rejected]]:
    """A row a play, of rows with lists; those whose lists are not of one length apart."""
    table = table.combine_chunks()
    lists = [name for name in table.column_names if pa.types.is_list(table[name].type)]
    lengths = {name: pc.fill_null(pc.list_value_length(table[name]), -1).to_numpy() for name in lists}
    wanted = lengths["timestamp"]
    fits = np.logical_and.reduce([wanted >= 0, *(found == wanted for found in lengths.values())])
    rejected = [
        Rejected("lists_of_several_lengths", f"row {first + row}", f"uid {table['uid'][row].as_py()}")
        for row in np.flatnonzero(~fits).tolist()
    ]
    table = table.filter(pa.array(fits))
    repeated = np.repeat(np.arange(table.num_rows), wanted[fits])
    flat = {name: pc.list_flatten(table[name]) for name in lists}
    alone = {name: table[name].take(pa.array(repeated)) for name in table.column_names if name not in lists}
    return pa.table({**alone, **flat}), pa.array(first + np.flatnonzero(fits)[repeated]), rejected
