"""docs/workspace.md names every path that two serving days, a failure and a forgotten listener leave."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

TEXT = (Path(__file__).parents[2] / "docs" / "workspace.md").read_text()


def documented() -> list[str]:
    """The paths of the page's first table, as patterns."""
    table = re.search(r"## Every path\n.*?\n((?:\|[^\n]*\n)+)", TEXT, re.S)
    assert table
    cells = [row.split(" | ")[0] for row in table[1].splitlines()[2:]]
    return [path for cell in cells for path in re.findall(r"`([^`]+)`", cell)]


def expression(path: str) -> str:
    """A documented path as a regular expression: `*` is within a name, `**` anything, D a date, NNNNN a bucket."""
    text = re.escape(path).replace(r"\*\*", ".+").replace(r"\*", "[^/]+")
    return text.replace("ds=D", r"ds=\d{4}-\d\d-\d\d").replace("NNNNN", r"\d{5}")


def undocumented(root: Path) -> list[str]:
    found = [file.relative_to(root).as_posix() for file in root.rglob("*") if file.is_file()]
    assert found
    patterns = [re.compile(expression(path)) for path in documented()]
    return sorted(path for path in found if not any(pattern.fullmatch(path) for pattern in patterns))


def test_every_file_of_two_serving_days_is_documented(two_days: Any) -> None:
    assert not undocumented(two_days.root)


def test_everything_that_every_day_writes_is_there(two_days: Any) -> None:
    """So that a path that is no longer written does not stay on the page."""
    files = [file.relative_to(two_days.root).as_posix() for file in two_days.root.rglob("*") if file.is_file()]
    runs = ("runs/ds=D/staging", "runs/ds=D/parent-", "runs/ds=D/*.failure", "runs/ds=D/side")
    elsewhere = ("forgotten/", "catalogue/", "reproduce", "logs/", *runs)
    for path in documented():
        if not path.startswith(elsewhere) and "delta-" not in path:
            assert any(re.fullmatch(expression(path), file) for file in files), f"{path} is written by no day"


def test_an_undocumented_file_is_found(tmp_path: Path) -> None:
    for path in ("runs/ds=2026-03-02/train.json", "runs/ds=2026-03-02/train.txt", "sequences/ds=x/_manifest.json"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    assert undocumented(tmp_path) == ["runs/ds=2026-03-02/train.txt", "sequences/ds=x/_manifest.json"]


def test_the_files_that_may_go_are_those_that_no_kept_day_names(
    two_days: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    code = re.search(r"```python\n(.*?)```", TEXT, re.S)
    assert code and 'keep = open_workspace("./workspace"), 30' in code[1]
    root = str(two_days.root)
    exec(code[1].replace("./workspace", root).replace(", 30", ", 1"), {})
    printed = capsys.readouterr().out.split()
    first_day = {str(file) for file in (two_days.root / "sequences" / "ds=2026-01-26").rglob("*.parquet")}
    manifest = json.loads((two_days.root / "sequences" / "ds=2026-01-27" / "_manifest.json").read_text())
    kept = {f"{root}/sequences/ds={file['home']}/{file['path']}" for file in manifest["files"] if file["home"]}
    assert first_day - kept  # the tables of the first day
    assert set(printed) == first_day - kept
