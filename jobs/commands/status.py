"""`fuxi status`: a table of the days of a workspace."""

import dataclasses
import json
from collections.abc import Sequence

from jobs.config import Config
from jobs.day import Day
from jobs.runtime.screen import screen
from jobs.status import DayStatus, day_status
from pipelines.workspace import open_workspace

DAYS = 14
NOTHING = "-"


def run(config: Config, *, days: int = 0) -> list[DayStatus]:
    """How the newest days (0: all) of a configuration's workspace stand, oldest first. Writes nothing."""
    opened = open_workspace(config.workspace)
    return [day_status(Day(config, ds, opened)) for ds in opened.days("runs")[-days:]]


def as_json(days: Sequence[DayStatus]) -> str:
    """The same as a JSON list."""
    return json.dumps([dataclasses.asdict(day) for day in days], indent=2, default=str)


def render(days: Sequence[DayStatus]) -> None:
    """Print a row a day (baseline: the best one's metric), and below what is not done or out of date, and who works."""
    shown = screen()
    if not days:
        shown.say("no days yet: `fuxi daily --ds DATE` runs the first one")
        return
    metric = days[-1].figures.metric if days[-1].figures else ""
    numbers = ("Plays", "Rej.", "Lists", "Served by", metric, "Baseline", "Time")
    rows = [(str(day.ds), day.state, *_figures(day)) for day in days]
    shown.table(("Day", "State", *numbers), rows, right=numbers, wrapped=("State", "Served by"))
    for day in days:
        for note in _notes(day):
            shown.say(f"{day.ds}: {note}", indent=12)


def _figures(day: DayStatus) -> list[str]:
    figures = day.figures
    if figures is None:
        return [NOTHING] * 7
    best = figures.best_baseline
    rejected = figures.rejected_share
    return [
        NOTHING if figures.accepted is None else f"{figures.accepted:,}",
        NOTHING if rejected is None else f"{rejected:.1%}",
        NOTHING if figures.listeners is None else f"{figures.listeners:,}",
        figures.served_by or NOTHING,
        NOTHING if figures.value is None else f"{figures.value:.4f}",
        f"{best[1]:.4f}" if best else NOTHING,
        f"{sum(figures.seconds.values()):,.0f} s",
    ]


def _notes(day: DayStatus) -> list[str]:
    notes = [f"{day.run_by}"] * bool(day.run_by)
    notes += [f"stale: {', '.join(day.stale)}; run `fuxi daily --ds {day.ds}`"] * bool(day.stale)
    notes += [f"not run: {', '.join(day.missing)}"] * bool(day.missing)
    return notes + [f"out of date: {reason}" for reason in day.out_of_date]
