"""docs/workspace.md names every path that two serving days, a failure and a forgotten listener leave."""

import re
from pathlib import Path
from typing import Any

from jobs.commands import retain

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
    runs = ("runs/backfill.lock", "runs/ds=D/staging", "runs/ds=D/parent-", "runs/ds=D/*.failure", "runs/ds=D/side")
    elsewhere = ("forgotten/", "catalogue/", "reproduce", "logs/", "daily.yaml", *runs)
    for path in documented():
        if not path.startswith(elsewhere) and "delta-" not in path:
            assert any(re.fullmatch(expression(path), file) for file in files), f"{path} is written by no day"


def test_an_undocumented_file_is_found(tmp_path: Path) -> None:
    for path in ("runs/ds=2026-03-02/train.json", "runs/ds=2026-03-02/train.txt", "sequences/ds=x/_manifest.json"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    assert undocumented(tmp_path) == ["runs/ds=2026-03-02/train.txt", "sequences/ds=x/_manifest.json"]


def test_what_may_go_is_what_the_command_would_delete(two_days: Any) -> None:
    """Of two real days: the first one's scratch, and no shard, because the second day was built on them."""
    bounds = two_days.config.retain.model_copy(update={"scratch_days": 1, "sequences_days": 1, "quarantine_days": 1})
    planned = {
        kind.kind: kind for kind in retain.run(two_days.config.model_copy(update={"retain": bounds}), dry_run=True)
    }
    first = two_days.root / "runs" / "ds=2026-01-26"
    scratch = [
        file for name in ("checkpoints", "export-*") for folder in first.glob(name) for file in folder.rglob("*")
    ]
    assert planned["sequences"].files == 0
    assert (
        0
        < planned["checkpoints and exports"].files
        == sum(file.is_file() and file.name[0] not in "._" for file in scratch)
    )
    rejected = (two_days.root / "quarantine" / "ds=2026-01-26").glob("*.parquet")
    assert planned["quarantine"].files == len(list(rejected))
