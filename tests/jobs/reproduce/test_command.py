"""`fuxi reproduce` on a few listeners: which runs are selected, what a run writes, how a series is resumed."""

import datetime as dt
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from fuxi_beta.presets import preset
from jobs.reproduce import runs
from jobs.reproduce.paper import Counts, against_paper, title_of
from jobs.reproduce.specs import RunSelection, RunSpec, specs
from pipelines import storage
from pipelines.errors import InputError

DAY_TWO = dt.date(2026, 3, 3)

PRESET = preset("ML-1M")


def names(**request) -> list[str]:
    return [spec.name for spec in specs(RunSelection(PRESET, **request))]


# ---- which runs


def test_table_3_is_the_default_with_the_sanity_rows_first():
    found = names()
    assert found[:5] == ["popularity", "recency", "markov", "item-knn", "ease"]
    assert set(found[5:]) == {
        *(f"{s}-L2-e101-s42" for s in ("fuxi-beta", "sasrec", "fuxi-alpha", "hstu", "llama", "retnet", "flash")),
        "gru4rec-h100-e101-s42",
        "narm-e101-s42",
        next(name for name in found if name.startswith("bprmf")),
    }


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ({"table": 5}, ["fuxi-alpha-L2", "fuxi-beta-frab-L2", "fuxi-beta-aftm-L2", "fuxi-beta-L2"]),
        (
            {"table": 7},
            ["fuxi-beta-frab-L8", "fuxi-beta-L8", "fuxi-beta-frab-no-position-L8", "fuxi-beta-frab-no-time-L8"],
        ),
        ({"table": 8}, ["llama-L8", "llama-beta-L8", "hstu-L8", "hstu-beta-L8", "fuxi-alpha-L8", "fuxi-beta-L8"]),
        ({"scaling": True}, [f"fuxi-beta-L{depth}" for depth in (2, 4, 8, 16)]),
        ({"scaling": True, "on_gpu": True}, [f"fuxi-beta-L{depth}" for depth in (2, 4, 8, 16, 32)]),
        ({"models": ("sasrec-large", "fuxi-beta:sin")}, ["sasrec-L8", "fuxi-beta-sin-L2"]),
        ({"models": ("gru4rec:50",)}, ["gru4rec-h50"]),
    ],
)
def test_the_runs_of_a_request(request_, expected):
    assert names(epochs=3, **request_) == [f"{name}-e3-s42" for name in expected]


def test_table_6_is_every_function_at_eight_layers():
    found = names(table=6, epochs=3)
    assert len(found) == 9 and "fuxi-beta-L8-e3-s42" in found and "fuxi-beta-bucket-L8-e3-s42" in found


def test_seeds_conditions_and_validation_multiply_the_runs():
    assert names(models=("hstu",), epochs=3, seeds=(1, 2)) == ["hstu-L2-e3-s1", "hstu-L2-e3-s2"]
    timed = names(models=("hstu", "sasrec"), epochs=3, conditions=("true", "previous"))
    assert timed == ["hstu-L2-e3-s42", "hstu-L2-e3-s42-previous", "sasrec-L2-e3-s42"]  # SASRec reads no time
    assert names(models=("hstu",), epochs=3, validation=True) == ["hstu-L2-e3-s42-validated"]


@pytest.mark.parametrize("model", ["bert4rec", "fuxi-beta:cosine", "hstu:sin", "gru4rec:wide"])
def test_an_unknown_model_is_refused_with_the_names_there_are(model):
    with pytest.raises(InputError, match=f"--model {model}: .*(fuxi-beta|FUNCTION)"):
        names(models=(model,))


def test_a_large_model_has_eight_layers_and_two_heads_where_the_setting_has_them():
    model, train = RunSpec("hstu", 3, 7, layers=8).configs(PRESET)
    assert (model.name, model.layers, model.heads, model.dim) == ("hstu", 8, 2, 50)
    assert (train.epochs, train.seed, train.held_out, train.request_time) == (3, 7, 1, "true")
    _, permuted = RunSpec("hstu", 3, 7, condition="permuted", validation=True).configs(PRESET)
    assert (permuted.request_time, permuted.held_out) == ("true", 2)  # gaps are permuted when measuring alone


def test_counts_are_compared_with_table_2():
    assert title_of(Counts(6040, 3706, 1_000_209)) == "MovieLens-1M"
    assert title_of(Counts(2999, 3615, 487_650)) is None
    assert against_paper(Counts(6040, 3706, 1_000_209)) == (
        "MovieLens-1M: 6,040 users where the paper's Table 2 says 6,041"
    )
    assert against_paper(Counts(138_493, 26_744, 20_000_263)) == "MovieLens-20M, with the counts of the paper's Table 2"
    assert against_paper(Counts(2999, 3615, 487_650)).startswith("not MovieLens-1M as a whole: 2,999 users where")
    assert against_paper(Counts(10, 10, 100)) == ""


# ---- the command


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    """Sixty listeners' ratings, imported by the command itself."""
    folder = tmp_path_factory.mktemp("reproduce")
    random = np.random.default_rng(5)
    lines = ["userId,movieId,rating,timestamp"]
    for user in range(1, 61):
        start = int(random.integers(40))
        times = np.sort(random.integers(1_000_000_000, 1_000_900_000, random.integers(5, 20)))
        lines += [f"{user},{(start + k) % 40 + 1},4.0,{time}" for k, time in enumerate(times)]
    (folder / "ratings.csv").write_text("\n".join(lines) + "\n")
    done = fuxi("import", "movielens", str(folder / "ratings.csv"), "--workspace", str(folder / "tiny"))
    assert done.returncode == 0, done.stderr
    return folder / "tiny"


def fuxi(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "jobs.cli", *arguments], capture_output=True, text=True, timeout=300, check=False
    )


def test_runs_are_written_shown_resumed_and_rendered(workspace: Path, tmp_path: Path):
    arguments = [
        "reproduce",
        str(workspace),
        "--epochs",
        "2",
        "--model",
        "fuxi-beta",
        "--model",
        "markov",
        "--workers",
        "2",
    ]
    first = fuxi(*arguments)
    assert first.returncode == 0, first.stderr
    assert "fuxi-beta-L2-e2-s42" in first.stdout and "markov" in first.stdout
    folder = workspace / "reproduce"
    found = {run.name: run for run in runs.read(folder)}
    assert set(found) == {"fuxi-beta-L2-e2-s42", "fuxi-beta-L2-e2-s42-permuted", "markov"}
    run = found["fuxi-beta-L2-e2-s42"]
    assert (run.system, run.epochs, run.published_epochs, run.seed, run.condition) == ("fuxi-beta", 2, 101, 42, "true")
    assert run.dataset.listeners == 60 and run.dataset.songs == 40 and run.dataset.title == "tiny"
    assert len(run.epoch_losses) == 2 and run.epoch_losses[1] < run.epoch_losses[0]
    assert run.curves is not None and len(run.curves.weights) == 2
    assert run.parameters > 40 * 50 and run.uses_time and not found["markov"].uses_time
    ranks = runs.read_ranks(folder, run)
    assert ranks.users.tolist() == list(range(1, 61))
    reciprocal = (1 / np.minimum(ranks.ranks, 2501)).mean()
    assert run.metrics["all"]["mrr"] == pytest.approx(reciprocal)
    assert found["fuxi-beta-L2-e2-s42-permuted"].epoch_losses == run.epoch_losses

    written = (folder / "fuxi-beta-L2-e2-s42.json").stat().st_mtime_ns
    (folder / "markov.json").unlink()  # as if the series had been killed before it
    again = fuxi(*arguments)
    assert again.returncode == 0 and (folder / "markov.json").exists()
    assert (folder / "fuxi-beta-L2-e2-s42.json").stat().st_mtime_ns == written
    events = [json.loads(line) for line in again.stderr.splitlines() if line.startswith("{")]
    assert [event["to_do"] for event in events if event["message"] == "reproduce"] == [1]

    page = tmp_path / "results.md"
    done = fuxi("reproduce", str(workspace), "--write", str(page))
    assert done.returncode == 0, done.stderr
    text = page.read_text()
    assert f"{run.metrics['all']['ndcg_10']:.4f}"[1:] in text and "2 of 101 epochs" in text
    assert any((tmp_path / "figures").glob("*.png"))


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_series_ends_its_workers_and_leaves_no_half_run(workspace: Path, how: signal.Signals):
    arguments = (
        "reproduce",
        str(workspace),
        "--epochs",
        "5000",
        "--model",
        "sasrec",
        "--model",
        "llama",
        "--workers",
        "2",
    )
    process = subprocess.Popen([sys.executable, "-m", "jobs.cli", *arguments], stderr=subprocess.PIPE, text=True)
    children: list[psutil.Process] = []
    deadline = time.monotonic() + 120
    while len(children) < 3 and time.monotonic() < deadline:  # two workers and what multiprocessing needs
        time.sleep(0.5)
        children = psutil.Process(process.pid).children(recursive=True)
    time.sleep(5)
    process.send_signal(how)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == (130 if how is signal.SIGINT else -signal.SIGKILL)
    assert "Traceback" not in errors
    assert not psutil.wait_procs(children, timeout=10)[1]
    assert not list((workspace / "reproduce").glob("*e5000*"))


def test_every_kind_of_run_works_and_repeats_itself(workspace: Path):
    """One epoch of what the other test leaves out, in another series of its own."""
    from jobs.reproduce.command import DatasetSource, describe, manifest_of
    from jobs.reproduce.single import RunTask, perform

    source = DatasetSource(str(workspace))
    manifest = manifest_of(source)
    folder = workspace / "again"
    folder.mkdir()

    def run(spec: RunSpec) -> list[runs.ExperimentRun]:
        return perform(RunTask(spec, PRESET, describe(source, manifest), manifest, str(folder), "fuxi reproduce"))

    for system in ("popularity", "recency", "item-knn", "ease"):
        (written,) = run(RunSpec(system, 0, 0))
        assert written.name == system and 0 <= written.metrics["all"]["ndcg_10"] <= 1
    (bprmf,) = run(RunSpec("bprmf", 2, 1))
    assert len(bprmf.epoch_losses) == 2 and bprmf.best_epoch is None
    (previous,) = run(RunSpec("hstu", 1, 1, condition="previous"))
    assert previous.condition == "previous" and previous.name.endswith("previous")
    (later,) = run(RunSpec("sasrec-gap", 1, 1, protocol="temporal_split"))
    assert later.name.endswith("temporal-split") and 0 < later.listeners["all"] < 60
    validated, _ = run(RunSpec("fuxi-beta", 2, 1, validation=True))
    assert validated.best_epoch in {1, 2} and validated.validation
    assert run(RunSpec("narm", 1, 1))[0].metrics == run(RunSpec("narm", 1, 1))[0].metrics
    assert len(run(RunSpec("fuxi-beta", 1, 1, temporal="sin"))) == 2


def test_the_daily_protocol_measures_new_songs_of_the_last_day(deployment, tmp_path: Path):
    """On play logs: lists of thirty, listeners by kind, no ranks, and the paper's numbers nowhere beside."""
    made = deployment(listeners=200)
    made.sessionized(DAY_TWO)
    workspace = made.config.workspace
    arguments = ("reproduce", workspace, "--protocol", "next_day", "--epochs", "1")
    done = fuxi(
        *arguments, *(part for name in ("fuxi-beta", "sasrec", "markov", "recency") for part in ("--model", name))
    )
    assert done.returncode == 0, done.stderr
    found = {run.name: run for run in runs.read(Path(workspace) / "reproduce")}
    assert set(found) == {
        *("fuxi-beta-L2-e1-s42-next-day", "sasrec-L2-e1-s42-next-day", "markov-next-day", "recency-next-day")
    }
    run = found["fuxi-beta-L2-e1-s42-next-day"]
    assert run.protocol == "next_day" and set(run.metrics) == {
        *("all", "new", "light", "heavy", "gap_day", "gap_week", "gap_longer", "no_play"),
        *("recent_songs", "untrained_songs"),
    }
    assert {"hr_30", "ndcg_30", "coverage_30", "mrr"} <= set(run.metrics["all"])
    assert run.dataset.paper == ""
    page = tmp_path / "results.md"
    assert fuxi("reproduce", workspace, "--write", str(page)).returncode == 0
    assert "by listener and by the time" in page.read_text() and "paper (" not in page.read_text()


def test_times_are_taken_in_turns_and_kept_beside_the_runs(workspace: Path):
    done = fuxi("reproduce", str(workspace), "--timing", "--model", "fuxi-beta", "--model", "sasrec")
    assert done.returncode == 0, done.stderr
    seconds = storage.read_json(str(workspace / "reproduce-timing.json"))
    assert set(seconds) == {"fuxi-beta", "sasrec"} and all(value > 0 for value in seconds.values())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["ml-1m", "--workspace", "/nonexistent"], "is no workspace: download ml-1m from grouplens.org"),
        (["{workspace}", "--preset", "ML-2M"], "--preset ML-2M: use one of ML-1M, ML-20M, daily, demo"),
        (["{workspace}", "--table", "4"], "--table 4: the paper's tables of public data are 3, 5, 6, 7 and 8"),
        (["{workspace}", "--seeds", "one"], "--seeds one: write numbers with commas between"),
        (["{workspace}", "--device", "gpu"], "--device gpu: use cpu, cuda or cuda:N"),
        (["{workspace}", "--model", "bert4rec", "--dry-run"], "there is no such system"),
    ],
)
def test_what_cannot_be_done_is_one_line(workspace: Path, arguments: list[str], expected: str):
    done = fuxi("reproduce", *(part.format(workspace=workspace) for part in arguments))
    assert done.returncode == 2
    assert expected in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_a_dry_run_lists_the_runs_and_trains_nothing(workspace: Path):
    done = fuxi("reproduce", str(workspace), "--model", "retnet", "--dry-run")
    assert done.stdout.split() == ["retnet-L2-e101-s42", "to", "do"]


def test_the_daily_protocol_leaves_out_what_makes_no_lists():
    found = names(protocol="next_day")
    assert "popularity-next-day" in found and not [name for name in found if name.startswith("bprmf")]
    with pytest.raises(InputError, match="--validation and --time-condition belong to leave_one_out"):
        names(protocol="next_day", validation=True)
