"""Last.fm Dataset - 1K users: what nearly 1,000 people played until May 2009, as one table with tabs between.

http://ocelma.net/MusicRecommendationDataset/lastfm-1K.html
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.imports import lines, sources
from pipelines.imports.dataset import LINE, Chunk, Dataset, Published, Rows
from pipelines.schema import ARTIST, ITEM_ID, TIMESTAMP, TITLE, USER_ID

FILE = "userid-timestamp-artid-artname-traid-traname.tsv"
ARCHIVE = "lastfm-dataset-1K.tar.gz"
_COLUMNS = ("user", "time", "artist_mbid", "artist", "track_mbid", "track")
_PAGE = "http://ocelma.net/MusicRecommendationDataset/lastfm-1K.html"


class LastFm1K(Dataset):
    """The plays. A song is a MusicBrainz id where the file has one, else `artist - title`."""

    name = "lastfm-1k"
    user_id_type = item_id_type = "string"
    columns = (USER_ID, ITEM_ID, TIMESTAMP)
    expected = f"{FILE} or {ARCHIVE}"
    whole = (FILE, ARCHIVE)

    def wanted(self, name: str) -> bool:
        """Whether a file of a folder is of the data set."""
        return name in (FILE, ARCHIVE)

    def chunks(self, download: sources.Download) -> Iterator[Chunk]:
        """Blocks of lines of the one table of plays; the archive's table of people is passed over."""
        for member in sources.members(download):
            if sources.is_archive(download.path) and Path(member.name).name != FILE:
                continue
            for block in lines.read_lines(member.stream):
                yield Chunk(f"line {block.number:,}", lambda block=block: self._read(block))

    def published(self, downloads: Sequence[sources.Download]) -> Sequence[Published]:
        """Of the file's README."""
        return (Published("rows_read", 19_150_868, _PAGE), Published("listeners", 992, _PAGE))

    def _read(self, block: lines.Lines) -> Rows:
        table, rejected = lines.columns_of(block, _COLUMNS)
        artist, title = lines.or_null(table["artist"]), lines.or_null(table["track"])
        named = pc.binary_join_element_wise(artist, title, " - ")  # null where either is
        item = pc.coalesce(lines.or_null(table["track_mbid"]), named)
        plays = {
            USER_ID: lines.or_null(table["user"]),
            ITEM_ID: item,
            TIMESTAMP: lines.unix_seconds(table["time"]),
            LINE: table["line"],
        }
        return Rows(pa.table(plays), pa.table({ITEM_ID: item, TITLE: title, ARTIST: artist}), rejected)
