"""The reasons of published lists: plays that their listeners made on that day, and none where the model says none."""

import datetime as dt
from collections.abc import Callable
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow.compute as pc
import pytest

from pipelines import delta_tables

from ..conftest import DAY_ONE, Deployment


def lists_of(made: Deployment, histories: Any = None) -> dict[Any, tuple[str, list[Any]]]:
    """user_id -> source and items, of published lists by an untrained model."""
    made.published(DAY_ONE, histories)
    rows = delta_tables.read(made.day(DAY_ONE).workspace.recommendations, pc.field("ds") == DAY_ONE)
    assert rows is not None
    return {row["user_id"]: (row["source"], row["items"]) for row in rows.to_pylist()}


def newest_plays(made: Deployment, user: Any, zone: str) -> dict[Any, dt.date]:
    """item_id -> the day of the newest play, skips left out."""
    plays = (event for event in made.histories[user] if event[2] >= 30)
    return {made.item_id(song): dt.datetime.fromtimestamp(time, ZoneInfo(zone)).date() for song, time, _ in plays}


@pytest.mark.parametrize("zone", ["UTC", "Pacific/Auckland"])
def test_reasons_are_plays_that_the_listener_made_on_that_day(deployment: Callable[..., Deployment], zone: str) -> None:
    made = deployment(f"sequences.timezone={zone}")
    lists = lists_of(made)
    named, differ = 0, 0
    for user in made.histories:
        plays, in_utc = (newest_plays(made, user, name) for name in (zone, "UTC"))
        for item in lists[user][1]:
            reasons = item["reasons"]
            assert len(reasons) <= 2 and len({reason["item_id"] for reason in reasons}) == len(reasons)
            assert all(plays[reason["item_id"]] == reason["ds"] for reason in reasons)
            weights = [reason["weight"] for reason in reasons]
            assert weights == sorted(weights, reverse=True) and all(weight > 0 for weight in weights)
            named += len(reasons)
            differ += sum(in_utc[reason["item_id"]] != reason["ds"] for reason in reasons)
    assert named > 30 * made.listeners
    assert bool(differ) == (zone != "UTC")


def test_popular_lists_have_no_reasons(deployment: Callable[..., Deployment]) -> None:
    made = deployment("recommend.k=5", item_id_type="string")
    start = made.day(DAY_ONE).calendar.day_start(DAY_ONE)
    histories = made.make_histories(DAY_ONE)
    histories[101] = [(1, start - 500, 5), (2, start - 400, 5)]  # only skips
    lists = lists_of(made, histories)
    sources = {
        source: [item["reasons"] for s, items in lists.values() if s == source for item in items]
        for source in ("model", "popular")
    }
    assert sources["popular"] == [None] * 10  # of listener 101, and of unknown listeners
    assert all(reasons is not None for reasons in sources["model"])
    assert all(isinstance(reason["item_id"], str) for reasons in sources["model"] for reason in reasons)


def test_reasons_can_be_switched_off_and_nothing_else_changes(deployment: Callable[..., Deployment]) -> None:
    without = lists_of(deployment("recommend.reasons=0", folder="off"))
    by_default = lists_of(deployment())
    assert {item["reasons"] for _, items in without.values() for item in items} == {None}
    for lists in (without, by_default):
        for _, items in lists.values():
            for item in items:
                del item["reasons"]
    assert without == by_default
