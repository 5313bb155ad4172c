"""Events and progress of long work on standard error: lines and bars on a terminal, JSON lines elsewhere."""

import contextlib
import functools
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from jobs.runtime import log_lines
from pipelines import progress as heard

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

POLL_S = 0.5
WIDE = 100
"""Columns of a terminal on which bars have their full length."""

Advance = Callable[..., None]
"""Called with the amount done since the last call; the default is 1."""


def interactive() -> bool:
    """Whether somebody looks: lines are text, on a terminal."""
    return not log_lines.are_json() and sys.stderr.isatty()


def log(event: str, *, level: str = "info", **values: object) -> None:
    """One event: a readable line, or a JSON line (`log_lines`). Standard output is for results alone.

    It counts as progress of the stage. level: info, warning or error. `stage` among the values is not shown in text,
    where the event names it.
    """
    heard.note(event)
    _print(event, level=level, **values)


def _print(event: str, *, level: str = "info", **values: object) -> None:
    if log_lines.are_json():
        log_lines.write(level, "fuxi", event, values)
        return
    details = "  ".join(f"{key} {value}" for key, value in values.items() if key != "stage")
    if interactive():
        console().print(f"[bold]{event}[/bold]  {details}" if details else event, highlight=False)
    else:
        print(f"{event}  {details}".rstrip(), file=sys.stderr, flush=True)


@functools.cache
def console() -> "Console":
    """The shared rich console on standard error."""
    from rich.console import Console

    return Console(stderr=True)


@contextlib.contextmanager
def doing(what: str) -> Iterator[None]:
    """Say what a step is that cannot count what it has done: with a spinner on a terminal, else by a line."""
    heard.note(what)
    if not interactive():
        _print(what)
        yield
        return
    from rich import progress

    columns = (progress.SpinnerColumn(), progress.TextColumn("{task.description}"), progress.TimeElapsedColumn())
    with progress.Progress(*columns, console=console(), transient=True) as shown:
        shown.add_task(f"{what} ...", total=None)
        yield


@contextlib.contextmanager
def progress(
    description: str, total: int | None, *, unit: str = "", remaining: bool = False, done: int = 0
) -> Iterator[Advance]:
    """A bar for a long step: call the yielded function with the amount done since the last call.

    remaining: with an estimate of the time left. done: before this process began. Without a terminal it logs a line at
    most every five seconds and one at the end. Every amount above 0 counts as progress of the stage.
    """
    with _shown(description, total, unit, remaining=remaining, before=done) as show:

        def advance(amount: int = 1) -> None:
            nonlocal done
            done += amount
            if amount:
                heard.amount(description, done, total, unit)
            show(amount)

        yield advance


@contextlib.contextmanager
def _shown(
    description: str, total: int | None, unit: str, *, remaining: bool, before: int
) -> Iterator[Callable[[int], None]]:
    if interactive():
        with bars(unit, remaining=remaining) as bar:
            task = bar.add_task(description, total=total, completed=before)
            yield lambda amount: bar.advance(task, amount)
        return
    started = last = time.monotonic()
    done = before

    def show(amount: int) -> None:
        nonlocal done, last
        done += amount
        if time.monotonic() - last >= 5:
            last = time.monotonic()
            seconds = last - started
            new = done - before
            values: dict[str, Any] = {"done": done, "total": total, "unit": unit, "seconds": round(seconds, 1)}
            if remaining and total and new:
                values["seconds_left"] = round(seconds * (total - done) / new)
            _print(description, **values)

    yield show
    _print(description, done=done, total=total, unit=unit, seconds=round(time.monotonic() - started, 1), finished=True)


@contextlib.contextmanager
def polled_progress(
    description: str,
    poll: Callable[[], tuple[int, int]],
    *,
    unit: str = "",
    remaining: bool = False,
    first: str = "",
    every_s: float | None = None,
) -> Iterator[None]:
    """A bar for work that other processes do meanwhile, shown once the total is above 0. poll: (amount done, total).

    first: what they do before the total is known. every_s: between polls, each of which may be a request (`POLL_S`).
    """
    ended, pause = threading.Event(), every_s or POLL_S

    def follow() -> None:
        with doing(first) if first else contextlib.nullcontext():
            while poll()[1] == 0:
                if ended.wait(pause):
                    return
        shown, total = poll()
        heard.amount(description, 0, total, unit)  # the workers are there
        last = False
        with progress(description, total, unit=unit, remaining=remaining, done=shown) as advance:
            while not last:
                last = ended.wait(pause)
                done = max(shown, min(poll()[0], total))  # work may be repeated after a failure
                advance(done - shown)
                shown = done

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=10)


@contextlib.contextmanager
def waiting(description: str) -> Iterator[Callable[[str], None]]:
    """A bar while something is waited for: call the yielded function with its holder, again and again."""
    with contextlib.ExitStack() as stack:
        shown: dict[str, object] = {}

        def show(holder: str) -> None:
            heard.note(f"{description}: held by {holder}")
            if shown.get("holder") != holder:
                log(description, held_by=holder or "nobody any more")
            if not shown and interactive():
                stack.enter_context(bars()).add_task("waiting", total=None)
            shown["holder"] = holder

        yield show


def bars(unit: str = "", *, remaining: bool = False) -> "Progress":
    """Progress bars in the style of all commands. remaining: with an estimate of the time left."""
    from rich import progress

    columns = [
        progress.SpinnerColumn(),
        progress.TextColumn("{task.description:<18}"),
        progress.BarColumn(bar_width=20 if console().width >= WIDE else 8),
        progress.MofNCompleteColumn(),
        progress.TextColumn(unit),
        progress.TimeElapsedColumn(),
        *([progress.TimeRemainingColumn(), progress.TextColumn("left")] if remaining else []),
    ]
    return progress.Progress(*columns, console=console())
