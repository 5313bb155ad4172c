"""One run of `fuxi daily` with at most one disturbance, watched by its log lines."""

import contextlib
import queue
import re
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import IO

from benchmarks.lib.chaos import processes
from benchmarks.lib.chaos.disturbances import OUTAGE, READ_ONLY, STAGES, TWIN, WAITING_TWIN, Disturbance
from benchmarks.lib.chaos.places import Place
from benchmarks.lib.processes import log_message

OUTAGE_S = 20.0
_ENDED = re.compile(rf"({'|'.join(STAGES)}) (?:done|already done|failed.*)")
_POLL_S = 0.05


@dataclass
class Run:
    """What became of a run."""

    happened: list[Disturbance] = field(default_factory=list)
    code: int = 0  # negative: the signal that ended the driver
    seconds: float = 0.0
    hung: bool = False  # ended at the limit
    traced: bool = False  # it ended by itself with a trace instead of one line
    stages: dict[str, float] = field(default_factory=dict)  # seconds
    wrong: list[str] = field(default_factory=list)  # what must not be
    output: list[str] = field(default_factory=list)

    @property
    def outcome(self) -> str:
        """In words, for the table."""
        ended = f"killed by signal {-self.code}" if self.code < 0 else f"exit code {self.code}"
        return "hung" if self.hung else ended

    def __str__(self) -> str:
        """One line: what happened, and how it ended."""
        what = ", ".join(map(str, self.happened)) or "undisturbed"
        return f"{what}: {self.outcome}{', with a trace' if self.traced else ''}, {self.seconds:.0f} s"


class Watched:
    """A started `fuxi daily`: the lines of its standard error, and the stage that it is in."""

    def __init__(self, place: Place, ds: str, *options: str) -> None:
        command = [sys.executable, "-m", "jobs.cli", "daily", "--ds", ds, "--config", str(place.config_file), *options]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=place.environment()
        )
        self.waits = "--wait" in options
        self.began, self.stage, self.stage_began = time.monotonic(), STAGES[0], time.monotonic()
        self.stages: dict[str, float] = {}
        self.lines: list[str] = []
        self._read: queue.SimpleQueue[str] = queue.SimpleQueue()
        assert self.process.stdout
        threading.Thread(target=self._pump, args=(self.process.stdout,), daemon=True).start()

    def _pump(self, stream: IO[str]) -> None:
        with contextlib.suppress(ValueError):
            for line in stream:
                self._read.put(line)

    def follow(self) -> int | None:
        """Take in what was printed since; returns the exit code once it has ended."""
        code = self.process.poll()
        while not self._read.empty():
            self._take(self._read.get().rstrip())
        return code

    def _take(self, line: str) -> None:
        self.lines.append(line)
        if ended := _ENDED.fullmatch(log_message(line)):
            now = time.monotonic()
            self.stages[ended[1]] = now - self.stage_began
            after = STAGES.index(ended[1]) + 1
            self.stage, self.stage_began = (*STAGES, "")[after], now

    def is_past(self, disturbance: Disturbance) -> bool:
        """Whether the stage of a disturbance is over."""
        return (*STAGES, "").index(self.stage) > STAGES.index(disturbance.stage)

    def is_due(self, disturbance: Disturbance, usual: Mapping[str, float]) -> bool:
        """Whether the moment of a disturbance has come or has passed. usual: seconds of each stage."""
        if self.stage != disturbance.stage:
            return self.is_past(disturbance)
        return time.monotonic() - self.stage_began >= disturbance.share * usual.get(disturbance.stage, 0.0)


def run(
    place: Place, ds: str, pending: list[Disturbance] | None = None, *, usual: Mapping[str, float], limit_s: float
) -> Run:
    """Run a day, disturb it, and wait for its end.

    pending: what is to happen, in order; what has happened, or has missed its
    moment, is taken out, and what is left is for the next run. usual:
    seconds of each stage of an undisturbed run. After `limit_s` seconds everything of the run is killed.
    """
    result, known, todo = Run(), processes.children(), pending if pending is not None else []
    with contextlib.ExitStack() as spell:
        if todo and todo[0].what == READ_ONLY:
            spell.enter_context(place.read_only())
            result.happened.append(todo.pop(0))
            todo = []
        watched = Watched(place, ds)
        twins: list[Watched] = []
        while (code := watched.follow()) is None:
            if time.monotonic() - watched.began > limit_s:
                result.hung = True
                processes.outliving(known, seconds=0)
                code = watched.process.wait()
                break
            if todo and todo[0].what != READ_ONLY and watched.is_due(todo[0], usual):
                happened, past = _disturb(place, ds, todo[0], watched, spell, twins), watched.is_past(todo[0])
                result.happened += todo[:1] * happened
                del todo[: happened or past]
            time.sleep(_POLL_S)
        result.code, result.seconds = code, time.monotonic() - watched.began
        for twin in twins:
            result.wrong += _end_of_twin(twin, limit_s)
    time.sleep(_POLL_S)
    watched.follow()
    result.stages, result.output = watched.stages, watched.lines
    result.traced = code > 0 and any("Traceback" in line for line in watched.lines)
    return result


def _disturb(
    place: Place,
    ds: str,
    disturbance: Disturbance,
    watched: Watched,
    spell: contextlib.ExitStack,
    twins: list[Watched],
) -> bool:
    """Do it; False if there is no victim, perhaps not yet."""
    if disturbance.is_kill:
        found = processes.victims(watched.process.pid, disturbance.what)
        return bool(found) and processes.kill(found[int(disturbance.share * 1000) % len(found)])
    if disturbance.what in (TWIN, WAITING_TWIN):
        twins.append(Watched(place, ds, *["--wait"] * (disturbance.what == WAITING_TWIN)))
    elif disturbance.what == OUTAGE:
        place.outage(OUTAGE_S)
    else:
        spell.enter_context(place.full())
    return True


def _end_of_twin(twin: Watched, limit_s: float) -> list[str]:
    """What is wrong with a second run: it must be refused in one line, or wait and find the day done."""
    try:
        code = twin.process.wait(limit_s)
    except subprocess.TimeoutExpired:
        twin.process.kill()
        return ["the second run hung"]
    twin.follow()
    time.sleep(0.2)
    twin.follow()
    refused = any("is held by another run" in line for line in twin.lines)
    if code == 0 or (code == 2 and refused and not twin.waits):
        return []
    return [f"the second run ended with exit code {code}: {' '.join(twin.lines[-1:])[:200]}"]
