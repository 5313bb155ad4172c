"""The lists of a batch of listeners, exact under all rules, and why songs are not in one.

A list is what a walk down the whole catalogue, best first, would give: a song is taken unless a rule forbids it or a
group of it is full. Rankings are widened until that is proved. Around this walk:

1. Releases of the last days above a floor are taken first, up to their quota.
2. The walk fills the list, but for the places kept for exploring.
3. These get songs drawn at random from the next ones of the ranking that the rules admit.
4. All are ordered by score, explored ones last, and then moved apart by artist.

Shapes: `B` listeners, `R` some of them, `V` songs and the padding row, `K` list length, `M` ranked songs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
import xxhash
from torch import Tensor

from fuxi_beta.config import Mode
from fuxi_beta.evaluation.protocol import Contexts
from fuxi_beta.recommender import Candidates, Pairs, Queries, Recommender
from jobs.config import RulesConfig
from jobs.serving.rules.facts import NO_SEGMENT, ListenerFacts, Listeners, Request, SongFacts
from jobs.serving.rules.greedy import Chosen, spaced, walk
from jobs.serving.rules.rule import Groups, ListRule, list_rules
from pipelines.calendar import DAY_SECONDS
from pipelines.errors import InputError

_WIDEN = 2
_AT_ONCE = 0.8
"""Share of the listeners whose lists are to be full after their first ranking; the others are ranked again, deeper."""


@dataclass(frozen=True)
class MadeLists:
    """Lists of B listeners, best first but for neighbours that were moved apart."""

    items: Tensor  # int64 [B, K], 0 behind the last
    scores: Tensor  # float32 [B, K], -inf there
    propensity: Tensor  # float32 [B, K]; of a song drawn to explore, how probable it was; NaN for others
    facts: ListenerFacts  # under which they were made

    @staticmethod
    def empty_of(facts: ListenerFacts, k: int) -> "MadeLists":
        """Lists without a song."""
        items = torch.zeros(len(facts.segment), k, dtype=torch.int64)
        return MadeLists(items, torch.full(items.shape, -torch.inf), torch.full(items.shape, torch.nan), facts)

    @property
    def segment(self) -> np.ndarray:
        """The segment of each listener. object [B]."""
        return self.facts.segment

    def put(self, rows: np.ndarray, other: "MadeLists") -> None:
        """Take over the lists of some rows from others."""
        for mine, theirs in zip(self._parts, other._parts, strict=True):
            mine[torch.from_numpy(rows)] = theirs

    @property
    def _parts(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.items, self.scores, self.propensity


class ListRules:
    """The rules of a deployment with what they know. `lists` is what serves."""

    def __init__(
        self, config: RulesConfig, songs: SongFacts, *, mode: Mode, k: int, listeners: Listeners | None = None
    ) -> None:
        """Raises InputError if the rules cannot hold with this catalogue."""
        self.config, self.songs, self.k = config, songs, k
        self.listeners = listeners or Listeners()
        self.rules = list_rules(config, songs, mode=mode, k=k)
        self._candidates: dict[bytes, Candidates] = {}
        self._widths: dict[int, int] = {}

    def lists(
        self, recommender: Recommender, contexts: Contexts, k: int, *, facts: ListenerFacts | None = None
    ) -> MadeLists:
        """The lists of the listeners of `contexts`. facts: what is known of them, if not what `listeners` knows."""
        request = self.request(recommender, contexts, facts)
        queries = contexts.queries(recommender)
        segment = request.listeners.segment
        made = MadeLists.empty_of(request.listeners, k)
        excluded = self._excluded(request)
        for name in np.unique(segment.astype(str)).tolist():
            rows = torch.from_numpy(np.flatnonzero(segment == name))
            allowed = self.allowed(name, int(np.max(request.time)))
            _Walker(self, request, queries, rows, excluded, allowed).fill(k, made)
        return made

    def as_list_maker(self, recommender: Recommender, contexts: Contexts, k: int) -> tuple[Tensor, Tensor]:
        """`lists` as a `fuxi_beta.evaluation.protocol.ListMaker`."""
        made = self.lists(recommender, contexts, k)
        return made.items, made.scores

    def request(self, recommender: Recommender, contexts: Contexts, facts: ListenerFacts | None = None) -> Request:
        """What rules know when they make the lists of some listeners."""
        known = facts or self.listeners.facts(contexts.histories.user_id)
        return Request(contexts.batch(recommender), contexts.histories, contexts.request_time, self.songs, known)

    def _excluded(self, request: Request) -> Pairs | None:
        parts = [pairs for rule in self.rules if (pairs := rule.excluded(request)) is not None]
        return (torch.cat([rows for rows, _ in parts]), torch.cat([songs for _, songs in parts])) if parts else None

    def allowed(self, segment: str, time: int) -> Tensor:
        """Songs that every rule allows for a segment at a time (Unix seconds). bool [V]."""
        there = torch.arange(self.songs.size) > 0
        for rule in self.rules:
            songs = rule.songs(segment, time)
            if songs is not None:
                there = there & songs
        return there

    def check(self, recommender: Recommender, time: int) -> None:
        """InputError if the rules and a recommender leave a segment fewer songs than a list has."""
        for segment in (NO_SEGMENT, *self.config.segments):
            left = int(Candidates(self.allowed(segment, time)).among(recommender.candidates).sum())
            if left < self.k:
                name = f"segment {segment!r}" if segment else "everybody"
                raise InputError(
                    f"rules: {left} songs may be listed for {name}, recommend.k asks for {self.k}: check withdrawn and "
                    "explicit songs of the catalogue, rules.song_lists and recommend.k"
                )

    def candidates(self, songs: Tensor, segment: str) -> Candidates:
        """A choice of songs with the penalty of popular ones; equal choices are one object. songs: bool [V]."""
        strength = self.config.of(segment).popularity_dampening
        key = xxhash.xxh3_128_digest(songs.numpy().tobytes()) + np.float64(strength).tobytes()
        if key not in self._candidates:
            self._candidates.setdefault(key, Candidates(songs, self._penalty(strength)))
        return self._candidates[key]

    def width(self, want: int) -> int:
        """How many songs are ranked at first for listeners who want some: by how far the walks of the last batch went.

        Where songs are counted some are passed over. Lists do not depend on it.
        """
        counted = any(type(rule).groups is not ListRule.groups for rule in self.rules)
        return self._widths.get(want, 2 * want) if counted else want

    def learn_width(self, want: int, walks: Sequence[Tensor]) -> None:
        """walks: how far down their rankings listeners had to go."""
        far = torch.cat([torch.zeros(0, dtype=torch.int64), *walks])
        if len(far):
            enough = int(far.float().quantile(_AT_ONCE))
            self._widths[want] = min(max(enough, want), 8 * want)

    def _penalty(self, strength: float) -> Tensor | None:
        """The most popular song loses `strength`, one that nobody played nothing, between them by the logarithm."""
        popularity = self.songs.popularity
        if not strength or popularity is None:
            return None
        return strength * popularity.log1p() / popularity.max().clamp(min=1).log1p()


class _Walker:
    """Makes the lists of the listeners of one segment in a batch."""

    def __init__(
        self,
        owner: ListRules,
        request: Request,
        queries: Queries,
        rows: Tensor,
        excluded: Pairs | None,
        allowed: Tensor,
    ) -> None:
        self.owner, self.request, self.queries, self.rows = owner, request, queries, rows
        self.excluded, self.allowed = excluded, allowed
        self.segment = str(request.listeners.segment[int(rows[0])])
        self.config = owner.config.of(self.segment)

    def groups(self, items: Tensor, rows: Tensor) -> list[Groups]:
        """Of every rule that counts. rows: int64 [R], of the batch."""
        made = (rule.groups(self.request, items, rows) for rule in self.owner.rules)
        return [groups for groups in made if groups is not None]

    def fill(self, k: int, made: MadeLists) -> None:
        """Make the lists and write them to their rows of `made`."""
        explored = min(self.config.explore, k - 1)
        nothing = torch.zeros(len(self.rows), 1, dtype=torch.int64)
        chosen = Chosen.none(len(self.rows), k, len(self.groups(nothing, self.rows)))
        if self.config.new_releases:
            self._walk(
                chosen, self._new_releases(), min(self.config.new_releases, k), self.config.new_release_min_score
            )
        self._walk(chosen, self.allowed, k - explored)
        chosen = _by_score(chosen)
        propensity = self._explore(chosen, explored) if explored else torch.full((len(self.rows), k), torch.nan)
        items, scores = chosen.items, chosen.scores
        if self.owner.config.space_artists:
            order = spaced(self.request.songs.artists.group[items], items > 0)
            items, scores, propensity = (part.gather(1, order) for part in (items, scores, propensity))
        made.items[self.rows], made.scores[self.rows], made.propensity[self.rows] = items, scores, propensity

    def _walk(self, chosen: Chosen, songs: Tensor, want: int, floor: float = -torch.inf) -> None:
        """Add songs until each listener has `want`, as the walk down the ranking of all `songs` would."""
        candidates = self.owner.candidates(songs, self.segment)
        left = (chosen.number < want).nonzero().squeeze(1)
        start, width = chosen.of(left), self.owner.width(want)
        walks = []
        while len(left):
            rows = None if len(left) == len(self.request.batch.lengths) else self.rows[left]
            items, scores = self.queries.rank(width, excluded=self.excluded, candidates=candidates, rows=rows)
            ended = items[:, -1] == 0
            if floor > -torch.inf:
                ended |= scores[:, -1] < floor
                items = items.masked_fill(scores < floor, 0)
            now = start.of(torch.arange(len(left)))
            groups = self.groups(items, self.rows[left])
            far = walk(now, items, scores, groups, want=torch.full((len(left),), want))
            chosen.put(left, now)
            full = now.number >= want
            walks.append(far[full])
            unfinished = (~full & ~ended).nonzero().squeeze(1)
            left, start, width = left[unfinished], start.of(unfinished), width * _WIDEN
        self.owner.learn_width(want, walks)

    def _new_releases(self) -> Tensor:
        released = self.request.songs.released
        assert released is not None  # `rule.check`
        time = int(np.max(self.request.time))
        since = time - self.config.new_release_days * DAY_SECONDS
        return self.allowed & (released > since) & (released <= time)

    def _explore(self, chosen: Chosen, number: int) -> Tensor:
        """Draw songs from the ranking behind the list, each with equal probability. Returns propensity [R, K]."""
        pool, scores = self._pool(chosen)
        users = self.request.histories.user_id.take(pa.array(self.rows.numpy())).to_pylist()
        day = int(np.max(self.request.time))
        keys = _uniform([f"{self.owner.config.explore_seed}|{day}|{user}" for user in users], pool)
        propensity = torch.full(chosen.items.shape, torch.nan)
        groups, every = self.groups(pool, self.rows), torch.arange(len(pool))
        for _ in range(number):
            free = (pool > 0) & ~chosen.has(pool) & chosen.admits(groups)
            drawn = torch.where(free, keys, 2.0).argmin(1)
            takes = free.any(1)
            propensity[every[takes], chosen.number[takes]] = 1 / free.sum(1)[takes].float()
            ids = [rule.ids[every, drawn] for rule in groups]
            chosen.add(takes, pool[every, drawn], scores[every, drawn], ids)
        return propensity

    def _pool(self, chosen: Chosen) -> tuple[Tensor, Tensor]:
        """The next `explore_pool` songs of each ranking that may be added to the list on their own. [R, P] each."""
        size, candidates = self.config.explore_pool, self.owner.candidates(self.allowed, self.segment)
        width = chosen.items.shape[1] + 2 * size
        while True:
            items, scores = self.queries.rank(width, excluded=self.excluded, candidates=candidates, rows=self.rows)
            free = (items > 0) & ~chosen.has(items) & chosen.admits(self.groups(items, self.rows))
            if bool(((free.sum(1) >= size) | (items[:, -1] == 0)).all()):
                break
            width *= _WIDEN
        first = (~free).to(torch.uint8).argsort(dim=1, stable=True)[:, :size]
        there = free.gather(1, first)
        return items.gather(1, first) * there, scores.gather(1, first)


def _by_score(chosen: Chosen) -> Chosen:
    """Best first, ties by lower index, places without a song last."""
    by_item = chosen.items.argsort(dim=1, stable=True)
    order = by_item.gather(1, (-chosen.scores.gather(1, by_item)).argsort(dim=1, stable=True))
    parts = [part.gather(1, order) for part in (chosen.items, chosen.scores, *chosen.groups)]
    return Chosen(parts[0], parts[1], parts[2:])


def _uniform(texts: Sequence[str], songs: Tensor) -> Tensor:
    """A number in [0, 1) for each song of each listener, fixed by the listener's text and the song. [R, P]."""
    listener = np.array([xxhash.xxh3_64_intdigest(text.encode()) for text in texts], np.uint64)
    keys = listener[:, None] ^ (songs.numpy().astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    for multiplier, shift in ((0xBF58476D1CE4E5B9, 30), (0x94D049BB133111EB, 27)):  # splitmix64's finaliser
        keys = (keys ^ (keys >> np.uint64(shift))) * np.uint64(multiplier)
    keys ^= keys >> np.uint64(31)
    return torch.from_numpy((keys >> np.uint64(11)).astype(np.float64) / 2.0**53)
