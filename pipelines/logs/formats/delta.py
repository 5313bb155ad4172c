"""Delta tables partitioned by ds: not a file format, but a list of the Parquet files that are live."""

from pipelines import delta_tables, storage
from pipelines.errors import InputError
from pipelines.logs.formats import parquet
from pipelines.logs.formats.base import Format, LogFile
from pipelines.schema import DS, parse_ds


class DeltaLogs:
    """Finds the files of a Delta table; a listing of its folder would return dead ones as well."""

    name = "delta"
    files_format: Format = parquet.FORMAT

    def is_at(self, folder: str) -> bool:
        """Whether a folder is a Delta table."""
        return storage.exists(storage.join(folder, "_delta_log"))

    def files(self, folder: str) -> list[LogFile]:
        """The live files, each with its partition as landing day. InputError if the table cannot be used as logs."""
        table = delta_tables.open_table(folder)
        if table is None:
            raise InputError(f"{folder} is not a Delta table: correct logs.path or logs.format")
        partition = table.metadata().partition_columns
        if partition != [DS]:
            raise InputError(
                f"{folder} is partitioned by {partition}: a Delta table of logs must be partitioned by [{DS!r}]"
            )
        unsupported = {"deletionVectors", "columnMapping"} & set(table.protocol().reader_features or ())
        if unsupported:
            raise InputError(
                f"{folder} uses {', '.join(sorted(unsupported))}: rewrite the table without (REORG ... PURGE)"
            )
        found = []
        uris = [uri.removeprefix("file://") for uri in table.file_uris()]
        for uri, info in zip(uris, storage.file_infos(uris), strict=True):
            if info is None:
                raise InputError(f"{uri} is listed by the Delta table {folder} but not there: restore it")
            day = uri.rsplit(f"/{DS}=", 1)[1].split("/")[0]
            found.append(LogFile(uri, info.size, info.etag, parse_ds(day).isoformat()))
        return found


TABLE = DeltaLogs()
