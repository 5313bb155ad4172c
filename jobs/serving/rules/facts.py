"""What list rules know of songs, of listeners and of a request.

Shapes: `B` listeners, `V` songs and the padding row.
"""

from dataclasses import dataclass, field, fields
from functools import cached_property

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from fuxi_beta.data.batches import Batch
from fuxi_beta.recommender import Pairs, pairs_of_rows
from pipelines.histories.histories import Histories

UNKNOWN = 0
"""Number of the artist or work of a song of which the catalogue says none: such songs have nothing in common."""
NO_SEGMENT = ""
NOBODY: Pairs = (torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))


class SongGroups:
    """Songs by artist, or by work. group: int64 [V], `UNKNOWN` where there is none."""

    def __init__(self, group: Tensor) -> None:
        self.group = group

    @cached_property
    def _by_group(self) -> tuple[Tensor, Tensor]:
        """Songs sorted by group, and where each group starts: int64 [V], [groups + 1]."""
        order = self.group.argsort(stable=True)
        sizes = self.group.bincount(minlength=1)
        return order, torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])

    def songs_of(self, pairs: Pairs) -> Pairs:
        """(row, group) to (row, every song of the group); unknown and foreign groups have no songs."""
        rows, groups = pairs
        order, starts = self._by_group
        known = (groups > UNKNOWN) & (groups < len(starts) - 1)
        rows, groups = rows[known], groups[known]
        sizes = starts[groups + 1] - starts[groups]
        ends = sizes.cumsum(0)
        within = torch.arange(int(sizes.sum())) - torch.repeat_interleave(ends - sizes, sizes)
        songs = order[torch.repeat_interleave(starts[groups], sizes) + within]
        return torch.repeat_interleave(rows, sizes), songs

    def with_siblings(self, pairs: Pairs) -> Pairs:
        """(row, song) and every other song of its group."""
        if len(self._by_group[1]) == UNKNOWN + 2:  # nothing is in a group
            return pairs
        known = self.group[pairs[1].clamp(max=len(self.group) - 1)]
        known = torch.where(pairs[1] < len(self.group), known, UNKNOWN)
        rows, songs = self.songs_of((pairs[0], known))
        return torch.cat([pairs[0], rows]), torch.cat([pairs[1], songs])


@dataclass(frozen=True, eq=False)
class SongFacts:
    """The catalogue by item index; what it does not say is `None` as a whole, or unknown for a song."""

    size: int  # V
    artist: Tensor | None = None  # int64 [V], numbered from 1 in the order of first appearance
    work: Tensor | None = None  # int64 [V]: the versions of one piece of music have one number
    released: Tensor | None = None  # int64 [V], Unix seconds; the least number where it is unknown
    available_from: Tensor | None = None  # int64 [V], Unix seconds
    available_until: Tensor | None = None  # int64 [V], Unix seconds, itself excluded
    withdrawn: Tensor | None = None  # bool [V]
    explicit: Tensor | None = None  # bool [V]
    popularity: Tensor | None = None  # float32 [V], distinct listeners lately
    artist_ids: tuple[object, ...] = ()  # id of artist number n at n - 1
    blocked: dict[str, Tensor] = field(default_factory=dict)  # segment -> bool [V]
    allowed: dict[str, Tensor] = field(default_factory=dict)  # segment -> bool [V]: only these

    def tensors(self) -> dict[str, Tensor]:
        """Everything but ids by name, to be stored with a model; `from_tensors` is the inverse."""
        named = {name: getattr(self, name) for name in _COLUMNS if getattr(self, name) is not None}
        for kind in ("blocked", "allowed"):
            named |= {f"{kind}:{segment}": songs for segment, songs in getattr(self, kind).items()}
        return named

    @staticmethod
    def from_tensors(size: int, tensors: dict[str, Tensor]) -> "SongFacts":
        """Facts of the songs 1..size - 1 as `tensors` names them."""
        lists: dict[str, dict[str, Tensor]] = {"blocked": {}, "allowed": {}}
        for name, songs in tensors.items():
            kind, separator, segment = name.partition(":")
            if separator:
                lists[kind][segment] = songs
        return SongFacts(size, **{name: tensors.get(name) for name in _COLUMNS}, **lists)  # type: ignore[arg-type]

    @cached_property
    def artists(self) -> SongGroups:
        """Songs by artist; nothing is known without a catalogue."""
        return SongGroups(self._or_unknown(self.artist))

    @cached_property
    def works(self) -> SongGroups:
        """Songs by work."""
        return SongGroups(self._or_unknown(self.work))

    def _or_unknown(self, group: Tensor | None) -> Tensor:
        return torch.zeros(self.size, dtype=torch.int64) if group is None else group


_COLUMNS = tuple(column.name for column in fields(SongFacts) if "Tensor | None" in str(column.type))


@dataclass(frozen=True, eq=False)
class ListenerFacts:
    """What is known of B listeners besides their histories. Pairs are (row, item index) or (row, artist number)."""

    segment: np.ndarray  # object [B], names; `NO_SEGMENT` for most
    listed: Pairs = NOBODY  # in their lists of the last days
    disliked_songs: Pairs = NOBODY
    disliked_artists: Pairs = NOBODY

    def of(self, rows: np.ndarray) -> "ListenerFacts":
        """Those of some rows, numbered anew."""
        chosen = torch.from_numpy(rows)
        pairs = (pairs_of_rows(each, chosen) for each in (self.listed, self.disliked_songs, self.disliked_artists))
        return ListenerFacts(self.segment[rows], *(each or NOBODY for each in pairs))


class Listeners:
    """Looks listeners up. This base knows nobody: every one is of the default segment, without lists and feedback."""

    undefined: int = 0
    """Listeners whose segment is not defined: they have the default."""

    def facts(self, user_id: pa.Array) -> ListenerFacts:
        """What is known of some listeners. [B]."""
        return strangers(len(user_id))

    def lists_before(self, user_id: pa.Array) -> Pairs:
        """The songs of some listeners' lists of the latest earlier day, which no rule needs."""
        return NOBODY


def strangers(listeners: int, segment: str = NO_SEGMENT) -> ListenerFacts:
    """Of listeners of whom nothing but a segment is known."""
    return ListenerFacts(np.full(listeners, segment, object))


@dataclass(frozen=True, eq=False)
class Request:
    """Lists for the listeners of a batch at a time."""

    batch: Batch
    histories: Histories  # before the cut
    time: int | np.ndarray  # Unix seconds
    songs: SongFacts
    listeners: ListenerFacts

    def heard_since(self, days: int | None) -> Pairs:
        """Songs heard in the last days before the request, skips included; in a lifetime if that is None."""
        if days is None:
            return self.batch.seen_listener, self.batch.seen_items
        histories = self.histories
        time = np.broadcast_to(np.asarray(self.time, np.int64), len(histories))
        recent = histories.timestamp >= time[histories.listener] - days * 86_400
        rows, songs = histories.listener[recent], histories.item_index[recent].astype(np.int64)
        return torch.from_numpy(rows), torch.from_numpy(songs)
