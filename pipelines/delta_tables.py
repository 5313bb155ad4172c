"""How the Delta tables of a workspace are opened, created, read and written (delta-rs, no JVM).

Their columns, partitions and constraints are the `TableSpec`s of `pipelines.schema`. deltalake is imported by the
functions that use it, because most commands open no table.
"""

import datetime as dt
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines import storage
from pipelines.errors import BusyError
from pipelines.schema import DS, TableSpec

if TYPE_CHECKING:
    from deltalake import CommitProperties, DeltaTable

Row = dict[str, Any]
"""A row of a table, by column name."""


def open_table(uri: str, version: int | None = None) -> "DeltaTable | None":
    """A version of the table at a URI, by default the latest; None if there is no table."""
    from deltalake import DeltaTable
    from deltalake.exceptions import TableNotFoundError

    try:
        return DeltaTable(uri, version, storage_options=storage.delta_options(uri))
    except TableNotFoundError:
        return None


def version(uri: str) -> int | None:
    """The latest version of the table at a URI; None if there is no table."""
    table = open_table(uri)
    return None if table is None else table.version()


def open_or_create(uri: str, spec: TableSpec) -> "DeltaTable":
    """The table at a URI, created empty if there is none; constraints it lacks are added."""
    from deltalake import DeltaTable

    table = open_table(uri)
    if table is None:
        options, partition_by = storage.delta_options(uri), list(spec.partition_by)
        # Of two runs that create the table at the same time, the second opens the table of the first.
        DeltaTable.create(uri, spec.schema, "ignore", partition_by, spec.name, storage_options=options)
        table = DeltaTable(uri, storage_options=options)
    for name, condition in spec.constraints.items():
        if f"delta.constraints.{name}" not in table.metadata().configuration:
            table.alter.add_constraint({name: condition})
    return table


def read(uri: str, where: pc.Expression, columns: list[str] | None = None) -> pa.Table | None:
    """The rows that satisfy a condition; None if there is no table."""
    table = open_table(uri)
    return None if table is None else table.to_pyarrow_dataset().to_table(columns, filter=where)


def read_days(uri: str, *, since: dt.date | None = None, before: dt.date | None = None) -> list[Row]:
    """The rows of the days in [since, before), sorted by their columns (no lists), so by ds; none without a table."""
    day, days = pc.field(DS), [since or dt.date.min, before or dt.date.max]
    first, end = (pa.scalar(date, pa.date32()) for date in days)
    rows = read(uri, (day >= first) & (day < end))
    return [] if rows is None else rows.sort_by([(name, "ascending") for name in rows.column_names]).to_pylist()


def overwrite(uri: str, spec: TableSpec, rows: Iterable[Row], where: Mapping[str, object]) -> int:
    """Replace the rows whose columns have the values of `where`, in one commit; returns the table's version.

    The table is created if there is none. delta-rs refuses rows that have other values in these columns.
    """
    from deltalake import write_deltalake

    table = open_or_create(uri, spec)
    predicate = " AND ".join(f"{column} = '{value}'" for column, value in where.items())
    write_deltalake(table, pa.Table.from_pylist(list(rows), spec.schema), mode="overwrite", predicate=predicate)
    return table.version()


def append(
    uri: str, rows: pa.Table, *, base: int | None, transaction: tuple[str, int], metadata: Mapping[str, str]
) -> None:
    """Append rows to version `base` of a table, or create the table from them if that is None.

    transaction, metadata: of `commit_properties`. BusyError if another run committed with the same application id since
    `base`.
    """
    from deltalake import DeltaTable, write_deltalake
    from deltalake.exceptions import CommitFailedError, DeltaError

    properties = commit_properties(metadata=metadata, transaction=transaction, retry=False)
    options = storage.delta_options(uri)
    try:
        if base is None:
            write_deltalake(uri, rows, mode="error", storage_options=options, commit_properties=properties)
        else:
            table = DeltaTable(uri, base, storage_options=options)
            write_deltalake(table, rows, mode="append", commit_properties=properties)
    except (CommitFailedError, DeltaError) as error:
        if version(uri) == base:
            raise
        raise BusyError(f"{uri} was extended by another run at the same time ({error}): run again") from None


def commit_properties(
    *, metadata: Mapping[str, str] | None = None, transaction: tuple[str, int] | None = None, retry: bool = True
) -> "CommitProperties":
    """Properties of a commit.

    metadata: shown in the table's history. transaction: the id of an application and the number of its commit, without
    which two appends never conflict. retry: whether to commit on top of concurrent commits that do not conflict.
    """
    from deltalake import CommitProperties, Transaction

    return CommitProperties(
        custom_metadata=dict(metadata or {}) or None,
        app_transactions=[Transaction(*transaction)] if transaction else None,
        max_commit_retries=None if retry else 0,
    )
