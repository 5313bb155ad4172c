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


def measured(**values: float) -> dict[str, Any]:
    """What evaluate returns, as far as gates read it."""
    return {"metrics": {name: {"all": {"ndcg_30": value}} for name, value in values.items()}}


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
    days = {ds: promote.RecentDay(served, {"popularity": 0.10}) for ds, served in recent.items()}
    gates = promote.apply_gates(measured(**values), config=GATES, recent=days)
    assert [gate.gate for gate in gates if not gate.passed] == failed


@pytest.mark.parametrize(("challenger", "failed"), [(0.095, []), (0.089, []), (0.07, ["near_recent_best"])])
def test_a_model_is_compared_with_other_days_relative_to_what_baselines_had_on_them(
    challenger: float, failed: list[str]
) -> None:
    """Today is half as easy as the day before. EASE was not measured then, Markov is not today, a third has nothing."""
    recent = {
        DAY_ONE: promote.RecentDay(0.20, {"popularity": 0.02, "item-knn": 0.18, "markov": 0.9}),
        DAY_TWO: promote.RecentDay(0.09, {"popularity": 0.01, "item-knn": 0.11}),
        DAY_THREE: promote.RecentDay(0.50, {"markov": 0.1}),
    }
    today = {"challenger": challenger, "popularity": 0.01, "item-knn": 0.09, "ease": 0.3}
    gates = promote.apply_gates(measured(**today), config=GATES, recent=recent)
    assert [gate.gate for gate in gates if not gate.passed] == failed
    assert f"of what served {DAY_ONE}, the best of 2 days" in gates[-1].detail


@pytest.mark.parametrize(("share", "failed"), [(0.96, []), (1.2, []), (0.95, []), (0.94, ["above_floor"])])
def test_a_challenger_too_far_below_the_last_full_retrain_is_refused(share: float, failed: list[str]) -> None:
    """Though each day is within the margin of the champion: that is what a chain of days creeps away from."""
    today = measured(challenger=0.19, champion=0.195, reference=0.2, popularity=0.1)
    today |= {"versions": {"reference": "3"}, "reference": "reference", "of_reference": {"challenger": share}}
    gates = promote.apply_gates(today, config=GATES, recent={})
    assert [gate.gate for gate in gates if not gate.passed] == failed
    assert gates[-1].detail == f"{share:.1%} of the last full retrain, version 3, at least 95%"


def test_a_hard_day_between_easy_ones_locks_no_model_out(deployment: Callable[..., Any]) -> None:
    made = deployment()
    two_days(made, {"challenger": 0.1, "champion": 0.09, "popularity": 0.05})  # after .2 and .1
    assert made.day(DAY_TWO).record.chosen_model == "2"
    made.trained(DAY_THREE, seed=3)
    made.evaluated(DAY_THREE, challenger=0.21, champion=0.2, popularity=0.1)
    assert run_stage(made.day(DAY_THREE), "promote", promote.run)["chosen"] == "3"


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


def test_recent_days_are_those_of_the_chosen_models_in_the_window(deployment: Callable[..., Any]) -> None:
    made = deployment("gates.best_of_days=2")
    days = [DAY_ONE - dt.timedelta(days=2), DAY_ONE - dt.timedelta(days=1), DAY_ONE]
    for ds, chosen in zip(days, ("1", "2", "3"), strict=True):
        made.day(ds).new_record(chosen_model=chosen)
        measured_then = {"1": 0.1, "2": 0.2, "3": 0.9, "popularity": 0.05, "ease": math.nan}
        values = {name: {"all": {"ndcg_30": value}} for name, value in measured_then.items()}
        write_metrics(made.day(ds).workspace, ds, values, protocol="next_day", listeners={})
    found = promote.recent_days(made.day(DAY_ONE))
    assert {ds: then.served for ds, then in found.items()} == {days[0]: 0.1, days[1]: 0.2}
    assert all(then.baselines == {"popularity": 0.05} for then in found.values())
    later = promote.recent_days(made.day(DAY_TWO))
    assert {ds: then.served for ds, then in later.items()} == {days[1]: 0.2, DAY_ONE: 0.9}


BEHIND = {"baseline": "item-knn", "mean": 0.02, "low": 0.01, "high": 0.03}
LEVEL = {"baseline": "ease", "mean": 0.005, "low": -0.005, "high": 0.015}
AHEAD = {"baseline": "item-knn", "mean": -0.01, "low": -0.02, "high": 0.001}


def of_day(made: Any, ds: dt.date, lead: dict[str, Any] | None, **values: float) -> dict[str, Any]:
    """A day's promote after an evaluation with a baseline's lead over the challenger; None: nothing was measured."""
    made.trained(ds, seed=ds.day)
    if lead is not None:
        found = measured(**({"challenger": 0.2, "popularity": 0.1} | values))
        made.day(ds).finish("evaluate", found | {"comparisons": {"challenger": lead, "champion": lead}}, 0.0)
    return run_stage(made.day(ds), "promote", promote.run)


def test_a_baseline_serves_while_it_is_better_beyond_noise_and_the_challenger_is_champion_all_the_same(
    deployment: Callable[..., Any],
) -> None:
    made = deployment()
    days = [DAY_ONE + dt.timedelta(days=n) for n in range(6)]
    leads = [LEVEL, BEHIND, LEVEL, None, AHEAD, LEVEL]
    results = [of_day(made, ds, lead) for ds, lead in zip(days, leads, strict=True)]
    # within noise the model begins; a baseline that serves stays until the model is ahead, and while nobody is measured
    assert [result["baseline"] for result in results] == [None, "item-knn", "ease", "ease", None, None]
    assert [made.day(ds).record.chosen_baseline for ds in days] == [result["baseline"] for result in results]
    assert [result["chosen"] for result in results] == ["1", "2", "3", "3", "5", "6"]
    assert versions.version_info(made.day(days[1]), "2").promoted_ds == days[1]
    assert "lists of Item-kNN serve until the model is better: ndcg_30 0.0200 above version 2" in results[1]["reason"]
    assert "nothing was measured since" in results[3]["reason"]


def test_no_baseline_serves_where_that_is_off(deployment: Callable[..., Any]) -> None:
    made = deployment("gates.serve_baseline=false")
    assert of_day(made, DAY_ONE, BEHIND)["baseline"] is None
    assert of_day(made, DAY_TWO, BEHIND, challenger=0.05)["baseline"] is None


def test_without_a_model_the_best_baseline_serves(deployment: Callable[..., Any]) -> None:
    made = deployment()
    values = {"challenger": 0.05, "item-knn": 0.18, "ease": 0.2, "markov": math.nan}
    result = of_day(made, DAY_ONE, BEHIND, **values)
    assert (result["chosen"], result["baseline"]) == (None, "ease")
    assert result["reason"].endswith("there is no champion to serve instead; lists of EASE serve")
    assert of_day(made, DAY_TWO, None)["baseline"] == "ease"
    popular = of_day(made, DAY_THREE, BEHIND, challenger=0.05)
    assert (popular["chosen"], popular["baseline"]) == (None, None)  # popular songs, as of old


def test_a_challenger_below_the_floor_asks_for_a_full_retrain_until_one_is_trained(
    deployment: Callable[..., Any],
) -> None:
    made = deployment()
    two_days(made, {"challenger": 0.2, "champion": 0.2, "popularity": 0.1})
    assert made.day(DAY_TWO).result("promote")["full_retrain"] == ""
    made.trained(DAY_THREE, seed=3)
    below = measured(challenger=0.19, champion=0.2, reference=0.25, popularity=0.1)
    below |= {"versions": {"reference": "1"}, "reference": "reference", "of_reference": {"challenger": 0.76}}
    made.day(DAY_THREE).finish("evaluate", below, 0.0)
    result = run_stage(made.day(DAY_THREE), "promote", promote.run)
    assert (result["chosen"], result["alias_moved"]) == ("2", False)
    assert result["full_retrain"] == (
        f"the challenger of {DAY_THREE} was below gates.floor: 76.0% of the last full retrain, version 1, at least 95%"
    )
    fourth = made.day(DAY_THREE + dt.timedelta(days=1))
    fourth.new_record(parent_model="", full_retrain=result["full_retrain"])  # whose training does not finish
    assert run_stage(fourth, "promote", promote.run)["full_retrain"] == result["full_retrain"]
