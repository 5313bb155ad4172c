"""What killed runs of a day leave below a workspace, and its removal by the next run of that day.

Half-written files end in `.tmp`; data files of a Delta table whose run was killed before its commit are in no version.
(Histories that no manifest lists are removed when the day's own are published; staging when it is built.)
"""

import datetime as dt
from collections.abc import Callable, Iterator

from pyarrow.fs import FileSelector

from pipelines import delta_tables, storage
from pipelines.schema import DS
from pipelines.workspace import Workspace

TEMPORARY = ".tmp"
_DAY_FOLDERS = ("runs", "sequences", "quarantine", "reports", "recommendations", "catalogue")


def remove(workspace: Workspace, ds: dt.date, *, alone: Callable[[], bool]) -> int:
    """Remove what killed runs of a ds left. Returns how many files. The caller holds the lease of the ds.

    alone: whether nobody else works on the workspace. What lies outside of the folders of the ds may be another run's:
    it is listed first and removed only if then there is no other, since a run takes its lease before it writes.
    """
    found = list(dict.fromkeys([*_unfinished(workspace, ds), *_unnamed(workspace, ds)]))
    own = [uri for uri in found if f"/{DS}={ds}/" in uri]
    if len(own) < len(found) and alone():
        own = found
    storage.delete_files(own)
    return len(own)


def _unfinished(workspace: Workspace, ds: dt.date) -> Iterator[str]:
    """Files that were being written; on an object store there are none."""
    if storage.is_s3(workspace.uri):
        return
    tables = [uri for uri, _ in workspace.tables()]
    yield from _temporary(workspace.uri, recursive=False)
    for folder in (workspace.forgotten, *tables, *(storage.join(uri, "_delta_log") for uri in tables)):
        yield from _temporary(folder, recursive=False)
    for kind in _DAY_FOLDERS:
        yield from _temporary(storage.join(workspace.uri, kind, f"{DS}={ds}"), recursive=True)


def _temporary(folder: str, *, recursive: bool) -> Iterator[str]:
    fs, path = storage.filesystem(folder)
    for info in fs.get_file_info(FileSelector(path, recursive=recursive, allow_not_found=True)):
        if info.is_file and info.base_name.endswith(TEMPORARY):
            yield storage.join(folder, info.path[len(path) :].strip("/"))


def _unnamed(workspace: Workspace, ds: dt.date) -> Iterator[str]:
    """Data files of the Delta tables that no version names; of a table in partitions, those of the ds."""
    for uri, spec in workspace.tables():
        if (table := delta_tables.open_table(uri)) is None:
            continue
        try:
            every = delta_tables.versions_to_keep(table, since=dt.datetime.fromtimestamp(0, dt.UTC))
            files = delta_tables.files_of_no_version(uri, table, every, min_age_hours=0)
        except Exception:  # delta-rs has no common base for a version that its log no longer has: maintenance tidies
            continue
        for file in files:
            if not spec.partition_by or f"/{DS}={ds}/" in file.uri:
                yield file.uri
