"""The benchmark of a whole day: what a stage took is its own, and larger days are what a play or a listener costs."""

import shlex
import sys
from pathlib import Path

import pytest

from benchmarks import cluster_sizes
from benchmarks.whole_day import Day, Stage, arguments, projected

WORK = """
import json, subprocess, sys, time
def burn(seconds):
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass
def say(message):
    print(json.dumps({"message": message}), file=sys.stderr, flush=True)
print("no JSON", file=sys.stderr)
held = bytearray(b"x" * 200_000_000)
burn(0.2)
say("sessionize done")
del held
subprocess.run([sys.executable, "-c", "import time\\nwhile time.process_time() < 1.5: pass"])
say("train done")
say("evaluate already done")
FAILED
say("report done")
sys.exit(CODE)
"""
SIZES = {"plays": 1e6, "listeners": 2e4}


def run(
    folder: Path, known: dict[str, Stage], code: int = 0, *, failed: str = "", killed_in: str = ""
) -> dict[str, Stage]:
    work = WORK.replace("CODE", str(code)).replace("FAILED", f'say("{failed}")')
    day = Day([sys.executable, "-c", work], folder, known, killed_in)
    for _ in day.run():
        pass
    return day.stages


def test_a_stage_has_the_seconds_of_its_processes_and_its_own_peak(tmp_path: Path) -> None:
    before = {"evaluate": Stage(7.0, 8.0, 1.5, 0.1)}
    stages = run(tmp_path, before, code=3, killed_in="train")  # published with a warning
    assert list(stages) == ["evaluate", "sessionize", "train", "report"]
    assert stages["evaluate"] == Stage(7.0, 8.0, 1.5, 0.1, earlier=True)
    assert [name for name, stage in stages.items() if stage.resumed] == ["train"]
    assert 1.0 < stages["train"].cpu_s < 2.5 and stages["train"].wall_s > 1.0  # the child's seconds, which has ended
    assert stages["train"].peak_gb < 0.2 and stages["report"].cpu_s < 0.5


def test_a_day_that_is_refused_ends_the_measurement(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="ended with exit code 2: report done"):
        run(tmp_path, {}, code=2)
    with pytest.raises(RuntimeError, match="ended with exit code 3: hits failed; the day goes on without it"):
        run(tmp_path, {}, code=3, failed="hits failed; the day goes on without it")


def test_larger_days_cost_what_their_plays_and_listeners_do() -> None:
    stages = {
        "sessionize": Stage(10, 20, 1, 0.5),
        "train": Stage(100, 200),
        "recommend": Stage(5, 8),
        "report": Stage(1),
    }
    grown = projected(stages, SIZES, {"plays": 1e7, "listeners": 6e4})
    assert {name: (stage.wall_s, stage.cpu_s) for name, stage in grown.items()} == {
        "sessionize": (100, 200),
        "train": (1000, 2000),
        "recommend": (15, 24),
        "report": (1, 0),
    }
    assert (grown["sessionize"].peak_gb, grown["sessionize"].written_gb) == (1, 5)


def test_its_arguments_are_those_of_the_sizes_of_clusters() -> None:
    stages = {"sessionize": Stage(1, 2), "train": Stage(50, 90), "evaluate": Stage(5, 9000), "recommend": Stage(2, 3.6)}
    words = shlex.split(arguments(stages, SIZES))
    values = {name.strip("-").replace("-", "_"): float(value) for name, value in zip(*[iter(words)] * 2, strict=True)}
    behind = cluster_sizes.MeasuredBehind(**values, hours=2).of(1e9)
    assert (behind.listeners, behind.train_hours) == (2e7, 25)  # 90 s a million plays
    assert (behind.evaluate_hours, round(behind.recommend_hours, 6)) == (2.5, 1.0)
    assert behind.cores == 15  # 28.5 hours in two
