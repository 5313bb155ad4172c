"""What long work says of itself while it goes on: the stage that begins, the one that finished, and each piece done.

Nobody listens by default. A supervised command listens (`jobs.runtime.attempt`), so that a stage that does nothing any
more is found; tests do, too.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Literal

Event = Literal["begun", "finished", "on"]
Listener = Callable[[Event, str], None]
"""Called with the event and its text: the name of a stage, or what was done, for example "lists: 3 of 9 listeners"."""

_listeners: list[Listener] = []


def listen(listener: Listener) -> None:
    """Call a function, in whatever thread works, with everything that is told in this process from now on."""
    _listeners.append(listener)


@contextlib.contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """The same while the block runs."""
    listen(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def begun(stage: str) -> None:
    """A stage begins: whatever it published before counts as withdrawn."""
    _tell("begun", stage)


def finished(stage: str) -> None:
    """A stage has published all that it makes."""
    _tell("finished", stage)


def note(text: str = "") -> None:
    """The work goes on. text: what was done, in words; empty leaves what was said before."""
    _tell("on", text)


def amount(what: str, done: int, total: int | None, unit: str) -> None:
    """The work goes on: so much is done."""
    if _listeners:
        note(f"{what}: {done:,}{f' of {total:,}' if total else ''}{f' {unit}' if unit else ''}")


def _tell(event: Event, text: str) -> None:
    for listener in tuple(_listeners):
        listener(event, text)
