"""`fuxi reproduce --protocol next_day --days n`: a series on small synthetic logs, and its tables by hand."""

import datetime as dt
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fuxi_beta.evaluation.next_days import CASE_METRICS, GAP, KIND, RECENT, UNTRAINED
from fuxi_beta.evaluation.statistics import paired_difference
from fuxi_beta.presets import preset
from jobs.reproduce import runs
from jobs.reproduce.ceiling import synthetic_logs
from jobs.reproduce.command import DatasetSource, reproduce, show_days, write
from jobs.reproduce.days import CaseMetrics, DayRuns, day_tables
from jobs.reproduce.groups import group_by_setting
from jobs.reproduce.runs import Dataset, ExperimentRun
from jobs.reproduce.specs import RunSelection
from pipelines.errors import InputError
from pipelines.histories.shards import read_manifest
from pipelines.schema import DS, USER_ID

FIRST, HISTORY = dt.date(2026, 1, 5), 24
DAY = FIRST + dt.timedelta(HISTORY)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory, spark: Any) -> Path:
    """Synthetic logs of 120 listeners, sessionized as the daily job does it."""
    from jobs.config import load_config
    from jobs.day import open_day, run_stage
    from jobs.stages import sessionize
    from pipelines.synthetic import SyntheticConfig, generate

    root = tmp_path_factory.mktemp("days") / "synthetic"
    logs = SyntheticConfig(
        listeners=120, songs=240, artists=40, plays_per_day=20, first_day=FIRST, days=HISTORY, new_songs_per_day=4
    )
    generate(logs, f"{root}/logs")
    where = [f"workspace={root}", f"logs.path={root}/logs/plays", f"logs.catalogue={root}/logs/catalogue"]
    config = load_config(overrides=[*where, "sequences.buckets=4", "cluster.spark_master=local[2]"], environment={})
    run_stage(open_day(config, DAY), "sessionize", sessionize.run)
    return root


def fuxi(workspace: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ("reproduce", str(workspace), "--protocol", "next_day", "--days", "3", "--preset", "demo", *arguments)
    return subprocess.run(
        [sys.executable, "-m", "jobs.cli", *command], capture_output=True, text=True, timeout=200, check=False
    )


def again(workspace: Path, *models: str, **options: Any) -> list[ExperimentRun]:
    """The runs of a request of the command line, those that are missing made in this process."""
    selection = RunSelection(preset("demo"), models=models, protocol="next_day", days=3, **options)
    source = DatasetSource(str(workspace), preset="demo")
    return reproduce(source, selection, workers=1, device="cpu", command="fuxi reproduce")[0]


def test_a_resumed_series_equals_a_whole_one_and_knows_its_settings(workspace: Path, tmp_path: Path):
    request = ("--model", "sasrec", "--model", "item-knn", "--model", "markov", "--epochs", "1", "--seeds", "1,2")
    sets = ("--set", "model.dim=8", "--set", "train.mode=all", "--set", "train.min_listeners=2", "--label", "small")
    done = fuxi(workspace, *request, *sets)
    assert done.returncode == 0, done.stderr
    baselines = {"item-knn-next-day-3d", "markov-next-day-3d", "ceiling-history-next-day-3d"}
    trained = {f"sasrec-small-L2-e1-s{seed}-next-day-3d" for seed in (1, 2)}
    folder = workspace / "reproduce"
    whole = {run.name: run for run in runs.read(folder)}
    assert set(whole) == baselines | trained
    first = whole["sasrec-small-L2-e1-s1-next-day-3d"]
    assert (first.days, first.ds, first.label) == (3, str(DAY), "small")
    assert (first.settings["model"]["dim"], first.settings["train"]["mode"]) == (8, "all")
    assert first.metrics["all"]["repeats_30"] == 0  # it learns from all plays, and lists new songs alone
    best, neighbours = (whole[f"{name}-next-day-3d"].metrics["all"] for name in ("ceiling-history", "item-knn"))
    assert best["ndcg_30"] > neighbours["ndcg_30"] > 0
    cases = {run.name: runs.read_cases(folder, run) for run in whole.values()}
    assert len({tuple(table[USER_ID].to_pylist()) for table in cases.values()}) == 1
    assert len(set(cases[first.name][DS].to_pylist())) == 3

    for name in (first.name, "markov-next-day-3d"):  # as if the series had been killed before them
        (folder / f"{name}.json").unlink()
    written = (folder / "item-knn-next-day-3d.json").stat().st_mtime_ns
    resumed = fuxi(workspace, *request, *sets)
    assert resumed.returncode == 0, resumed.stderr
    events = [json.loads(line) for line in resumed.stderr.splitlines() if line.startswith("{")]
    assert [event["to_do"] for event in events if event["message"] == "reproduce"] == [2]
    assert "SASRec (small;" in resumed.stdout and "against" in resumed.stdout
    assert (folder / "item-knn-next-day-3d.json").stat().st_mtime_ns == written
    for run in runs.read(folder):
        assert run.metrics == whole[run.name].metrics and run.epoch_losses == whole[run.name].epoch_losses
        assert repr(runs.read_cases(folder, run).to_pylist()) == repr(cases[run.name].to_pylist())  # NaN is itself


def test_a_finished_run_of_other_settings_is_refused_and_served_lists_are_asked_for(workspace: Path, tmp_path: Path):
    """On the runs of the test above, or anew."""
    small = {"epochs": 1, "seeds": (1,), "label": "small"}
    again(workspace, "sasrec", overrides=("model.dim=8", "train.mode=all", "train.min_listeners=2"), **small)
    with pytest.raises(InputError, match=r"model\.dim is 8, not 16.*--label"):
        again(workspace, "sasrec", overrides=("model.dim=16", "train.mode=all", "train.min_listeners=2"), **small)
    again(workspace, "markov")
    with pytest.raises(InputError, match=r"without lists as served.*: remove the file"):
        again(workspace, "markov", served=True)
    (workspace / "reproduce" / "markov-next-day-3d.json").unlink()
    served = again(workspace, "markov", served=True)[-1].metrics["all"]
    assert 0 < served["served_hr_30"] != served["hr_30"]
    page = tmp_path / "days.md"
    write([str(workspace)], str(page))
    text = page.read_text()
    assert f"### 3 days to {DAY}" in text and "As served" in text and "ceiling, knows the history" in text
    assert "SASRec (small; 1 of 6 epochs) | " in text and "Cold songs alone" in text


def test_runs_are_shown_beside_the_one_that_is_named(workspace: Path, capsys: pytest.CaptureFixture[str]):
    finished, source = again(workspace, "popularity", "recency"), DatasetSource(str(workspace), preset="demo")
    show_days(source, finished, "recency")
    shown = " ".join(capsys.readouterr().out.split())
    assert "NDCG@30 against recency" in shown and "ceiling, knows the history" in shown
    with pytest.raises(InputError, match=r"--against fuxi-gamma: nothing is called so .* popularity, recency"):
        show_days(source, finished, "fuxi-gamma")


def test_the_ceiling_is_found_by_the_logs_alone(workspace: Path, tmp_path: Path):
    manifest = read_manifest(str(workspace / "sequences" / f"ds={DAY}"))
    assert synthetic_logs(manifest) == str(workspace / "logs")
    for folder in ("sequences", "logs"):
        shutil.copytree(workspace / folder, tmp_path / folder)
    moved = read_manifest(str(tmp_path / "sequences" / f"ds={DAY}"))
    assert synthetic_logs(moved) == str(tmp_path / "logs")
    uris = pq.read_table(moved.uri(moved.inputs))
    gone = uris.set_column(0, "uri", pa.array([f"/nowhere/{n}/plays/a.parquet" for n in range(uris.num_rows)]))
    pq.write_table(gone, moved.uri(moved.inputs))
    assert synthetic_logs(moved) is None


# ---- tables


def fabricated(system: str, ndcg: np.ndarray, *, seed: int = 1, label: str = "") -> tuple[ExperimentRun, pa.Table]:
    """A run whose case c is listener c // 2 on day c % 2, with an NDCG each; above .35 it has a hit."""
    count = len(ndcg)
    columns = {name: ndcg if name.startswith("ndcg") else (ndcg > 0.35).astype(float) for name in CASE_METRICS}
    cold = np.where(np.arange(count) % 5 == 0, 0.5, np.nan)
    columns |= {f"{part}.{name}": cold for part in (RECENT, UNTRAINED) for name in CASE_METRICS}
    facts = {
        USER_ID: pa.array(np.arange(count) // 2),
        DS: pa.array([DAY - dt.timedelta(days=1 - number % 2) for number in range(count)], pa.date32()),
        KIND: pa.array(["light" if number < 10 else "heavy" for number in range(count)]),
        GAP: pa.array(["gap_day"] * count),
    }
    means = {name: float(values.mean()) for name, values in columns.items() if "." not in name}
    means |= {"ndcg_50": 0.0, "hr_50": 0.0, "mrr": 0.0}
    listeners = {"all": count, "light": 10, "heavy": count - 10, "gap_day": count, RECENT: 3, UNTRAINED: 3}
    run = ExperimentRun(
        name=f"{system}-{label}-{seed}",
        dataset=Dataset("own", "own", "", count, 10, 100),
        **{"system": system, "layers": 2, "temporal": "pow", "epochs": 1, "published_epochs": 1, "seed": seed},
        **{"condition": "true", "validation": False, "best_epoch": None, "protocol": "next_day"},
        **{"metrics": dict.fromkeys(listeners, means), "listeners": listeners, "curves": None},
        **{"epoch_losses": [], "epoch_seconds": 0.0, "train_seconds": 0.0, "parameters": 0, "uses_time": False},
        **{"machine": "a box", "date": "2026-11-26", "command": "fuxi", "kernels": "C++"},
        **{"label": label, "days": 2, "ds": str(DAY)},
    )
    return run, pa.table({**facts, **{name: pa.array(v.astype(np.float32)) for name, v in columns.items()}})


@pytest.fixture
def measured() -> dict[str, Any]:
    """item-kNN, and FuXi-beta of two seeds that is .1 better on every case; Markov .2 worse."""
    base = 0.3 + 0.2 * np.random.default_rng(3).random(120)
    made = [
        fabricated("item-knn", base),
        fabricated("markov", base - 0.2),
        fabricated("fuxi-beta", base + 0.09, seed=1),
        fabricated("fuxi-beta", base + 0.11, seed=2),
        fabricated("ceiling-history", base + 0.4),
    ]
    return {"runs": [run for run, _ in made], "cases": {run.name: table for run, table in made}}


def test_days_of_a_listener_stay_together_and_seeds_are_paired(measured):
    groups = {g.system: g for g in group_by_setting(measured["runs"])}
    cases = CaseMetrics(lambda run: measured["cases"][run.name])
    values, counts = cases.values(groups["fuxi-beta"], "ndcg_30")
    assert values.shape == (2, 60) and counts.tolist() == [2] * 60
    by_hand = measured["cases"]["fuxi-beta--1"]["ndcg_30"].to_numpy().reshape(60, 2).mean(axis=1)
    assert values[0] == pytest.approx(by_hand, abs=1e-6)
    light, counts = cases.values(groups["fuxi-beta"], "ndcg_30", "light")
    assert light.shape == (2, 5) and light == pytest.approx(values[:, :5])
    cold, counts = cases.values(groups["item-knn"], "hr_30", UNTRAINED)
    assert counts.sum() == 24 and cold == pytest.approx(np.full((1, 24), 0.5))
    found = DayRuns(list(groups.values()), cases).difference(groups["fuxi-beta"], "ndcg_30")
    other, counts = cases.values(groups["item-knn"], "ndcg_30")
    assert found == paired_difference(values, other, seed=1, cases=np.full(60, 2))
    assert found is not None and found.detectable and found.mean == pytest.approx(0.1, abs=1e-6)


def test_the_table_compares_with_the_best_baseline_and_ends_with_the_ceiling(measured):
    lines = day_tables(group_by_setting(measured["runs"]), lambda run: measured["cases"][run.name])
    rows = {line.split(" | ")[0].removeprefix("| "): line for line in lines if line.startswith("| ")}
    first = next(line for line in lines if line.startswith("| recommender"))
    assert first.count("against item-kNN") == 2 and "As served" not in "\n".join(lines)
    table = lines[lines.index(first) + 2 :][:4]
    assert [line.split(" | ")[0] for line in table] == [
        "| Markov",
        "| item-kNN",
        "| FuXi-β",
        "| ceiling, knows the history",
    ]
    assert "**+0.1000 [" in table[2] and "1.25×" in table[2] and "| 2 |" in table[2]
    assert "**−0.2000 [" in table[0] and table[3].endswith("| – | – |")
    assert "light (10)" in "\n".join(lines) and "▲" in rows["FuXi-β"] + "\n".join(lines)


def test_the_table_compares_with_what_is_named_where_it_was_measured(measured):
    groups = group_by_setting(measured["runs"])
    lines = day_tables(groups, lambda run: measured["cases"][run.name], against="markov")
    first = next(line for line in lines if line.startswith("| recommender"))
    assert first.count("against Markov") == 2
    elsewhere = day_tables(groups, lambda run: measured["cases"][run.name], against="gru4rec")
    assert next(line for line in elsewhere if line.startswith("| recommender")).count("against item-kNN") == 2


def test_runs_of_different_cases_and_files_that_do_not_fit_are_refused(measured, tmp_path: Path):
    groups = group_by_setting(measured["runs"])
    cases = dict(measured["cases"])
    cases["fuxi-beta--2"] = cases["fuxi-beta--2"].take([*range(1, 120), 0])
    with pytest.raises(InputError, match="measured different cases: run one again"):
        day_tables(groups, lambda run: cases[run.name])
    wrong = dict(measured["cases"])
    wrong["item-knn--1"] = measured["cases"]["markov--1"]
    with pytest.raises(InputError, match="item-knn--1: its cases give ndcg_30"):
        day_tables(groups, lambda run: wrong[run.name])
    run, table = measured["runs"][0], measured["cases"]["item-knn--1"]
    with pytest.raises(InputError, match=r"item-knn--1\.cases\.parquet holds no cases"):
        runs.read_cases(tmp_path, run)
    runs.write_cases(tmp_path, run.name, table.slice(3))
    with pytest.raises(InputError, match=r"holds 117 cases, item-knn--1\.json says 120"):
        runs.read_cases(tmp_path, run)


def test_settings_with_labels_are_rows_of_their_own(measured):
    run, table = fabricated("fuxi-beta", np.full(120, 0.5), label="wide")
    twin = replace(run, name="twin")
    groups = group_by_setting([*measured["runs"], run])
    assert [g.label() for g in groups if g.system == "fuxi-beta"] == ["FuXi-β", "FuXi-β (wide)"]
    with pytest.raises(InputError, match="same setting with the same seed"):
        group_by_setting([*measured["runs"], run, twin])
    against = DayRuns(groups, CaseMetrics(lambda r: {**measured["cases"], run.name: table}[r.name]), "fuxi-beta-wide")
    assert against.reference("hr_30") is next(g for g in groups if g.first.label)
