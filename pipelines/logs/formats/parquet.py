"""Parquet: typed columns, checked by their footer and split at row groups."""

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import storage
from pipelines.logs.formats.base import BATCH_ROWS, Format, LogFile, LogSpec, RawBatch, Split, typed_batch


class Parquet(Format):
    """Parquet files. Columns that are not mapped are read for rejected rows only."""

    name, endings = "parquet", (".parquet",)

    @contextlib.contextmanager
    def open(self, uri: str) -> Iterator[pq.ParquetFile]:
        """A file whose footer is read."""
        fs, path = storage.filesystem(uri)
        with fs.open_input_file(path) as source:
            yield pq.ParquetFile(source)

    def columns(self, source: pq.ParquetFile) -> pa.Schema:
        """The footer's schema."""
        return source.schema_arrow

    def splits(self, file: LogFile, source: pq.ParquetFile, split_bytes: int) -> list[Split]:
        """Consecutive row groups, `split_bytes` of them uncompressed."""
        splits, groups, size, rows = [], [], 0, 0
        for group in range(source.num_row_groups):
            metadata = source.metadata.row_group(group)
            groups.append(group)
            size += metadata.total_byte_size
            rows += metadata.num_rows
            if size >= split_bytes or group == source.num_row_groups - 1:
                splits.append(Split(file, self.name, size, rows, tuple(groups)))
                groups, size, rows = [], 0, 0
        return splits

    def read(self, spec: LogSpec, source: pq.ParquetFile, split: Split) -> Iterator[RawBatch]:
        """The rows of some row groups."""
        names = source.schema_arrow.names
        mapped = set(spec.mapped(names).values())
        unmapped = [column for column in names if column not in mapped]
        for group in split.row_groups:
            batches = functools.partial(source.iter_batches, BATCH_ROWS, row_groups=[group], use_threads=False)
            rest = _on_demand(batches(columns=unmapped) if unmapped else itertools.repeat(None))
            for number, batch in enumerate(batches(columns=sorted(mapped))):
                yield typed_batch(spec, batch, functools.partial(rest, number))


def _on_demand(batches: Iterable[pa.RecordBatch | None]) -> Callable[[int], pa.RecordBatch | None]:
    """A function from a batch's number, which must not descend, to the batch. Nothing is read before its first call."""
    numbered = enumerate(batches)
    place, batch = -1, None

    def batch_of(number: int) -> pa.RecordBatch | None:
        nonlocal place, batch
        while place < number:
            place, batch = next(numbered)
        return batch

    return batch_of


FORMAT = Parquet()
