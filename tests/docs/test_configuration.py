"""Every setting is described, in one place; pages name only settings that exist; one ruff for all."""

import json
import re
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from jobs.cli import cli
from jobs.commands import describe
from jobs.config import load_config
from pipelines.errors import InputError

ROOT = Path(__file__).parents[2]
SETTINGS = load_config(environment={}).model_dump(mode="json")
SECTIONS = [name for name, values in SETTINGS.items() if isinstance(values, dict)]
DEFAULTS = dict(
    pair
    for section, values in SETTINGS.items()
    for name, value in (values.items() if isinstance(values, dict) else [("", values)])
    for pair in (
        [(f"logs.csv.{key}", inner) for key, inner in value.items()]
        if (section, name) == ("logs", "csv")
        else [(f"{section}.{name}" if name else section, value)]
    )
)
FILES = (".json", ".py", ".md", ".db", ".safetensors")
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("infra/**/*.md")])


def unknown_settings(text: str) -> list[str]:
    """What stands in backquotes as `section.key`, maybe with a value, and is no setting. File names are left out."""
    named = set(re.findall(rf"`(?:--set )?((?:{'|'.join(SECTIONS)})\.(?:csv\.)?[a-z_0-9]+)(?:[:= ][^`]*)?`", text))
    return sorted(name for name in named - DEFAULTS.keys() if not name.endswith(FILES))


def test_every_setting_has_a_description_a_type_and_its_default() -> None:
    found = describe.settings()
    assert {one.key: one.default for one in found} == DEFAULTS
    assert not [one.key for one in found if len(one.description.split()) < 2 or not one.values]
    assert all(about for about in describe.sections().values())


def test_the_page_is_what_the_code_says(tmp_path: Path) -> None:
    page = ROOT / "docs" / "configuration.md"
    copy = tmp_path / "configuration.md"
    copy.write_text(page.read_text().partition(describe.MARK)[0] + describe.MARK + "older")
    describe.write_page(copy)
    assert copy.read_text() == page.read_text(), "run `make reference`"
    listed = re.findall(r"^\| `([\w.]+)` \| `(.*?)` \| (.+?) \| (.+) \|$", page.read_text(), re.M)
    assert {key: json.loads(value) for key, value, *_ in listed} == DEFAULTS


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("train.ema", "number, between 0 and 0.99999"),
        ("train.protocol", "`next_day` or `leave_one_out`"),
        ("train.betas", "2 numbers"),
        ("evaluate.at", "list of integers"),
        ("evaluate.baselines", "list of `markov`, `item-knn`, `ease`"),
        ("sequences.session_gap_s", "integer (seconds), at least 1"),
        ("recommend.max_gini", "number, between 0 and 1; or null"),
        ("rules.heard_days", "integer, at least 0; or `ever` or `auto`"),
        ("rules.segments", "map to rules"),
        ("logs.partition", "text; or list of texts"),
        ("quality.max_null_shares", "map to number, between 0 and 1"),
    ],
)
def test_types_bounds_and_units_are_said_in_words(key: str, values: str) -> None:
    assert next(one.values for one in describe.settings() if one.key == key) == values


def test_the_command_describes_all_keys_those_of_a_section_and_refuses_what_is_none() -> None:
    said = CliRunner().invoke(cli, ["config", "--set", "train.ema=0.5", "--describe"], env={"COLUMNS": "80"}).stdout
    assert all(f"{key} = " in said for key in DEFAULTS)
    assert "train.ema = 0.5 (default 0.0)" in said and "gates.margin = 0.05 (the default)" in said
    assert all(len(line) <= 80 for line in said.splitlines() if '["", ' not in line)
    some = CliRunner().invoke(cli, ["config", "--describe", "gates.m"]).stdout
    assert "gates.margin" in some and "gates.metric" in some and "gates.floor" not in some
    refused = CliRunner().invoke(cli, ["config", "--describe", "trian"])
    assert isinstance(refused.exception, InputError) and "did you mean train?" in str(refused.exception)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_setting_that_a_page_names_is_one(page: Path) -> None:
    assert not unknown_settings(page.read_text())


def test_a_setting_that_is_none_is_found() -> None:
    assert unknown_settings("`train.epochs`, `train.epoch=3`, `--set gates.marge=1`, `train.json`") == [
        "gates.marge",
        "train.epoch",
    ]


def test_the_hooks_before_a_commit_run_the_ruff_of_the_environment_that_make_lint_runs() -> None:
    repos = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    hooks = [hook for repo in repos for hook in repo["hooks"]]
    assert {repo["repo"] for repo in repos} == {"local"}  # a repository with a rev would be another version
    assert [hook["entry"].split()[:2] for hook in hooks] == [[".venv/bin/ruff", "check"], [".venv/bin/ruff", "format"]]
    lint = (ROOT / "Makefile").read_text().partition("\nlint:")[2].partition("\n\n")[0]
    assert all(f"$(BIN)/ruff {command}" in lint for command in ("check", "format"))
    assert re.search(r"^ruff==", (ROOT / "requirements" / "cpu.txt").read_text(), re.M)
