"""`fuxi backfill`: the serving days of a span, one after another, oldest first.

Each day is `fuxi daily` of that day, and builds on the one before. What is finished is skipped, so a backfill that was
stopped goes on when it is run again.
"""

import datetime as dt
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from jobs.daily import DayResult, PlannedStage, plan, run_day
from jobs.day import Day, noting_at_stop
from jobs.runtime.console import log
from pipelines import leases, storage
from pipelines.errors import BusyError, InputError

PURPOSE = "fuxi backfill"
LEASE = "backfill.lock"
PUBLISHED, WITHOUT_A_STAGE, FROM_POPULARITY, REFUSED = "published", "published, degraded", "popular songs", "refused"

OpenDay = Callable[[dt.date], Day]
RunDay = Callable[[Day], DayResult]


@dataclass(frozen=True)
class BackfilledDay:
    """What became of one day."""

    ds: dt.date
    state: str  # one of the four above
    seconds: float
    listeners: int | None = None
    model: str | None = None  # the version that serves
    why: str = ""  # it is not simply published

    @property
    def refused(self) -> bool:
        """Whether nothing was published for it."""
        return self.state == REFUSED


def span(first: dt.date, last: dt.date) -> list[dt.date]:
    """Every day from the first to the last, both of them. InputError if there is none."""
    if first > last:
        raise InputError(f"--from {first} is after --to {last}: give the older day first")
    return [first + dt.timedelta(days=n) for n in range((last - first).days + 1)]


def run(
    days: Sequence[dt.date], open_day: OpenDay, *, keep_going: bool = False, run_day: RunDay = run_day
) -> Iterator[BackfilledDay]:
    """Run days in order; yields what became of each, when it is done.

    A refused day ends the series: the days after it would be built without its plays, and would have to be made again
    once it is repaired. With `keep_going` they are built all the same. BusyError if another backfill works in the
    workspace, or another run on the day whose turn it is.
    """
    workspace, done = open_day(days[0]).workspace, 0
    uri = storage.join(workspace.uri, "runs", LEASE)
    with leases.lease(uri, purpose=PURPOSE), noting_at_stop(lambda: f"{done} of {len(days)} days were done"):
        for ds in days:
            log("backfill", ds=ds, day=f"{done + 1} of {len(days)}")
            day = _one(open_day(ds), run_day)
            done += 1
            yield day
            if day.refused and not keep_going:
                return


def _one(day: Day, run_day: RunDay) -> BackfilledDay:
    started = time.monotonic()
    try:
        result = run_day(day)
    except BusyError:
        raise
    except InputError as error:
        return BackfilledDay(day.ds, REFUSED, time.monotonic() - started, why=" ".join(str(error).split()))
    state, why = PUBLISHED, ""
    if result.failures:
        state, why = WITHOUT_A_STAGE, "; ".join(f"{name}: {text}" for name, text in result.failures.items())
    elif result.without_model:
        state, why = FROM_POPULARITY, result.without_model
    lists = result.stages.get("recommend", {})
    return BackfilledDay(
        day.ds, state, time.monotonic() - started, lists.get("listeners"), lists.get("model_version"), why
    )


def plans(days: Sequence[dt.date], open_day: OpenDay) -> Iterator[tuple[dt.date, list[PlannedStage]]]:
    """What a backfill would do on each day; writes nothing."""
    for ds in days:
        yield ds, plan(open_day(ds))


def render_plan(planned: Sequence[tuple[dt.date, list[PlannedStage]]]) -> None:
    """Print a line a day."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    for ds, stages in planned:
        to_run = [stage.name for stage in stages if stage.runs]
        console.print(f"{ds}  to run: {', '.join(to_run)}" if to_run else f"{ds}  done")


def render(done: Sequence[BackfilledDay], asked: int) -> None:
    """Print a row a day, and how to go on."""
    from rich.console import Console
    from rich.table import Column, Table

    console = Console(highlight=False, soft_wrap=True)
    numbers = (Column(name, justify="right") for name in ("Seconds", "Listeners", "Model"))
    table = Table("Day", "State", *numbers)
    for day in done:
        listeners = "" if day.listeners is None else f"{day.listeners:,}"
        table.add_row(str(day.ds), day.state, f"{day.seconds:,.1f}", listeners, day.model or "")
    console.print(table)
    for day in done:
        if day.why:
            console.print(f"{day.ds}: {day.why}")
    if left := asked - len(done):
        plural = "" if left == 1 else "s"
        console.print(f"{left} day{plural} after it not begun: repair the day and run again, or give --keep-going")
