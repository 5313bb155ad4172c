"""Figures of lists by a hand-worked example, and the table they are written to."""

import datetime as dt
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from jobs.tables.list_quality import QualitySums, SongsOfDay, add_up, list_quality, write_list_quality
from pipelines import delta_tables

DAY_ONE, DAY_TWO = dt.date(2026, 3, 2), dt.date(2026, 3, 3)
NAN = float("nan")

# Six songs; the sixth is not eligible. Three lists without a segment, one of segment kids.
ADULTS = np.array([[1, 2, 3], [1, 2, 0], [1, 0, 0]])
KIDS = np.array([[4, 6, 0]])
SONGS = SongsOfDay(
    eligible=np.array([False, True, True, True, True, True, False]),
    listeners=np.array([0, 4.0, 2.0, 1.0, 0.0, 3.0, 1.0]),
    age_days=np.array([NAN, 10.0, 20.0, 40.0, 5.0, 1.0, NAN]),
)


def sums() -> dict[str, QualitySums]:
    return {
        "": QualitySums.of(ADULTS, {"artists": np.array([2.0, 1.0, NAN]), "overlap": np.array([NAN, NAN, NAN])}),
        "kids": QualitySums.of(KIDS, {"artists": np.array([2.0]), "overlap": np.array([0.5])}),
    }


def test_every_figure_of_two_segments_by_hand() -> None:
    quality = list_quality(sums(), SONGS)
    assert list(quality) == ["all", "default", "kids"]
    assert quality["default"]["artists"] == [1.5, 2]
    assert quality["all"]["artists"] == [pytest.approx(5 / 3), 3]
    assert quality["all"]["overlap"] == quality["kids"]["overlap"] == [0.5, 1]
    assert "overlap" not in quality["default"]
    # Ages of the songs listed: 10, 10, 10, 20, 20, 40, and of kids 5; the sixth song's is unknown.
    assert quality["default"]["age_days"] == [15.0, 3]
    assert quality["kids"]["age_days"] == [5.0, 1]
    assert quality["all"]["age_days"] == [10.0, 4]
    # Four lists: song 1 was played by all of them (0 bits), 2 by half (1 bit), 3 and 6 by one (2 bits), 4 by nobody.
    assert quality["default"]["novelty"] == [pytest.approx((3 * 0 + 2 * 1 + 2) / 6), 3]
    assert quality["kids"]["novelty"] == [pytest.approx((np.log2(5) + 2) / 2), 1]
    assert quality["default"]["coverage"] == [3 / 5, 3]
    assert quality["kids"]["coverage"] == [1 / 5, 1]
    assert quality["all"]["coverage"] == [4 / 5, 4]
    # Lists of the eligible songs in all: 0, 1, 1, 2, 3; half the mean absolute difference over the mean.
    numbers = np.array([3, 2, 1, 1, 0])
    assert quality["all"]["gini"] == [pytest.approx(np.abs(numbers[:, None] - numbers).mean() / 2 / numbers.mean()), 4]
    assert quality["kids"]["gini"] == [pytest.approx(0.8), 1]


def test_parts_add_up_to_what_their_lists_are_together() -> None:
    values = {"artists": np.array([2.0, 1.0, NAN])}
    whole = add_up([{"": QualitySums.of(ADULTS, values)}])
    apart = [{"": QualitySums.of(ADULTS[n : n + 1], {"artists": values["artists"][n : n + 1]})} for n in range(3)]
    assert list_quality(add_up(apart), SONGS) == list_quality(whole, SONGS)
    assert list(list_quality(whole, SONGS)) == ["all"]  # nobody has a segment


def test_without_lists_songs_or_columns_there_are_no_figures() -> None:
    assert list_quality({}, SONGS) == {}
    empty = {"": QualitySums.of(np.zeros((2, 3), np.int64), {"artists": np.array([NAN, NAN])})}
    assert list_quality(empty, SONGS) == {"all": {"coverage": [0.0, 2]}}
    bare = SongsOfDay(SONGS.eligible, None, None)
    assert set(list_quality({"": QualitySums.of(ADULTS, {})}, bare)["all"]) == {"coverage", "gini"}


def test_the_share_of_a_song_that_more_played_than_have_lists_is_at_most_all() -> None:
    songs = SongsOfDay(SONGS.eligible, np.full(7, 9.0), None)
    assert list_quality({"": QualitySums.of(ADULTS, {})}, songs)["all"]["novelty"] == [0.0, 3]


def test_writing_a_day_again_replaces_exactly_that_day(deployment: Callable[..., Any]) -> None:
    workspace = deployment().day(DAY_ONE).workspace
    write_list_quality(workspace, DAY_ONE, {"all": {"artists": [3.0, 2], "gini": [0.5, 2]}})
    write_list_quality(workspace, DAY_TWO, {"all": {"artists": [4.0, 2]}})
    write_list_quality(workspace, DAY_ONE, {"all": {"artists": [5.0, 2]}, "kids": {"artists": [1.0, 1]}})
    rows = delta_tables.read_days(workspace.list_quality)
    assert [tuple(row.values()) for row in rows] == [
        (DAY_ONE, "all", "artists", 5.0, 2),
        (DAY_ONE, "kids", "artists", 1.0, 1),
        (DAY_TWO, "all", "artists", 4.0, 2),
    ]
