"""From plays to log rows as a service would land them: late ones later, with likes, dirt and a robot among them.

Every dirty row is an extra row: the clean log is what remains when all of them are removed.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipelines.calendar import DAY_SECONDS
from pipelines.synthetic.config import SyntheticConfig
from pipelines.synthetic.listeners import FIRST_USER_ID, Listeners
from pipelines.synthetic.process import Plays
from pipelines.synthetic.stateless_random import Stream, uniform
from pipelines.synthetic.world import FIRST_ITEM_ID, Songs

PLAYS_SCHEMA = pa.schema(
    [
        ("user_id", pa.int64()),
        ("item_id", pa.int64()),
        ("timestamp", pa.int64()),
        ("event_type", pa.string()),
        ("play_ms", pa.int32()),
        ("duration_ms", pa.int32()),
    ]
)
UNKNOWN_EVENTS = ("heartbeat", "PLAY_V2", "?")
_LATE_WINDOW = 6 * 3600  # a device without a connection delivers hours of plays together
_FAR_DAYS = (90, 1000)
_BOT_SONGS = 40


@dataclass
class Events:
    """Clean plays, column by column. `lands` is the landing day number; `key` and `counter` identify a play."""

    row: np.ndarray
    counter: np.ndarray
    song: np.ndarray
    time: np.ndarray
    play_ms: np.ndarray
    lands: np.ndarray

    def take(self, rows: np.ndarray) -> "Events":
        """A selection of events."""
        return Events(**{name: getattr(self, name)[rows] for name in self.__dataclass_fields__})

    @staticmethod
    def concatenate(parts: list["Events"]) -> "Events":
        """All events of the parts, in their order."""
        names = Events.__dataclass_fields__
        return Events(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def no_events() -> Events:
    """Nothing."""
    return Events(**{name: np.zeros(0, np.int64) for name in Events.__dataclass_fields__})


def make_events(config: SyntheticConfig, listeners: Listeners, plays: Plays, song: np.ndarray, songs: Songs) -> Events:
    """How much of each song was heard, and on which day its row lands."""
    u = uniform(listeners.key[plays.row], plays.counter, Stream.LISTENING, 1)[0]
    duration = songs.duration_ms[song].astype(np.int64)
    skipped = np.minimum((0.02 + 0.26 * u) * duration, plays.slot * 1000)
    heard = np.minimum(np.where(u < 0.15, (0.4 + 4 * u) * duration, duration), plays.slot * 1000)
    play_ms = np.where(plays.skipped, skipped, heard).astype(np.int64)
    day = plays.time // DAY_SECONDS - config.day_start(0) // DAY_SECONDS
    u = uniform(listeners.key[plays.row], plays.time // _LATE_WINDOW, Stream.LANDING, 2)
    lands = day + np.where(u[0] < config.late_share, 1 + (3 * u[1]).astype(np.int64), 0)
    return Events(plays.row, plays.counter, song, plays.time, play_ms, lands)


def bot_events(config: SyntheticConfig, listeners: Listeners, day: int, count: int) -> Events:
    """The day of the robots: one playlist around the clock, `count` full plays each, evenly spaced."""
    row = np.repeat(np.flatnonzero(listeners.is_bot), count)
    number = np.tile(np.arange(count), len(row) // count if count else 0)
    counter = day * count + number
    u = uniform(listeners.key[row], counter, Stream.BOT, 1)[0]
    first = uniform(listeners.key[row], 0, Stream.BOT, 1)[0] * config.songs
    song = (first.astype(np.int64) + 97 * (counter % _BOT_SONGS)) % config.songs
    time = config.day_start(day) + ((number + u) * DAY_SECONDS / max(count, 1)).astype(np.int64)
    return Events(row, counter, song, time, np.full(len(row), -1, np.int64), np.full(len(row), day, np.int64))


def log_table(config: SyntheticConfig, listeners: Listeners, events: Events, songs: Songs) -> pa.Table:
    """The rows of one landing day, by listener and time, with likes and dirt beside the plays they were made from."""
    order = np.lexsort((events.time, events.row))
    events = events.take(order)
    u = uniform(listeners.key[events.row], events.time * 1024 + events.counter % 1024, Stream.DIRT, 4)
    kinds = _extra_kinds(config)
    edges = np.cumsum([share for _, share in kinds])
    # At most one extra row beside a play; its kind is where the uniform falls among the shares.
    kind = np.searchsorted(edges, u[0], side="right")
    extra = kind < len(kinds)
    source = np.repeat(np.arange(len(order)), 1 + extra)
    is_extra = np.diff(source, prepend=-1) == 0
    name = np.array([label for label, _ in kinds] + ["play"])[np.where(is_extra, kind[source], len(kinds))]
    return _as_table(listeners, events.take(source), songs, name, u[1:, source])


def _extra_kinds(config: SyntheticConfig) -> list[tuple[str, float]]:
    return [
        ("like", config.like_share),
        ("null", config.null_share),
        ("duplicate", config.duplicate_share),
        ("far", config.far_share),
        ("negative", config.negative_share),
        ("unknown", config.unknown_share),
    ]


def _as_table(listeners: Listeners, events: Events, songs: Songs, kind: np.ndarray, u: np.ndarray) -> pa.Table:
    duration = songs.duration_ms[events.song].astype(np.int64)
    play_ms = np.where(events.play_ms < 0, duration, events.play_ms)
    low, high = _FAR_DAYS
    away = ((low + (high - low) * u[0]) * DAY_SECONDS).astype(np.int64) * np.where(u[1] < 0.5, -1, 1)
    time = events.time + np.where(kind == "far", away, 0)
    negative = kind == "negative"
    missing = np.where(kind == "null", (3 * u[0]).astype(np.int64), -1)
    unknown = np.array(UNKNOWN_EVENTS)[(len(UNKNOWN_EVENTS) * u[0]).astype(np.int64)]
    event_type = np.where(kind == "unknown", unknown, np.where(kind == "like", "like", "play"))
    is_like = kind == "like"
    columns = [
        pa.array(FIRST_USER_ID + listeners.number[events.row], pa.int64(), mask=missing == 0),
        pa.array(FIRST_ITEM_ID + events.song, pa.int64(), mask=missing == 1),
        pa.array(time, pa.int64(), mask=missing == 2),
        pa.array(event_type, pa.string()),
        pa.array(np.where(negative, -play_ms - 1, play_ms).astype(np.int32), pa.int32(), mask=is_like),
        pa.array(np.where(negative, -duration, duration).astype(np.int32), pa.int32(), mask=is_like),
    ]
    return pa.table(columns, schema=PLAYS_SCHEMA)
