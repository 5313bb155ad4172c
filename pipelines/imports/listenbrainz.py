"""ListenBrainz dumps: what people let ListenBrainz keep, everything (full) or what came since (incremental).

https://listenbrainz.readthedocs.io/en/latest/users/listenbrainz-dumps.html. As JSON, an archive of a file of lines for
each month; as Parquet ("spark"), an archive of numbered files. A recording that MusicBrainz knows has its id there; the
others have the id that ListenBrainz gave to their names.
"""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pa_json
import pyarrow.parquet as pq

from pipelines.errors import InputError
from pipelines.imports import lines, sources
from pipelines.imports.dataset import LINE, Chunk, Dataset, Rejected, Rows
from pipelines.schema import ARTIST, ITEM_ID, TIMESTAMP, TITLE, USER_ID

_EXPECTED = "listenbrainz-listens-dump-*.tar.zst or listenbrainz-spark-dump-*.tar, or a folder of them"
_DUMP = re.compile(r"listenbrainz-(listens|spark)-dump-(\d+)-\d{8}-\d{6}-(full|incremental)\.tar(\.\w+)?$")
FULL = "full"
_BATCH_ROWS = 1 << 20
_TEXT = pa.string()
_INFO = pa.struct([("recording_mbid", _TEXT)])
_TRACK = pa.struct([("artist_name", _TEXT), ("track_name", _TEXT), ("additional_info", _INFO), ("mbid_mapping", _INFO)])
_LISTEN = pa.schema(
    [
        ("user_id", pa.int64()),
        ("listened_at", pa.int64()),
        ("timestamp", pa.int64()),
        ("recording_msid", _TEXT),
        ("track_metadata", _TRACK),
    ]
)
"""What is read of a line; older dumps say `timestamp` for `listened_at`."""
_PARQUET = ("user_id", "listened_at", "recording_msid", "recording_mbid", "recording_name", "artist_name")


class ListenBrainz(Dataset):
    """The plays, and titles and artists as they were sent or as MusicBrainz has them."""

    name = "listenbrainz"
    user_id_type, item_id_type = "int64", "string"
    columns = (USER_ID, ITEM_ID, TIMESTAMP)
    expected = _EXPECTED

    def wanted(self, name: str) -> bool:
        """Whether a file of a folder is a dump of listens."""
        return bool(_DUMP.search(name))

    def check(self, downloads: Sequence[sources.Download], imported: Sequence[str]) -> None:
        """InputError if there would be two full dumps in a folder: what was deleted since the first would stay."""
        new = {download.key for download in downloads} | set(imported)
        full = {found[2] for key in new if (found := _DUMP.search(key.rpartition(":")[0])) and found[3] == FULL}
        if len(full) > 1:
            raise InputError(
                f"--out would hold the full dumps {' and '.join(sorted(full))}: a full dump replaces all before it, "
                "give it a new folder, and --previous to forget whom it does not have any more"
            )

    def chunks(self, download: sources.Download) -> Iterator[Chunk]:
        """Blocks of lines of the months, or row groups of the Parquet files."""
        if not self.wanted(Path(download.path).name):
            raise InputError(f"{download.path}: its name is not that of a dump of listens: give {self.expected}")
        found = False
        for member in sources.members(download):
            if member.name.endswith(".listens"):
                found = True
                for block in lines.read_lines(member.stream):
                    key = f"{_short(member.name)}, line {block.number:,}"
                    yield Chunk(key, lambda block=block: _read_json(block))
            elif member.name.endswith(".parquet"):
                found = True
                yield from _parquet(download, member)
        if not found:
            raise InputError(f"{download.path} holds neither *.listens nor *.parquet: give {self.expected}")


def _parquet(download: sources.Download, member: sources.Member) -> Iterator[Chunk]:
    if not member.stream.seekable():
        raise InputError(f"{download.path}: Parquet is read from an archive as published, .tar: decompress it first")
    with pq.ParquetFile(pa.PythonFile(member.stream, "r")) as file:
        missing = [name for name in _PARQUET if name not in file.schema_arrow.names]
        if missing:
            raise InputError(
                f"{download.path}, {member.name}: column {missing[0]} is missing: is it a dump of listens?"
            )
        number = 0
        for batch in file.iter_batches(_BATCH_ROWS, columns=list(_PARQUET)):
            first, number = number, number + len(batch)
            yield Chunk(f"{_short(member.name)}, row {first:,}", lambda batch=batch, first=first: _typed(batch, first))


def _typed(batch: pa.RecordBatch, first: int) -> Rows:
    table = pa.Table.from_batches([batch])
    seconds = table["listened_at"].cast(pa.timestamp("s"), safe=False).cast(pa.int64())
    item = pc.coalesce(table["recording_mbid"], table["recording_msid"])
    where = pa.array(range(first, first + table.num_rows), pa.int64())
    plays = {USER_ID: table["user_id"].cast(pa.int64()), ITEM_ID: item, TIMESTAMP: seconds, LINE: where}
    songs = {ITEM_ID: item, TITLE: table["recording_name"], ARTIST: table["artist_name"]}
    return Rows(pa.table(plays), pa.table(songs))


def _read_json(block: lines.Lines) -> Rows:
    """A block at once; line by line where a line of it is not as the others."""
    table, rejected = lines.columns_of(block, ("json",), separator="\n")
    if not table.num_rows:
        return Rows(rejected=rejected)
    try:
        found, where = _parse("\n".join(table["json"].to_pylist())), table["line"]
        if found.num_rows != table.num_rows:
            raise pa.ArrowInvalid("several objects in a line")
    except pa.ArrowInvalid:
        good, where = [], []
        for number, text in zip(table["line"].to_pylist(), table["json"].to_pylist(), strict=True):
            if (listen := _listen(text)) is None:
                rejected.append(Rejected(lines.MALFORMED, f"line {number}", text))
            else:
                good.append(json.dumps(listen))
                where.append(number)
        found, where = _parse("\n".join(good)), pa.chunked_array([pa.array(where, pa.int64())])
    rows = _plays(found, where)
    return Rows(rows.plays, rows.songs, rejected)


def _parse(text: str) -> pa.Table:
    if not text:
        return _LISTEN.empty_table()
    content = text.encode()
    options = pa_json.ParseOptions(explicit_schema=_LISTEN, unexpected_field_behavior="ignore")
    return pa_json.read_json(pa.BufferReader(content), pa_json.ReadOptions(block_size=len(content) + 1), options)


def _listen(text: str) -> dict[str, Any] | None:
    """A line with values of the types of a listen, others as null; None if it is no object."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return _of_type(found, pa.struct(list(_LISTEN))) if isinstance(found, dict) else None


def _of_type(value: Any, kind: pa.DataType) -> Any:
    if pa.types.is_struct(kind):
        value = value if isinstance(value, dict) else {}
        return {field.name: _of_type(value.get(field.name), field.type) for field in kind}
    if pa.types.is_string(kind):
        return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else None
    whole = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1 << 62
    return int(value) if whole else None


def _plays(table: pa.Table, where: Any) -> Rows:
    def field(*names: str) -> Any:
        return pc.struct_field(table["track_metadata"], list(names))

    mapped = [field(part, "recording_mbid") for part in ("mbid_mapping", "additional_info")]
    item = pc.coalesce(*(lines.or_null(one) for one in (*mapped, table["recording_msid"])))
    time = pc.coalesce(table["listened_at"], table["timestamp"])
    plays = {USER_ID: table["user_id"], ITEM_ID: item, TIMESTAMP: time, LINE: where}
    return Rows(pa.table(plays), pa.table({ITEM_ID: item, TITLE: field("track_name"), ARTIST: field("artist_name")}))


def _short(name: str) -> str:
    """A member without its archive's folder."""
    return "/".join(Path(name).parts[-2:])
