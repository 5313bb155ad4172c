"""The audit of a day's lists before their commit: what is counted in each part, and the limits the counts must keep."""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from jobs.config import RecommendConfig
from jobs.tables.list_quality import (
    ARTISTS,
    EMPTY_SHARE,
    GINI,
    NOVELTY,
    OVERLAP,
    SHARES,
    SHORT_SHARE,
    TOP_ARTIST_SHARE,
    ListQuality,
)
from pipelines.schema import EVERY, ITEM_ID, ITEMS, SCORE, SOURCE, SOURCE_MODEL, SOURCE_POPULAR, USER_ID

_LISTS = "lists"


@dataclass(frozen=True)
class ListCounts:
    """What the audit needs to know of the rows of a part."""

    listeners: int  # rows with a user_id
    model_lists: int
    popular_lists: int  # the others are of a baseline
    repeated: int  # lists that name a song twice
    not_finite: int  # scores that are NaN or infinite
    longest: int  # songs
    shortest: int
    songs: pa.Table  # item_id, lists: in how many listeners' lists each song is


@dataclass(frozen=True)
class ListSummary:
    """The counts of a day as the result of its stage holds them."""

    listeners: int
    model_lists: int
    popular_lists: int
    baseline_lists: int  # of the baseline that serves in the model's place
    coverage: float  # share of the eligible songs that are in any list
    top_share: float  # share of the lists that name the most frequent song


@dataclass(frozen=True)
class AuditCheck:
    """One line of the audit."""

    check: str
    passed: bool
    detail: str


def count_lists(rows: pa.Table) -> ListCounts:
    """Count rows of `schema.recommendations_table`."""
    listeners = rows.filter(pc.is_valid(rows[USER_ID]))
    lengths = pc.list_value_length(rows[ITEMS])
    scores = pc.struct_field(pc.list_flatten(rows[ITEMS]), SCORE)
    return ListCounts(
        listeners=listeners.num_rows,
        model_lists=pc.sum(pc.equal(listeners[SOURCE], SOURCE_MODEL)).as_py() or 0,
        popular_lists=pc.sum(pc.equal(listeners[SOURCE], SOURCE_POPULAR)).as_py() or 0,
        repeated=_lists_with_repeats(rows),
        not_finite=pc.sum(pc.invert(pc.is_finite(pc.fill_null(scores, float("nan"))))).as_py() or 0,
        longest=pc.max(lengths).as_py() or 0,
        shortest=pc.min(lengths).as_py() or 0,
        songs=_lists_per_song(listeners),
    )


def summarize(counts: Sequence[ListCounts], *, eligible: int) -> ListSummary:
    """Add up the counts of a day's parts. eligible: songs that may be in a list."""
    listeners = sum(part.listeners for part in counts)
    by_model, popular = sum(part.model_lists for part in counts), sum(part.popular_lists for part in counts)
    songs = pa.concat_tables([part.songs for part in counts]).group_by(ITEM_ID).aggregate([(_LISTS, "sum")])
    return ListSummary(
        listeners=listeners,
        model_lists=by_model,
        popular_lists=popular,
        baseline_lists=listeners - by_model - popular,
        coverage=songs.num_rows / max(eligible, 1),
        top_share=(pc.max(songs[f"{_LISTS}_sum"]).as_py() or 0) / max(listeners, 1),
    )


def audit(
    counts: Sequence[ListCounts],
    summary: ListSummary,
    *,
    config: RecommendConfig,
    earlier: tuple[dt.date, int] | None,
    judged: bool = True,
) -> list[AuditCheck]:
    """Whether the lists of a day may be published. earlier: the last day with lists and its listeners.

    judged: whether lists must be good. They need not be where no model may serve: popular songs, or a baseline's lists,
    are then all there is, and any are better than none.
    """
    listeners, top = summary.listeners, summary.top_share
    popular, limit = summary.popular_lists / max(listeners, 1), config.max_fallback_share
    coverage, fewest = summary.coverage, config.min_coverage
    longest, shortest = max(part.longest for part in counts), min(part.shortest for part in counts)
    repeated, not_finite = sum(part.repeated for part in counts), sum(part.not_finite for part in counts)
    valid = f"{repeated} lists repeat a song, {not_finite} scores are not finite"
    of_model = [
        AuditCheck("popular", popular <= limit, _share(popular, limit, "are popular")),
        AuditCheck("coverage", coverage >= fewest, _share(coverage, fewest, "of songs", "least")),
        AuditCheck("top_song", top <= config.max_top_share, _share(top, config.max_top_share, "name one song")),
    ]
    checks = [
        AuditCheck("listeners", listeners > 0, f"{listeners:,} lists"),
        *(of_model if judged else ()),
        AuditCheck("length", longest <= config.k, f"{shortest} to {longest} songs a list, at most {config.k}"),
        AuditCheck("valid_lists", repeated + not_finite == 0, valid),
    ]
    if earlier is not None:
        day, before = earlier
        least = before * (1 - config.max_listener_drop)
        detail = f"{listeners:,} listeners, {before:,} on {day}, at least {least:,.0f}"
        checks.insert(1, AuditCheck("listeners_kept", listeners >= least, detail))
    return checks


def audit_quality(quality: ListQuality, *, config: RecommendConfig, judged: bool = True) -> list[AuditCheck]:
    """Whether the lists of all segments together keep the bounds of their quality that are set.

    A bound that is set by default is passed over where the figure could not be taken; another one fails. judged: as in
    `audit`; if False only the songs that lists lack are judged.
    """
    found, checks = quality.get(EVERY, {}), []
    for setting, (metric, what) in _QUALITY_BOUNDS.items():
        if not judged and metric not in (EMPTY_SHARE, SHORT_SHARE):
            continue
        limit, least = getattr(config, setting), setting.startswith("min_")
        if limit is None:
            continue
        if metric in found:
            value = found[metric][0]
            passed, side = (value >= limit, "least") if least else (value <= limit, "most")
            number = f"{value:.2f} {what}, at {side} {limit:g}"
            detail = _share(value, limit, what, side) if metric in SHARES else number
            checks.append(AuditCheck(metric, passed, detail))
        elif RecommendConfig.model_fields[setting].default is None:
            detail = f"not known, recommend.{setting} asks for {limit:g}: check the columns of the catalogue"
            checks.append(AuditCheck(metric, False, detail))
    return checks


_QUALITY_BOUNDS = {
    "max_empty_share": (EMPTY_SHARE, "of lists without a song"),
    "max_short_share": (SHORT_SHARE, "of lists with fewer songs than asked for"),
    "max_overlap": (OVERLAP, "of a list was in the list before"),
    "min_artists": (ARTISTS, "artists a list"),
    "max_artist_share": (TOP_ARTIST_SHARE, "of a list by one artist"),
    "min_novelty": (NOVELTY, "bits of novelty"),
    "max_gini": (GINI, "Gini coefficient of lists by song"),
}
"""Setting -> metric and what the check says of it."""


def _share(value: float, limit: float, what: str, side: str = "most") -> str:
    return f"{value:.1%} {what}, at {side} {limit:.1%}"


def _lists_with_repeats(rows: pa.Table) -> int:
    songs = pc.struct_field(pc.list_flatten(rows[ITEMS]), ITEM_ID)
    table = pa.table({"row": pc.list_parent_indices(rows[ITEMS]), "song": songs})
    per_row = table.group_by("row").aggregate([("song", "count"), ("song", "count_distinct")])
    return pc.sum(pc.not_equal(per_row["song_count"], per_row["song_count_distinct"])).as_py() or 0


def _lists_per_song(rows: pa.Table) -> pa.Table:
    songs = pa.table({ITEM_ID: pc.struct_field(pc.list_flatten(rows[ITEMS]), ITEM_ID)})
    return songs.group_by(ITEM_ID).aggregate([([], "count_all")]).rename_columns([ITEM_ID, _LISTS])
