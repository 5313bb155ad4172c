"""The gates as a table, and what promote writes where."""

import datetime as dt
import math
from collections.abc import Callable
from typing import Any

import pytest

from jobs.config import GatesConfig
from jobs.day import run_stage
from jobs.registry import versions
from jobs.stages import promote
from jobs.tables.metrics import write_metrics
from pipelines import delta_tables
from pipelines.errors import InputError

DAY_ONE, DAY_TWO, DAY_THREE = (dt.date(2026, 3, n) for n in (2, 3, 4))
GATES = GatesConfig(metric="ndcg_30", margin=0.1, best_of_days=28)  # type: ignore[call-arg]


def measured(**values: float) -> dict[str, dict[str, dict[str, float]]]:
    return {name: {"all": {"ndcg_30": value}} for name, value in values.items()}


@pytest.mark.parametrize(
    ("values", "recent", "failed"),
    [
        ({"challenger": 0.20, "popularity": 0.10}, {}, []),
        ({"challenger": 0.10, "popularity": 0.10}, {}, ["beats_popularity"]),
        ({"challenger": math.nan, "popularity": 0.10}, {}, ["finite"]),
        ({"challenger": math.inf, "popularity": 0.10}, {}, ["finite"]),
        ({"challenger": 0.181, "popularity": 0.10, "champion": 0.20}, {}, []),  # within the margin
        ({"challenger": 0.179, "popularity": 0.10, "champion": 0.20}, {}, ["near_champion"]),
        ({"challenger": 0.161, "popularity": 0.10}, {DAY_ONE: 0.20}, []),  # within twice the margin
        ({"challenger": 0.159, "popularity": 0.10}, {DAY_ONE: 0.20}, ["near_recent_best"]),
        (
            {"challenger": 0.17, "popularity": 0.10, "champion": 0.17},
            {DAY_ONE: 0.3, DAY_TWO: 0.1},
            ["near_recent_best"],
        ),
        (
            {"challenger": 0.01, "popularity": 0.10, "champion": 0.20},
            {DAY_ONE: 0.3},
            ["beats_popularity", "near_champion", "near_recent_best"],
        ),
    ],
)
def test_gates(values: dict[str, float], recent: dict[dt.date, float], failed: list[str]) -> None:
    gates = promote.apply_gates(measured(**values), config=GATES, recent=recent)
    assert [gate.gate for gate in gates if not gate.passed] == failed


def test_a_metric_that_was_not_measured_is_refused_with_those_that_were() -> None:
    with pytest.raises(InputError, match=r"gates\.metric 'ndcg_7' was not measured: use one of ndcg_30"):
        promote.apply_gates(
            measured(challenger=0.2, popularity=0.1),
            config=GatesConfig(metric="ndcg_7"),  # type: ignore[call-arg]
            recent={},
        )


def test_a_challenger_that_passes_is_chosen_tagged_and_named_champion(deployment: Callable[..., Any]) -> None:
    made = deployment()
    made.sessionized(DAY_ONE)
    version = made.trained(DAY_ONE)
    made.evaluated(DAY_ONE, challenger=0.2, popularity=0.1)
    result = run_stage(made.day(DAY_ONE), "promote", promote.run)
    assert result["chosen"] == version == made.day(DAY_ONE).record.chosen_model
    assert result["alias_moved"]
    assert versions.version_info(made.day(DAY_ONE), version).promoted_ds == DAY_ONE
    assert versions.alias_version(made.day(DAY_ONE), versions.CHAMPION) == version


def test_without_a_champion_a_failed_challenger_leaves_no_model(deployment: Callable[..., Any]) -> None:
    made = deployment()
    made.sessionized(DAY_ONE)
    made.trained(DAY_ONE)
    made.evaluated(DAY_ONE, challenger=0.05, popularity=0.1)
    result = run_stage(made.day(DAY_ONE), "promote", promote.run)
    assert result["chosen"] is None and "beats_popularity" in result["reason"]
    assert versions.alias_version(made.day(DAY_ONE), versions.CHAMPION) is None


def two_days(made: Any, second: dict[str, float] | None) -> dict[str, Any]:
    """Day one is promoted; day two is trained and, if `second` is given, evaluated. Returns day two's promote."""
    made.sessionized(DAY_ONE)
    made.trained(DAY_ONE)
    made.evaluated(DAY_ONE, challenger=0.2, popularity=0.1)
    run_stage(made.day(DAY_ONE), "promote", promote.run)
    made.trained(DAY_TWO, seed=2)
    if second is not None:
        made.evaluated(DAY_TWO, **second)
    return run_stage(made.day(DAY_TWO), "promote", promote.run)


def test_a_challenger_below_the_champion_leaves_the_champion_serving(deployment: Callable[..., Any]) -> None:
    made = deployment()
    result = two_days(made, {"challenger": 0.15, "champion": 0.2, "popularity": 0.1})
    assert (result["chosen"], result["chosen_ds"], result["alias_moved"]) == ("1", str(DAY_ONE), False)
    assert versions.alias_version(made.day(DAY_TWO), versions.CHAMPION) == "1"


def test_when_evaluation_did_not_finish_the_champion_serves(deployment: Callable[..., Any]) -> None:
    result = two_days(deployment(), None)
    assert result["chosen"] == "1"
    assert "evaluation did not finish" in result["reason"]


def test_when_training_did_not_finish_the_champion_serves(deployment: Callable[..., Any]) -> None:
    made = deployment()
    two_days(made, {"challenger": 0.2, "champion": 0.2, "popularity": 0.1})
    made.day(DAY_THREE).new_record()
    result = run_stage(made.day(DAY_THREE), "promote", promote.run)
    assert result["chosen"] == "2"
    assert "training did not finish" in result["reason"]


def test_day_one_promoted_again_after_day_two_decides_as_before_and_leaves_the_alias(
    deployment: Callable[..., Any],
) -> None:
    made = deployment()
    two_days(made, {"challenger": 0.25, "champion": 0.2, "popularity": 0.1})
    before = made.day(DAY_ONE).result("promote")
    again = promote.run(made.day(DAY_ONE))
    assert again == {**before, "alias_moved": False}
    assert made.day(DAY_ONE).record.chosen_model == "1"
    assert versions.alias_version(made.day(DAY_ONE), versions.CHAMPION) == "2"


def test_a_day_trained_again_takes_back_the_promotion_of_the_model_that_it_had(
    deployment: Callable[..., Any],
) -> None:
    """Else that model, of inputs that were put right since, would be the champion of the days after."""
    made = deployment()
    two_days(made, {"challenger": 0.25, "champion": 0.2, "popularity": 0.1})
    made.trained(DAY_TWO, seed=3)
    made.evaluated(DAY_TWO, challenger=0.01, champion=0.2, popularity=0.1)
    result = run_stage(made.day(DAY_TWO), "promote", promote.run)
    assert (result["chosen"], result.get("skipped")) == ("1", None)
    assert versions.version_info(made.day(DAY_TWO), "2").promoted_ds is None
    assert versions.champion(made.day(DAY_THREE)).version == "1"  # type: ignore[union-attr]
    assert versions.alias_version(made.day(DAY_TWO), versions.CHAMPION) == "1"


def test_metrics_of_a_day_are_replaced_and_others_kept(deployment: Callable[..., Any]) -> None:
    workspace = deployment().day(DAY_ONE).workspace
    for ds, value in ((DAY_ONE, 0.1), (DAY_TWO, 0.2), (DAY_ONE, 0.3)):
        write_metrics(workspace, ds, {"1": {"all": {"ndcg_30": value}}}, protocol="next_day", listeners={"all": 7})
    rows = [(row["ds"], row["value"], row["listeners"]) for row in delta_tables.read_days(workspace.metrics)]
    assert rows == [(DAY_ONE, 0.3, 7), (DAY_TWO, 0.2, 7)]


def test_recent_bests_are_those_of_the_chosen_models_in_the_window(deployment: Callable[..., Any]) -> None:
    made = deployment("gates.best_of_days=2")
    days = [DAY_ONE - dt.timedelta(days=2), DAY_ONE - dt.timedelta(days=1), DAY_ONE]
    for ds, chosen in zip(days, ("1", "2", "3"), strict=True):
        made.day(ds).new_record(chosen_model=chosen)
        values = {"1": {"all": {"ndcg_30": 0.1}}, "2": {"all": {"ndcg_30": 0.2}}, "3": {"all": {"ndcg_30": 0.9}}}
        write_metrics(made.day(ds).workspace, ds, values, protocol="next_day", listeners={})
    assert promote.recent_bests(made.day(DAY_ONE)) == {days[0]: 0.1, days[1]: 0.2}
    assert promote.recent_bests(made.day(DAY_TWO)) == {days[1]: 0.2, DAY_ONE: 0.9}
