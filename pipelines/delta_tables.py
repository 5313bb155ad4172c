"""How the Delta tables of a workspace are opened, created, read and written (delta-rs, no JVM).

Their columns, partitions and constraints are the `TableSpec`s of `pipelines.schema`. deltalake is imported by the
functions that use it, because most commands open no table.
"""

import contextlib
import datetime as dt
import functools
import operator
import re
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc

from pipelines import digests, leases, object_store, storage
from pipelines.digests import FileDigest
from pipelines.errors import BusyError, FencedError, InputError
from pipelines.redact import redacted
from pipelines.schema import DS, TableSpec

if TYPE_CHECKING:
    from deltalake import CommitProperties, DeltaTable

_ATTEMPTS = 3
_WRITE = "write"
"""In the metadata of a commit: an id by which a commit whose answer was lost is found again."""

_COMMIT = re.compile(r"_delta_log/(\d+)\.")
_LATE = re.compile(
    r"No files in log segment|no new commits were found after|LogSegment end version \d+ not the same as the specified"
)
"""What delta-rs says after a commit that it has written and does not find in the list of the log."""
_OF_PLACE = re.compile(r"AWS Error|Generic \w+ error|No space left|Permission denied|Read-only file system")
"""What an error says of a store or a disk, and not of a table's files."""

Row = dict[str, Any]
"""A row of a table, by column name."""


def open_table(uri: str, version: int | None = None) -> "DeltaTable | None":
    """A version of the table at a URI, by default the latest; None if there is no table.

    InputError if its log is damaged: where the table has digests (`digests.note_digests`), every bit is compared.
    """
    from deltalake import DeltaTable
    from deltalake.exceptions import TableNotFoundError

    _check_log(uri)
    try:
        with _readable(uri):
            return DeltaTable(uri, version, storage_options=storage.delta_options(uri))
    except TableNotFoundError:
        return None


def open_listed(uri: str, version: int | None) -> "DeltaTable | None":
    """The latest version of the table at a URI, once a version is in the list of its log, from which delta-rs opens it.

    A store may list a commit late. If it does not list it in time, another has been restored: the latest is opened.
    """
    for pause in object_store.pauses():
        table = open_table(uri)
        found = -1 if table is None else table.version()
        if version is None or found >= version or pause is None or not storage.is_s3(uri):
            return table
        time.sleep(pause)
    raise AssertionError("the last attempt returns")


def rows_of(
    uri: str, table: "DeltaTable", columns: list[str] | None = None, where: pc.Expression | None = None
) -> pa.Table:
    """The rows of an open table that satisfy a condition. InputError if a file that may have some is damaged."""
    with _readable(uri):
        check_data(uri, table, where)
        return table.to_pyarrow_dataset().to_table(columns, filter=where)


@contextlib.contextmanager
def _readable(uri: str) -> Iterator[None]:
    """One line that names the table, of what delta-rs and Arrow say of damaged files."""
    from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError

    try:
        yield
    except (CommitFailedError, TableNotFoundError):
        raise
    except (DeltaError, pa.ArrowException, OSError) as error:
        if _OF_PLACE.search(str(error)):
            raise
        reason = " ".join(str(error).partition("\n")[0].split())[:200]
        raise InputError(f"{uri} is damaged ({reason}): `fuxi verify` names the file and what rebuilds it") from None


def _check_log(uri: str) -> None:
    """InputError if a commit that a reader of the table needs, or its newest checkpoint, is not as it was written."""
    versions = {name: int(found[1]) for name in _noted(uri) if (found := _COMMIT.match(name))}
    checkpoints = [number for name, number in versions.items() if not name.endswith(".json")]
    _check_files(uri, [name for name, number in versions.items() if number >= max(checkpoints, default=0)])
    # A reader takes what is there for all there is, so nothing else tells that the newest commits are gone.
    newest = max(versions.items(), key=lambda item: (item[1], item[0].endswith(".json")), default=("", 0))[0]
    if newest and not storage.exists(storage.join(uri, newest)):
        raise InputError(f"{storage.join(uri, newest)} is missing, the newest of its log: restore it from a backup")


def check_data(uri: str, table: "DeltaTable", where: pc.Expression | None = None) -> None:
    """InputError if a data file that may have rows under a condition is not as it was written."""
    if noted := _noted(uri):
        fragments = table.to_pyarrow_dataset().get_fragments(filter=where)
        _check_files(uri, [name for fragment in fragments if (name := unquote(fragment.path)) in noted])


def _check_files(uri: str, names: Sequence[str]) -> None:
    """Once a process. What is not there is passed over: delta-rs says so if it is needed."""
    noted = _noted(uri)

    def damage(name: str) -> str:
        try:
            storage.check_digest(storage.join(uri, name), noted[name].sha256)
        except FileNotFoundError:
            return ""
        except OSError as error:
            if _OF_PLACE.search(str(error)) or error.errno:
                raise
            return str(error)
        return ""

    with ThreadPoolExecutor(8) as pool:
        for name, found in zip(names, pool.map(damage, names), strict=True):
            if found:
                raise InputError(f"{storage.join(uri, name)} is damaged, {found}: `fuxi verify` says what rebuilds it")


def _noted(uri: str) -> Mapping[str, FileDigest]:
    """The digests of a table's files by name; none of a table that is not ours, or of an earlier release."""
    listing = storage.join(uri, digests.NOTED_FILE)
    [info] = storage.file_infos([listing])
    return {} if info is None else _read_noted(listing, info.etag)


@functools.lru_cache(32)
def _read_noted(listing: str, etag: str) -> Mapping[str, FileDigest]:
    return digests.read_listing(listing)


def version(uri: str) -> int | None:
    """The latest version of the table at a URI; None if there is no table."""
    table = open_table(uri)
    return None if table is None else table.version()


def open_or_create(uri: str, spec: TableSpec) -> "DeltaTable":
    """The table at a URI, created empty if there is none; constraints it lacks are added."""
    from deltalake import DeltaTable
    from deltalake.exceptions import TableNotFoundError

    table = open_table(uri)
    if table is None:
        options, partition_by = storage.delta_options(uri), list(spec.partition_by)
        # Of two runs that create the table at the same time, the second opens the table of the first.
        with contextlib.suppress(TableNotFoundError):  # it is there, and its store does not list it yet
            DeltaTable.create(uri, spec.schema, "ignore", partition_by, spec.name, storage_options=options)
        table = open_listed(uri, 0) or DeltaTable(uri, storage_options=options)
    for name, condition in spec.constraints.items():
        if f"delta.constraints.{name}" not in table.metadata().configuration:
            table.alter.add_constraint({name: condition})
    return table


def read(uri: str, where: pc.Expression, columns: list[str] | None = None) -> pa.Table | None:
    """The rows that satisfy a condition; None if there is no table."""
    table = open_table(uri)
    return None if table is None else rows_of(uri, table, columns, where)


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
    from deltalake.exceptions import CommitFailedError

    predicate = " AND ".join(f"{column} = '{value}'" for column, value in where.items())
    replacement = pa.Table.from_pylist(list(rows), spec.schema)
    for attempts_left in reversed(range(_ATTEMPTS)):
        table = open_or_create(uri, spec)
        check_data(uri, table, _equal(where, spec))  # the other rows of these files are written again
        write = functools.partial(write_deltalake, table, replacement, mode="overwrite", predicate=predicate)
        try:
            commit(uri, lambda properties, write=write: write(commit_properties=properties))
            table.update_incremental()
            break
        except CommitFailedError:  # of a compaction or another run's rows, which may share files with these
            if not attempts_left:
                raise
    digests.note_digests(uri)
    return table.version()


def _equal(where: Mapping[str, object], spec: TableSpec) -> pc.Expression | None:
    kinds = {column: spec.schema.field(column).type for column in where}
    conditions = [pc.field(column) == pa.scalar(value).cast(kinds[column]) for column, value in where.items()]
    return functools.reduce(operator.and_, conditions) if conditions else None


def append(
    uri: str, rows: pa.Table, *, base: int | None, transaction: tuple[str, int], metadata: Mapping[str, str]
) -> None:
    """Append rows to version `base` of a table, or create the table from them if that is None.

    transaction, metadata: of `commit_properties`. BusyError if another run committed with the same application id since
    `base`.
    """
    from deltalake import DeltaTable, write_deltalake
    from deltalake.exceptions import CommitFailedError, DeltaError

    options = storage.delta_options(uri)

    def write(properties: "CommitProperties") -> None:
        if base is None:
            write_deltalake(uri, rows, mode="error", storage_options=options, commit_properties=properties)
        else:
            table = DeltaTable(uri, base, storage_options=options)
            write_deltalake(table, rows, mode="append", commit_properties=properties)

    try:
        commit(uri, write, metadata=metadata, transaction=transaction, retry=False)
    except (CommitFailedError, DeltaError) as error:
        if version(uri) == base:
            raise
        raise BusyError(f"{uri} was extended by another run at the same time ({error}): run again") from None
    digests.note_digests(uri)


def surplus_files(table: "DeltaTable") -> int:
    """The files of a table beyond one a partition, which compaction could save."""
    return max(len(table.file_uris()) - max(len(table.partitions()), 1), 0)


def compact(table: "DeltaTable") -> bool:
    """Write small files again as one a partition, in one commit that changes no row.

    False, and nothing is changed, if another run meanwhile replaced rows that were read.
    """
    from deltalake.exceptions import CommitFailedError

    try:
        table.optimize.compact()
    except CommitFailedError:
        return False
    return True


def commits_since_checkpoint(uri: str, table: "DeltaTable") -> int:
    """Commits that a reader of the table at a URI reads one by one."""
    newest = storage.join(uri, "_delta_log", "_last_checkpoint")
    with storage.reading(newest):
        return table.version() - (storage.read_json(newest)["version"] if storage.exists(newest) else -1)


def versions_to_keep(table: "DeltaTable", *, since: dt.datetime, named: Collection[int] = ()) -> list[int]:
    """The versions that were the newest at `since` or later, and those of `named` that the log still has; newest first.

    named: versions that something else refers to.
    """
    # Commits made after this line shift the numbers that delta-rs gives to all: one version more is kept then, and the
    # files of the newest are too young to go.
    table.update_incremental()
    kept, recent = [], True
    for entry in table.history():  # newest first
        if entry["version"] >= 0 and (recent or entry["version"] in named):
            kept.append(entry["version"])
        recent = recent and entry["timestamp"] > since.timestamp() * 1000
    return kept


def files_of_no_version(
    uri: str, table: "DeltaTable", versions: list[int], *, min_age_hours: int
) -> list[storage.FileInfo]:
    """The files below the table at a URI that none of these versions names.

    Files that were written, or removed from the table, within the last `min_age_hours` are left out: they may belong to
    a commit that is still to come.
    """
    paths = table.vacuum(
        min_age_hours, dry_run=True, enforce_retention_duration=False, full=True, keep_versions=versions
    )
    files = storage.file_infos([storage.join(uri, path) for path in sorted(paths)])
    return [file for file in files if file]  # a file that was deleted is listed as long as the log remembers it


def commit(
    uri: str,
    write: "Callable[[CommitProperties], object]",
    *,
    metadata: Mapping[str, str] | None = None,
    transaction: tuple[str, int] | None = None,
    retry: bool = True,
) -> None:
    """Commit to the table at a URI by `write`, under the leases that this process holds.

    A commit whose answer was lost is looked for in the log, and made again if it is not there: delta-rs does not repeat
    it. metadata, transaction, retry: of `commit_properties`. FencedError if a later holder of the lease has committed.
    """
    from deltalake.exceptions import DeltaError

    mark = uuid.uuid4().hex
    fence, noted = _fence(uri), redacted(dict(metadata or {}))
    transactions = [named for named in (transaction, fence) if named]
    properties = commit_properties(metadata={**noted, _WRITE: mark}, transactions=transactions, retry=retry)
    for pause in object_store.pauses():
        with leases.publishing():
            try:
                write(properties)
                return
            except OSError:
                if not storage.is_s3(uri) or pause is None:
                    raise
                if _landed(uri, mark):
                    return
            except DeltaError as error:
                if not storage.is_s3(uri) or not _LATE.search(str(error)):
                    raise
                _await(uri, mark)
                return
        time.sleep(pause)


def _await(uri: str, mark: str) -> None:
    """Wait until a commit that was made is in the list of the log. OSError if a store does not list it in time."""
    for pause in object_store.pauses():
        if _landed(uri, mark):
            return
        time.sleep(pause or 0)
    raise OSError(f"{uri}: a commit was written and is not listed: Delta needs a store that lists new objects at once")


def _landed(uri: str, mark: str) -> bool:
    table = open_table(uri)
    return table is not None and any(entry.get(_WRITE) == mark for entry in table.history(20))


def _fence(uri: str) -> tuple[str, int] | None:
    """The application transaction that fences a commit: two of one ds conflict, and a later token is final."""
    held = leases.day_token()
    if held is None or not storage.is_s3(uri):
        return None
    (day, token), table = held, open_table(uri)
    application = f"lease:{day}"
    if table is not None and (table.transaction_version(application) or 0) > token:
        raise FencedError(f"{uri} was changed by a later run of {day}, which has taken over: nothing is published here")
    return application, token


def commit_properties(
    *, metadata: Mapping[str, str] | None = None, transactions: Iterable[tuple[str, int]] = (), retry: bool = True
) -> "CommitProperties":
    """Properties of a commit.

    metadata: shown in the table's history. transactions: ids of applications and the numbers of their commits, without
    which two appends never conflict. retry: whether to commit on top of concurrent commits that do not conflict.
    """
    from deltalake import CommitProperties, Transaction

    return CommitProperties(
        custom_metadata=dict(metadata or {}) or None,
        app_transactions=[Transaction(*named) for named in transactions] or None,
        max_commit_retries=None if retry else 0,
    )
