"""`fuxi backfill`: the serving days of a span, one after another, oldest first.

Each day is `fuxi daily` of that day in a process of its own, and builds on the one before. What is finished is skipped,
so a backfill that was stopped goes on when it is run again.
"""

import datetime as dt
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from jobs.daily import PlannedStage, plan
from jobs.day import STAGES, Day, noting_at_stop
from jobs.runtime import log_lines
from jobs.runtime.console import log
from jobs.runtime.screen import screen
from jobs.status import DayFigures, day_figures
from pipelines import leases, storage
from pipelines.errors import InputError

PURPOSE = "fuxi backfill"
LEASE = "backfill.lock"
STATES = {0: "published", 1: "broke off", 2: "refused", 3: "published, degraded"}
"""What became of a day, by the exit code of `fuxi daily`."""
_PUBLISHED = (0, 3)
_TO_END_S = 60

OpenDay = Callable[[dt.date], Day]
RunDay = Callable[[dt.date], int]
"""Runs a day and returns the exit code of `fuxi daily`."""


@dataclass(frozen=True)
class BackfilledDay:
    """What became of one day."""

    ds: dt.date
    code: int
    seconds: float
    figures: DayFigures | None
    why: str  # stages failed; "" if none did

    @property
    def state(self) -> str:
        """In words."""
        return STATES.get(self.code, f"exit code {self.code}")

    @property
    def published(self) -> bool:
        """Whether it has lists of this run."""
        return self.code in _PUBLISHED


def span(first: dt.date, last: dt.date) -> list[dt.date]:
    """Every day from the first to the last, both of them. InputError if there is none."""
    if first > last:
        raise InputError(f"--from {first} is after --to {last}: give the older day first")
    return [first + dt.timedelta(days=n) for n in range((last - first).days + 1)]


def run(
    days: Sequence[dt.date], open_day: OpenDay, run_day: RunDay, *, keep_going: bool = False
) -> Iterator[BackfilledDay]:
    """Run days in order; yields what became of each, when it is done.

    A day that is not published ends the series: the days after it would be built without its plays, and would have to
    be made again once it is repaired. With `keep_going` they are built all the same, unless it broke off. BusyError if
    another backfill works in the workspace.
    """
    workspace, done = open_day(days[0]).workspace, 0
    uri = storage.join(workspace.uri, "runs", LEASE)
    with leases.lease(uri, purpose=PURPOSE), noting_at_stop(lambda: f"{done} of {len(days)} days were done"):
        for ds in days:
            log("backfill", ds=ds, day=f"{done + 1} of {len(days)}")
            started = time.monotonic()
            code = run_day(ds)
            done += 1
            found = BackfilledDay(ds, code, time.monotonic() - started, *_outcome(open_day(ds)))
            yield found
            if not found.published and not (keep_going and code == 2):
                return


def _outcome(day: Day) -> tuple[DayFigures | None, str]:
    if not day.has_record:
        return None, ""
    notes = {name: message for name in STAGES if (message := day.failure(name))}
    decided = day.result("promote") or {}
    if not notes and decided.get("chosen", "") is None:
        notes["no model"] = decided["reason"]
    return day_figures(day), "; ".join(f"{name}: {' '.join(text.split())}" for name, text in notes.items())


def daily(options: Sequence[str]) -> RunDay:
    """`fuxi daily` with some options as a child process, which is ended with this one. Its output is this one's."""

    def run_one(ds: dt.date) -> int:
        child = subprocess.Popen([sys.executable, "-m", "jobs.cli", "daily", "--ds", str(ds), *options])
        try:
            return child.wait()
        except BaseException:
            child.send_signal(signal.SIGTERM)
            try:
                child.wait(_TO_END_S)
            except subprocess.TimeoutExpired:
                child.kill()
            raise

    return run_one


def exit_code(done: Sequence[BackfilledDay]) -> int:
    """The worst of the days'."""
    codes = [day.code for day in done]
    return next((code for code in codes if code not in STATES), next((code for code in (1, 2, 3) if code in codes), 0))


def plans(days: Sequence[dt.date], open_day: OpenDay) -> Iterator[tuple[dt.date, list[PlannedStage]]]:
    """What a backfill would do on each day; writes nothing."""
    for ds in days:
        yield ds, plan(open_day(ds))


def render_plan(planned: Sequence[tuple[dt.date, list[PlannedStage]]]) -> None:
    """Print a line a day."""
    shown = screen()
    for ds, stages in planned:
        to_run = [stage.name for stage in stages if stage.runs]
        shown.say(f"{ds}  to run: {', '.join(to_run)}" if to_run else f"{ds}  done", indent=12)


def render(done: Sequence[BackfilledDay], asked: int) -> None:
    """Print a row a day, and how to go on; or the same as JSON lines."""
    if log_lines.are_json():
        _log(done, asked)
        return
    shown, numbers, rows = screen(), ("Seconds", "Lists", "Served by"), []
    for day in done:
        figures = day.figures
        listeners = f"{figures.listeners:,}" if figures and figures.listeners is not None else ""
        served = (figures.served_by or "") if figures else ""
        rows.append((str(day.ds), day.state, f"{day.seconds:,.1f}", listeners, served))
    shown.table(("Day", "State", *numbers), rows, right=numbers, wrapped=("Served by",))
    for day in done:
        if day.why:
            shown.say(f"{day.ds}: {day.why}", indent=12)
    if left := asked - len(done):
        plural = "" if left == 1 else "s"
        shown.say(
            f"{left} day{plural} after it not begun: repair the day and run again, or give --keep-going", indent=2
        )


def _log(done: Sequence[BackfilledDay], asked: int) -> None:
    for day in done:
        figures = {"lists": day.figures.listeners, "served_by": day.figures.served_by} if day.figures else {}
        values = {"seconds": round(day.seconds, 1), "why": day.why or None, **figures}
        level = "info" if day.code == 0 else "warning" if day.published else "error"
        log_lines.result("", day.state, level, ds=day.ds, exit_code=day.code, **values)
    log_lines.result("", "backfill ended", done=len(done), left=asked - len(done), exit_code=exit_code(done))
