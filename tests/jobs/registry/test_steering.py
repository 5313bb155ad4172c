"""A pin and a rollback: what serves afterwards, and what an operator is told that cannot be done."""

import datetime as dt
from collections.abc import Callable
from dataclasses import replace

import pytest

from jobs.registry import steering, versions
from jobs.stages import promote
from pipelines.errors import InputError

from ..conftest import DAY_ONE, DAY_TWO, Deployment

DAY_THREE = DAY_TWO + dt.timedelta(days=1)


@pytest.fixture
def house(deployment: Callable[..., Deployment]) -> Deployment:
    """Two days whose challengers were promoted, and a third one's that is better than both."""
    made = deployment()
    for seed, ds in enumerate((DAY_ONE, DAY_TWO, DAY_THREE), start=1):
        made.sessionized(ds)
        made.trained(ds, seed=seed)
        made.evaluated(ds, challenger=0.1 * seed, popularity=0.01)
        if ds != DAY_THREE:
            promote.run(made.day(ds))
    return made


def test_a_pinned_version_serves_until_it_is_unpinned(house: Deployment) -> None:
    assert steering.pin(house.day(DAY_THREE), "1").version == "1"
    decided = promote.run(house.day(DAY_THREE))
    assert (decided["chosen"], decided["alias_moved"]) == ("1", False) and "version 1 is pinned" in decided["reason"]
    assert house.day(DAY_THREE).record.chosen_model == "1"
    assert versions.alias_version(house.day(DAY_THREE), versions.CHAMPION) == "2"
    assert all(gate["passed"] for gate in decided["gates"])  # they are applied and shown all the same
    assert steering.unpin(house.day(DAY_THREE)) == "1" and steering.unpin(house.day(DAY_THREE)) is None
    assert promote.run(house.day(DAY_THREE))["chosen"] == "3"


def test_a_pin_holds_for_no_day_whose_plays_the_version_has_seen(house: Deployment) -> None:
    steering.pin(house.day(DAY_THREE), "3")
    assert promote.run(house.day(DAY_ONE))["chosen"] == "1"


def test_after_a_rollback_the_version_before_serves_and_the_other_never_again(house: Deployment) -> None:
    gone, serves = steering.roll_back(house.day(DAY_THREE))
    day = house.day(DAY_THREE)
    assert (gone.version, serves.version) == ("2", "1")
    assert versions.alias_version(day, versions.CHAMPION) == "1"
    champion = versions.champion(day)
    assert champion and champion.version == "1"
    again = promote.run(house.day(DAY_TWO))
    assert again["chosen"] == "1" and "not_withdrawn" in again["reason"]
    assert versions.version_info(day, "2").withdrawn
    assert promote.run(day)["chosen"] == "3"  # a later challenger is judged as always


@pytest.mark.parametrize("case", ["unknown", "rolled back", "other protocol", "gone"])
def test_what_cannot_be_pinned_is_said(house: Deployment, case: str) -> None:
    day = house.day(DAY_THREE)
    if case == "rolled back":
        steering.roll_back(day)
        with pytest.raises(InputError, match="version 2 was rolled back"):
            steering.pin(day, "2")
    elif case == "other protocol":
        train = replace(house.config.train, protocol="leave_one_out")
        house.config = house.config.model_copy(update={"train": train})
        with pytest.raises(InputError, match="trained for next_day, the configuration says leave_one_out"):
            steering.pin(house.day(DAY_THREE), "1")
    elif case == "gone":
        steering.pin(day, "1")
        versions.delete_version(day, "1")
        with pytest.raises(InputError, match="--unpin"):
            promote.run(day)
        steering.unpin(day)
        assert promote.run(day)["chosen"] == "3"
    else:
        with pytest.raises(InputError, match="no version 17"):
            steering.pin(day, "17")
    assert versions.model_tag(day, steering.PINNED) is None


def test_nothing_to_roll_back_to_is_said_and_changes_nothing(deployment: Callable[..., Deployment]) -> None:
    made = deployment()
    made.sessionized(DAY_ONE)
    with pytest.raises(InputError, match="nothing to roll back"):
        steering.roll_back(made.day(DAY_ONE))
    made.trained(DAY_ONE)
    made.evaluated(DAY_ONE, challenger=0.1, popularity=0.01)
    promote.run(made.day(DAY_ONE))
    with pytest.raises(InputError, match="the only one"):
        steering.roll_back(made.day(DAY_ONE))
    steering.pin(made.day(DAY_ONE), "1")
    with pytest.raises(InputError, match="is pinned"):
        steering.roll_back(made.day(DAY_ONE))
    champion = versions.champion(made.day(DAY_TWO + dt.timedelta(days=1)))
    assert champion and champion.version == "1"
