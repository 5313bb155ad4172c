"""The audit of the lists, its checks one by one."""

import datetime as dt
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pytest

from jobs.config import RecommendConfig
from jobs.tables.audit import ListCounts, audit, audit_quality, count_lists, summarize
from pipelines.schema import recommendations_table

DAY_ONE = dt.date(2026, 3, 2)
CONFIG = RecommendConfig(k=3)  # type: ignore[call-arg]


def rows(users: list[int | None], songs: list[list[Any]], source: str) -> pa.Table:
    """Lists in which user number n has the songs [(item_id, score), ...] or [item_id, ...]."""
    pairs = [[song if isinstance(song, tuple) else (song, 0.5) for song in row] for row in songs]
    items = [[{"item_id": item, "score": score} for item, score in row] for row in pairs]
    schema = recommendations_table("int64", "int64").schema
    columns = {"user_id": users, "items": items, "source": [source] * len(users)}
    return pa.table(columns, schema=pa.schema([schema.field(name) for name in columns]))


@pytest.mark.parametrize(
    ("songs", "source", "changes", "earlier", "failed"),
    [
        ([[1, 2, 3], [4, 5, 6]], "model", {}, None, []),
        ([[1, 2, 3], [4, 5, 6]], "model", {}, (DAY_ONE, 5), ["listeners_kept"]),
        ([[1, 2, 3], [4, 5, 6]], "model", {}, (DAY_ONE, 4), []),
        ([[1, 2, 3], [4, 5, 6]], "popular", {}, None, ["popular"]),
        ([[1, 2, 3, 4], [4, 5, 6]], "model", {"max_top_share": 1.0}, None, ["length"]),
        ([[1, 2, 1], [4, 5, 6]], "model", {"max_top_share": 1.0}, None, ["valid_lists"]),
        ([[(1, float("nan"))], [4, 5, 6]], "model", {}, None, ["valid_lists"]),
        ([[(1, float("inf"))], [4, 5, 6]], "model", {}, None, ["valid_lists"]),
        ([[1, 2, 3], [1, 5, 6]], "model", {}, None, ["top_song"]),
        ([[1, 2, 3], [4, 5, 6]], "model", {"min_coverage": 0.7}, None, ["coverage"]),
        ([], "model", {"min_coverage": 0.0}, None, ["listeners"]),
    ],
)
def test_a_check_fails_where_its_limit_is_exceeded(
    songs: list[list[Any]],
    source: str,
    changes: dict[str, float],
    earlier: tuple[dt.date, int] | None,
    failed: list[str],
) -> None:
    default = count_lists(rows([None], [[1, 2]], "popular"))
    counts = [default, count_lists(rows(list(range(1, len(songs) + 1)), songs, source))]
    summary = summarize(counts, eligible=10)
    checks = audit(counts, summary, config=CONFIG.model_copy(update=changes), earlier=earlier)
    assert [check.check for check in checks if not check.passed] == failed


def test_the_default_list_counts_for_no_share() -> None:
    song_counts = pa.table({"item_id": [1, 2], "lists": [3, 1]})
    counted = ListCounts(4, 1, 1, 0, 0, 2, 1, song_counts)
    default = ListCounts(0, 0, 0, 0, 0, 2, 2, song_counts.slice(0, 0))
    assert asdict(summarize([default, counted], eligible=4)) == {
        "listeners": 4,
        "model_lists": 1,
        "popular_lists": 1,
        "baseline_lists": 2,
        "coverage": 0.5,
        "top_share": 0.75,
    }


FIGURES = {
    "overlap": [0.5, 2],
    "empty_share": [0.02, 2],
    "short_share": [0.1, 2],
    "artists": [12.5, 2],
    "top_artist_share": [0.2, 2],
    "novelty": [4.0, 2],
    "gini": [0.6, 2],
}


@pytest.mark.parametrize(
    ("changes", "failed"),
    [
        ({}, []),
        ({"max_overlap": 0.5}, []),
        ({"max_overlap": 0.49}, ["overlap"]),
        ({"max_empty_share": 0.01}, ["empty_share"]),
        ({"max_short_share": 0.05}, ["short_share"]),
        ({"min_artists": 12.5}, []),
        ({"min_artists": 13}, ["artists"]),
        ({"max_artist_share": 0.1}, ["top_artist_share"]),
        ({"min_novelty": 5}, ["novelty"]),
        ({"max_gini": 0.5}, ["gini"]),
    ],
)
def test_a_bound_of_quality_is_kept_by_all_lists_together(changes: dict[str, float], failed: list[str]) -> None:
    quality = {"all": FIGURES, "kids": {metric: [99.0, 1] for metric in FIGURES}}
    checks = audit_quality(quality, config=CONFIG.model_copy(update=changes))
    assert [check.check for check in checks if not check.passed] == failed
    assert len(checks) == 2 + len(changes.keys() - {"max_overlap", "max_empty_share"})  # on by default


def test_only_a_bound_that_was_asked_for_fails_where_its_figure_is_not_known() -> None:
    assert audit_quality({"all": {}}, config=CONFIG) == []
    (check,) = audit_quality({"all": {}}, config=CONFIG.model_copy(update={"min_artists": 3}))
    assert not check.passed
    assert check.detail == "not known, recommend.min_artists asks for 3: check the columns of the catalogue"
