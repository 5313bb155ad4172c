"""LFM-2b: two billion plays of 120,322 people of Last.fm, as tables with tabs between and names of columns on top.

http://www.cp.jku.at/datasets/LFM-2b/ had them until their licence ended; this reads copies that somebody still has.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.errors import InputError
from pipelines.imports import lines, sources
from pipelines.imports.dataset import LINE, Chunk, Dataset, Rows
from pipelines.schema import ARTIST, ARTIST_ID, ITEM_ID, TIMESTAMP, TITLE, USER_ID

EVENTS, TRACKS = "listening-events.tsv", "tracks.tsv"
_ENDINGS = ("", ".bz2", ".gz", ".zst", ".xz")
_NEEDED = {EVENTS: ("user_id", "track_id", "timestamp"), TRACKS: ("track_id",)}


class Lfm2b(Dataset):
    """The plays, and the names of the songs from the table of tracks beside them."""

    name = "lfm-2b"
    columns = (USER_ID, ITEM_ID, TIMESTAMP)
    expected = f"a folder with {EVENTS} and {TRACKS}, each also compressed (.bz2)"
    whole = (EVENTS,)

    def wanted(self, name: str) -> bool:
        """Whether a file of a folder is of the data set."""
        return _table(name) in _NEEDED

    def chunks(self, download: sources.Download) -> Iterator[Chunk]:
        """Blocks of lines, below the first, which has the columns' names."""
        table = _table(Path(download.path).name)
        if table not in _NEEDED:
            raise InputError(f"{download.path}: its name is none of {', '.join(_NEEDED)}: give {self.expected}")
        names: Sequence[str] = ()
        for member in sources.members(download):
            for block in lines.read_lines(member.stream):
                rest = block
                if not names:
                    names = self._header(download, block, table)
                    rest = lines.Lines(block.number + 1, block.text[1:])
                yield Chunk(f"line {rest.number:,}", lambda rest=rest, names=names: self._read(table, rest, names))

    def _header(self, download: sources.Download, block: lines.Lines, table: str) -> list[str]:
        names = str(block.text[0].as_py() or "").rstrip("\r").split("\t")
        if missing := [name for name in _NEEDED[table] if name not in names]:
            raise InputError(
                f"{download.path}: its first line lacks {', '.join(missing)} (found {', '.join(names)[:200]}): write "
                "the names of the columns on top, with tabs between"
            )
        return names

    def _read(self, table: str, block: lines.Lines, names: Sequence[str]) -> Rows:
        rows, rejected = lines.columns_of(block, names)
        item = lines.whole_numbers(rows["track_id"])
        if table == TRACKS:
            return Rows(songs=pa.table(_song_columns(rows, item)))
        plays = {
            USER_ID: lines.whole_numbers(rows["user_id"]),
            ITEM_ID: item,
            TIMESTAMP: lines.unix_seconds(rows["timestamp"]),
            LINE: rows["line"],
        }
        return Rows(pa.table(plays), None, rejected)


def _song_columns(rows: pa.Table, item: Any) -> dict[str, Any]:
    nothing = pa.nulls(rows.num_rows, pa.string())
    named = {name: lines.or_null(rows[name]) if name in rows.column_names else nothing for name in _SONG_NAMES}
    artist_id = pa.nulls(rows.num_rows, pa.int64())
    if "artist_id" in rows.column_names:
        artist_id = lines.whole_numbers(rows["artist_id"])
    return {ITEM_ID: item, TITLE: named["track_name"], ARTIST: named["artist_name"], ARTIST_ID: artist_id}


_SONG_NAMES = ("track_name", "artist_name")


def _table(name: str) -> str:
    """The table that a file holds, "" if none."""
    return next((table for table in _NEEDED for ending in _ENDINGS if name == table + ending), "")
