"""The Delta table of list quality: what a day's lists are like, one row a (ds, segment, metric).

A task counts the lists of its part (`jobs.serving.count_quality`); the driver adds up the parts and takes the figures.
Default lists do not count.

| metric | what, over the lists of a segment |
| --- | --- |
| `artists` | distinct artists a list, mean |
| `top_artist_share` | share of a list that is by its commonest artist, mean |
| `new_artist_share` | share of a list by artists the listener never played, mean |
| `overlap` | share of a list that was in the listener's list of the latest earlier day, mean |
| `age_days` | days since the release of a listed song, median |
| `novelty` | -log2 of the share of all listeners with a list who played a listed song lately, mean over songs listed |
| `coverage` | share of the eligible songs that are in any list |
| `gini` | Gini coefficient of the numbers of lists that eligible songs are in |
| `popular_share` | share of lists of popular songs, because the model has none |
| `short_share`, `empty_share` | share of lists with fewer songs than were asked for, and without a song |
| `cut:RULE` | better-ranked songs that a rule keeps out of a list, mean over a sample of listeners |

Shapes: `V` songs and the padding row, `S` of them are listed, `B` listeners, `K` list length.
"""

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipelines import delta_tables
from pipelines.schema import DEFAULT_SEGMENT, DS, EVERY, LIST_QUALITY_TABLE, LISTENERS, METRIC, SEGMENT, VALUE
from pipelines.workspace import Workspace

ARTISTS, TOP_ARTIST_SHARE, NEW_ARTIST_SHARE = "artists", "top_artist_share", "new_artist_share"
OVERLAP, AGE_DAYS, NOVELTY, COVERAGE, GINI = "overlap", "age_days", "novelty", "coverage", "gini"
POPULAR_SHARE, SHORT_SHARE, EMPTY_SHARE = "popular_share", "short_share", "empty_share"
SHARES = frozenset((TOP_ARTIST_SHARE, NEW_ARTIST_SHARE, OVERLAP, COVERAGE, POPULAR_SHARE, SHORT_SHARE, EMPTY_SHARE))
"""Metrics that are shown as per cent."""
CUT = "cut:"
"""Prefix of the metrics that name a list rule."""

ListQuality = dict[str, dict[str, list[float]]]
"""Segment -> metric -> [value, listeners]; it fits in JSON. A figure that nothing can be said of is missing."""


@dataclass(frozen=True)
class QualitySums:
    """What is counted of the lists of one segment."""

    lists: int
    sums: dict[str, tuple[float, int]]  # metric -> sum over listeners, listeners
    songs: np.ndarray  # int32 [S], item indices, ascending
    times: np.ndarray  # int32 [S], lists that name each

    @staticmethod
    def of(items: np.ndarray, values: Mapping[str, np.ndarray]) -> "QualitySums":
        """Of some lists. items: int64 [B, K], 0 behind the last. values: metric -> float [B], NaN for no value."""
        known = {metric: value[np.isfinite(value)] for metric, value in values.items()}
        sums = {metric: (float(value.sum()), len(value)) for metric, value in known.items()}
        return QualitySums(len(items), sums, *_counted(items[items > 0]))


@dataclass(frozen=True)
class SongsOfDay:
    """What the figures need to know of songs. [V] each."""

    eligible: np.ndarray  # bool
    listeners: np.ndarray | None  # float, distinct listeners lately
    age_days: np.ndarray | None  # float, NaN where it is unknown


def add_up(parts: Iterable[Mapping[str, QualitySums]]) -> dict[str, QualitySums]:
    """The sums of several parts, by segment."""
    by_segment: dict[str, list[QualitySums]] = {}
    for part in parts:
        for segment, sums in part.items():
            by_segment.setdefault(segment, []).append(sums)
    return {segment: _total(sums) for segment, sums in by_segment.items()}


def list_quality(sums: Mapping[str, QualitySums], songs: SongsOfDay) -> ListQuality:
    """The figures of a day, of EVERY list and by segment, where lists have any.

    sums: by segment, "" for lists without one.
    """
    if not sums:
        return {}
    every = _total(list(sums.values()))
    groups = {EVERY: every}
    if set(sums) != {""}:
        groups |= {name or DEFAULT_SEGMENT: sums[name] for name in sorted(sums)}
    return {name: _figures(group, songs, every.lists) for name, group in groups.items()}


def write_list_quality(workspace: Workspace, ds: dt.date, quality: ListQuality) -> int:
    """Replace the rows of `ds` in one commit; returns the table's version."""
    rows = [
        {DS: ds, SEGMENT: segment, METRIC: metric, VALUE: value, LISTENERS: int(listeners)}
        for segment, figures in quality.items()
        for metric, (value, listeners) in figures.items()
    ]
    return delta_tables.overwrite(workspace.list_quality, LIST_QUALITY_TABLE, rows, {DS: ds})


def _figures(group: QualitySums, songs: SongsOfDay, listeners: int) -> dict[str, list[float]]:
    """listeners: lists of all segments."""
    figures = {metric: [total / number, number] for metric, (total, number) in group.sums.items() if number}
    listed = np.zeros(len(songs.eligible), np.int64)
    listed[group.songs] = group.times
    of_songs: dict[str, float | None] = {
        AGE_DAYS: None if songs.age_days is None else _median(songs.age_days, listed),
        NOVELTY: None if songs.listeners is None else _novelty(songs.listeners, listed, listeners),
    }
    if eligible := int(songs.eligible.sum()):
        of_songs |= {
            COVERAGE: np.count_nonzero(listed[songs.eligible]) / eligible,
            GINI: _gini(listed[songs.eligible]),
        }
    return figures | {metric: [float(value), group.lists] for metric, value in of_songs.items() if value is not None}


def _median(values: np.ndarray, times: np.ndarray) -> float | None:
    """The median of values that stand there a number of times each; NaN is no value."""
    there = np.flatnonzero(np.isfinite(values) & (times > 0))
    if not len(there):
        return None
    order = there[np.argsort(values[there], kind="stable")]
    ends = np.cumsum(times[order])
    middle = np.array([(ends[-1] - 1) // 2, ends[-1] // 2])  # one value, or the two in the middle
    return float(values[order[np.searchsorted(ends, middle, side="right")]].mean())


def _novelty(played_by: np.ndarray, times: np.ndarray, listeners: int) -> float | None:
    """Mean self-information of the songs listed, in bits. A song that nobody played counts as played by one more."""
    if not times.any():
        return None
    share = np.where(played_by > 0, np.minimum(played_by / listeners, 1), 1 / (listeners + 1))
    return float(-(np.log2(share) * times).sum() / times.sum())


def _gini(numbers: np.ndarray) -> float | None:
    """0: all are equal; towards 1: one has everything. None if all are 0."""
    total, n = numbers.sum(), len(numbers)
    if not total:
        return None
    return float(2 * (np.arange(1, n + 1) * np.sort(numbers)).sum() / (n * total) - (n + 1) / n)


def _total(parts: Sequence[QualitySums]) -> QualitySums:
    sums: dict[str, tuple[float, int]] = {}
    for part in parts:
        for metric, (value, number) in part.sums.items():
            before = sums.get(metric, (0.0, 0))
            sums[metric] = before[0] + value, before[1] + number
    songs, times = (np.concatenate([getattr(part, name) for part in parts]) for name in ("songs", "times"))
    return QualitySums(sum(part.lists for part in parts), sums, *_counted(songs, times))


def _counted(songs: np.ndarray, times: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Distinct songs, ascending, and how often each is there. int32 each."""
    counts = np.bincount(songs, times)
    found = np.flatnonzero(counts)
    return found.astype(np.int32), counts[found].astype(np.int32)
