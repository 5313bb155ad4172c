"""`fuxi maintain`: compaction, checkpoints and the removal of old files of every Delta table, and what it says."""

from collections.abc import Sequence

from jobs.config import Config
from jobs.runtime.screen import screen
from jobs.tables.maintenance import TableMaintenance, maintain
from pipelines.workspace import open_workspace


def run(config: Config, *, dry_run: bool = False) -> list[TableMaintenance]:
    """Maintain the tables of a configuration's workspace; those that are there, in the order of their list."""
    return maintain(open_workspace(config.workspace), config.maintain, dry_run=dry_run)


def render(tables: Sequence[TableMaintenance], *, dry_run: bool) -> None:
    """Print a line a table, and what was not done."""
    shown, numbers = screen(), ("Files", "Then", "Removed", "MB removed", "Versions kept")
    rows = [
        (
            table.name,
            *(f"{count:,}" for count in (table.files_before, table.files_after, table.removed_files)),
            f"{table.removed_bytes / 1e6:,.3f}",
            f"{table.kept_versions:,}",
        )
        for table in tables
    ]
    shown.table(
        ("Table", *numbers), rows, right=numbers, title="Would be done, nothing is changed" if dry_run else "Done"
    )
    if checkpoints := [table.name for table in tables if table.checkpoint]:
        shown.say(f"new checkpoints: {', '.join(checkpoints)}", indent=2)
    for table in tables:
        if table.note:
            shown.say(f"{table.name}: {table.note}", indent=2)
