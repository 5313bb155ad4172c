"""`fuxi show`: one listener's recent plays and list of a day, with titles and artists."""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions when it is imported)

import datetime as dt
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.compute as pc

from jobs.config import Config
from jobs.day import Day
from jobs.registry.package import read_vocabulary
from jobs.serving.catalogue import Titles, titles
from jobs.tables.recommendations import published_days, read_list
from pipelines.errors import InputError
from pipelines.histories.buckets import user_bucket
from pipelines.histories.shards import read_manifest
from pipelines.schema import COMPLETION, ITEM_ID, ITEM_INDEX, ITEMS, SCORE, TIMESTAMP, USER_ID, id_type
from pipelines.workspace import open_workspace

RECENT_PLAYS = 10


def show(config: Config, user: str, ds: dt.date) -> dict[str, Any]:
    """A listener's recent plays, newest first, and the list of `ds`.

    Returns user, ds, known (False: the default list, for listeners without one of their own), source,
    model_version, stale_days, recent: [{timestamp, time, item_id, title, artist, completion}] and
    items: [{rank, item_id, title, artist, score}]. Raises InputError if nothing is published for `ds`.
    """
    workspace = open_workspace(config.workspace)
    day = Day(config, ds, workspace)
    user_id = parse_user(user, workspace.spec.user_id_type)
    days = published_days(workspace)
    if ds not in days:
        known = f"lists are there for {', '.join(str(day) for day in days[-7:])}" if days else "no day is published yet"
        raise InputError(f"{workspace.recommendations} has no lists of {ds}: {known}")
    row = read_list(workspace, ds, user_id)
    known = row is not None
    row = (
        row
        or read_list(workspace, ds, None)
        or {ITEMS: [], "source": "popular", "model_version": None, "stale_days": 0}
    )
    recent = recent_plays(day, user_id)
    names = titles(day, [item[ITEM_ID] for item in row[ITEMS]] + [play[ITEM_ID] for play in recent])
    items = [{"rank": n, ITEM_ID: item[ITEM_ID], SCORE: item[SCORE]} for n, item in enumerate(row[ITEMS], start=1)]
    return {
        "user": user,
        "ds": str(ds),
        "known": known,
        "source": row["source"],
        "model_version": row["model_version"],
        "stale_days": row["stale_days"],
        "timezone": workspace.spec.timezone,
        "recent": [_named(play, names) for play in recent],
        "items": [_named(item, names) for item in items],
    }


def parse_user(user: str, user_id_type: str) -> int | str:
    """A user id as given on a command line, in the workspace's type."""
    if user_id_type != "int64":
        return user
    try:
        return int(user)
    except ValueError:
        raise InputError(f"user {user!r} is not an int64 id: this workspace's listeners have numbers") from None


def recent_plays(day: Day, user_id: int | str, count: int = RECENT_PLAYS) -> list[dict[str, Any]]:
    """The newest stored events of a listener, newest first; none if the listener has no sequence."""
    sequences = day.sequences_ds if day.has_record else day.ds
    manifest = read_manifest(day.workspace.sequences(sequences))
    wanted = pa.scalar(user_id, id_type(manifest.user_id_type))
    bucket = int(user_bucket(pa.array([user_id], wanted.type), manifest.buckets)[0])
    for file in manifest.files:
        if file.bucket != bucket:
            continue
        for group in range(len(file.row_groups)):
            place = pc.index(manifest.read(file, group, [USER_ID])[USER_ID], wanted).as_py()
            if place >= 0:
                columns = [ITEM_INDEX, TIMESTAMP, COMPLETION]
                row = manifest.read(file, group, columns).slice(place, 1).to_pylist()[0]
                return _plays(day, row, count)
    return []


def _plays(day: Day, row: dict[str, Any], count: int) -> list[dict[str, Any]]:
    zone = ZoneInfo(day.workspace.spec.timezone)
    events = list(zip(row[ITEM_INDEX], row[TIMESTAMP], row[COMPLETION], strict=True))[-count:][::-1]
    songs = read_vocabulary(day)
    rows = pc.index_in(pa.array([event[0] for event in events], pa.int32()), value_set=songs[ITEM_INDEX])
    item_ids = songs[ITEM_ID].take(rows).to_pylist()
    return [
        {
            ITEM_ID: item_id,
            TIMESTAMP: timestamp,
            "time": dt.datetime.fromtimestamp(timestamp, zone).isoformat(sep=" ", timespec="minutes")[:16],
            COMPLETION: completion,
        }
        for item_id, (_, timestamp, completion) in zip(item_ids, events, strict=True)
    ]


def _named(song: dict[str, Any], names: Titles) -> dict[str, Any]:
    """The song with its title and artist; without a catalogue row its id stands for the title."""
    title, artist = names.get(song[ITEM_ID], ("", ""))
    return {**song, "title": title or str(song[ITEM_ID]), "artist": artist}


def render(shown: dict[str, Any], console: Any = None) -> None:
    """Print what `show` returned: the plays, then the list."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text  # titles are text: "[Intro]" is no markup

    console = console or Console()
    if shown["recent"]:
        console.print(Text(f"Listener {shown['user']}, last plays before {shown['ds']}", style="bold"))
        plays = Table()
        for name in ("When", "Title", "Artist"):
            plays.add_column(name, overflow="ellipsis", no_wrap=True)
        plays.add_column("Played", justify="right", min_width=6)
        for play in shown["recent"]:
            plays.add_row(play["time"], Text(play["title"]), Text(play["artist"]), f"{play[COMPLETION]} %")
        console.print(plays)
    console.print(Text(_headline(shown), style="bold"))
    songs = Table()
    songs.add_column("", justify="right")
    for name in ("Title", "Artist"):
        songs.add_column(name, overflow="ellipsis", no_wrap=True)
    songs.add_column("Score", justify="right")
    for item in shown["items"]:
        songs.add_row(str(item["rank"]), Text(item["title"]), Text(item["artist"]), f"{item[SCORE]:.3f}")
    console.print(songs)


def _headline(shown: dict[str, Any]) -> str:
    songs = f"{len(shown['items'])} songs for {shown['ds']}"
    if not shown["known"]:
        return f"{songs}: the list for unknown listeners ({shown['user']} has none of their own)"
    origin = f"model version {shown['model_version']}" if shown["source"] == "model" else "popular songs"
    stale = f", from sequences {shown['stale_days']} days old" if shown["stale_days"] else ""
    return f"{songs} for listener {shown['user']}: {origin}{stale}"
