"""From plays to log rows as a service lands them: some late, with likes, dirty rows and a robot's plays among them.

Every dirty row is an extra row, so removing them all leaves the clean log.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipelines.calendar import DAY_SECONDS
from pipelines.schema import DURATION_MS, EVENT_TYPE, ITEM_ID, PLAY_MS, TIMESTAMP, USER_ID
from pipelines.synthetic.config import SyntheticConfig
from pipelines.synthetic.listeners import FIRST_USER_ID, Traits
from pipelines.synthetic.process import SegmentPlays
from pipelines.synthetic.stateless_random import Stream, uniform
from pipelines.synthetic.world import FIRST_ITEM_ID, Songs

PLAYS_SCHEMA = pa.schema(
    [
        (USER_ID, pa.int64()),
        (ITEM_ID, pa.int64()),
        (TIMESTAMP, pa.int64()),
        (EVENT_TYPE, pa.string()),
        (PLAY_MS, pa.int32()),
        (DURATION_MS, pa.int32()),
    ]
)
UNKNOWN_EVENTS = ("heartbeat", "PLAY_V2", "?")
_LATE_WINDOW = 6 * 3600  # seconds whose plays are late together: a device without a connection
_FAR_DAYS = (90, 1000)
_BOT_SONGS = 40
_EXTRA_KINDS = ("like", "null", "duplicate", "far", "negative", "unknown")  # `SyntheticConfig` has a share of each


@dataclass
class LoggedPlays:
    """Clean plays with what the log says of them, column by column. The fields' names are stored (`truth/state`)."""

    row: np.ndarray  # the listener's position in the chunk
    counter: np.ndarray  # the play's number among all plays of that listener
    song: np.ndarray
    time: np.ndarray  # Unix seconds
    play_ms: np.ndarray  # -1: the whole song
    lands: np.ndarray  # number of the landing day

    def take(self, rows: np.ndarray) -> "LoggedPlays":
        """A selection of plays."""
        return LoggedPlays(**{name: getattr(self, name)[rows] for name in self.__dataclass_fields__})

    @staticmethod
    def concatenate(parts: list["LoggedPlays"]) -> "LoggedPlays":
        """All plays of the parts, in their order."""
        names = LoggedPlays.__dataclass_fields__
        return LoggedPlays(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def no_plays() -> LoggedPlays:
    """No plays."""
    return LoggedPlays(**{name: np.zeros(0, np.int64) for name in LoggedPlays.__dataclass_fields__})


def logged_plays(
    config: SyntheticConfig, listeners: Traits, plays: SegmentPlays, song: np.ndarray, songs: Songs
) -> LoggedPlays:
    """Draw how much of each song is played, and on which day the row lands. song: int64 [P], of each play."""
    u = uniform(listeners.key[plays.row], plays.counter, Stream.LISTENING, 1)[0]
    duration = songs.duration_ms[song].astype(np.int64)
    skipped = np.minimum((0.02 + 0.26 * u) * duration, plays.slot * 1000)
    heard = np.minimum(np.where(u < 0.15, (0.4 + 4 * u) * duration, duration), plays.slot * 1000)
    play_ms = np.where(plays.skipped, skipped, heard).astype(np.int64)
    day = plays.time // DAY_SECONDS - config.day_start(0) // DAY_SECONDS
    u = uniform(listeners.key[plays.row], plays.time // _LATE_WINDOW, Stream.LANDING, 2)
    lands = day + np.where(u[0] < config.late_share, 1 + (3 * u[1]).astype(np.int64), 0)
    return LoggedPlays(plays.row, plays.counter, song, plays.time, play_ms, lands)


def bot_plays(config: SyntheticConfig, listeners: Traits, day: int, count: int) -> LoggedPlays:
    """A day of the robots: `count` full plays each, evenly spaced, round a playlist."""
    row = np.repeat(np.flatnonzero(listeners.is_bot), count)
    number = np.tile(np.arange(count), len(row) // count if count else 0)
    counter = day * count + number
    u = uniform(listeners.key[row], counter, Stream.BOT, 1)[0]
    first = uniform(listeners.key[row], 0, Stream.BOT, 1)[0] * config.songs
    song = (first.astype(np.int64) + 97 * (counter % _BOT_SONGS)) % config.songs
    time = config.day_start(day) + ((number + u) * DAY_SECONDS / max(count, 1)).astype(np.int64)
    return LoggedPlays(row, counter, song, time, np.full(len(row), -1, np.int64), np.full(len(row), day, np.int64))


def log_table(config: SyntheticConfig, listeners: Traits, plays: LoggedPlays, songs: Songs) -> pa.Table:
    """The rows of one landing day, by listener and time, with likes and dirt beside the plays they are made from."""
    order = np.lexsort((plays.time, plays.row))
    plays = plays.take(order)
    u = uniform(listeners.key[plays.row], plays.time * 1024 + plays.counter % 1024, Stream.DIRT, 4)
    edges = np.cumsum([getattr(config, f"{kind}_share") for kind in _EXTRA_KINDS])
    # At most one extra row per play; the interval of the shares that the uniform is in decides its kind.
    kind = np.searchsorted(edges, u[0], side="right")
    extra = kind < len(_EXTRA_KINDS)
    source = np.repeat(np.arange(len(order)), 1 + extra)
    is_extra = np.diff(source, prepend=-1) == 0
    name = np.array([*_EXTRA_KINDS, "play"])[np.where(is_extra, kind[source], len(_EXTRA_KINDS))]
    return _as_table(listeners, plays.take(source), songs, name, u[1:, source])


def _as_table(listeners: Traits, plays: LoggedPlays, songs: Songs, kind: np.ndarray, u: np.ndarray) -> pa.Table:
    duration = songs.duration_ms[plays.song].astype(np.int64)
    play_ms = np.where(plays.play_ms < 0, duration, plays.play_ms)
    low, high = _FAR_DAYS
    away = ((low + (high - low) * u[0]) * DAY_SECONDS).astype(np.int64) * np.where(u[1] < 0.5, -1, 1)
    time = plays.time + np.where(kind == "far", away, 0)
    negative = kind == "negative"
    missing = np.where(kind == "null", (3 * u[0]).astype(np.int64), -1)
    unknown = np.array(UNKNOWN_EVENTS)[(len(UNKNOWN_EVENTS) * u[0]).astype(np.int64)]
    event_type = np.where(kind == "unknown", unknown, np.where(kind == "like", "like", "play"))
    is_like = kind == "like"
    columns = [
        pa.array(FIRST_USER_ID + listeners.number[plays.row], pa.int64(), mask=missing == 0),
        pa.array(FIRST_ITEM_ID + plays.song, pa.int64(), mask=missing == 1),
        pa.array(time, pa.int64(), mask=missing == 2),
        pa.array(event_type, pa.string()),
        pa.array(np.where(negative, -play_ms - 1, play_ms).astype(np.int32), pa.int32(), mask=is_like),
        pa.array(np.where(negative, -duration, duration).astype(np.int32), pa.int32(), mask=is_like),
    ]
    return pa.table(columns, schema=PLAYS_SCHEMA)
