"""The plays of one part of one landing day, a pure function of (configuration, day, part); about 0.15 us a play.

Parts share no state. There is no table of listeners: an active listener is a rank drawn from a log-normal (drawing
ranks in proportion to a log-normal activity gives a log-normal whose mean is higher by its variance), and a
pseudo-random permutation maps ranks to listeners. The counts of a preset are exact because each part of the 25 days
owns a slice of the listeners and of the songs, and plays each of them at least once.

Shape legend: `P` plays of the part, `S` its sessions.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa

from pipelines.calendar import DAY_SECONDS
from pipelines.schema import ITEM_ID, TIMESTAMP, USER_ID
from pipelines.synthetic.industrial.config import MAX_LAG, IndustrialConfig
from pipelines.synthetic.listeners import FIRST_USER_ID
from pipelines.synthetic.stateless_random import keys, mix, normal, normal_survival
from pipelines.synthetic.world import FIRST_ITEM_ID

ACTIVITY_SIGMA = 1.2  # of the log-normal: the busiest 1 % of listeners have an eighth of the plays
# Means of geometric session lengths; those of owned listeners are short, because most listeners are light.
_SESSION_PLAYS, _OWNED_SESSION_PLAYS = 8.0, 3.0
_GAP_SECONDS = (120, 300)  # between plays of a session
_LATE_SHARE = 0.02
_CLUSTERS = 64  # the song of rank r is in cluster r % 64; clusters differ in popularity
_TASTE_SHARES = (0.5, 0.8)  # cumulative: first, second, third taste of a listener
_TASTE_SHARE = 0.7  # of plays come from the session's cluster, the others from everything
_SONG_OFFSET, _CLUSTER_OFFSET = 10.0, 3.0  # popularity of rank r is (r + offset)^-0.9
_HOURS = np.array(  # plays by hour of the day
    [
        *(2.2, 1.2, 0.7, 0.4, 0.3, 0.5, 1.2, 2.6, 3.8, 3.9, 3.8, 3.9),
        *(4.2, 4.1, 4.1, 4.4, 5.0, 5.8, 6.6, 7.4, 8.0, 7.6, 6.0, 3.8),
    ]
)
_CUMULATIVE_HOURS = np.concatenate([[0.0], _HOURS.cumsum() / _HOURS.sum()])
_GRID = np.arange(-9.0, 9.0, 1e-3)
_GRID_SURVIVAL = normal_survival(_GRID)
_SCHEMA = pa.schema([(USER_ID, pa.int64()), (ITEM_ID, pa.int64()), (TIMESTAMP, pa.int64())])

# What each permutation is for. Every generated row depends on these values: never renumber.
_RANK_TO_LISTENER, _OWNED_LISTENERS, _RANK_TO_SONG, _OWNED_SONGS, _TASTES = range(5)


@dataclass(frozen=True)
class _Sessions:
    """The sessions of a part, [S] each."""

    listener: np.ndarray
    length: np.ndarray  # plays
    start: np.ndarray  # second of the day
    lag: np.ndarray  # days from the session to its landing day
    cluster: np.ndarray


def plays_table(config: IndustrialConfig, day: int, part: int) -> pa.Table:
    """The rows of one part, by timestamp: user_id, item_id, timestamp (int64; Unix seconds). No two are the same."""
    rows = config.rows(day, part)
    rng = np.random.Generator(np.random.Philox(key=[config.seed % 2**64, day << 32 | part]))
    sessions = _draw_sessions(config, rng, day, part, rows)
    session = np.repeat(np.arange(len(sessions.length)), sessions.length)
    listener = sessions.listener[session]
    item = _draw_songs(config, rng, sessions.cluster[session])
    _play_owned_songs(config, rng, item, day, part)
    lag = sessions.lag[session]
    second = _seconds(config, rng, sessions, session)
    second = _settle(config, listener, item, second, lag * config.parts + part)
    second += (MAX_LAG - lag) * DAY_SECONDS
    packed = np.sort(second << 32 | np.arange(rows))  # sorting integers is several times faster than an argsort
    order, second = packed & 0xFFFFFFFF, packed >> 32
    columns = [FIRST_USER_ID + listener[order], item[order], second + config.day_start(day - MAX_LAG)]
    return pa.table(columns, schema=_SCHEMA)


def permute(numbers: np.ndarray, size: int, key: int) -> np.ndarray:
    """A pseudo-random permutation of range(size) that a key selects, applied to int64 numbers without a table.

    Rounds of odd multiplier and shift permute the next power of two; numbers outside `size` are permuted again until
    they are inside (cycle walking).
    """
    bits = max((size - 1).bit_length(), 2)
    rounds = keys(key, np.arange(4)) | np.uint64(1)
    mask, shift = np.uint64(2**bits - 1), np.uint64(bits // 2)

    def scramble(x: np.ndarray) -> np.ndarray:
        for odd in rounds:
            x = (x * odd + (odd >> np.uint64(32))) & mask
            x = x ^ (x >> shift)
        return x

    moved = scramble(np.asarray(numbers).astype(np.uint64))
    while len(outside := np.flatnonzero(moved >= size)):
        moved[outside] = scramble(moved[outside])
    return moved.astype(np.int64)


def _key(config: IndustrialConfig, purpose: int) -> int:
    return int(keys(config.seed, np.array([purpose]))[0])


def _geometric(rng: np.random.Generator, size: int, mean: float) -> np.ndarray:
    """int64 [size], at least 1, with about this mean."""
    return 1 + (np.log(1 - rng.random(size)) / math.log1p(-1 / mean)).astype(np.int64)


def _draw_sessions(config: IndustrialConfig, rng: np.random.Generator, day: int, part: int, rows: int) -> _Sessions:
    """Sessions of exactly `rows` plays: one of each listener that this part owns, then of listeners by activity."""
    low, high = config.owned(config.listeners, day, part)
    owned = permute(np.arange(low, high), config.listeners, _key(config, _OWNED_LISTENERS))
    lengths = [np.minimum(_geometric(rng, len(owned), _OWNED_SESSION_PLAYS), rows // max(len(owned), 1))]
    missing = rows - int(lengths[0].sum())
    while missing > 0:
        drawn = _geometric(rng, int(missing / _SESSION_PLAYS) + 16, _SESSION_PLAYS)
        reached = drawn.cumsum()
        drawn = drawn[: int(np.searchsorted(reached, missing)) + 1]
        drawn[-1] -= max(int(drawn.sum()) - missing, 0)
        lengths.append(drawn)
        missing -= int(drawn.sum())
    length = np.concatenate(lengths)
    listener = np.concatenate([owned, _active_listeners(config, rng, len(length) - len(owned))])
    start = np.interp(rng.random(len(length)), _CUMULATIVE_HOURS, np.arange(25) * 3600.0).astype(np.int64)
    late = rng.random(len(length)) / _LATE_SHARE
    lag = np.where(late < 1, 1 + (late * MAX_LAG).astype(np.int64), 0)
    lag[lag > day] = 0  # nothing was played before the first day
    return _Sessions(listener, length, start, lag, _tastes(config, rng, listener))


def _active_listeners(config: IndustrialConfig, rng: np.random.Generator, size: int) -> np.ndarray:
    """Listeners drawn in proportion to their activity, which is log-normal over ranks. Rank 0 is the busiest."""
    z = normal(1 - rng.random(size)) + ACTIVITY_SIGMA
    rank = (np.interp(z, _GRID, _GRID_SURVIVAL) * config.listeners).astype(np.int64)
    return permute(np.minimum(rank, config.listeners - 1), config.listeners, _key(config, _RANK_TO_LISTENER))


def _tastes(config: IndustrialConfig, rng: np.random.Generator, listener: np.ndarray) -> np.ndarray:
    """[S] the cluster of each session: one of the listener's three."""
    taste = np.searchsorted(_TASTE_SHARES, rng.random(len(listener)), side="right")
    bits = mix(keys(_key(config, _TASTES), listener) + taste.astype(np.uint64)) >> np.uint64(40)
    return ((bits.astype(np.float64) * 2.0**-24) ** 2 * _clusters(config)).astype(np.int64)


def _clusters(config: IndustrialConfig) -> int:
    return min(_CLUSTERS, max(config.songs // 50, 1))


def _draw_songs(config: IndustrialConfig, rng: np.random.Generator, cluster: np.ndarray) -> np.ndarray:
    """[P] item ids: by popularity within the cluster, or among all songs."""
    u = rng.random(len(cluster))
    count = _clusters(config)
    personal = np.flatnonzero(u < _TASTE_SHARE)
    rank = _zipf_rank((u - _TASTE_SHARE) / (1 - _TASTE_SHARE), config.songs, _SONG_OFFSET)
    within = _zipf_rank(u[personal] / _TASTE_SHARE, config.songs // count, _CLUSTER_OFFSET)
    rank[personal] = within * count + cluster[personal]
    return _item_ids(config)[rank]


def _zipf_rank(u: np.ndarray, size: int, offset: float) -> np.ndarray:
    """Ranks below `size` with probability proportional to (rank + offset)^-0.9, from uniforms in [0, 1).

    Uniforms outside [0, 1) give arbitrary ranks.
    """
    low, high = offset**0.1, (size + offset) ** 0.1
    x = low + u * (high - low)
    x5 = x * x  # the quantile function is a tenth power: multiplications are cheaper than np.power
    x5 *= x5
    x5 *= x
    return np.clip((x5 * x5 - offset).astype(np.int64), 0, size - 1)


@lru_cache(maxsize=2)
def _item_ids(config: IndustrialConfig) -> np.ndarray:
    """[songs] the item id of each rank of popularity."""
    return FIRST_ITEM_ID + permute(np.arange(config.songs), config.songs, _key(config, _RANK_TO_SONG))


def _play_owned_songs(
    config: IndustrialConfig, rng: np.random.Generator, item: np.ndarray, day: int, part: int
) -> None:
    """Overwrite plays, spread evenly over the part, with the songs that this part owns."""
    low, high = config.owned(config.songs, day, part)
    owned = FIRST_ITEM_ID + permute(np.arange(low, high), config.songs, _key(config, _OWNED_SONGS))
    place = (np.arange(len(owned)) + rng.random(len(owned))) * (len(item) / max(len(owned), 1))
    edges = np.arange(len(owned) + 1) * len(item) // max(len(owned), 1)
    item[np.clip(place.astype(np.int64), edges[:-1], edges[1:] - 1)] = owned


def _seconds(
    config: IndustrialConfig, rng: np.random.Generator, sessions: _Sessions, session: np.ndarray
) -> np.ndarray:
    """[P] second of the day. A session past midnight continues at the start of the same day."""
    low, high = _GAP_SECONDS
    gap = low + (rng.random(len(session), dtype=np.float32) * (high - low)).astype(np.int64)
    elapsed = gap.cumsum()
    first = sessions.length.cumsum() - sessions.length
    return (sessions.start - elapsed[first])[session] + elapsed


def _settle(
    config: IndustrialConfig, listener: np.ndarray, item: np.ndarray, second: np.ndarray, residue: np.ndarray
) -> np.ndarray:
    """Move each play by less than `period` seconds so that no row occurs twice, within this part or across parts.

    Afterwards second + hash(listener, song) is congruent to `residue`, that of part and lag, modulo the period. Rows
    of different parts or landing days that agree in listener, song and day therefore differ in the second; rows of
    one part are compared with each other.
    """
    pair = listener.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + item.astype(np.uint64) * np.uint64(
        0xD1342543DE82EF95
    )
    period = config.period
    second += (residue - second - (pair >> np.uint64(32)).astype(np.int64)) % period
    second %= DAY_SECONDS  # keeps the residue: the period divides the day
    # Of rows with equal hashes all but one are moved, even if the rows differ, so that one sort is enough.
    pair = mix(pair) + residue.astype(np.uint64)
    while True:
        row = mix(pair + second.astype(np.uint64) * np.uint64(0xBF58476D1CE4E5B9))
        ordered = np.sort(row)
        again = ordered[1:][ordered[1:] == ordered[:-1]]
        if not len(again):
            return second
        rows = np.flatnonzero(np.isin(row, again))
        later = np.setdiff1d(np.arange(len(rows)), np.unique(row[rows], return_index=True)[1])
        second[rows[later]] = (second[rows[later]] + period) % DAY_SECONDS
