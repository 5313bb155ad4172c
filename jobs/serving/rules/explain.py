"""Why songs that a recommender ranks above the end of a list are not in it."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fuxi_beta.evaluation.protocol import Contexts
from fuxi_beta.recommender import Recommender
from jobs.serving.rules.facts import Request
from jobs.serving.rules.lists import ListRules, MadeLists

QUOTA = "place kept"
"""What is said of a song that no rule forbids: a new release, or a song drawn to explore, has its place."""


@dataclass(frozen=True)
class PassedOver:
    """A song that is better ranked than the last of a list, but not in it."""

    item: int
    score: float
    rule: str  # `ListRule.name` of the first rule that keeps it out, or `QUOTA`


def passed_over(
    rules: ListRules, recommender: Recommender, contexts: Contexts, made: MadeLists, row: int
) -> list[PassedOver]:
    """Songs that the rules keep out of a list that `rules.lists` made, best first."""
    request = rules.request(recommender, contexts, made.facts)
    segment = str(request.listeners.segment[row])
    items, scores = _ranking(rules, recommender, contexts, made, row)
    listed = set(made.items[row].tolist())
    forbids = _Forbids(rules, request, segment, row)
    counted = _Counted(rules, request, made, row, items)
    found = []
    for place, (item, score) in enumerate(zip(items.tolist(), scores.tolist(), strict=True)):
        if item not in listed:
            found.append(PassedOver(item, score, forbids.rule(item) or counted.rule(place) or QUOTA))
        counted.pass_by(place, listed=item in listed)
    return found


def _ranking(
    rules: ListRules, recommender: Recommender, contexts: Contexts, made: MadeLists, row: int
) -> tuple[Tensor, Tensor]:
    """The listener's ranking without any rule, down to the last song of the list that was not drawn to explore."""
    own = (made.items[row] > 0) & made.propensity[row].isnan()
    if not bool(own.any()):
        return torch.zeros(0, dtype=torch.int64), torch.zeros(0)
    worst = made.scores[row][own].min()
    last = made.items[row][own & (made.scores[row] == worst)].max()  # of songs with one score the lower index is better
    segment, rows = str(made.segment[row]), torch.tensor([row])
    candidates = rules.candidates(torch.arange(rules.songs.size) > 0, segment)
    width = 4 * made.items.shape[1]
    while True:
        items, scores = contexts.queries(recommender).rank(width, candidates=candidates, rows=rows)
        place = (items[0] == last).nonzero()
        if len(place) or int(items[0, -1]) == 0:
            above = int(place[0]) if len(place) else int((items[0] > 0).sum())
            return items[0, :above], scores[0, :above]
        width *= 4


class _Forbids:
    """Rules that forbid a song, whatever else is in the list."""

    def __init__(self, rules: ListRules, request: Request, segment: str, row: int) -> None:
        time = int(np.max(request.time))
        self.masks, self.songs = [], []
        for rule in rules.rules:
            mask, pairs = rule.songs(segment, time), rule.excluded(request)
            if mask is not None:
                self.masks.append((rule.name, mask))
            if pairs is not None:
                self.songs.append((rule.name, set(pairs[1][pairs[0] == row].tolist())))

    def rule(self, item: int) -> str | None:
        """The first that forbids a song."""
        by_mask = (name for name, mask in self.masks if not bool(mask[item]))
        return next(by_mask, None) or next((name for name, songs in self.songs if item in songs), None)


class _Counted:
    """Rules that count songs, on the way down a ranking."""

    def __init__(self, rules: ListRules, request: Request, made: MadeLists, row: int, items: Tensor) -> None:
        rows, self.names, self.groups, self.full = torch.tensor([row]), [], [], []
        ahead = [item for item in made.items[row].tolist() if item and item not in set(items.tolist())]
        for rule in rules.rules:
            groups = rule.groups(request, items[None], rows)
            if groups is None:
                continue
            most = groups.most if isinstance(groups.most, int) else int(groups.most[0])
            taken = rule.groups(request, torch.tensor([ahead], dtype=torch.int64), rows)
            self.names.append(rule.name)
            self.groups.append((groups.ids[0].tolist(), most))
            self.full.append(Counter(taken.ids[0].tolist() if taken else []))

    def rule(self, place: int) -> str | None:
        """The first of whose groups the song is one too many."""
        for name, (ids, most), count in zip(self.names, self.groups, self.full, strict=True):
            if ids[place] and count[ids[place]] >= most:
                return name
        return None

    def pass_by(self, place: int, *, listed: bool) -> None:
        """Count the song at a place if it is in the list."""
        for (ids, _), count in zip(self.groups, self.full, strict=True):
            count[ids[place]] += listed
