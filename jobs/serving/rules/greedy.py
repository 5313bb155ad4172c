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
    ranked = items.shape[1]
    stopped = torch.full((len(items),), ranked)
    fresh = (items > 0) & ~chosen.has(items)
    for place in range(ranked):
        wanted = chosen.number < want
        stopped = torch.where(wanted, stopped, stopped.clamp(max=place))
        takes = wanted & fresh[:, place]
        if not bool(wanted.any()):
            break
        ids = [rule.ids[:, place] for rule in groups]
        for mine, rule, group in zip(chosen.groups, groups, ids, strict=True):
            takes &= (group == 0) | ((mine == group[:, None]).sum(1) < rule.most)
        chosen.add(takes, items[:, place], scores[:, place], ids)
    return stopped


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
    left, size, before = there.clone(), same.sum(2), torch.zeros(listeners, dtype=torch.int64)  # no group is 0
    for place in range(int(there.sum(1).max())):
        rest = left.sum(1, keepdim=True)
        other = left & (group != before[:, None])
        # Of n songs left, a group of more than n / 2 has to begin now.
        crowded = other & (size * 2 > rest)
        choice = torch.where(crowded.any(1, keepdim=True), crowded, other)
        choice = torch.where(choice.any(1, keepdim=True), choice, left)
        first, some = choice.to(torch.uint8).argmax(1), rest[:, 0] > 0
        rows, first = every[some], first[some]
        order[rows, place], left[rows, first] = first, False
        size[rows] -= same[rows, first].to(torch.int64)
        before[rows] = group[rows, first]
    return order
