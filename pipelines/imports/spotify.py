"""Spotify's extended streaming history: everything a person played, as they download it from their account.

https://support.spotify.com/article/understanding-my-data/. Of a row only what is used is kept: not the address, the
device or the country.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.errors import InputError
from pipelines.imports import lines, sources
from pipelines.imports.dataset import LINE, Chunk, Dataset, Rejected, Rows
from pipelines.schema import ARTIST, DURATION_MS, ITEM_ID, PLAY_MS, PLAY_SOURCE, TIMESTAMP, TITLE, USER_ID

SHUFFLE, FINISHED = "shuffle", "trackdone"
_MOST_BYTES = 256 << 20
"""Of a file: Spotify cuts them at about 12 MB."""
_TITLE, _ARTIST = "master_metadata_track_name", "master_metadata_album_artist_name"
_USED = ("ts", "ms_played", "spotify_track_uri", "reason_start", "reason_end", "shuffle", _TITLE, _ARTIST)
_SONGS = {ITEM_ID: "spotify_track_uri", TITLE: _TITLE, ARTIST: _ARTIST}


class Spotify(Dataset):
    """The songs that were played; podcasts, videos and books are ignored. user: whose history it is."""

    name = "spotify"
    user_id_type = item_id_type = "string"
    columns = (USER_ID, ITEM_ID, TIMESTAMP, PLAY_MS, DURATION_MS, PLAY_SOURCE)
    unchosen_sources = (SHUFFLE,)
    expected = "Streaming_History_Audio_*.json, endsong_*.json, or the .zip or the folder with them"

    def __init__(self, user: str) -> None:
        self.user = user

    def wanted(self, name: str) -> bool:
        """Whether a file of a folder is of the history."""
        return _is_history(name) or name.lower().endswith(".zip")

    def chunks(self, download: sources.Download) -> Iterator[Chunk]:
        """The files, each a JSON array. InputError if one is none, or too large to be one."""
        found = False
        for member in sources.members(download):
            if not _is_history(member.name):
                continue
            found = True
            content = member.stream.read(_MOST_BYTES + 1)
            if len(content) > _MOST_BYTES:
                raise InputError(f"{download.path}, {Path(member.name).name} is larger than 256 MB: is it Spotify's?")
            name = Path(member.name).name
            yield Chunk(name, lambda name=name, content=content: self._read(f"{download.path}, {name}", content))
        if not found:
            raise InputError(f"{download.path} holds no history: give {self.expected}")

    def _read(self, where: str, content: bytes) -> Rows:
        try:
            rows = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where} is no JSON ({error}): download it again") from None
        if not isinstance(rows, list):
            raise InputError(f"{where} is no array of plays: give {self.expected}")
        result, songs = Rows(), []
        for number, row in enumerate(rows):
            if not isinstance(row, dict) or not _is_song(row):
                result.rejected.append(Rejected(lines.MALFORMED, f"row {number}", _shown(row)))
            elif row["spotify_track_uri"] is None:
                result.ignored += 1
            else:
                songs.append({**{name: row.get(name) for name in _USED}, LINE: number})
        result.plays = self._plays(songs)
        result.songs = pa.table(
            {name: pa.array([_text(row.get(key)) for row in songs], pa.string()) for name, key in _SONGS.items()}
        )
        return result

    def _plays(self, rows: list[dict[str, Any]]) -> pa.Table:
        """A play begins as much before its time as it lasted; a song lasts as long as its longest play to the end."""
        duration: dict[str, int] = {}
        for row in rows:
            if row["reason_end"] == FINISHED:
                uri = row["spotify_track_uri"]
                duration[uri] = max(duration.get(uri, 0), row["ms_played"])
        ended = lines.unix_seconds(pa.array([row["ts"] for row in rows], pa.string()))
        played = pa.array([row["ms_played"] for row in rows], pa.int64())
        uris = [row["spotify_track_uri"] for row in rows]
        sources_ = [SHUFFLE if row["shuffle"] is True else _text(row["reason_start"]) for row in rows]
        return pa.table(
            {
                USER_ID: pa.array([self.user] * len(rows), pa.string()),
                ITEM_ID: pa.array(map(_text, uris), pa.string()),
                TIMESTAMP: pc.subtract(ended, pc.divide(played, 1000)),
                PLAY_MS: played,
                DURATION_MS: pa.array([duration.get(uri) or None for uri in uris], pa.int64()),
                PLAY_SOURCE: pa.array(sources_, pa.string()),
                LINE: pa.array([row[LINE] for row in rows], pa.int64()),
            }
        )


def _is_song(row: dict[str, Any]) -> bool:
    """Whether the values that are needed are of their types; the song may be null, as a podcast's is."""
    played, song = row.get("ms_played"), row.get("spotify_track_uri", 0)
    whole = isinstance(played, int) and not isinstance(played, bool) and 0 <= played < 1 << 40
    return whole and isinstance(row.get("ts"), str) and (song is None or isinstance(song, str))


def _shown(row: Any) -> str:
    """What is used of a row; the rest of it is nobody's business."""
    return str({name: row.get(name) for name in _USED} if isinstance(row, dict) else type(row).__name__)


def _is_history(name: str) -> bool:
    base = Path(name).name.lower()
    return base.endswith(".json") and base.startswith(("streaming_history_audio", "endsong"))


def _text(value: Any) -> str | None:
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else None
