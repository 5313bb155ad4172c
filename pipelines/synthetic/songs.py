"""Which song each play is: exploring draws an artist and one of their songs, repeating takes a recent favourite."""

import numpy as np

from pipelines.synthetic.listeners import Listeners
from pipelines.synthetic.process import FAVOURITES, Plays, State
from pipelines.synthetic.stateless_random import Stream, uniform
from pipelines.synthetic.world import Artists, Songs


def choose_songs(
    listeners: Listeners, weights: np.ndarray, state: State, plays: Plays, *, artists: Artists, songs: Songs
) -> np.ndarray:
    """int64 [P], the song number of each play. `weights` are `listeners.artist_weights`; favourites move on."""
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
    listeners: Listeners, weights: np.ndarray, state: State, plays: Plays, u: np.ndarray, artists: Artists
) -> np.ndarray:
    """int64 [P]: the artist of the run each play belongs to (repeats: of the run before them)."""
    row, fresh = plays.row, np.flatnonzero(plays.fresh)
    each = weights.shape[2]
    cumulative = weights[row[fresh], plays.taste[fresh]].cumsum(axis=1)
    own = np.minimum((cumulative <= u[fresh, None]).sum(axis=1), each - 1)
    own += listeners.genre[row[fresh], plays.taste[fresh]] * each
    anyone = np.minimum(np.searchsorted(artists.cumulative, u[fresh], side="right"), len(artists.weight) - 1)
    drawn = np.where(plays.discovery[fresh], anyone, own)
    artist = np.concatenate([[-1], drawn])
    # Number of fresh plays up to each play; those before the first of a listener continue the run of the state.
    count = np.cumsum(plays.fresh)
    begins = np.searchsorted(row, row)
    fresh_before = count[begins] - plays.fresh[begins]
    return np.where(count > fresh_before, artist[count], state.run_artist[row])


def _favourite(state: State, row: np.ndarray, taste: np.ndarray, u: np.ndarray) -> np.ndarray:
    """One of the last favourites in the taste, newer ones a little more often."""
    liked = state.liked[row, taste]
    lag = 1 + (u**1.5 * np.minimum(liked, FAVOURITES)).astype(np.int64)
    return state.favourites[row, taste, (liked - lag) % FAVOURITES].astype(np.int64)


def _remember(state: State, plays: Plays, chosen: np.ndarray) -> None:
    """Put what was explored and not skipped into the rings."""
    new = np.flatnonzero(~plays.repeat & ~plays.skipped)
    row, taste = plays.row[new], plays.taste[new]
    group = row * state.liked.shape[1] + taste
    order = np.argsort(group, kind="stable")
    group, new = group[order], new[order]
    begin = np.flatnonzero(np.diff(group, prepend=-1))
    size = np.diff(begin, append=len(group))
    within = np.arange(len(group)) - np.repeat(begin, size)
    newest = within >= np.repeat(size, size) - FAVOURITES  # no slot of the ring is written twice
    row, taste = plays.row[new], plays.taste[new]
    place = (state.liked[row, taste] + within) % FAVOURITES
    state.favourites[row[newest], taste[newest], place[newest]] = chosen[new[newest]]
    state.liked[row[begin], taste[begin]] += size
