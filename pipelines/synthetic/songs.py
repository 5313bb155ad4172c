"""The song of each play: a play that explores draws an artist and one of their songs, a repeat a recent favourite."""

import numpy as np

from pipelines.synthetic.listeners import Traits
from pipelines.synthetic.process import FAVOURITES, SegmentPlays, State
from pipelines.synthetic.stateless_random import Stream, uniform
from pipelines.synthetic.world import Artists, Songs


def choose_songs(
    listeners: Traits, weights: np.ndarray, state: State, plays: SegmentPlays, *, artists: Artists, songs: Songs
) -> np.ndarray:
    """int64 [P], the song number of each play; the favourites in `state` are updated.

    weights: of `listeners.artist_weights`.
    """
    u = uniform(listeners.key[plays.row], plays.counter, Stream.SONG, 3)
    chosen = np.empty(len(plays.row), np.int64)
    again = plays.repeat
    chosen[again] = _favourite(state, plays.row[again], plays.taste[again], u[2, again])
    draw = np.flatnonzero(~again)
    artist = _explored_artist(listeners, weights, state, plays, u[0], artists)[draw]
    chosen[draw] = songs.choose(artist, u[1, draw])
    last = np.flatnonzero(np.diff(plays.row[draw], append=-1))
    state.run_artist[plays.row[draw[last]]] = artist[last]
    _remember(state, plays, chosen)
    return chosen


def _explored_artist(
    listeners: Traits, weights: np.ndarray, state: State, plays: SegmentPlays, u: np.ndarray, artists: Artists
) -> np.ndarray:
    """int64 [P]: the artist of the run that each play belongs to (for repeats, of the run before them)."""
    row, fresh = plays.row, np.flatnonzero(plays.fresh)
    each = weights.shape[2]
    cumulative = weights[row[fresh], plays.taste[fresh]].cumsum(axis=1)
    own = np.minimum((cumulative <= u[fresh, None]).sum(axis=1), each - 1)
    own += listeners.genre[row[fresh], plays.taste[fresh]] * each
    anyone = np.minimum(np.searchsorted(artists.cumulative, u[fresh], side="right"), len(artists.weight) - 1)
    drawn = np.where(plays.discovery[fresh], anyone, own)
    artist = np.concatenate([[-1], drawn])
    # Number of fresh plays up to each play; plays before a listener's first fresh one continue the run of the state.
    count = np.cumsum(plays.fresh)
    begins = np.searchsorted(row, row)
    fresh_before = count[begins] - plays.fresh[begins]
    return np.where(count > fresh_before, artist[count], state.run_artist[row])


def _favourite(state: State, row: np.ndarray, taste: np.ndarray, u: np.ndarray) -> np.ndarray:
    """One of the last favourites in the taste, newer ones with a slightly higher probability."""
    liked = state.liked[row, taste]
    lag = 1 + (u**1.5 * np.minimum(liked, FAVOURITES)).astype(np.int64)
    return state.favourites[row, taste, (liked - lag) % FAVOURITES].astype(np.int64)


def _remember(state: State, plays: SegmentPlays, chosen: np.ndarray) -> None:
    """Write the songs explored and not skipped to the ring buffers."""
    new = np.flatnonzero(~plays.repeat & ~plays.skipped)
    row, taste = plays.row[new], plays.taste[new]
    group = row * state.liked.shape[1] + taste
    order = np.argsort(group, kind="stable")
    group, new = group[order], new[order]
    begin = np.flatnonzero(np.diff(group, prepend=-1))
    size = np.diff(begin, append=len(group))
    within = np.arange(len(group)) - np.repeat(begin, size)
    newest = within >= np.repeat(size, size) - FAVOURITES  # so that no slot of a ring is written twice
    row, taste = plays.row[new], plays.taste[new]
    slot = (state.liked[row, taste] + within) % FAVOURITES
    state.favourites[row[newest], taste[newest], slot[newest]] = chosen[new[newest]]
    state.liked[row[begin], taste[begin]] += size
