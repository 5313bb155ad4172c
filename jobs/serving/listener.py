"""What a listener was served on a day: the list, and the plays before it, with titles and artists."""

import datetime as dt
import re
from typing import Any, TypedDict
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.day import Day
from jobs.serving.catalogue import Titles, read_vocabulary, titles
from jobs.tables.recommendations import published_days, read_list
from pipelines.errors import InputError
from pipelines.histories.buckets import user_bucket
from pipelines.histories.histories import Histories
from pipelines.redact import visible
from pipelines.schema import (
    COMPLETION,
    DS,
    ITEM_ID,
    ITEMS,
    MODEL_VERSION,
    REASONS,
    SOURCE,
    SOURCE_POPULAR,
    STALE_DAYS,
    TIMESTAMP,
    USER_ID,
    id_type,
)

RECENT_PLAYS = 10


class ServedListener(TypedDict):
    """A listener's list of a day and newest plays."""

    user: str  # as asked for
    ds: str
    known: bool  # False: the default list, for listeners without one of their own
    source: str  # model, popular, or the baseline that served in the model's place
    model_version: str | None
    stale_days: int
    timezone: str
    recent: list[dict[str, Any]]  # newest first: timestamp, time (wall clock), item_id, title, artist, completion
    items: list[dict[str, Any]]  # best first: rank, item_id, title, artist, score, reasons (see `_explained`)


def served_listener(day: Day, user: str) -> ServedListener:
    """Read a listener's list of `day.ds`. user: an id as text. Raises InputError if the day has no lists."""
    workspace = day.workspace
    user_id = parse_user(user, workspace.spec.user_id_type, f"user {user!r}")
    days = published_days(workspace)
    if day.ds not in days:
        known = f"lists are there for {', '.join(map(str, days[-7:]))}" if days else "no day is published yet"
        raise InputError(f"{workspace.recommendations} has no lists of {day.ds}: {known}")
    own = read_list(workspace, day.ds, user_id)
    row = own or read_list(workspace, day.ds, None)
    row = row or {ITEMS: [], SOURCE: SOURCE_POPULAR, MODEL_VERSION: None, STALE_DAYS: 0}
    recent = recent_plays(day, user_id)
    played = [reason for item in row[ITEMS] for reason in item.get(REASONS) or ()]
    names = titles(day, [song[ITEM_ID] for song in [*row[ITEMS], *recent, *played]])
    return ServedListener(
        user=visible(user),
        ds=str(day.ds),
        known=own is not None,
        source=row[SOURCE],
        model_version=row[MODEL_VERSION],
        stale_days=row[STALE_DAYS],
        timezone=workspace.spec.timezone,
        recent=[named(play, names) for play in recent],
        items=[_explained({"rank": n, **item}, names, day.ds) for n, item in enumerate(row[ITEMS], start=1)],
    )


def parse_user(text: str, user_id_type: str, source: str) -> int | str:
    """A user id in the workspace's type. source: what an InputError names."""
    if user_id_type == "string":
        return text
    if re.fullmatch(r"\s*[+-]?[0-9]{1,19}\s*", text) and -(2**63) <= int(text) < 2**63:
        return int(text)
    raise InputError(f"{source} is not an int64 id: this workspace's listeners have numbers")


def stored_history(day: Day, user_id: int | str) -> Histories | None:
    """The stored history of a listener; None if there is none."""
    manifest = day.manifest(day.sequences_ds if day.has_record else day.ds)
    wanted = pa.scalar(user_id, id_type(manifest.user_id_type))
    bucket = int(user_bucket(pa.array([user_id], wanted.type), manifest.buckets)[0])
    for file in (file for file in manifest.files if file.bucket == bucket):
        for group in range(len(file.row_groups)):
            place = pc.index(manifest.read(file, group, [USER_ID])[USER_ID], wanted).as_py()
            if place >= 0:
                return manifest.histories(file, group).take(np.array([place]))
    return None


def recent_plays(day: Day, user_id: int | str) -> list[dict[str, Any]]:
    """The newest stored plays of a listener, newest first; none if the listener has no history."""
    history = stored_history(day, user_id)
    if history is None:
        return []
    zone, item_ids, plays = ZoneInfo(day.workspace.spec.timezone), read_vocabulary(day)[ITEM_ID], []
    columns = (
        column[-RECENT_PLAYS:].tolist() for column in (history.item_index, history.timestamp, history.completion)
    )
    for index, timestamp, completion in reversed(list(zip(*columns, strict=True))):
        time = dt.datetime.fromtimestamp(timestamp, zone).isoformat(sep=" ", timespec="minutes")[:16]
        item_id = item_ids[index - 1].as_py()
        plays.append({ITEM_ID: item_id, TIMESTAMP: timestamp, "time": time, COMPLETION: completion})
    return plays


def _explained(item: dict[str, Any], names: Titles, today: dt.date) -> dict[str, Any]:
    """A named song with its reasons, strongest first: item_id, title, artist, ds, day (ds in words), weight."""
    plays = [{**play, "day": day_in_words(play[DS], today)} for play in item.get(REASONS) or ()]
    return named({**item, REASONS: [named(play, names) for play in plays]}, names)


def day_in_words(day: dt.date, today: dt.date) -> str:
    """A day with its weekday, and the year if that is not this one.

    >>> day_in_words(dt.date(2026, 2, 24), dt.date(2026, 3, 3)), day_in_words(dt.date(2025, 12, 1), dt.date(2026, 3, 3))
    ('Tuesday 24 February', 'Monday 1 December 2025')
    """
    return f"{day:%A} {day.day} {day:%B}" + (f" {day.year}" if day.year != today.year else "")


def named(song: dict[str, Any], names: Titles) -> dict[str, Any]:
    """The song with its title and artist; without a catalogue row, or a title in it, its id stands for the title."""
    title, artist = names.get(song[ITEM_ID], ("", ""))
    return {**song, "title": visible(title) or visible(str(song[ITEM_ID])), "artist": visible(artist)}
