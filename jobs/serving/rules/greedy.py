"""The walk down rankings under rules that count songs, for many listeners at once, and the order of the songs listed.

Shapes: `R` listeners, `M` ranked songs, `K` songs listed, `P` songs to draw from.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from jobs.serving.rules.rule import Groups


@dataclass
class Chosen:
    """The songs chosen so far for R listeners, and their groups under each rule."""

    items: Tensor  # int64 [R, K], 0 behind the last
    scores: Tensor  # float32 [R, K], -inf there
    groups: list[Tensor]  # int64 [R, K] each
    number: Tensor = field(init=False)  # int64 [R]

    def __post_init__(self) -> None:
        self.number = (self.items > 0).sum(1)

    @staticmethod
    def none(listeners: int, k: int, rules: int) -> "Chosen":
        """Room for k songs of each listener."""
        empty = torch.zeros(listeners, k, dtype=torch.int64)
        return Chosen(empty, torch.full((listeners, k), -torch.inf), [empty.clone() for _ in range(rules)])

    def of(self, rows: Tensor) -> "Chosen":
        """That of some listeners, as a copy."""
        return Chosen(self.items[rows], self.scores[rows], [ids[rows] for ids in self.groups])

    def put(self, rows: Tensor, other: "Chosen") -> None:
        """Take over what was chosen for some listeners."""
        self.items[rows], self.scores[rows], self.number[rows] = other.items, other.scores, other.number
        for mine, theirs in zip(self.groups, other.groups, strict=True):
            mine[rows] = theirs

    def add(self, takes: Tensor, item: Tensor, score: Tensor, ids: Sequence[Tensor]) -> None:
        """Append a song where `takes`. All [R]."""
        rows = takes.nonzero().squeeze(1)
        place = self.number[rows]
        self.items[rows, place], self.scores[rows, place] = item[rows], score[rows]
        for mine, group in zip(self.groups, ids, strict=True):
            mine[rows, place] = group[rows]
        self.number[rows] += 1

    def extend(
        self, rows: Tensor, at: Tensor, songs: tuple[Tensor, Tensor], ids: Sequence[Tensor], places: Tensor
    ) -> None:
        """Put songs[rows, places] at the places `at` of the lists of `rows`. songs: items and scores, [R, M] each."""
        parts = zip((self.items, self.scores, *self.groups), (*songs, *ids), strict=True)
        for mine, ranked in parts:
            mine[rows, at] = ranked[rows, places]
        self.number += rows.bincount(minlength=len(self.number))

    def admits(self, groups: Sequence[Groups]) -> Tensor:
        """Which songs may be added on their own: not there yet, and no group of theirs full. bool [R, P]."""
        free: Tensor | None = None
        for mine, rule in zip(self.groups, groups, strict=True):
            most = rule.most if isinstance(rule.most, int) else rule.most[:, None]
            there = (rule.ids[:, :, None] == mine[:, None, :]).sum(2)
            fits = (rule.ids == 0) | (there < most)
            free = fits if free is None else free & fits
        assert free is not None or not groups
        return torch.ones((), dtype=torch.bool) if free is None else free

    def has(self, items: Tensor) -> Tensor:
        """Which songs are chosen already. [R, P] -> bool [R, P]."""
        return (items[:, :, None] == self.items[:, None, :]).any(2)


def walk(chosen: Chosen, items: Tensor, scores: Tensor, groups: Sequence[Groups], *, want: Tensor) -> Tensor:
    """Add the best songs of each ranking that every rule admits, until a listener has `want` songs (int64 [R]).

    A song chosen before is passed over. Returns how far down each ranking the walk went: int64 [R], M at its end.
    """
    fresh = items > 0
    if bool(chosen.number.any()):
        fresh &= ~chosen.has(items)
    missing = (want - chosen.number).clamp(min=0)[:, None]
    taken = _admitted(chosen, fresh, groups)
    order = taken.cumsum(1)
    taken &= order <= missing
    rows, places = taken.nonzero(as_tuple=True)
    chosen.extend(
        rows, chosen.number[rows] + order[rows, places] - 1, (items, scores), [rule.ids for rule in groups], places
    )
    reached = torch.cat([torch.zeros_like(missing), order], dim=1) >= missing  # [R, M + 1]
    return torch.where(reached.any(1), reached.to(torch.uint8).argmax(1), items.shape[1])


def _admitted(chosen: Chosen, fresh: Tensor, groups: Sequence[Groups]) -> Tensor:
    """The songs that a walk to the end of each ranking takes. fresh: bool [R, M], songs not chosen yet; bool [R, M].

    A song is taken for certain if all fresh songs before it leave room in its groups, and refused for certain if those
    taken for certain already fill one. Each round decides at least the first song that was open, and mostly all.
    """
    counts = [_Counts(rule, mine) for rule, mine in zip(groups, chosen.groups, strict=True)]
    possible = fresh
    while True:
        taken = possible
        for count in counts:
            taken = taken & count.fits(possible)
        if torch.equal(taken, possible):
            return taken
        still = possible
        for count in counts:
            still = still & count.fits(taken)
        possible = still


class _Counts:
    """Counts songs of one rule's groups along rankings."""

    def __init__(self, rule: Groups, mine: Tensor) -> None:
        """mine: int64 [R, K], the groups of songs chosen before; 0 for none."""
        self.order = rule.ids.argsort(dim=1, stable=True)
        ids = rule.ids.gather(1, self.order)
        change = torch.ones_like(ids, dtype=torch.bool)
        change[:, 1:] = ids[:, 1:] != ids[:, :-1]
        self.first = (torch.arange(ids.shape[1]) * change).cummax(1).values  # [R, M], where the group of each begins
        self.back = torch.empty_like(self.order).scatter_(1, self.order, torch.arange(ids.shape[1]).expand_as(ids))
        most = torch.as_tensor(rule.most).expand(len(ids))[:, None]
        self.room = torch.where(rule.ids == 0, torch.iinfo(torch.int64).max, most)
        if bool(mine.any()):
            self.room = self.room - (rule.ids[:, :, None] == mine[:, None, :]).sum(2)

    def fits(self, songs: Tensor) -> Tensor:
        """Whether the songs of a mask that come before leave room in each song's group. bool [R, M] each."""
        there = songs.gather(1, self.order)
        before = there.cumsum(1) - there.to(torch.int64)
        before -= before.gather(1, self.first)
        return before.gather(1, self.back) < self.room


def spaced(group: Tensor, there: Tensor) -> Tensor:
    """An order in which no two neighbours have one group, as near the given order as that allows. int64 [R, K] places.

    group: int64 [R, K], 0 for songs in no group. there: bool [R, K], false behind the last song. At each place comes
    the first song left that is of another group than the one before it, unless a group has so many songs left that it
    must come now. Where neighbours cannot be helped there are as few as can be.
    """
    listeners, k = group.shape
    order = torch.arange(k).repeat(listeners, 1)
    group = torch.where(group > 0, group, -1 - torch.arange(k))  # songs in no group get one of their own
    close = ((group[:, 1:] == group[:, :-1]) & there[:, 1:]).any(1).nonzero().squeeze(1)
    if len(close):
        order[close] = _spaced(group[close], there[close])
    return order


def _spaced(group: Tensor, there: Tensor) -> Tensor:
    listeners, k = group.shape
    order, every = torch.arange(k).repeat(listeners, 1), torch.arange(listeners)
    same = (group[:, :, None] == group[:, None, :]) & there[:, None, :]  # [R, K, K]
    left, size, before = there.clone(), same.sum(2, dtype=torch.int16), torch.zeros(listeners, dtype=group.dtype)
    songs = there.sum(1)
    for place in range(int(songs.max())):
        rest = (songs - place).to(torch.int16)[:, None]
        other = left & (group != before[:, None])
        # Of n songs left, a group of more than n / 2 has to begin now.
        crowded = other & (size * 2 > rest)
        choice = torch.where(crowded.any(1, keepdim=True), crowded, other)
        choice = torch.where(choice.any(1, keepdim=True), choice, left)
        first, some = choice.to(torch.uint8).argmax(1), rest[:, 0] > 0
        rows, first = every[some], first[some]
        order[rows, place], left[rows, first] = first, False
        size[rows] -= same[rows, first].to(torch.int16)
        before[rows] = group[rows, first]
    return order
