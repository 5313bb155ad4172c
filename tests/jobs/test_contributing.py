"""CONTRIBUTING.md's ways to add a setting and a stage, walked through with the very edits it shows."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.log_lines import lines as log_lines

from .conftest import DAY_ONE, Deployment

ROOT = Path(__file__).parents[2]
Fuxi = Callable[..., subprocess.CompletedProcess[str]]


def section(title: str) -> str:
    """The text below a heading."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    return text.split(f"## {title}\n")[1].split("\n## ")[0]


def apply_edits(tree: Path, text: str) -> None:
    """Every ```diff block: its unmarked and - lines must be in the file once, and become its unmarked and + lines."""
    for name, block in re.findall(r"```diff\n--- (\S+)\n(.*?)```", text, re.DOTALL):
        lines = block.splitlines(keepends=True)
        before = "".join(line[1:] for line in lines if line[0] != "+")
        after = "".join(line[1:] for line in lines if line[0] != "-")
        content = (tree / name).read_text()
        assert content.count(before) == 1, f"{name} has not these lines once:\n{before}"
        (tree / name).write_text(content.replace(before, after))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the packages, to edit."""
    for package in ("pipelines", "fuxi_beta", "jobs"):
        shutil.copytree(ROOT / package, tmp_path / "tree" / package, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "tree"


@pytest.fixture
def fuxi(tree: Path) -> Fuxi:
    """Runs the command line of the copy."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "jobs.cli", *arguments]
        environment = {**os.environ, "PYTHONPATH": str(tree), "MLFLOW_DISABLE_TELEMETRY": "true", **environment}
        return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)

    return run


def day_options(made: Deployment) -> list[str]:
    return ["--ds", str(DAY_ONE), "--workspace", made.config.workspace, "--set", "sequences.buckets=4"]


def test_a_setting_is_two_edits(tree: Path, fuxi: Fuxi, deployment: Callable[..., Deployment]) -> None:
    apply_edits(tree, section("Add a setting"))
    assert "  min_listeners: 500\n" in fuxi("config", "--set", "gates.min_listeners=500").stdout
    assert "  min_listeners: 500\n" in fuxi("config", FUXI_GATES__MIN_LISTENERS="500").stdout
    assert "did you mean gates.min_listeners?" in fuxi("config", "--set", "gates.min_listener=5").stderr
    assert "gates.min_listeners: Input should be greater" in fuxi("config", "--set", "gates.min_listeners=-1").stderr

    made = deployment()
    made.sessionized(DAY_ONE)
    made.trained(DAY_ONE)
    metrics = {name: {"all": {"ndcg_30": value}} for name, value in {"challenger": 0.2, "popularity": 0.1}.items()}
    made.day(DAY_ONE).finish("evaluate", {"metrics": metrics, "listeners": 400}, 0.0)
    few = fuxi("promote", *day_options(made), "--json", "--set", "gates.min_listeners=500")
    assert json.loads(few.stdout)["chosen"] is None and "enough_listeners" in few.stdout, few.stderr
    enough = fuxi("promote", *day_options(made), "--json", "--set", "gates.min_listeners=400", "--force")
    assert json.loads(enough.stdout)["chosen"] == "1", enough.stderr


def test_a_stage_is_a_file_its_name_and_its_command(
    tree: Path, fuxi: Fuxi, deployment: Callable[..., Deployment]
) -> None:
    text = section("Add a stage")
    (name,) = re.findall(r"For example `(\S+)`:", text)
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tree / name).write_text(code)
    apply_edits(tree, text)

    made = deployment()
    made.sessionized(DAY_ONE)
    early = fuxi("digest", *day_options(made))
    assert early.returncode == 2 and "run `fuxi recommend --ds 2026-03-02` first" in early.stderr
    planned = fuxi("daily", *day_options(made), "--dry-run").stdout
    assert [line.split()[0] for line in planned.splitlines()][-3:] == ["recommend", "digest", "report"]

    made.day(DAY_ONE).finish("recommend", {"listeners": 1234}, 0.0)
    first, again = (json.loads(fuxi("digest", "--json", *day_options(made)).stdout) for _ in range(2))
    assert Path(first["uri"]).read_text() == "2026-03-02: 1,234 lists\n"
    assert again == {**first, "skipped": True}
    Path(made.day(DAY_ONE).path("digest.json")).unlink()  # killed before its marker: run again
    assert json.loads(fuxi("digest", "--json", *day_options(made)).stdout) == first
    shown = fuxi("digest", *day_options(made), FUXI_LOG_FORMAT="text").stdout
    assert "digest of 2026-03-02 was done before" in shown
    [line] = log_lines(fuxi("digest", *day_options(made)).stdout)
    assert (line["stage"], line["uri"], line["skipped"]) == ("digest", first["uri"], True)
