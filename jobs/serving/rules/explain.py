"""Why songs that a recommender ranks above the end of a list are not in it."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

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


class Explanations:
    """Says what the rules keep out of the lists of a batch; what holds for all its listeners is worked out once."""

    def __init__(self, rules: ListRules, recommender: Recommender, contexts: Contexts, made: MadeLists) -> None:
        """made: of `rules.lists`, for the listeners of `contexts`."""
        self.rules, self.made, self.queries = rules, made, contexts.queries(recommender)
        self.request = rules.request(recommender, contexts, made.facts)
        excluded = ((rule.name, rule.excluded(self.request)) for rule in rules.rules)
        self._excluded = [(name, pairs) for name, pairs in excluded if pairs is not None]

    def passed_over(self, rows: Sequence[int]) -> list[list[PassedOver]]:
        """Songs that the rules keep out of the list of each of some listeners, best first."""
        rankings = self._rankings(rows)
        return [self._of_ranking(row, *rankings[row]) for row in rows]

    def _of_ranking(self, row: int, items: Tensor, scores: Tensor) -> list[PassedOver]:
        listed = set(self.made.items[row].tolist())
        forbidden, counted = self._forbidden(row), _Counted(self.rules, self.request, self.made, row, items)
        found = []
        for place, (item, score) in enumerate(zip(items.tolist(), scores.tolist(), strict=True)):
            if item not in listed:
                found.append(PassedOver(item, score, forbidden(item) or counted.rule(place) or QUOTA))
            counted.pass_by(place, listed=item in listed)
        return found

    def _rankings(self, rows: Sequence[int]) -> dict[int, tuple[Tensor, Tensor]]:
        """Rankings without any rule, each down to the last song of the list that was not drawn to explore."""
        lasts = {row: last for row in rows if (last := self._last(row))}
        found = {row: (torch.zeros(0, dtype=torch.int64), torch.zeros(0)) for row in rows}
        everything = torch.arange(self.rules.songs.size) > 0
        for segment in {str(self.made.segment[row]) for row in lasts}:
            candidates = self.rules.candidates(everything, segment)
            left, width = [row for row in lasts if self.made.segment[row] == segment], 4 * self.made.items.shape[1]
            while left:
                ranked = self.queries.rank(width, candidates=candidates, rows=torch.tensor(left))
                for row, items, scores in zip(left, *ranked, strict=True):
                    place = (items == lasts[row]).nonzero()
                    if len(place) or int(items[-1]) == 0:
                        above = int(place[0]) if len(place) else int((items > 0).sum())
                        found[row] = items[:above], scores[:above]
                        del lasts[row]
                left, width = [row for row in left if row in lasts], 4 * width
        return found

    def _last(self, row: int) -> int:
        """The worst song of a list that was not drawn to explore; 0 if there is none."""
        made = self.made
        own = (made.items[row] > 0) & made.propensity[row].isnan()
        if not bool(own.any()):
            return 0
        worst = made.scores[row][own].min()
        return int(made.items[row][own & (made.scores[row] == worst)].max())  # of one score the lower index is better

    @cached_property
    def _masks(self) -> dict[str, list[tuple[str, Tensor]]]:
        """Segment -> (rule, songs that it allows)."""
        time = int(np.max(self.request.time))
        masks: dict[str, list[tuple[str, Tensor]]] = {}
        for segment in set(self.made.segment.tolist()):
            allowed = ((rule.name, rule.songs(segment, time)) for rule in self.rules.rules)
            masks[segment] = [(name, songs) for name, songs in allowed if songs is not None]
        return masks

    def _forbidden(self, row: int) -> Callable[[int], str | None]:
        """The first rule that forbids a song to a listener, whatever else is in the list."""
        masks = self._masks[self.made.segment[row]]
        songs = [(name, set(pairs[1][pairs[0] == row].tolist())) for name, pairs in self._excluded]

        def rule(item: int) -> str | None:
            by_mask = (name for name, mask in masks if not bool(mask[item]))
            return next(by_mask, None) or next((name for name, own in songs if item in own), None)

        return rule


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
