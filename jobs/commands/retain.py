"""`fuxi retain`: deletes what is older than the settings `retain` keep, and says what went."""

from collections.abc import Sequence

from jobs.config import Config
from jobs.day import Day
from jobs.retention import Removed, retain
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
    from rich.console import Console
    from rich.table import Column, Table

    console = Console(highlight=False, soft_wrap=True)
    if not removed:
        console.print("every bound of `retain` is 0: all is kept (see `fuxi config`, section retain)")
        return
    days, files, megabytes = (Column(name, justify="right") for name in ("Days", "Files", "MB"))
    table = Table("What", days, "Oldest", "Newest", files, megabytes)
    for kind in removed:
        span = (str(kind.days[0]), str(kind.days[-1])) if kind.days else ("", "")
        table.add_row(kind.kind, f"{len(kind.days):,}", *span, f"{kind.files:,}", f"{kind.bytes / 1e6:,.2f}")
    console.print("Would be deleted, nothing is changed" if dry_run else "Deleted", style="bold")
    console.print(table)
    for kind in removed:
        if kind.note and kind.files:
            console.print(f"{kind.kind}: {kind.note}")
