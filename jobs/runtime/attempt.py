"""The child's side of a supervised command (`jobs.runtime.supervisor`): what an attempt tells to whoever waits for it.

A process that is not supervised tells nobody, and its deaths are errors like others.
"""

import contextlib
import json
import os
import select
import sys
import time
import uuid
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from jobs.runtime import deaths, log_lines
from pipelines import progress

if TYPE_CHECKING:
    from jobs.config import Config
    from jobs.day import Day

EXIT_DIED = 70
"""Of an attempt in which something died; the supervisor decides what the command ends with."""
NOTE_EVERY_S = 0.5


DayStage = tuple[str, str]
"""A ds and a stage of it."""


@dataclass
class Attempt:
    """What the supervisor knows when it begins an attempt; inherited by the child."""

    channel: int = -1  # file descriptor that messages are written to; -1: nobody waits
    begun: frozenset[DayStage] = frozenset()  # by earlier attempts of this command
    given_up: dict[DayStage, str] = field(default_factory=dict)  # died too often: why the day goes on without it
    day: "Day | None" = None  # that is followed
    told_at: float = 0.0
    run: str = field(default_factory=lambda: str(uuid.uuid4()))  # of the command, the same in all its attempts


_attempt = Attempt()


def become(attempt: Attempt) -> None:
    """Be this attempt from now on: in the child, before it does anything."""
    global _attempt
    _attempt = attempt
    progress.listen(_on_progress)


def supervised() -> bool:
    """Whether somebody waits for this process and begins its work again if it dies."""
    return _attempt.channel >= 0


def run() -> str:
    """The id of the run of this command: a UUID, the same in all its attempts."""
    return _attempt.run


def configure(config: "Config") -> None:
    """Tell what the supervisor needs of the configuration, as soon as it is read."""
    watched = config.metrics.prometheus_file or config.metrics.push_gateway or config.lineage.openlineage
    tell(log_format=log_lines.chosen(), watched=bool(watched))


def follow(day: "Day", optional: Collection[str] = ()) -> None:
    """Begin a day: tell how long its stages may be silent and how often they are begun again, and let it know what was.

    optional: stages without which the day is published.
    """
    _attempt.day, ds = day, str(day.ds)
    day.begun = frozenset(stage for of, stage in _attempt.begun if of == ds)
    cluster = day.config.cluster
    submitted = "PYSPARK_GATEWAY_PORT" in os.environ  # then the JVM, and the session in it, are spark-submit's
    retries = 0 if submitted else cluster.stage_retries
    limits = {"stall_minutes": cluster.stall_minutes, "retries": retries, "optional": sorted(optional)}
    tell(ds=ds, **limits)


def given_up(stage: str) -> str | None:
    """Why a stage of the day that is followed is not tried any more; None if it is."""
    return _attempt.given_up.get((str(_attempt.day.ds), stage)) if _attempt.day else None


def watch_engines() -> None:
    """End this attempt when a process of an engine ends that was started by now."""
    if supervised():
        deaths.watch(_leave)


def keep_written() -> None:
    """What engines have written to standard error says why the command fails: it is kept, and named."""
    tell(keep=True)


def end_if_died(error: BaseException) -> None:
    """End this attempt if an error came from a death; return if it did not, or if nobody would begin it again."""
    from jobs.runtime import failures

    if supervised() and failures.explain(error) is None and (died := deaths.what_died(error)) is not None:
        _leave(died)


def ended(code: int) -> None:
    """The work came to its end, and the process will exit with this code."""
    deaths.unwatch()
    tell(code=code)


def tell(**message: Any) -> None:
    """Send a message of at most 4,096 bytes, which the kernel writes whole. Waits where the supervisor is stopped."""
    if supervised():
        with contextlib.suppress(BrokenPipeError):
            select.select([], [_attempt.channel], [])
            os.write(_attempt.channel, json.dumps(message).encode() + b"\n")


def _leave(died: str) -> None:
    """Nothing is tidied up: it is as safe as to be killed, and what works here may never answer again."""
    tell(died=died)
    sys.stderr.flush()
    os._exit(EXIT_DIED)


def _on_progress(event: progress.Event, text: str) -> None:
    now = time.monotonic()
    if event != "on" or now - _attempt.told_at >= NOTE_EVERY_S:
        _attempt.told_at = now if event == "on" else 0.0  # the first note of a stage is never left out
        tell(**{event: text[:200]}, run_id=_attempt.day.run_id if _attempt.day else "")
