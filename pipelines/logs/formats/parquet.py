"""Parquet: typed columns, checked by their footer and split at row groups."""

import contextlib
import functools
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import storage
from pipelines.logs.formats.base import (
    Batches,
    Format,
    LogFile,
    LogSpec,
    RawBatch,
    Split,
    located,
    type_at,
    typed_batch,
)
from pipelines.logs.formats.values import unit_of
from pipelines.schema import TIMESTAMP


class Parquet(Format):
    """Parquet files. Columns that are not mapped are read for rejected rows only."""

    name, endings = "parquet", (".parquet", ".parq", ".pq")

    @contextlib.contextmanager
    def open(self, uri: str) -> Iterator[pq.ParquetFile]:
        """A file whose footer is read."""
        fs, path = storage.filesystem(uri)
        with fs.open_input_file(path) as source:
            # Times of Impala and old Spark (INT96) as microseconds: nanoseconds end in 2262, and 9999 is not rare.
            yield pq.ParquetFile(source, coerce_int96_timestamp_unit="us", arrow_extensions_enabled=True)

    def columns(self, spec: LogSpec, source: pq.ParquetFile) -> pa.Schema:
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

    def read(self, spec: LogSpec, source: pq.ParquetFile, split: Split) -> Batches:
        """The rows of some row groups, as many as the footer says."""
        names = source.schema_arrow.names
        used = {path[0] for path in located(spec, source.schema_arrow).values()}
        unmapped = list(dict.fromkeys(column for column in names if column not in used))
        for group in split.row_groups:
            batches = functools.partial(source.iter_batches, spec.batch_rows, row_groups=[group], use_threads=False)
            rest = _on_demand(batches(columns=unmapped) if unmapped else itertools.repeat(None))
            for number, batch in enumerate(batches(columns=sorted(used))):
                yield typed_batch(spec, batch, split.unit, functools.partial(rest, number))
        return sum(source.metadata.row_group(group).num_rows for group in split.row_groups)

    def sample(self, spec: LogSpec, file: LogFile) -> RawBatch | None:
        """The least and the greatest time where statistics tell them, else some rows of the first row group."""
        with self.open(file.uri) as source:
            paths = located(spec, source.schema_arrow)
            types = {name: type_at(source.schema_arrow, path) for name, path in paths.items()}
            if all(pa.types.is_primitive(type_) for type_ in types.values()):
                if not pa.types.is_integer(types[TIMESTAMP]):
                    return None
                times = _bounds(source, paths[TIMESTAMP])
                if times and unit_of(times[::2]) == unit_of(times[1::2]):
                    return RawBatch({TIMESTAMP: pa.array(times, pa.int64())}, np.zeros(len(times), bool), lambda _: [])
            full = [group for group in range(source.num_row_groups) if source.metadata.row_group(group).num_rows]
            split = Split(file, self.name, 0, 0, tuple(full[:1]))
            return next(iter(self.read(replace(spec, batch_rows=1000), source, split)), None)

    def table(self, spec: LogSpec, uri: str, columns: Sequence[str]) -> pa.Table:
        """Some columns of a small file with the types it gives them; columns that it lacks are left out."""
        with self.open(uri) as source:
            return source.read([name for name in dict.fromkeys(columns) if name in source.schema_arrow.names])


def _bounds(source: pq.ParquetFile, path: Sequence[str]) -> list[int]:
    """The least and the greatest value of a column of integers in each row group, none if one lacks statistics."""
    bounds: list[int] = []
    for group in range(source.num_row_groups):
        metadata = source.metadata.row_group(group)
        leaves = [metadata.column(n) for n in range(metadata.num_columns)]
        leaf = next((leaf for leaf in leaves if leaf.path_in_schema == ".".join(path)), None)
        if leaf is None or leaf.statistics is None or not leaf.statistics.has_min_max:
            return []
        bounds += [leaf.statistics.min, leaf.statistics.max]
    return bounds if all(isinstance(bound, int) and abs(bound) < 2**63 for bound in bounds) else []


def _on_demand(batches: Iterable[pa.RecordBatch | None]) -> Callable[[int], pa.RecordBatch | None]:
    """A function from a batch's number, which must not descend, to the batch. Nothing is read before its first call.

    None from where on they cannot be read: the columns only serve to show rejected rows.
    """
    numbered = enumerate(batches)
    place, batch = -1, None

    def batch_of(number: int) -> pa.RecordBatch | None:
        nonlocal place, batch
        while place < number:
            try:
                place, batch = next(numbered, (sys.maxsize, None))
            except (pa.ArrowException, OSError):
                place, batch = sys.maxsize, None
        return batch

    return batch_of


FORMAT = Parquet()
