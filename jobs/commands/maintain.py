"""`fuxi maintain`: compaction, checkpoints and the removal of old files of every Delta table, and what it says."""

from collections.abc import Sequence

from jobs.config import Config
from jobs.tables.maintenance import TableMaintenance, maintain
from pipelines.workspace import open_workspace


def run(config: Config, *, dry_run: bool = False) -> list[TableMaintenance]:
    """Maintain the tables of a configuration's workspace; those that are there, in the order of their list."""
    return maintain(open_workspace(config.workspace), config.maintain, dry_run=dry_run)


def render(tables: Sequence[TableMaintenance], *, dry_run: bool) -> None:
    """Print a line a table, and what was not done."""
    from rich.console import Console
    from rich.table import Column, Table

    console, names = Console(), ("Files", "then", "Removed", "MB removed", "Versions kept")
    shown = Table("Table", *(Column(name, justify="right") for name in names))
    for table in tables:
        counts = (f"{n:,}" for n in (table.files_before, table.files_after, table.removed_files))
        shown.add_row(table.name, *counts, f"{table.removed_bytes / 1e6:,.3f}", f"{table.kept_versions:,}")
    console.print("Would be done, nothing is changed" if dry_run else "Done", style="bold")
    console.print(shown)
    if checkpoints := [table.name for table in tables if table.checkpoint]:
        console.print(f"new checkpoints: {', '.join(checkpoints)}", highlight=False)
    for table in tables:
        if table.note:
            console.print(f"{table.name}: {table.note}", highlight=False)
