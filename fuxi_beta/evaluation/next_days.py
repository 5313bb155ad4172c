"""The protocol `next_day` on several days in a row with the same weights, and what came of every single case.

A case is a listener and a day. One day of a small service cannot tell two recommenders apart; several days can, if the
days of a listener are resampled together (`statistics.paired_difference`), for which each case's metrics are kept.

Everything that is learned is from before the first day's cut. Each day's contexts, heard songs and known songs are
those before that day's own cut, so that the weights grow older by a day with each of them.

Shapes: `B` listeners of a chunk, `C` cases, `V` songs and the padding row. Times are Unix seconds, UTC.
"""

import datetime as dt
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from fuxi_beta.config import EvaluateConfig, ModelConfig, TrainConfig
from fuxi_beta.data.side import LONG_AGO
from fuxi_beta.evaluation.metrics import SERVED, RankedLists, list_metrics
from fuxi_beta.evaluation.next_day import (
    Chunk,
    ListMakers,
    ListMeans,
    NextDayCases,
    kind_slices,
    sampled_histories,
)
from fuxi_beta.evaluation.protocol import ListMaker, Metrics, Progress, Result, on_every_core
from fuxi_beta.recommender import Recommender
from pipelines.calendar import DAY_SECONDS, Calendar
from pipelines.errors import InputError
from pipelines.histories.histories import Histories
from pipelines.histories.shards import Manifest
from pipelines.schema import DS, USER_ID

KINDS = ("new", "light", "heavy")
GAPS = ("gap_day", "gap_week", "gap_longer", "no_play")
"""By the time from the newest play that the list knows to the request: below a day, to seven days, longer, none."""
RECENT, UNTRAINED = "recent_songs", "untrained_songs"
"""Slices of cold songs: cases with such a song in their truth, measured on these songs alone. First heard by anybody
in the RECENT_DAYS before the day's cut; without an event before the cut of training."""
RECENT_DAYS = 3
KIND, GAP = "kind", "gap"
"""Columns of the cases: which of KINDS and of GAPS."""
CASE_METRICS = tuple(f"{metric}_{k}" for metric in ("ndcg", "hr", "recall") for k in (10, 30))
"""The metrics that are kept of each case, those of cold songs as `recent_songs.hr_30`, NaN in cases without."""

_NEVER = np.iinfo(np.int64).max

ChunkLists = Callable[[Chunk], Iterable[tuple[str, str, RankedLists]]]
"""A chunk's lists by (recommender, prefix of its metrics)."""


@dataclass(frozen=True)
class NextDaysResult(Result):
    """What was found on all days together. A listener counts once a day.

    cases: recommender -> [C] rows in the order of the shards and days: user_id, ds (of `NextDayCases`), KIND, GAP, and
    float32 for each of CASE_METRICS, raw and served; all recommenders have the same cases in the same order.
    """

    cases: dict[str, pa.Table]


def first_events(manifest: Manifest) -> np.ndarray:
    """When each song was first heard by anybody, skipped or not: int64 [V], never where it is not in the shards.

    A song among those heard before the stored events was heard at the beginning of time.
    """
    first = np.full(manifest.vocabulary_size + 1, _NEVER, np.int64)
    for file, group, _ in manifest.row_groups():
        histories = manifest.histories(file, group)
        np.minimum.at(first, histories.item_index, histories.timestamp)
        first[histories.heard_items] = np.iinfo(np.int64).min
    return first


def newest_days(manifest: Manifest, count: int) -> list[dt.date]:
    """The last `count` serving days whose day before is in the sequences, oldest first."""
    return [manifest.ds - dt.timedelta(days=back) for back in reversed(range(count))]


def evaluate_next_days(
    manifest: Manifest,
    recommenders: Mapping[str, Recommender],
    *,
    days: Sequence[dt.date],
    calendar: Calendar,
    model: ModelConfig,
    train: TrainConfig,
    config: EvaluateConfig,
    first_event: np.ndarray | None = None,
    appears: np.ndarray | None = None,
    fallback: Recommender | None = None,
    served: ListMaker | None = None,
    on_progress: Progress | None = None,
) -> NextDaysResult:
    """Protocol `next_day` for each of some serving days, oldest first, on the shards of the last one.

    The recommenders, and the fallback, must have learned from nothing after the first day's cut. first_event: of
    `first_events`, if it is there already. Other arguments as of `evaluate_next_day`; slices are those, GAPS, RECENT
    and UNTRAINED. Raises InputError if the shards end before the last day does.
    """
    first = first_events(manifest) if first_event is None else first_event
    cases = cases_of_days(
        manifest, days, calendar=calendar, train=train, config=config, first_event=first, appears=appears
    )
    makers = {}
    for day in cases:
        of_day = {name: recommender.as_of(day.request_time) for name, recommender in recommenders.items()}
        makers[day.ds] = ListMakers(of_day, model, train, max(config.at), fallback, served)

    def lists(chunk: Chunk) -> Iterator[tuple[str, str, RankedLists]]:
        return makers[chunk.cases.ds].lists(chunk)

    return measure_cases(cases, lists, config=config, first_event=first, on_progress=on_progress)


def cases_of_days(
    manifest: Manifest,
    days: Sequence[dt.date],
    *,
    calendar: Calendar,
    train: TrainConfig,
    config: EvaluateConfig,
    first_event: np.ndarray,
    appears: np.ndarray | None = None,
) -> list[NextDayCases]:
    """The cases of each day, with the songs that are known by then: played before the cut, or out by the catalogue.

    first_event: int64 [V], as of `first_events`. appears: int64 [V], Unix second of each song's release as of
    `fuxi_beta.data.side.appearance`; one from before the request makes a song known.
    """
    if not days:
        raise InputError("no day to evaluate is given: give at least one")
    found = []
    for ds in days:
        eve = ds - dt.timedelta(days=1)
        known = first_event < calendar.day_start(eve)
        if appears is not None:
            known |= (appears > LONG_AGO) & (appears <= calendar.request_time(eve))
        known[0] = False
        found.append(NextDayCases(manifest, ds, calendar, train, known, config.max_listeners))
        found[-1].refuse_missing_events()
    return found


def measure_cases(
    days: Sequence[NextDayCases],
    lists: ChunkLists,
    *,
    config: EvaluateConfig,
    first_event: np.ndarray,
    on_progress: Progress | None = None,
) -> NextDaysResult:
    """Measure lists on the cases of some days, in one pass over the shards. first_event: int64 [V]."""
    manifest, done = days[0].manifest, 0
    measured = [_Day(cases, first_event, trained_before=days[0].cut, config=config) for cases in days]
    groups = sampled_histories(manifest, config.max_listeners)
    every = ((day, chunk) for one in groups for day in measured for chunk in day.cases.chunks(one, config.batch_size))
    for day, chunk, found in on_every_core(lambda of: (*of, list(lists(of[1]))), every):
        if len(chunk.histories):
            day.add(chunk, found)
        done += chunk.counted if day is measured[-1] else 0
        if on_progress:
            on_progress(done, min(manifest.rows, config.max_listeners))
    parts = [part for day in measured for part in day.tables]
    if not parts:
        raise InputError(
            f"{manifest.folder}: nobody played a new song on {days[0].ds} to {days[-1].ds}: give more days"
        )
    tables = {name: pa.concat_tables(part[name] for part in parts) for name in parts[0]}
    means, slices = _over_days([day.sums for day in measured])
    return NextDaysResult(means, done * len(days) - slices["all"], slices, tables)


def gap_slices(plays: Histories, request_time: int) -> dict[str, np.ndarray]:
    """Members (bool [B]) of each of GAPS. plays: the plays that are known, no skips."""
    played = plays.lengths > 0
    gap = np.zeros(len(plays), np.int64)
    gap[played] = request_time - plays.timestamp[plays.offsets[1:][played] - 1]
    day, week = gap < DAY_SECONDS, gap <= 7 * DAY_SECONDS
    return dict(zip(GAPS, (played & day, played & ~day & week, played & ~week, ~played), strict=True))


class _Day:
    """The cases of one day as they are measured."""

    def __init__(
        self, cases: NextDayCases, first_event: np.ndarray, *, trained_before: int, config: EvaluateConfig
    ) -> None:
        self.cases, self.config = cases, config
        self.sums = ListMeans(config.at, cases.known)
        recent = first_event >= cases.cut - RECENT_DAYS * DAY_SECONDS
        self.cold = {RECENT: recent & cases.known, UNTRAINED: (first_event >= trained_before) & cases.known}
        self.tables: list[dict[str, pa.Table]] = []  # recommender -> cases, of each chunk

    def add(self, chunk: Chunk, lists: Iterable[tuple[str, str, RankedLists]]) -> None:
        """Add the lists that some recommenders made for some listeners."""
        kinds = kind_slices(chunk.context, self.cases.cut, self.config)
        plays = chunk.context.keep(chunk.context.completion >= self.cases.train.min_completion)
        gaps = gap_slices(plays, self.cases.request_time)
        relevant = {name: self._relevant(chunk, songs) for name, songs in self.cold.items()}
        self.sums.count({**kinds, **gaps, **{name: counts > 0 for name, counts in relevant.items()}})
        found: dict[str, dict[str, np.ndarray]] = {}
        for name, prefix, made in lists:
            values = self.sums.add_lists(name, {**kinds, **gaps}, made, prefix=prefix)
            for part, counts in relevant.items():
                of_cold = self._cold_metrics(made, self.cold[part], counts, prefix)
                self.sums.add(name, {part: counts > 0}, of_cold)
                masked = {key: np.where(counts > 0, value, np.nan) for key, value in of_cold.items()}
                values |= {f"{part}.{key}": value for key, value in masked.items()}
            found.setdefault(name, {}).update(values)
        facts = {
            USER_ID: chunk.context.user_id,
            DS: pa.array([self.cases.ds] * len(plays), pa.date32()),
            KIND: _names({name: kinds[name] for name in KINDS}),
            GAP: _names(gaps),
        }
        self.tables.append({name: pa.table({**facts, **_kept(values)}) for name, values in found.items()})

    def _relevant(self, chunk: Chunk, songs: np.ndarray) -> np.ndarray:
        """How many of some songs (bool [V]) each listener has in the truth. int64 [B]."""
        row, song = np.divmod(chunk.truth, len(songs))
        return np.bincount(row[songs[song]], minlength=len(chunk.context))

    def _cold_metrics(
        self, made: RankedLists, songs: np.ndarray, relevant: np.ndarray, prefix: str
    ) -> dict[str, np.ndarray]:
        """Metrics with only these songs (bool [V]) as the truth; without meaning where there are none of them."""
        hits = made.hits & songs[made.items]
        lists = RankedLists(made.items, hits, np.maximum(relevant, 1), made.heard)
        return {f"{prefix}{key}": value for key, value in list_metrics(lists, self.config.at).items()}


def _kept(values: Mapping[str, np.ndarray]) -> dict[str, pa.Array]:
    """The columns of CASE_METRICS, served ones and those of cold songs among them."""
    kept = {key: value for key, value in values.items() if key.rpartition(".")[2].removeprefix(SERVED) in CASE_METRICS}
    return {key: pa.array(value.astype(np.float32)) for key, value in kept.items()}


def _names(members: Mapping[str, np.ndarray]) -> pa.Array:
    """The name of the part of a partition (bool [B] each) that each listener is in."""
    place = np.argmax(np.stack(list(members.values())), axis=0)
    return pa.DictionaryArray.from_arrays(pa.array(place, pa.int8()), pa.array(list(members))).cast(pa.string())


def _over_days(days: Sequence[ListMeans]) -> tuple[Metrics, dict[str, int]]:
    """Means over the cases of all days, and the cases of each slice. Coverage is the mean of the days'."""
    slices: dict[str, int] = {}
    totals: dict[tuple[str, str, str], tuple[float, int]] = {}
    for day in days:
        for part, count in day.listeners.items():
            slices[part] = slices.get(part, 0) + count
        for name, parts in day.means().items():
            for part, metric, value in ((part, *item) for part, values in parts.items() for item in values.items()):
                weight = day.listeners[part]
                if metric.removeprefix(SERVED).startswith("coverage"):
                    weight = min(weight, 1)
                total, weights = totals.get((name, part, metric), (0.0, 0))
                totals[name, part, metric] = total + weight * value, weights + weight
    means: Metrics = {}
    for (name, part, metric), (total, weights) in totals.items():
        means.setdefault(name, {}).setdefault(part, {})[metric] = total / max(weights, 1)
    return means, slices
