"""`fuxi daily`: the stages of one serving day in order, skipping what is done and publishing in spite of failures.

    sessionize -> hits -> train -> evaluate -> promote -> recommend -> report

A stage whose marker exists for the day's run record is skipped, so running again resumes where it stopped. When
training or evaluation fails, the champion serves; when the day's input is refused (by
`stages.quality_gate`, for example), the last good sequences do; no later stage needs the hits of earlier lists.
Either way the lists of the day are published and the command ends with exit code 3.

After the report of every `maintain.every_days`th ds the tables are tidied (`jobs.tables.maintenance`).
"""

import contextlib
import datetime as dt
import importlib
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from jobs.day import STAGES, Day, Stage, StageResult, day_lease, lease_uri, run_stage
from jobs.runtime import failures
from jobs.runtime.console import log
from jobs.tables.maintenance import maintain
from pipelines.errors import BusyError, InputError
from pipelines.redact import redact

OPTIONAL_STAGES = ("hits", "train", "evaluate")
"""Stages without which a day is published; those to come are skipped after refused input or failed training."""


@dataclass
class DayResult:
    """What `run_day` did: the result of each finished stage, the message of each failed one, and seconds."""

    ds: dt.date
    stages: dict[str, StageResult] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def degraded(self) -> bool:
        """Whether the lists were published in spite of a failed stage."""
        return bool(self.failures)


def stage_function(name: str) -> Stage:
    """The `run` of a stage; its module is imported now, and only now."""
    return importlib.import_module(f"jobs.stages.{name}").run


def run_day(day: Day, stages: Mapping[str, Stage] | None = None) -> DayResult:
    """Run every stage of one ds that is not done yet.

    Raises InputError if the day cannot be published at all; nothing published before is changed then.
    """
    result = DayResult(day.ds)
    with day_lease(day, "daily"), _saying_what_is_done(result):
        if day.has_record and day.record.sequences_ds:
            day.refresh_inputs = True  # published stale before: try today's input again
        for name, stage in (stages or {name: stage_function(name) for name in STAGES}).items():
            if result.failures.keys() & {"sessionize", "train"} and name in OPTIONAL_STAGES:
                continue
            _run(day, name, stage, result)
        if maintenance_due(day):
            _maintain(day)
    result.seconds = dict(day.timings)
    return result


@contextlib.contextmanager
def _saying_what_is_done(result: DayResult) -> Iterator[None]:
    """Note on an interruption how far the day came."""
    try:
        yield
    except KeyboardInterrupt as stop:
        stop.add_note(f"done: {', '.join(result.stages) or 'nothing'}")
        raise


def _run(day: Day, name: str, stage: Stage, result: DayResult) -> None:
    try:
        done = run_stage(day, name, stage)
    except BusyError:
        raise
    except InputError as error:
        if name not in OPTIONAL_STAGES and not (name == "sessionize" and serve_stale(day)):
            raise
        result.failures[name] = str(error)
    except Exception as error:
        if name not in OPTIONAL_STAGES:
            raise
        if (line := failures.explain(error)) is None:
            log(f"{name} failed", error=traceback.format_exc())
            line = f"{type(error).__name__}: {error}"
        result.failures[name] = redact(line)
    else:
        result.stages[name] = done
        log(f"{name} {'already done' if done.get('skipped') else 'done'}", seconds=round(day.timings[name], 1))
    if name in result.failures:
        if day.has_record:
            day.note_failure(name, result.failures[name])
        log(f"{name} failed; the day goes on without it", error=result.failures[name])


def maintenance_due(day: Day) -> bool:
    """Whether the tables are tidied after this ds."""
    every = day.config.maintain.every_days
    return every > 0 and day.ds.toordinal() % every == 0


def _maintain(day: Day) -> None:
    """Tidy the tables. The day is published already, whatever goes wrong here."""
    try:
        tables = maintain(day.workspace, day.config.maintain, held=lease_uri(day.workspace, day.ds))
    except Exception as error:
        log("maintain failed; the day is published", error=f"{type(error).__name__}: {error}")
        return
    removed = sum(table.removed_files for table in tables), sum(table.removed_bytes for table in tables)
    notes = {table.name: table.note for table in tables if table.note}
    log("maintain done", removed_files=removed[0], removed_bytes=removed[1], **notes)


def serve_stale(day: Day) -> bool:
    """After a refused input: let the last good sequences serve this ds. False if that is off or there are none."""
    earlier = [ds for ds in day.workspace.days_with_sequences() if ds < day.ds]
    if not day.config.recommend.serve_stale or not earlier:
        return False
    day.new_record(parent_sequences=str(earlier[-1]), sequences_ds=str(earlier[-1]))
    return True


def plan(day: Day) -> list[tuple[str, str]]:
    """What a run would do: each stage with "done" or "to run"."""
    stages = [(name, "done" if day.marker(name) and not day.force else "to run") for name in STAGES]
    return stages + [("maintain", "to run")] * maintenance_due(day)
