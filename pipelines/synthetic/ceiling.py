"""The best score under the `next_day` protocol that the process of a synthetic log allows.

An oracle knows the process and every listener's traits, and ranks unheard songs by the true probability that the
listener plays them without skipping in [08:00, 24:00) of the day. Listening times, tastes, runs and skips of that
window are simulated `replicates` times from the latent state with the generator's own code; given those, the
probability of each song is computed exactly:

    P(song not played) = product over explored runs of (1 - p(artist | taste) (1 - (1 - p(song | artist))^l))

with l the unskipped plays of the run. Repeated favourites are never first listens and drop out. Only the mix of
tastes and run lengths is averaged over the replicates. Two small terms are not exact: discoveries outside a
listener's tastes enter with their mean number of plays (error below 1e-5 per song), and every replicate assumes that
the listener is not away and begins at least one session, which scales all probabilities of a listener by the same
factor and so changes no ranking.
"""

import datetime as dt
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipelines import storage
from pipelines.calendar import DAY_SECONDS
from pipelines.errors import InputError
from pipelines.synthetic.config import MAX_TASTES, SyntheticConfig
from pipelines.synthetic.generate import TRUTH_COLUMNS, read_config
from pipelines.synthetic.listeners import FIRST_USER_ID, Traits, artist_weights, make_listeners
from pipelines.synthetic.process import (
    REQUEST_SECONDS,
    SegmentPlays,
    State,
    advance_clock,
    first_state,
    resample_dwell,
    simulate,
)
from pipelines.synthetic.stateless_random import Stream, derive
from pipelines.synthetic.world import FIRST_ITEM_ID, Artists, Songs, make_artists, make_songs

Knows = Literal["state", "history"]
_LONGEST_RUN = 8  # longer runs count as this many unskipped plays
_LISTENERS = 500  # simulated at a time, each `replicates` times


@dataclass(frozen=True)
class _World:
    config: SyntheticConfig
    artists: Artists
    songs: Songs
    share: np.ndarray  # [S] probability of each song given its artist
    undiscovered: np.ndarray  # [S, l + 1] log probability that a run of l discoveries misses the song
    day: int


def oracle_probabilities(
    out: str, day: dt.date, user_ids: np.ndarray, *, knows: Knows = "state", replicates: int = 64
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yields (positions in user_ids [b], item ids [S], float32 [b, S] probability of a play on `day` after 08:00).

    knows: "state", the latent taste at 08:00; or "history", only what a listener's plays before 00:00 show: the
    taste and its age at the last play, and when that was. The latter is what a perfect model of the logs could reach.
    """
    yield from _probabilities(_open(out, day), out, np.asarray(user_ids, np.int64), knows, replicates)


def oracle_lists(
    out: str,
    day: dt.date,
    user_ids: np.ndarray,
    *,
    heard: Sequence[np.ndarray],
    k: int = 30,
    knows: Knows = "state",
    replicates: int = 64,
    candidates: np.ndarray | None = None,
) -> np.ndarray:
    """int64 [B, k]: for each listener the unheard item ids most likely to be played on `day` after 08:00.

    out: the folder of the synthetic log, which must hold `day`. heard: the item ids each listener has heard. Songs
    released on `day` are left out, and all but `candidates` (item ids) where given. Ties go to the lower id; 0 fills
    lists that run out of songs.
    """
    world, user_ids = _open(out, day), np.asarray(user_ids, np.int64)
    allowed = world.songs.release < world.day
    if candidates is not None:
        allowed &= np.isin(FIRST_ITEM_ID + np.arange(len(allowed)), candidates)
    lists = np.zeros((len(user_ids), k), np.int64)
    for positions, items, probability in _probabilities(world, out, user_ids, knows, replicates):
        probability[:, ~allowed] = -1
        for row, position in enumerate(positions):
            number = np.asarray(heard[position], np.int64) - FIRST_ITEM_ID
            probability[row, number[(number >= 0) & (number < len(items))]] = -1
        best = np.argsort(-probability, axis=1, kind="stable")[:, :k]
        candidate = np.take_along_axis(probability, best, axis=1) >= 0
        lists[positions, : best.shape[1]] = np.where(candidate, items[best], 0)
    return lists


def _probabilities(
    world: _World, out: str, user_ids: np.ndarray, knows: Knows, replicates: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    number = user_ids - FIRST_USER_ID
    if len(number) and (number.min() < 0 or number.max() >= world.config.listeners):
        raise InputError(f"{out} has no listener {user_ids[(number < 0) | (number >= world.config.listeners)][0]}")
    truth = _read_truth(out, world.config.day(world.day), "request" if knows == "state" else "midnight")
    items = FIRST_ITEM_ID + np.arange(len(world.songs.artist))
    for low in range(0, len(number), _LISTENERS):
        positions = np.arange(low, min(low + _LISTENERS, len(number)))
        yield positions, items, _simulated(world, truth, number[positions], knows, replicates)


def _open(out: str, day: dt.date) -> _World:
    config = read_config(out)
    number = (day - config.first_day).days
    if not 0 <= number < config.days:
        raise InputError(
            f"{out} holds {config.first_day} to {config.day(config.days - 1)}, not {day}: "
            "run `fuxi synth` with more days"
        )
    artists = make_artists(config)
    songs = make_songs(config, artists, number)
    share = songs.share()
    anyone = np.diff(artists.cumulative, prepend=0.0)[songs.artist]
    return _World(config, artists, songs, share, _log_missed(anyone, share), number)


def _log_missed(artist: np.ndarray, share: np.ndarray) -> np.ndarray:
    """float32 [songs, l + 1]: log probability that a run of l plays misses a song.

    artist: float [songs], probability of the song's artist. share: that of the song given its artist.
    """
    length = np.arange(_LONGEST_RUN + 1)
    return np.log1p(-artist[:, None] * (1 - (1 - share[:, None]) ** length)).astype(np.float32)


def _read_truth(out: str, day: dt.date, stem: str) -> dict[str, np.ndarray]:
    """The latent state of all listeners at one moment, by column."""
    folder = storage.join(storage.absolute(out), "truth", f"ds={day}")
    files = [file.uri for file in storage.list_files(folder) if storage.name(file.uri).startswith(stem)]
    tables = [storage.read_table(uri) for uri in files]
    return {name: np.concatenate([table[name].to_numpy() for table in tables]) for name in (*TRUTH_COLUMNS, "liked")}


def _simulated(
    world: _World, truth: dict[str, np.ndarray], number: np.ndarray, knows: Knows, replicates: int
) -> np.ndarray:
    """float32 [b, S]: probability that each of the listeners `number` plays each song."""
    listeners = _listeners(world.config, number)
    rows = np.repeat(np.arange(len(number)), replicates)
    futures = listeners.take(rows)
    state = _state_from(truth, number[rows], futures)
    replicate = np.tile(np.arange(replicates), len(number)) * 4096 + world.day
    futures = Traits(**{**vars(futures), "key": derive(futures.key, replicate, Stream.REPLICATE)})
    plays, run_known = _simulate_window(world, futures, state, knows)
    run_artist = state.run_artist
    lengths, continued = _run_lengths(plays, run_known)
    weights = artist_weights(world.artists, listeners)
    shape = (len(number), replicates)
    lengths, continued, run_artist = (x.reshape(*shape, *x.shape[1:]) for x in (lengths, continued, run_artist))
    return np.stack(
        [
            _song_probabilities(world, listeners.genre[i], weights[i], lengths[i], continued[i], int(run_artist[i, 0]))
            for i in range(len(number))
        ]
    )


def _listeners(config: SyntheticConfig, number: np.ndarray) -> Traits:
    """The listeners of these numbers, in this order."""
    unique, inverse = np.unique(number, return_inverse=True)
    if 0 < len(unique) < 64:
        one_by_one = [make_listeners(config, int(n), int(n) + 1) for n in unique]
        names = Traits.__dataclass_fields__
        traits = Traits(**{name: np.concatenate([getattr(one, name) for one in one_by_one]) for name in names})
        return traits.take(inverse)
    low = int(unique[0])
    return make_listeners(config, low, int(unique[-1]) + 1).take(number - low)


def _state_from(truth: dict[str, np.ndarray], number: np.ndarray, futures: Traits) -> State:
    """The state of each replicate: the stored latent state, with counters that start at 0."""
    state = first_state(futures)
    for name in TRUTH_COLUMNS:
        setattr(state, name, truth[name][number])
    state.liked = (truth["liked"][number][:, None] >> np.arange(MAX_TASTES)) & 1
    state.around = np.ones(len(number), bool)
    return state


def _simulate_window(world: _World, futures: Traits, state: State, knows: Knows) -> tuple[SegmentPlays, np.ndarray]:
    """One future of each row, [08:00, 24:00) of the day; and whether its `run_artist` is that of the run under way."""
    run_known = np.ones(len(state.taste), bool)
    midnight, elapsed = world.config.day_start(world.day), world.config.elapsed_time
    if knows == "history":
        # Nothing is known about the time since the last play but its length.
        state.taste, state.age = state.seen_taste.copy(), state.seen_age.copy()
        resample_dwell(futures, state)
        since = np.where(state.seen_time > 0, midnight - state.seen_time, 0)
        advance_clock(futures, state, elapsed * since)
        night = simulate(futures, state, midnight, midnight + REQUEST_SECONDS, day=world.day, elapsed=elapsed)
        run_known[night.row[night.fresh]] = False
    else:
        resample_dwell(futures, state)
    window = (midnight + REQUEST_SECONDS, midnight + DAY_SECONDS)
    return simulate(futures, state, *window, day=world.day, elapsed=elapsed, force=True), run_known


def _run_lengths(plays: SegmentPlays, run_known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many runs of each taste (discoveries last) have l = 0 to _LONGEST_RUN unskipped plays, per row.

    Returns float32 [rows, K + 1, _LONGEST_RUN + 1], and [rows] the unskipped plays of the run under way before.
    """
    draw = np.flatnonzero(~plays.repeat)
    row, fresh, kept = plays.row[draw], plays.fresh[draw], ~plays.skipped[draw]
    first_of_row = np.diff(row, prepend=-1) > 0
    begins = fresh | first_of_row
    run = np.cumsum(begins) - 1
    length = np.minimum(np.bincount(run, weights=kept, minlength=int(begins.sum())), _LONGEST_RUN).astype(np.int64)
    begin = draw[begins]
    under_way = ~plays.fresh[begin] & run_known[plays.row[begin]]
    rows, continued = len(run_known), np.zeros(len(run_known), np.float32)
    continued[plays.row[begin[under_way]]] = length[under_way]
    begin, length = begin[~under_way], length[~under_way]
    kind = np.where(plays.discovery[begin], MAX_TASTES, plays.taste[begin])
    size = (rows, MAX_TASTES + 1, _LONGEST_RUN + 1)
    flat = np.ravel_multi_index((plays.row[begin], kind, length), size)
    return np.bincount(flat, minlength=int(np.prod(size))).reshape(size).astype(np.float32), continued


def _song_probabilities(
    world: _World, genre: np.ndarray, weights: np.ndarray, lengths: np.ndarray, continued: np.ndarray, run_artist: int
) -> np.ndarray:
    """float32 [S], one listener: lengths [R, K + 1, l], continued [R], weights [K, artists of a genre]."""
    songs, each = world.songs, weights.shape[1]
    absent = world.undiscovered @ lengths[:, -1].mean(axis=0)
    probability = -np.expm1(absent)
    under_way = np.log1p(-world.share * (1 - 1e-9)).astype(np.float32) * (songs.artist == run_artist)
    run_genre = {run_artist // each} - {-1} if continued.any() else set()
    for played in sorted(run_genre.union(genre[lengths[:, :-1].any(axis=(0, 2))].tolist())):
        number = songs.by_artist[songs.first[played * each] : songs.first[(played + 1) * each]]
        log_absent = absent[number] + continued[:, None] * under_way[number]
        for taste in np.flatnonzero(genre == played):
            artist = weights[taste][songs.artist[number] - played * each]
            log_absent += lengths[:, taste] @ _log_missed(artist, world.share[number]).T
        probability[number] = 1 - np.exp(log_absent).mean(axis=0)
    return probability
