"""The evaluate stage: who is measured, what is written, and that it agrees with a slow reference."""

import datetime as dt
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from fuxi_beta.training.checkpoint import load_export
from jobs.day import run_stage
from jobs.registry import versions
from jobs.stages import evaluate, promote
from pipelines.errors import InputError

DAY_ONE, DAY_TWO = dt.date(2026, 3, 2), dt.date(2026, 3, 3)
BASELINES = ("popularity", "markov", "item-knn", "ease")
DAY = 86_400


def popularity_by_hand(made: Any, ds: dt.date) -> dict[str, float]:
    """HR@30, Recall@30 and NDCG@30 of the popularity list, by loops over the histories."""
    calendar = made.day(ds).calendar
    yesterday = ds - dt.timedelta(days=1)
    cut, request, end = calendar.day_start(yesterday), calendar.request_time(yesterday), calendar.day_start(ds)
    fans: dict[int, set[Any]] = {}
    for user, events in made.histories.items():
        for song, time, completion in events:
            if cut - 28 * DAY <= time < cut and completion >= 30:
                fans.setdefault(song, set()).add(user)
    known = {song for events in made.histories.values() for song, time, _ in events if time < cut}
    order = sorted(known, key=lambda song: (-len(fans.get(song, ())), song))
    sums = {"hr_30": 0.0, "recall_30": 0.0, "ndcg_30": 0.0}
    listeners = 0
    for events in made.histories.values():
        heard = {song for song, time, _ in events if time < request}
        truth = {song for song, time, completion in events if request <= time < end and completion >= 30}
        truth = (truth - heard) & known
        if not truth:
            continue
        listeners += 1
        seen = {song for song, time, _ in events if time < cut}
        hits = [song in truth for song in [song for song in order if song not in seen][:30]]
        ideal = sum(1 / math.log2(rank + 2) for rank in range(min(len(truth), 30)))
        sums["hr_30"] += any(hits)
        sums["recall_30"] += sum(hits) / len(truth)
        sums["ndcg_30"] += sum(hit / math.log2(rank + 2) for rank, hit in enumerate(hits)) / ideal
    return {name: total / listeners for name, total in sums.items()}


def prepared(deployment: Callable[..., Any], *overrides: str) -> Any:
    made = deployment(*overrides, listeners=200)
    made.sessionized(DAY_ONE)
    made.trained(DAY_ONE)
    return made


def test_popularity_agrees_with_a_reference_by_loops(deployment: Callable[..., Any]) -> None:
    made = prepared(deployment)
    result = run_stage(made.day(DAY_ONE), "evaluate", evaluate.run)
    assert result["listeners"] + result["excluded"] == 200
    assert result["listeners"] >= 15
    for name, value in popularity_by_hand(made, DAY_ONE).items():
        assert result["metrics"]["popularity"]["all"][name] == pytest.approx(value, abs=1e-6), name


def test_a_day_on_which_nobody_can_be_measured_is_one_line_and_counts_as_not_evaluated(
    deployment: Callable[..., Any],
) -> None:
    """Logs that end a day early: promote decides without a measurement, for the champion or for popularity."""
    made = deployment(listeners=40)
    day = made.day(DAY_ONE)
    late = day.calendar.day_start(DAY_ONE - dt.timedelta(days=1))
    histories = made.make_histories(DAY_ONE)
    made.sessionized(
        DAY_ONE, {user: [event for event in events if event[1] < late] for user, events in histories.items()}
    )
    made.trained(DAY_ONE)
    with pytest.raises(
        InputError, match=r"nobody can be measured for .*for the first time on 2026-03-01.*late"
    ) as error:
        run_stage(made.day(DAY_ONE), "evaluate", evaluate.run)
    assert "\n" not in str(error.value)
    decided = run_stage(made.day(DAY_ONE), "promote", promote.run)
    assert decided["chosen"] is None and decided["reason"].startswith("evaluation did not finish")


def test_another_request_hour_moves_the_request_and_what_counts_as_found(deployment: Callable[..., Any]) -> None:
    made = prepared(deployment, "serving.request_hour=15")
    result = run_stage(made.day(DAY_ONE), "evaluate", evaluate.run)
    assert dt.datetime.fromtimestamp(result["request_time"], dt.UTC).isoformat() == "2026-03-01T15:00:00+00:00"
    for name, value in popularity_by_hand(made, DAY_ONE).items():
        assert result["metrics"]["popularity"]["all"][name] == pytest.approx(value, abs=1e-6), name


def test_the_request_is_at_eight_of_the_day_before_and_an_exclusive_list_repeats_nothing(
    deployment: Callable[..., Any],
) -> None:
    made = prepared(deployment)
    result = evaluate.run(made.day(DAY_ONE))
    assert dt.datetime.fromtimestamp(result["request_time"], dt.UTC).isoformat() == "2026-03-01T08:00:00+00:00"
    assert set(result["metrics"]) == {"challenger", *BASELINES}
    assert {slices["all"]["repeats_30"] for slices in result["metrics"].values()} == {0.0}
    assert sum(result["slices"][name] for name in ("new", "light", "heavy")) == result["slices"]["all"]


def test_the_metrics_table_has_each_version_once_however_often_it_is_measured(
    deployment: Callable[..., Any],
) -> None:
    made = prepared(deployment)
    for _ in range(2):
        result = evaluate.run(made.day(DAY_ONE))
    table = pl.scan_delta(made.day(DAY_ONE).workspace.metrics).collect()
    assert table.height == table.unique(["ds", "model_version", "protocol", "slice", "metric"]).height
    row = table.filter(slice="all", metric="ndcg_30", model_version="1").row(0, named=True)
    assert row["value"] == result["metrics"]["challenger"]["all"]["ndcg_30"]
    assert (row["ds"], row["protocol"], row["listeners"]) == (DAY_ONE, "next_day", result["listeners"])


def test_day_two_measures_the_champion_of_day_one_on_the_same_listeners(deployment: Callable[..., Any]) -> None:
    made = prepared(deployment)
    versions.promote(made.day(DAY_ONE), "1")
    made.sessionized(DAY_TWO)
    made.trained(DAY_TWO, seed=1)  # the same weights under another version
    result = evaluate.run(made.day(DAY_TWO))
    assert result["versions"] == {"challenger": "2", "champion": "1"}
    assert result["metrics"]["champion"] == result["metrics"]["challenger"]


def test_the_last_full_retrain_is_measured_beside_the_champion_and_the_gap_is_a_metric(
    deployment: Callable[..., Any],
) -> None:
    made = prepared(deployment)
    versions.promote(made.day(DAY_ONE), "1")
    made.trained(DAY_ONE, seed=2, parent="1")
    versions.promote(made.day(DAY_ONE), "2")  # a warm start, and the champion
    made.sessionized(DAY_TWO)
    made.trained(DAY_TWO, seed=3, parent="2")
    result = run_stage(made.day(DAY_TWO), "evaluate", evaluate.run)
    assert result["versions"] == {"challenger": "3", "champion": "2", "reference": "1"}
    assert result["reference"] == "reference"
    value = {name: slices["all"]["ndcg_30"] for name, slices in result["metrics"].items()}
    expected = {name: value[name] / value["reference"] for name in ("challenger", "champion")}
    assert result["of_reference"] == pytest.approx(expected)
    gap = pl.scan_delta(made.day(DAY_TWO).workspace.metrics).filter(metric="ndcg_30_of_reference").collect()
    rows = {(row["model_version"], row["slice"]): row["value"] for row in gap.rows(named=True)}
    assert rows == {("3", "all"): expected["challenger"], ("2", "all"): expected["champion"]}
    assert "above_floor" in [gate["gate"] for gate in run_stage(made.day(DAY_TWO), "promote", promote.run)["gates"]]


def test_the_best_baseline_is_compared_with_each_model_listener_by_listener(deployment: Callable[..., Any]) -> None:
    made = prepared(deployment)
    versions.promote(made.day(DAY_ONE), "1")
    made.sessionized(DAY_TWO)
    made.trained(DAY_TWO, seed=2)
    result = evaluate.run(made.day(DAY_TWO))
    value = {name: slices["all"]["ndcg_30"] for name, slices in result["metrics"].items()}
    best = max(BASELINES, key=value.__getitem__)
    assert result["comparisons"].keys() == {"challenger", "champion"}
    for name, lead in result["comparisons"].items():
        assert lead["baseline"] == best
        assert lead["mean"] == pytest.approx(value[best] - value[name])
        assert lead["low"] < lead["mean"] < lead["high"]
    assert result["comparisons"]["challenger"]["low"] > 0  # the weights are random
    pairs = {(one["of"], one["less"]): one for one in result["differences"] if one["slice"] == "all"}
    assert len(pairs) == len(value) * (len(value) - 1) / 2
    for (of, less), one in pairs.items():
        assert one["mean"] == pytest.approx(value[of] - value[less]) and one["low"] <= one["mean"] <= one["high"]
    lead = result["comparisons"]["challenger"]
    assert pairs["challenger", best]["high"] == pytest.approx(-lead["low"], abs=0.2 * (lead["high"] - lead["low"]))
    measured = {one["slice"] for one in result["differences"]}
    assert measured == {name for name, count in result["slices"].items() if count}


def test_a_workspace_goes_on_with_another_request_hour(deployment: Callable[..., Any]) -> None:
    made = prepared(deployment)
    versions.promote(made.day(DAY_ONE), "1")
    evening = made.config.serving.model_copy(update={"request_hour": 18})
    made.config = made.config.model_copy(update={"serving": evening})
    made.sessionized(DAY_TWO)
    made.trained(DAY_TWO, seed=2)
    result = evaluate.run(made.day(DAY_TWO))
    assert result["request_time"] == made.day(DAY_TWO).calendar.day_start(DAY_ONE) + 18 * 3600
    assert result["listeners"] > 0 and set(result["metrics"]) == {"challenger", "champion", *BASELINES}
    exports = [load_export(versions.download_model(made.day(DAY_TWO), version)) for version in ("1", "2")]
    assert [model.request_hour for model in exports] == [8, 18]


def test_a_song_first_played_on_the_measured_day_is_no_truth(deployment: Callable[..., Any]) -> None:
    made = deployment()
    histories = made.make_histories(DAY_ONE)
    end = made.day(DAY_ONE).calendar.day_start(DAY_ONE)
    old = {user: [event for event in events if event[1] < end - DAY] for user, events in histories.items()}
    user = next(user for user, events in old.items() if events)
    unknown = next(
        song
        for song in range(made.songs, 0, -1)
        if all(song != event[0] for events in old.values() for event in events)
    )
    fresh = {**old, user: [*old[user], (unknown, end - 3600, 100)]}
    made.sessionized(DAY_ONE, fresh)
    made.trained(DAY_ONE)
    with pytest.raises(InputError, match=f"nobody can be measured .*none of {made.listeners} listeners"):
        evaluate.run(made.day(DAY_ONE))


def test_a_song_without_a_play_is_truth_if_a_model_lists_it_by_side_information() -> None:
    known = np.array([False, True, False, False, False])
    lists_new = SimpleNamespace(listed_from=torch.zeros(4), candidates=torch.tensor([False, True, False, True]))
    of_before = SimpleNamespace(listed_from=None, candidates=torch.ones(5, dtype=torch.bool))
    found = evaluate._listable(known, {"challenger": lists_new, "champion": of_before})  # type: ignore[dict-item]
    assert found.tolist() == [False, True, False, True, False]
    assert known.sum() == 1


def test_leave_one_out_is_measured_with_its_own_metrics(deployment: Callable[..., Any]) -> None:
    made = prepared(deployment, "train.protocol=leave_one_out", "train.mode=all", "gates.metric=ndcg_10")
    result = run_stage(made.day(DAY_ONE), "evaluate", evaluate.run)
    assert set(result["metrics"]["challenger"]["all"]) == {"ndcg_10", "ndcg_50", "hr_10", "hr_50", "mrr"}
    assert result["request_time"] is None
    gates = run_stage(made.day(DAY_ONE), "promote", promote.run)["gates"]
    assert [gate["gate"] for gate in gates] == ["finite", "beats_popularity"]


def test_without_a_trained_model_it_says_what_to_run(deployment: Callable[..., Any]) -> None:
    made = deployment()
    made.sessionized(DAY_ONE)
    with pytest.raises(InputError, match="run `fuxi train --ds 2026-03-02` first"):
        evaluate.run(made.day(DAY_ONE))
