"""The table in benchmarks/README.md lists every command, each answers `--help`, and the pages hold its figures."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMANDS = sorted(file.stem for file in (ROOT / "benchmarks").glob("*.py") if file.stem != "__init__")
ROWS = re.findall(r"^\| `(\w+)` \|(.*)\|$", (ROOT / "benchmarks" / "README.md").read_text(), flags=re.M)
ANSWERS = """
import contextlib, importlib, io, json, sys
answers = {}
for name in sys.argv[1:]:
    sys.argv, output = [name, "--help"], io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
        importlib.import_module(f"benchmarks.{name}").main()
    answers[name] = output.getvalue()
print(json.dumps({"answers": answers, "modules": sorted(sys.modules)}))
"""


@pytest.fixture(scope="module")
def help_texts() -> dict:
    """What every command prints for `--help`, all in one process, and the modules that were imported for it."""
    done = subprocess.run(
        [sys.executable, "-c", ANSWERS, *COMMANDS], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_every_command_is_in_the_table_once():
    assert sorted(name for name, _ in ROWS) == COMMANDS


@pytest.mark.parametrize(("name", "cells"), ROWS, ids=lambda value: value if value.isidentifier() else "")
def test_the_page_of_a_command_names_it(name: str, cells: str):
    pages = re.findall(r"\]\((\S+?)\)", cells)
    assert pages, f"{name}: no page holds its figures"
    for page in pages:
        text = (ROOT / "benchmarks" / page).resolve().read_text()
        assert re.search(rf"benchmarks\.{name}\b", text), f"{page} does not say how its figures of {name} are measured"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_answers_help(help_texts: dict, name: str):
    answer = help_texts["answers"][name]
    assert answer.startswith(f"usage: {name} [-h]")
    assert len(answer.split("options:")[0].splitlines()) > 3, "the answer says nothing of what is measured"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_imports_no_other_command(name: str):
    text = (ROOT / "benchmarks" / f"{name}.py").read_text()
    assert not re.search(r"^\s*(from benchmarks import|from benchmarks\.(?!lib\b)|import benchmarks)", text, flags=re.M)


def test_help_needs_neither_torchrec_nor_spark_nor_ray(help_texts: dict):
    assert not {"torchrec", "fbgemm_gpu", "pyspark", "ray", "mlflow"} & set(help_texts["modules"])
