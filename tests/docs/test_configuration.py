"""docs/configuration.md lists every setting with its default; pages name only settings that exist; one ruff for all."""

import json
import re
from pathlib import Path

import pytest
import yaml

from jobs.config import load_config

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


def test_the_page_lists_every_setting_with_its_default() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text()
    listed = re.findall(r"^\| `([\w.]+)` \| `(.*?)` \| (.+) \|$", text, re.M)
    assert {key: json.loads(value) for key, value, _ in listed} == DEFAULTS
    assert all(meaning.strip() for *_, meaning in listed)


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
