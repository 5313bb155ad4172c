"""Listeners, songs and scores at random, and the lists that the rules are to make of them, worked out one by one."""

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from fuxi_beta.baselines.base import ScoreQueries
from fuxi_beta.config import Mode, ModelConfig, TrainConfig
from fuxi_beta.data.batches import Batch
from fuxi_beta.evaluation.protocol import Contexts
from fuxi_beta.recommender import Recommender
from jobs.config import RulesConfig
from jobs.serving.rules import ListenerFacts, Listeners, ListRules, SongFacts
from pipelines.calendar import DAY_SECONDS, Calendar
from pipelines.histories.histories import Histories

NOW = 1_772_438_400  # 2026-03-02 08:00 UTC


class CountedQueries(ScoreQueries):
    """Notes how many songs were ranked, and takes off a penalty as a model does."""

    widths: list[int]

    def rank(self, k: int, **given: Any) -> tuple[torch.Tensor, torch.Tensor]:
        self.widths.append(k)
        plain, candidates = self.scores, given.get("candidates")
        if candidates is not None and candidates.penalty is not None:
            self.scores = plain - candidates.penalty
        try:
            return super().rank(k, **given)
        finally:
            self.scores = plain


class Scored(Recommender):
    """Given scores [B, V]."""

    def __init__(self, scores: torch.Tensor, mode: Mode = "exclusive", candidates: torch.Tensor | None = None) -> None:
        self.scores, self.mode, self.vocabulary_size, self.widths = scores, mode, scores.shape[1] - 1, []
        self.candidates = torch.arange(scores.shape[1]) > 0 if candidates is None else candidates

    def queries(self, batch: Batch) -> ScoreQueries:
        queries = CountedQueries(self.scores, self.candidates)
        queries.widths = self.widths
        return queries


@dataclass
class World:
    """A catalogue, listeners with facts, and everybody's score of every song."""

    songs: SongFacts
    histories: Histories
    facts: ListenerFacts
    scores: torch.Tensor  # [B, V]
    config: RulesConfig
    mode: Mode = "exclusive"

    @property
    def contexts(self) -> Contexts:
        train = TrainConfig(mode=self.mode)
        return Contexts(self.histories, NOW, ModelConfig(max_history=50), train, Calendar())

    @property
    def recommender(self) -> Scored:
        return Scored(self.scores, self.mode)

    def rules(self, k: int) -> ListRules:
        listeners = Listeners()
        listeners.facts = lambda user_id: self.facts  # type: ignore[method-assign]
        return ListRules(self.config, self.songs, mode=self.mode, k=k, listeners=listeners)

    def expected(self, row: int, k: int) -> list[int]:
        """The list of one listener, in plain Python, without exploring and without moving artists apart."""
        rules, facts = self.config.of(str(self.facts.segment[row])), self.songs
        may = [song for song in range(1, facts.size) if self._allowed(row, song) and song not in self.excluded(row)]
        ranking = sorted(may, key=lambda song: (-float(self.scores[row, song]), song))
        since = NOW - rules.new_release_days * DAY_SECONDS
        chosen: list[int] = []
        if rules.new_releases:
            assert facts.released is not None
            new = [
                song
                for song in ranking
                if since < int(facts.released[song]) <= NOW
                and float(self.scores[row, song]) >= rules.new_release_min_score
            ]
            self._take(row, new, min(rules.new_releases, k), chosen, k)
        self._take(row, ranking, k, chosen, k)
        chosen.sort(key=lambda song: (-float(self.scores[row, song]), song))
        return chosen + [0] * (k - len(chosen))

    def _take(self, row: int, ranking: list[int], most: int, chosen: list[int], k: int) -> None:
        for song in ranking:
            if len(chosen) < most and song not in chosen and self.room_for(row, song, chosen, k):
                chosen.append(song)

    def room_for(self, row: int, song: int, chosen: list[int], k: int) -> bool:
        """Whether no rule that counts is against one more song."""
        rules, facts = self.config.of(str(self.facts.segment[row])), self.songs
        cap = 2 if rules.max_per_artist == "auto" else rules.max_per_artist
        assert facts.artist is not None and facts.work is not None
        by_artist = sum(bool(facts.artist[other] == facts.artist[song]) for other in chosen)
        if cap and facts.artist[song] and by_artist >= cap:
            return False
        of_work = any(facts.work[other] == facts.work[song] for other in chosen)
        if rules.one_version and facts.work[song] and of_work:
            return False
        known = self.heard(row, None)
        most_known = round(rules.max_known_share * k)
        return rules.max_known_share == 1 or song not in known or sum(other in known for other in chosen) < most_known

    def _allowed(self, row: int, song: int) -> bool:
        segment, facts = str(self.facts.segment[row]), self.songs
        if facts.withdrawn is not None and facts.withdrawn[song]:
            return False
        if facts.available_from is not None and facts.available_from[song] > NOW:
            return False
        if facts.available_until is not None and facts.available_until[song] <= NOW:
            return False
        if facts.explicit is not None and facts.explicit[song] and not self.config.of(segment).explicit:
            return False
        if any(segment_ in facts.blocked and facts.blocked[segment_][song] for segment_ in ("", segment)):
            return False
        allowed = facts.allowed.get(segment, facts.allowed.get(""))
        return allowed is None or bool(allowed[song])

    def heard(self, row: int, days: int | None) -> set[int]:
        """Songs heard in the last days, or ever."""
        h = self.histories
        plays = range(int(h.offsets[row]), int(h.offsets[row + 1]))
        found = {int(h.item_index[e]) for e in plays if days is None or h.timestamp[e] >= NOW - days * DAY_SECONDS}
        return found | (
            set() if days is not None else {*h.heard_items[h.heard_offsets[row] : h.heard_offsets[row + 1]]}
        )

    def excluded(self, row: int) -> set[int]:
        """Songs that a rule forbids to a listener, and their other versions."""
        days = self.config.heard_days
        days = ("ever" if self.mode == "exclusive" else 0) if days == "auto" else days
        songs = set() if days == 0 else self.heard(row, None if days == "ever" else int(days))
        for rows, items in (self.facts.listed, self.facts.disliked_songs):
            songs |= set(items[rows == row].tolist())
        works = {int(self.songs.work[song]) for song in songs} - {0} if self.songs.work is not None else set()
        disliked = set(self.facts.disliked_artists[1][self.facts.disliked_artists[0] == row].tolist()) - {0}
        for song in range(1, self.songs.size):
            if self.songs.work is not None and int(self.songs.work[song]) in works:
                songs.add(song)
            if self.songs.artist is not None and int(self.songs.artist[song]) in disliked:
                songs.add(song)
        return songs


def random_world(seed: int, *, songs: int = 60, listeners: int = 5, **rules: Any) -> World:
    """Everything at random, with many ties among scores. rules: of the configuration; `mode` is the training's."""
    random = np.random.default_rng(seed)
    mode = rules.pop("mode", "exclusive")

    def numbers(most: int) -> torch.Tensor:
        return torch.from_numpy(np.concatenate([[0], random.integers(0, most, songs)]))

    def days(low: int, high: int) -> torch.Tensor:
        return NOW + DAY_SECONDS * torch.from_numpy(np.concatenate([[0], random.integers(low, high, songs)]))

    def some(share: float) -> torch.Tensor:
        return torch.from_numpy(np.concatenate([[False], random.random(songs) < share]))

    facts = SongFacts(
        songs + 1,
        artist=numbers(9),
        work=numbers(40),
        released=days(-90, 5),
        available_from=days(-50, 2),
        available_until=days(-2, 60),
        withdrawn=some(0.05),
        explicit=some(0.2),
        popularity=numbers(500).float(),
        blocked={"": some(0.05), "kids": some(0.1)},
        allowed={"curated": some(0.5)},
    )
    lengths, older = random.integers(0, 14, listeners), random.integers(0, 3, listeners)
    lengths[0] = 0
    events = int(lengths.sum())
    histories = Histories(
        pa.array(random.permutation(1000)[:listeners], pa.int64()),
        np.concatenate([[0], np.cumsum(lengths)]),
        random.integers(1, songs + 1, events).astype(np.int32),
        np.concatenate([np.sort(NOW - random.integers(0, 40 * DAY_SECONDS, n)) for n in lengths]).astype(np.int64),
        np.full(events, 100, np.uint8),
        np.concatenate([[0], np.cumsum(older)]),
        np.concatenate([np.sort(random.permutation(songs)[:n] + 1) for n in older]).astype(np.int32),
    )

    def pairs(most: int, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        drawn = random.integers(0, listeners, number), random.integers(1, most + 1, number)
        return torch.from_numpy(drawn[0]), torch.from_numpy(drawn[1])

    segments = np.array(["", "kids", "curated"], object)[random.integers(0, 3, listeners)]
    known = ListenerFacts(segments, pairs(songs, 12), pairs(songs, 6), pairs(8, 3))
    scores = torch.from_numpy(random.integers(0, 12, (listeners, songs + 1)).astype(np.float32)) / 10
    config = RulesConfig(**{"segments": {"kids": {"explicit": False, "max_per_artist": 1}, "curated": {}}} | rules)  # type: ignore[arg-type]
    return World(facts, histories, known, scores, config, mode)


def neighbours(groups: list[int]) -> int:
    """Pairs of neighbours of one group; 0 is no group."""
    return sum(a == b and a > 0 for a, b in pairwise(groups))


def most_of(groups: list[int]) -> int:
    """Songs of the commonest group."""
    return max(Counter(group for group in groups if group).values(), default=0)
