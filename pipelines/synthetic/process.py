"""The listening process without songs: when listeners play, in which taste, and whether a play explores or repeats.

Shape legend: `n` listeners of a chunk, `P` plays of one segment, `K` tastes, `M` remembered favourites.

A day has two segments, [00:00, 08:00) and [08:00, 24:00), so that the state at the request time of a serving day
exists. The song of a play influences nothing here: the ceiling simulates the future of every listener with this same
module and averages over the songs exactly. The process is Markov in `State`:

- sessions begin as a Poisson process over the hours of a listener's day; after each play a session continues with a
  fixed probability; a play occupies a slot of time that does not depend on the song;
- tastes are a semi-Markov process with log-normal dwell times in the *taste clock*, which advances by
  `elapsed_time` seconds a second and by (1 - elapsed_time) * PLAY_SECONDS a play;
- plays that explore come in runs of one artist; the probability that a run continues decays exponentially with the
  time since its last play, again to the degree of the dial.
"""

from dataclasses import dataclass, replace

import numpy as np

from pipelines.calendar import DAY_SECONDS
from pipelines.synthetic.config import MAX_TASTES
from pipelines.synthetic.listeners import COME_BACK, STAY_AROUND, Traits
from pipelines.synthetic.stateless_random import Stream, normal, normal_survival, uniform

REQUEST_SECONDS = 8 * 3600
PLAY_SECONDS = 3600.0  # of the taste clock per play where the dial is 0
FAVOURITES = 48  # M
_DWELL_SIGMA = 1.0
_HOME_RETURN = 0.55  # probability that a taste other than home is followed by home
_RUN_SECONDS = 7200.0
_CLOCK_SPAN = float(2**26)  # more than any clock value within a segment


@dataclass
class State:
    """The state of each listener of a chunk between two segments. Times are Unix seconds, 0 = never.

    The fields' names are stored (`truth/state`), so renaming one makes logs that cannot be extended.
    """

    plays: np.ndarray  # [n] int64 counters of the random numbers drawn so far
    gaps: np.ndarray
    sessions: np.ndarray
    episodes: np.ndarray
    around: np.ndarray  # [n] bool, not away today
    carry: np.ndarray  # [n] time of the next play of a session that goes on, 0 = no session
    taste: np.ndarray  # [n] current taste, 0 = home
    age: np.ndarray  # [n] taste-clock seconds since it began
    dwell: np.ndarray  # [n] its whole duration; this tells the future, so the ceiling never reads it
    draw_time: np.ndarray  # [n] of the last play that explored
    draw_taste: np.ndarray  # [n] of that play, -1 = none yet
    run_artist: np.ndarray  # [n] of that play, -1 = none yet
    seen_time: np.ndarray  # [n] of the last play, with the taste and its age at that time
    seen_taste: np.ndarray
    seen_age: np.ndarray
    favourites: np.ndarray  # [n, K, M] the latest songs explored and not skipped, a ring buffer
    liked: np.ndarray  # [n, K] how many songs were ever written to it


@dataclass(frozen=True)
class SegmentPlays:
    """The plays of a segment, sorted by listener and time."""

    row: np.ndarray  # [P] the listener's position in the chunk
    counter: np.ndarray  # [P] the play's number among all plays of that listener
    time: np.ndarray  # [P]
    slot: np.ndarray  # [P] seconds until the next play could begin
    skipped: np.ndarray  # [P] bool
    taste: np.ndarray  # [P]
    repeat: np.ndarray  # [P] bool: plays a favourite; every other play explores
    fresh: np.ndarray  # [P] bool: explores and begins a new run of an artist
    discovery: np.ndarray  # [P] bool: fresh, with an artist drawn from the whole catalogue


def first_state(listeners: Traits) -> State:
    """The state before the first day: taste 0, at the start of a dwell."""
    n = len(listeners.number)
    counters = ("plays", "gaps", "sessions", "episodes")
    others = ("carry", "taste", "draw_time", "seen_time", "seen_taste")
    state = State(
        **{name: np.zeros(n, np.int64) for name in (*counters, *others)},
        around=np.ones(n, bool),
        age=np.zeros(n),
        dwell=np.zeros(n),
        draw_taste=np.full(n, -1, np.int64),
        run_artist=np.full(n, -1, np.int64),
        seen_age=np.zeros(n),
        favourites=np.zeros((n, MAX_TASTES, FAVOURITES), np.int32),
        liked=np.zeros((n, MAX_TASTES), np.int64),
    )
    state.dwell = _new_dwell(listeners, state, np.arange(n))[1]
    return state


def start_day(listeners: Traits, state: State, day: int) -> None:
    """Draw which listeners are around on a day; they are away for days to weeks at a time."""
    u = uniform(listeners.key, day, Stream.DAY, 1)[0]
    state.around = np.where(state.around, u < STAY_AROUND, u < COME_BACK) | (listeners.arrival >= day)


def simulate(
    listeners: Traits, state: State, start: int, end: int, *, day: int, elapsed: float, force: bool = False
) -> SegmentPlays:
    """All plays in [start, end), Unix seconds within landing day `day`; `state` is advanced to `end`.

    elapsed: the dial. force: listeners without a session that goes on begin one in the segment, which conditions on
    at least one play.
    """
    active = state.around & (listeners.arrival <= day) & ~listeners.is_bot
    row, counter, time, slot, skipped = _times(listeners, state, np.flatnonzero(active), start, end, force)
    taste = _assign_tastes(listeners, state, row, time, start=start, end=end, elapsed=elapsed)
    neither = np.zeros(len(row), bool)
    plays = SegmentPlays(row, counter, time, slot, skipped, taste, neither, neither, neither)
    return _choose_kinds(listeners, state, plays, elapsed)


def resample_dwell(listeners: Traits, state: State) -> None:
    """Redraw the dwell of each taste, conditional on having lasted `age`."""
    rows = np.arange(len(listeners.number))
    mean = listeners.log_dwell[rows, state.taste]
    z = (np.log(np.maximum(state.age, 1e-9)) - mean) / _DWELL_SIGMA
    u = uniform(listeners.key, state.episodes, Stream.EPISODE, 2)[0]
    state.episodes = state.episodes + 1
    beyond = np.maximum(normal_survival(z) * u, 1e-300)
    state.dwell = np.maximum(np.exp(mean - _DWELL_SIGMA * normal(beyond)), state.age)


def advance_clock(listeners: Traits, state: State, amount: np.ndarray) -> None:
    """Advance the taste clock of every listener by `amount` [n] clock seconds without a play."""
    switch_row, switch_at, _ = _switches(listeners, state, amount)
    began = -state.age
    began[switch_row] = switch_at  # the last write of a row is its latest switch
    state.age = amount - began


def _times(
    listeners: Traits, state: State, rows: np.ndarray, start: int, end: int, force: bool
) -> tuple[np.ndarray, ...]:
    """Row, counter, time, slot and skip of every play; the loop simulates one session of all listeners at a time."""
    under_way = state.carry[rows] > 0
    begin = np.where(under_way, state.carry[rows], 0)
    begin[~under_way] = _next_session(listeners, state, rows[~under_way], np.array(start), end, force)
    state.carry[:] = 0
    parts = []
    while True:
        rows, begin = rows[begin < end], begin[begin < end]
        if not rows.size:
            break
        session = _one_session(listeners, state, rows, begin)
        owner, time, slot = session["owner"], session["time"], session["slot"]
        inside = time < end
        counts = np.bincount(owner[inside], minlength=len(rows))
        parts.append(
            (rows[owner[inside]], session["counter"][inside], time[inside], slot[inside], session["skipped"][inside])
        )
        state.plays[rows] += counts
        cut = np.flatnonzero(~inside)
        first_cut = cut[np.unique(owner[cut], return_index=True)[1]]
        state.carry[rows[owner[first_cut]]] = time[first_cut]
        over = np.ones(len(rows), bool)
        over[owner[first_cut]] = False
        rows, after = rows[over], session["end"][over]
        begin = _next_session(listeners, state, rows, after, end, False)
    if not parts:
        return tuple(np.zeros(0, kind) for kind in (np.int64, np.int64, np.int64, np.int64, bool))
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    order = np.argsort(columns[0], kind="stable")
    return tuple(column[order] for column in columns)


def _one_session(listeners: Traits, state: State, rows: np.ndarray, begin: np.ndarray) -> dict[str, np.ndarray]:
    """The plays of one session for each of `rows`, also those after the end of the segment."""
    key = listeners.key[rows]
    u = uniform(key, state.sessions[rows], Stream.SESSION, 1)[0]
    state.sessions[rows] += 1
    length = 1 + np.minimum(np.log(u) / np.log(listeners.stay[rows]), 500).astype(np.int64)
    owner = np.repeat(np.arange(len(rows)), length)
    before = np.cumsum(length) - length
    counter = state.plays[rows][owner] + np.arange(len(owner)) - before[owner]
    u = uniform(key[owner], counter, Stream.PACE, 2)
    skipped = u[1] < listeners.skip[rows][owner]
    slot = np.where(skipped, 8 + 50 * u[0], 200 + 140 * u[0]).astype(np.int64)
    passed = np.cumsum(slot) - slot
    time = begin[owner] + passed - passed[before][owner]
    last = before + length - 1
    return {
        "owner": owner,
        "counter": counter,
        "time": time,
        "slot": slot,
        "skipped": skipped,
        "end": time[last] + slot[last],
    }


def _next_session(
    listeners: Traits, state: State, rows: np.ndarray, after: np.ndarray, end: int, force: bool
) -> np.ndarray:
    """When the next session begins after each time.

    At or past `end` if not before it; the Poisson process is memoryless, so the next segment draws it anew.
    """
    u = uniform(listeners.key[rows], state.gaps[rows], Stream.GAP, 1)[0]
    state.gaps[rows] += 1
    day_start = (end - 1) // DAY_SECONDS * DAY_SECONDS
    now = _share_of_day(listeners.hours, rows, after - day_start)
    whole = listeners.rate[rows]
    if _is_weekend(day_start):
        whole = whole * listeners.weekend[rows]
    if force:
        left = (_share_of_day(listeners.hours, rows, np.full(len(rows), end - day_start)) - now) * whole
        u = 1 - u * -np.expm1(-left)
    target = now - np.log(u) / whole
    hours = listeners.hours[rows]
    hour = np.minimum((hours[:, 1:] <= target[:, None]).sum(axis=1), 23)
    low, high = hours[np.arange(len(rows)), hour], hours[np.arange(len(rows)), hour + 1]
    second = (hour + np.minimum((target - low) / (high - low), 1)) * 3600
    begin = day_start + np.maximum(second.astype(np.int64), after - day_start)
    return np.where(target < 1, begin, day_start + DAY_SECONDS)


def _is_weekend(day_start: int) -> bool:
    """Whether the day that starts at this Unix second is a Saturday or a Sunday; 1970 began on a Thursday."""
    return (day_start // DAY_SECONDS + 3) % 7 >= 5


def _share_of_day(hours: np.ndarray, rows: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The cumulative session intensity of each row at a second of its day."""
    second = np.minimum(np.broadcast_to(second, rows.shape), DAY_SECONDS)
    hour = np.minimum(second // 3600, 23)
    low, high = hours[rows, hour], hours[rows, hour + 1]
    return low + (high - low) * (second / 3600 - hour)


def _assign_tastes(
    listeners: Traits, state: State, row: np.ndarray, time: np.ndarray, *, start: int, end: int, elapsed: float
) -> np.ndarray:
    """The taste of each play; taste, age and last play of the state are advanced to `end`."""
    counts = np.bincount(row, minlength=len(listeners.number))
    ordinal = np.arange(len(row)) - (np.cumsum(counts) - counts)[row]
    clock = elapsed * (time - start) + (1 - elapsed) * PLAY_SECONDS * (ordinal + 1)
    total = elapsed * (end - start) + (1 - elapsed) * PLAY_SECONDS * counts
    before, began = state.taste.copy(), -state.age
    switch_row, switch_at, switch_taste = _switches(listeners, state, total)
    order = np.argsort(switch_row, kind="stable")
    switch_row, switch_at, switch_taste = switch_row[order], switch_at[order], switch_taste[order]
    found = np.searchsorted(switch_row * _CLOCK_SPAN + switch_at, row * _CLOCK_SPAN + clock, side="right") - 1
    switched = (found >= 0) & (switch_row[found] == row) if len(switch_row) else np.zeros(len(row), bool)
    taste, since = before[row], began[row]
    taste[switched], since[switched] = switch_taste[found[switched]], switch_at[found[switched]]
    began[switch_row] = switch_at
    state.age = total - began
    last = np.flatnonzero(np.diff(row, append=-1))
    state.seen_time[row[last]], state.seen_taste[row[last]] = time[last], taste[last]
    state.seen_age[row[last]] = clock[last] - since[last]
    return taste


def _switches(listeners: Traits, state: State, total: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, clock and new taste of every switch within `total` clock seconds, in order; updates taste and dwell."""
    at = state.dwell - state.age
    rows = np.flatnonzero(at < total)
    parts = []
    while rows.size:
        state.taste[rows], dwell = _new_dwell(listeners, state, rows)
        state.dwell[rows] = dwell
        parts.append((rows, at[rows], state.taste[rows]))
        at[rows] += dwell
        rows = rows[at[rows] < total[rows]]
    if not parts:
        return np.zeros(0, np.int64), np.zeros(0), np.zeros(0, np.int64)
    row, clock, taste = (np.concatenate(column) for column in zip(*parts, strict=True))
    return row, clock, taste


def _new_dwell(listeners: Traits, state: State, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The next taste (never the same twice in a row; at the start, home) and how long it lasts."""
    u = uniform(listeners.key[rows], state.episodes[rows], Stream.EPISODE, 2)
    begins = state.episodes[rows] == 0
    state.episodes[rows] += 1
    now, others = state.taste[rows], listeners.tastes[rows] - 1
    go_home = (now > 0) & ((u[1] < _HOME_RETURN) | (others == 1))
    spread = np.where(now > 0, (u[1] - _HOME_RETURN) / (1 - _HOME_RETURN), u[1])
    choices = np.maximum(np.where(now > 0, others - 1, others), 1)
    other = 1 + np.clip((spread * choices).astype(np.int64), 0, choices - 1)
    other = np.where((now > 0) & (other >= now), other + 1, other)
    taste = np.where(begins | go_home, 0, other)
    return taste, np.exp(listeners.log_dwell[rows, taste] + _DWELL_SIGMA * normal(u[0]))


def _choose_kinds(listeners: Traits, state: State, plays: SegmentPlays, elapsed: float) -> SegmentPlays:
    """Draw which plays repeat a favourite, and which of the others begin a new run of an artist."""
    row, time, taste = plays.row, plays.time, plays.taste
    u = uniform(listeners.key[row], plays.counter, Stream.CHOICE, 3)
    # Only favourites from before the segment count, so that this does not depend on the segment's songs.
    repeat = (u[0] < listeners.repeat[row]) & (state.liked[row, taste] > 0)
    draw = np.flatnonzero(~repeat)
    first = np.diff(row[draw], prepend=-1) > 0
    begin = draw[first]
    last_time, last_taste = np.empty(len(draw), np.int64), np.empty(len(draw), np.int64)
    last_time[1:], last_taste[1:] = time[draw[:-1]], taste[draw[:-1]]
    last_time[first], last_taste[first] = state.draw_time[row[begin]], state.draw_taste[row[begin]]
    going_on = listeners.loyalty[row[draw]] * np.exp(-elapsed * (time[draw] - last_time) / _RUN_SECONDS)
    fresh = np.zeros(len(row), bool)
    fresh[draw] = (last_taste != taste[draw]) | (u[1, draw] >= going_on)
    last = draw[np.flatnonzero(np.diff(row[draw], append=-1))]
    state.draw_time[row[last]], state.draw_taste[row[last]] = time[last], taste[last]
    return replace(plays, repeat=repeat, fresh=fresh, discovery=fresh & (u[2] < listeners.discovery[row]))
