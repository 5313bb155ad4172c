"""`fuxi diff`: what became of every listener's list, and what was otherwise."""

import datetime as dt
from collections.abc import Callable
from typing import Any

import pytest

from jobs.commands.diff import PLAYED, SILENT, run
from jobs.tables import recommendations
from pipelines.errors import InputError
from pipelines.schema import ITEM_ID, ITEMS, USER_ID

from ..conftest import DAY_ONE, DAY_TWO, Deployment


def songs_of(house: Deployment, ds: dt.date) -> dict[Any, list[Any]]:
    rows = recommendations.open_lists(house.day(ds).workspace).to_pyarrow_table(partitions=[("ds", "=", str(ds))])
    return {
        row[USER_ID]: [song[ITEM_ID] for song in row[ITEMS]] for row in rows.to_pylist() if row[USER_ID] is not None
    }


@pytest.mark.parametrize("kind", ["int64", "string"])
def test_every_listener_is_counted_as_a_plain_comparison_counts_it(
    deployment: Callable[..., Deployment], kind: str
) -> None:
    house = deployment("rules.listed_days=0", user_id_type=kind)
    house.published(DAY_ONE)
    later, at = dict(house.histories), house.day(DAY_ONE).calendar.day_start(DAY_ONE) + 3600
    players = list(later)[:7]
    for user in players:
        later[user] = [*later[user], (5, at, 100)]
    gone, new = list(later)[-1], house.user(9_999)
    later[new] = [(3, at, 100)]
    del later[gone]
    house.published(DAY_TWO, later)
    before, after = songs_of(house, DAY_ONE), songs_of(house, DAY_TWO)

    found = run(house.config, DAY_TWO, DAY_ONE)

    assert (found.before, found.after) == (DAY_ONE, DAY_TWO)
    assert (found.only_before, found.only_after) == (1, 1)
    for name, users in ((PLAYED, set(players)), (SILENT, (before.keys() & after.keys()) - set(players))):
        pairs = [(before[user], after[user]) for user in users]
        group = found.changed[name]
        assert group.listeners == len(pairs) and group.same == sum(a == b for a, b in pairs)
        assert group.reordered == sum(a != b and set(a) == set(b) for a, b in pairs)
        assert group.overlap == pytest.approx(sum(len(set(a) & set(b)) / len(b) for a, b in pairs) / len(pairs))
    assert [cause.split(":")[0] for cause in found.causes] == [
        "plays",
        "model",
        "settings",
    ]  # no stage of a run noted any
    assert '"overlap"' in found.as_json()


def test_another_setting_and_the_rule_about_earlier_lists_are_named(deployment: Callable[..., Deployment]) -> None:
    house = deployment()
    for ds in (DAY_ONE, DAY_TWO):
        house.published(ds)
        house.day(ds).finish("recommend", {}, 0.0)
        other = house.config.recommend.model_copy(update={"k": 20})
        house.config = house.config.model_copy(update={"recommend": other})
    causes = run(house.config, DAY_ONE, DAY_TWO).causes
    assert "setting recommend.k: 30 -> 20" in causes
    assert any("rules.listed_days" in cause for cause in causes)


def test_a_day_without_lists_and_a_day_twice_are_refused(deployment: Callable[..., Deployment]) -> None:
    house = deployment()
    house.published(DAY_ONE)
    with pytest.raises(InputError, match=f"ds {DAY_TWO} has no lists"):
        run(house.config, DAY_ONE, DAY_TWO)
    with pytest.raises(InputError, match="given twice"):
        run(house.config, DAY_ONE, DAY_ONE)
