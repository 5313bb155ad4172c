"""CONTRIBUTING.md's way to add a metric in one place, walked through with the code it shows."""

import datetime as dt
import re
from pathlib import Path

import numpy as np
import pytest

from fuxi_beta.baselines.popularity import fit_popularity
from fuxi_beta.config import EvaluateConfig, ModelConfig, TrainConfig
from fuxi_beta.evaluation import metrics
from fuxi_beta.evaluation.leave_one_out import evaluate_leave_one_out
from fuxi_beta.evaluation.metrics import RankedLists, list_metrics, rank_metrics
from fuxi_beta.evaluation.next_day import evaluate_next_day
from jobs.config import GatesConfig
from jobs.report.metrics import headline_metric, metric_tables
from jobs.reproduce import tables
from jobs.reproduce.command import show
from jobs.reproduce.runs import Dataset, ExperimentRun, Ranks
from jobs.stages.promote import apply_gates
from jobs.tables.metrics import write_metrics
from pipelines import delta_tables
from pipelines.calendar import Calendar
from pipelines.workspace import WorkspaceSpec, open_workspace

TEXT = (Path(__file__).parents[3] / "CONTRIBUTING.md").read_text()
DAY, DS = 86_400, dt.date(2026, 3, 4)
END = Calendar().day_start(DS)
CONFIG, MODEL = EvaluateConfig(at=(10, 30)), ModelConfig(dim=4, layers=1, max_history=20)


@pytest.fixture(autouse=True)
def added():
    """The code as a reader would append it to the file, run."""
    (code,) = re.findall(r"## Add a metric.*?```python\n(.*?)```", TEXT, re.DOTALL)
    exec(code, dict(vars(metrics)))
    yield
    del metrics.METRICS["map"]


@pytest.fixture
def manifest(make_shards):
    """Forty listeners of forty songs, the low ones most: a song a day, the last ones on the evaluated day."""
    random = np.random.default_rng(3)
    users = {}
    for user in range(40):
        songs = random.permutation(40)[np.argsort(random.random(40) * np.arange(1, 41))][:12] + 1
        users[user] = [(int(song), END - (12 - n) * DAY + 9 * 3600, 100) for n, song in enumerate(songs)]
    return make_shards([users], ds=DS, vocabulary_size=40, data_end=END)


def leave_one_out(manifest):
    train = TrainConfig(protocol="leave_one_out", mode="all")
    popularity = fit_popularity(manifest, end=END, train=train, config=CONFIG)
    return evaluate_leave_one_out(manifest, {"popularity": popularity}, model=MODEL, train=train, config=CONFIG)


def test_the_functions_by_hand():
    hits = np.array([[False, True, False, True], [False] * 4, [True, True, False, False]])
    lists = RankedLists(np.ones((3, 4), int), hits, np.array([3, 1, 2]), np.zeros((3, 4), bool))
    found = list_metrics(lists, at=(2, 4, 6))
    np.testing.assert_allclose(found["map_4"], [(1 / 2 + 2 / 4) / 3, 0, 1])
    np.testing.assert_allclose(found["map_2"], [(1 / 2) / 2, 0, 1])
    np.testing.assert_allclose(found["map_6"], found["map_4"])  # the lists have four songs
    np.testing.assert_allclose(rank_metrics(np.array([1.0, 2.5, 10.0, 10.5, 51.0]))["map_10"], [1, 0.4, 0.1, 0, 0])


def test_both_protocols_measure_it(manifest):
    result = leave_one_out(manifest)
    ranks = result.ranks["popularity"]
    assert result.metrics["popularity"]["all"]["map_10"] == pytest.approx(np.where(ranks <= 10, 1 / ranks, 0).mean())
    train = TrainConfig(mode="all")
    popularity = fit_popularity(manifest, end=END - DAY, train=train, config=CONFIG)
    day = evaluate_next_day(
        manifest, {"popularity": popularity}, ds=DS, calendar=Calendar(), model=MODEL, train=train, config=CONFIG
    )
    values = day.metrics["popularity"]["all"]
    assert 0 < values["map_10"] <= values["map_30"] <= values["hr_30"]
    assert values["map_30"] == pytest.approx(values["mrr"])  # one song is relevant to each listener


def test_the_table_has_it(tmp_path: Path):
    workspace = open_workspace(str(tmp_path / "workspace"), WorkspaceSpec())
    write_metrics(workspace, DS, {"7": {"all": {"map_30": 0.25}}}, protocol="next_day", listeners={"all": 40})
    assert [(row["metric"], row["value"]) for row in delta_tables.read_days(workspace.metrics)] == [("map_30", 0.25)]


def test_the_report_shows_it(manifest):
    values = {"ndcg_30": 0.5, "map_30": 0.2, "repeats_30": 0.1}
    measured = {
        "metrics": {"challenger": {"all": values}, "markov": {"all": values | {"map_30": 0.3}}},
        "slices": {"all": 40},
    }
    assert headline_metric("map_30", measured["metrics"]) == "map_30"
    (table,) = metric_tables(measured, "ndcg_30")
    assert table["columns"] == ["NDCG@30", "Repeats@30", "MAP@30"]
    assert [row.values[2] for row in table["groups"][0]["rows"]] == [0.2, 0.3]


def test_the_gates_decide_by_it():
    measured = {"challenger": {"all": {"map_30": 0.2}}, "popularity": {"all": {"map_30": 0.3}}}
    gates = apply_gates({"metrics": measured}, config=GatesConfig.model_validate({"metric": "map_30"}), recent={})
    assert [(gate.gate, gate.passed) for gate in gates] == [("finite", True), ("beats_popularity", False)]


def test_reproduce_shows_it_beside_the_papers_metrics(manifest, capsys):
    result = leave_one_out(manifest)
    run = ExperimentRun(
        name="popularity",
        dataset=Dataset("part", "a part", "ML-1M", 40, 40, 480),
        system="popularity",
        layers=2,
        temporal="pow",
        epochs=0,
        published_epochs=101,
        seed=0,
        condition="true",
        validation=False,
        best_epoch=None,
        protocol="leave_one_out",
        metrics=result.metrics["popularity"],
        listeners=result.slices,
        curves=None,
        epoch_losses=[],
        epoch_seconds=0.0,
        train_seconds=0.0,
        parameters=0,
        uses_time=False,
        machine="a box",
        date="2026-03-04",
        command="fuxi reproduce",
        kernels="C++",
    )
    show([run])
    assert "MAP@10" in capsys.readouterr().out
    ranks = Ranks(result.user_id.to_numpy(), result.ranks["popularity"])
    text = tables.render([run], None, lambda _: ranks)
    header, _, row = re.findall(r"^\|.*", text.split("### Table 3")[1], flags=re.M)[:3]
    cells = dict(zip(header.split(" | "), row.split(" | "), strict=True))
    assert cells["MAP@10"] == f"{run.metrics['all']['map_10']:.4f}"
    assert cells["MAP@50"] == f"{run.metrics['all']['map_50']:.4f}"
