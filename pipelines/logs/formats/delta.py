"""Delta tables partitioned by the landing day: not a file format, but a list of the Parquet files that are live.

The partition of a file, and its path, are what the table's log says, not what its folders look like. A file that
maintenance wrote (OPTIMIZE, Z-order, PURGE: `dataChange` is false) or a DELETE has only rows of files that were there
before (`rewritten`), so that who has taken these in already does not take them in again.
"""

import datetime as dt
import json
from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
from pyarrow import fs as pafs

from pipelines import delta_tables, storage
from pipelines.errors import InputError
from pipelines.logs.formats import parquet
from pipelines.logs.formats.base import Format, LogFile, LogSpec
from pipelines.schema import parse_ds

_NOT_READ = {
    "deletionVectors": "rewrite the table without (REORG TABLE ... APPLY (PURGE), delta.enableDeletionVectors = false)",
    "columnMapping": "copy it into a table without (delta.columnMapping.mode = none)",
    "typeWidening": "rewrite the table without (ALTER TABLE ... DROP FEATURE typeWidening)",
    "v2Checkpoint": "drop the feature (ALTER TABLE ... DROP FEATURE v2Checkpoint)",
}
"""Features of readers that the files alone do not show, and what to do."""


class DeltaLogs:
    """Finds the files of a Delta table; a listing of its folder would return dead ones as well."""

    name = "delta"
    files_format: Format = parquet.FORMAT

    def is_at(self, folder: str) -> bool:
        """Whether a folder is a Delta table."""
        return storage.exists(storage.join(folder, "_delta_log"))

    def partition_columns(self, folder: str) -> tuple[str, ...]:
        """What a table is partitioned by. InputError if it cannot be opened."""
        return tuple(_opened(folder).metadata().partition_columns)

    def files(self, spec: LogSpec, folder: str) -> list[LogFile]:
        """The live files, each with its partition as landing day. InputError if the table cannot be used as logs."""
        table = _opened(folder)
        _check(spec, folder, table)
        actions = pa.table(table.get_add_actions(flatten=True)).to_pylist()
        uris = [_uri(folder, action["path"]) for action in actions]
        found = []
        for action, uri, info in zip(actions, uris, storage.file_infos(uris), strict=True):
            if info is None:
                raise InputError(f"{uri} is listed by the Delta table {folder} but not there: restore it")
            day = _day([action[f"partition.{key}"] for key in spec.partition])
            found.append(LogFile(uri, info.size, info.etag, day))
        return found

    def rewritten(self, folder: str) -> dict[str, list[str]]:
        """Files that have only rows of earlier files, and these; as far as the JSON commits of the log go back."""
        sources: dict[str, list[str]] = {}
        for commit in _commits(storage.join(folder, "_delta_log")):
            actions = [json.loads(line) for line in storage.read_bytes(commit).splitlines() if line.strip()]
            operation = next((a["commitInfo"].get("operation", "") for a in actions if a.get("commitInfo")), "")
            removes = [action["remove"] for action in actions if action.get("remove")]
            for add in (action["add"] for action in actions if action.get("add")):
                if add.get("dataChange") is False or (operation == "DELETE" and removes):
                    partition = add.get("partitionValues")
                    same = [r["path"] for r in removes if r.get("partitionValues") in (None, partition)]
                    sources[_uri(folder, add["path"])] = [_uri(folder, path) for path in same]
        return sources


def _opened(folder: str) -> Any:
    storage.check_for_delta(folder)
    try:
        table = delta_tables.open_table(folder)
    except Exception as error:  # of the log's JSON, of a feature that delta-rs does not read, of the object store
        raise InputError(
            f"{folder} cannot be opened as a Delta table ({' '.join(str(error).split())}): repair its log, or correct "
            "logs.path"
        ) from None
    if table is None:
        raise InputError(f"{folder} is not a Delta table: correct logs.path or logs.format")
    return table


def _check(spec: LogSpec, folder: str, table: Any) -> None:
    """Refuse, by name, what cannot be read."""
    metadata = table.metadata()
    if not set(spec.partition) <= set(metadata.partition_columns):
        raise InputError(
            f"{folder} is partitioned by {metadata.partition_columns}: a Delta table of logs must be partitioned by "
            f"{list(spec.partition)}, or set logs.partition"
        )
    features: set[str] = set(table.protocol().reader_features or ())
    if metadata.configuration.get("delta.columnMapping.mode", "none") != "none":
        features.add("columnMapping")
    for feature in sorted(features & set(_NOT_READ)):
        raise InputError(f"{folder} uses {feature}: {_NOT_READ[feature]}")


def _uri(folder: str, path: str) -> str:
    """The file of a path in the log, which is encoded as in a URL and may be one."""
    decoded = unquote(path)
    if "://" in decoded or decoded.startswith("/"):
        return storage.absolute(decoded.removeprefix("file://").replace("s3a://", "s3://"))
    return storage.join(folder, decoded)


def _day(parts: list[Any]) -> str:
    """ISO date of a file's partition: a date, a text, or year, month and day."""
    if None in parts:
        return ""  # rows without a day
    if len(parts) == 1:
        value = parts[0]
        return value.isoformat()[:10] if isinstance(value, dt.date) else parse_ds(str(value)).isoformat()
    return parse_ds("-".join(str(part).zfill(2) for part in parts)).isoformat()


def _commits(log: str) -> Iterable[str]:
    """The commits of a log that are there as JSON, oldest first."""
    fs, path = storage.filesystem(log)
    infos = fs.get_file_info(pafs.FileSelector(path))
    names = sorted(info.base_name for info in infos)
    return [storage.join(log, name) for name in names if name.endswith(".json") and name[:-5].isdigit()]


TABLE = DeltaLogs()
"""The one object of the class."""
