"""`fuxi retain`: deletes what is older than the settings `retain` keep, and says what went."""

from collections.abc import Sequence

from jobs.config import Config
from jobs.day import Day
from jobs.retention import Removed, retain
from jobs.runtime.screen import screen
from pipelines.errors import InputError
from pipelines.workspace import open_workspace


def run(config: Config, *, dry_run: bool = False) -> list[Removed]:
    """Apply the bounds of a configuration to its workspace."""
    workspace = open_workspace(config.workspace)
    days = workspace.days("runs")
    if not days:
        raise InputError(f"{workspace.uri} has no days yet: run `fuxi daily` first")
    return retain(Day(config, days[-1], workspace), dry_run=dry_run)


def render(removed: Sequence[Removed], *, dry_run: bool) -> None:
    """Print a row for each kind that has a bound."""
    shown = screen()
    if not removed:
        shown.say("every bound of `retain` is 0: all is kept (see `fuxi config --describe retain`)")
        return
    numbers = ("Days", "Files", "MB")
    rows = [
        (
            kind.kind,
            f"{len(kind.days):,}",
            *((str(kind.days[0]), str(kind.days[-1])) if kind.days else ("", "")),
            f"{kind.files:,}",
            f"{kind.bytes / 1e6:,.2f}",
        )
        for kind in removed
    ]
    title = "Would be deleted, nothing is changed" if dry_run else "Deleted"
    shown.table(
        ("What", "Days", "Oldest", "Newest", "Files", "MB"), rows, right=numbers, wrapped=("What",), title=title
    )
    for kind in removed:
        if kind.note and kind.files:
            shown.say(f"{kind.kind}: {kind.note}", indent=2)
