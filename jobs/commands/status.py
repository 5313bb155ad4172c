"""`fuxi status`: a table of the days of a workspace."""

import dataclasses
import json
from collections.abc import Sequence

from jobs.config import load_config
from jobs.day import Day
from jobs.status import DayStatus, day_status
from pipelines.workspace import open_workspace


def run(workspace: str) -> list[DayStatus]:
    """How every day of a workspace stands, oldest first. Writes nothing."""
    opened = open_workspace(workspace)
    config = load_config(overrides=[f"workspace={opened.uri}"], environment={})
    return [day_status(Day(config, ds, opened)) for ds in opened.days("runs")]


def as_json(days: Sequence[DayStatus]) -> str:
    """The same as a JSON list."""
    return json.dumps([dataclasses.asdict(day) for day in days], indent=2, default=str)


def render(days: Sequence[DayStatus]) -> None:
    """Print a row a day, and below them what is out of date."""
    from rich.console import Console
    from rich.table import Column, Table

    console = Console()
    table = Table("Day", "State", Column("Done", justify="right"), "Stale", "Not run")
    for day in days:
        total = len(day.done) + len(day.stale) + len(day.missing)
        table.add_row(str(day.ds), day.state, f"{len(day.done)}/{total}", ", ".join(day.stale), ", ".join(day.missing))
    console.print(table)
    for day in days:
        if day.run_by:
            console.print(f"{day.ds}: {day.run_by}", highlight=False, soft_wrap=True)
        for reason in day.out_of_date:
            console.print(f"{day.ds} is out of date: {reason}", highlight=False, soft_wrap=True)
