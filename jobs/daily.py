"""`fuxi daily`: the stages of one serving day in order, skipping what is done and publishing in spite of failures.

    sessionize -> hits -> train -> evaluate -> promote -> recommend -> report

A stage is skipped if its marker exists for the day's run record and what it was made from has not changed
(`Day.must_run`), so running again resumes where it stopped and redoes what follows from a stage that was redone. When
training or evaluation fails, the champion serves; when the day's input is refused (by
`stages.quality_gate`, for example), the last good sequences do; no later stage needs the hits of earlier lists.
Either way the lists of the day are published and the command ends with exit code 3. So they are where there is no
champion yet: from popularity. A day that cannot be published has a page all the same, which says why.

After the report of every `maintain.every_days`th ds the tables are tidied (`jobs.tables.maintenance`), and what is
older than `retain` keeps is deleted (`jobs.retention`) if that is set.
"""

import datetime as dt
import importlib
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from jobs.day import STAGES, Day, Stage, StageResult, day_lease, lease_uri, noting_at_stop, run_stage, running
from jobs.monitoring import lineage
from jobs.retention import check as check_retention
from jobs.retention import retain
from jobs.runtime import attempt, deaths, failures, log_lines
from jobs.runtime.console import log
from jobs.stage_inputs import STAGE_INPUTS, all_before
from jobs.status import backfill, out_of_date_before, served_by
from jobs.tables.maintenance import maintain
from pipelines import progress
from pipelines.errors import BusyError, InputError
from pipelines.redact import redact

Tidied = TypeVar("Tidied")

OPTIONAL_STAGES = ("hits", "train", "evaluate")
"""Stages without which a day is published; those to come are skipped after refused input or failed training."""

WAIT_S = 2.0
"""Between two looks at a day that is waited for."""


@dataclass
class DayResult:
    """What `run_day` did: the result of each finished stage, the message of each failed one, and seconds."""

    ds: dt.date
    stages: dict[str, StageResult] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)  # what the operator should know of a published day

    @property
    def without_model(self) -> str:
        """Why no model may serve the day, and a baseline does, or popular songs; "" if one may."""
        decided = self.stages.get("promote", {})
        return str(decided["reason"]) if decided.get("chosen", "") is None else ""

    @property
    def baseline_note(self) -> str:
        """Why a baseline serves the day in place of a model that may; "" if none does."""
        decided = self.stages.get("promote", {})
        return str(decided["reason"]) if decided.get("chosen") and decided.get("baseline") else ""

    @property
    def degraded(self) -> bool:
        """Whether the lists were published in spite of a failed stage, or without a model."""
        return bool(self.failures) or bool(self.without_model)


def stage_function(name: str) -> Stage:
    """The `run` of a stage; its module is imported now, and only now."""
    return lineage.traced(name, importlib.import_module(f"jobs.stages.{name}").run)


def run_day(day: Day, stages: Mapping[str, Stage] | None = None) -> DayResult:
    """Run every stage of one ds that is not done yet.

    Raises InputError if the day cannot be published at all; nothing published before is changed then.
    """
    log_lines.follow(day)
    result = DayResult(day.ds)
    check_retention(day.config)
    lineage.check(day.config)
    wait_for_earlier(day)
    before = backfill(day)
    for note in before:
        log("note", level="warning", about=note)
    done = noting_at_stop(lambda: f"done: {', '.join(result.stages) or 'nothing'}")
    with day_lease(day, "daily"), lineage.day_run(day), done:
        day.refresh_inputs = day.refresh_inputs or _is_served_stale(day)  # try today's input again
        stages = stages or {name: stage_function(name) for name in STAGES}
        for name, stage in stages.items():
            if result.failures.keys() & {"sessionize", "train"} and name in OPTIONAL_STAGES:
                if day.must_run(name):  # of a training that was there before
                    day.withdraw(name)
                continue
            try:
                _run(day, name, stage, result)
            except InputError as error:
                _report_refusal(day, name, error, stages)
                raise
        _say_published(day, result)
        if maintenance_due(day):
            _maintain(day)
        if day.config.retain.in_daily:
            _retain(day)
        result.notes = [*before, *other_settings(day), *out_of_date_before(day)]
    result.seconds = dict(day.timings)
    return result


def _say_published(day: Day, result: DayResult) -> None:
    """Which day has lists, how many and of what; of a day on which nothing was left to run, too."""
    lists = result.stages.get("recommend", {}).get("listeners")
    before = all(done.get("skipped") for done in result.stages.values()) and not result.failures
    said = "published before, nothing to do" if before else "published"
    served = served_by(day, result.stages) or ""
    log(said, ds=day.ds, lists=f"{lists or 0:,}", served_by=f"version {served}" if served.isdigit() else served)


def wait_for_earlier(day: Day) -> None:
    """Wait while a run works on a day that this one builds on, or would build on once it is done.

    These are the newest earlier day with shards and those after it. A run of a day before them changes nothing for this
    one, nor does one of a later day: neither waits for the other. Raises BusyError in place of waiting without
    `Day.wait`.
    """
    earlier = [ds for ds in day.workspace.days_with_sequences() if ds < day.ds]
    days = [ds for ds in day.workspace.days("runs") if (earlier[-1] if earlier else dt.date.min) <= ds < day.ds]
    if not (held := running(day.workspace, days)):
        return
    if not day.wait:
        uri, holder = held
        raise BusyError(
            f"ds {day.ds} builds on an earlier day, and {uri} is held by another run ({holder}): wait for it to "
            "end, or run with --wait"
        )
    with day.wait(f"wait for an earlier day than {day.ds}") as show:
        while held := running(day.workspace, days):
            show(held[1])
            time.sleep(WAIT_S)


def _is_served_stale(day: Day) -> bool:
    return day.has_record and bool(day.record.sequences_ds)


def _run(day: Day, name: str, stage: Stage, result: DayResult) -> None:
    try:
        if died := attempt.given_up(name):  # it died too often in earlier attempts of this command
            raise InputError(died)
        done = run_stage(day, name, stage)
    except BusyError:
        raise
    except InputError as error:
        if name not in OPTIONAL_STAGES and not (name == "sessionize" and serve_stale(day)):
            raise
        result.failures[name] = str(error)
    except Exception as error:
        attempt.end_if_died(error)
        if name not in OPTIONAL_STAGES:
            raise
        if (line := failures.explain(error) or deaths.what_died(error)) is None:
            log(f"{name} failed", level="error", error=traceback.format_exc())
            line = f"{type(error).__name__}: {error}"
        result.failures[name] = redact(line)
    else:
        result.stages[name] = done
        if not done.get("skipped"):
            log(f"{name} done", stage=name, seconds=round(day.timings[name], 1))
        elif day.must_run("report"):  # else all are, which one line says
            log(f"{name} already done", stage=name)
    if name in result.failures:
        if day.has_record:
            day.note_failure(name, result.failures[name])
        failure = result.failures[name]
        log(f"{name} failed; the day goes on without it", level="warning", stage=name, error=failure)


def _report_refusal(day: Day, name: str, error: InputError, stages: Mapping[str, Stage]) -> None:
    """Write the page of a day that is not published: what was refused, and why. A page that fails hides no refusal."""
    if isinstance(error, BusyError) or not day.has_record or name == "report":
        return
    day.note_failure(name, str(error))
    try:
        stages["report"](day)
    except Exception as failure:
        log("report failed", level="warning", stage="report", error=redact(f"{type(failure).__name__}: {failure}"))


def maintenance_due(day: Day) -> bool:
    """Whether the tables are tidied after this ds."""
    every = day.config.maintain.every_days
    return every > 0 and day.ds.toordinal() % every == 0


def _maintain(day: Day) -> None:
    """Tidy the tables."""
    tables = _tidied("maintain", lambda: maintain(day.workspace, day.config.maintain, held=_lease_of(day)))
    if tables is not None:
        removed = sum(table.removed_files for table in tables), sum(table.removed_bytes for table in tables)
        notes = {table.name: table.note for table in tables if table.note}
        log("maintain done", stage="maintain", removed_files=removed[0], removed_bytes=removed[1], **notes)


def _retain(day: Day) -> None:
    """Delete what is too old, if this is the newest day."""
    if day.ds != day.workspace.days("runs")[-1]:
        return
    removed = _tidied("retain", lambda: retain(day, held=_lease_of(day)))
    if removed is not None:
        kinds = {kind.kind: f"{kind.files} files, {kind.bytes:,} bytes" for kind in removed if kind.files}
        log("retain done", stage="retain", **kinds)


def _lease_of(day: Day) -> str:
    return lease_uri(day.workspace, day.ds)


def _tidied(name: str, tidy: Callable[[], Tidied]) -> Tidied | None:
    """What tidying gives; None if it failed, which is logged: the day is published already, whatever goes wrong."""
    progress.begun(name)
    try:
        done = tidy()
    except Exception as error:
        failure = redact(f"{type(error).__name__}: {error}")
        log(f"{name} failed; the day is published", level="warning", stage=name, error=failure)
        return None
    progress.finished(name)
    return done


def serve_stale(day: Day) -> bool:
    """After a refused input: let the last good sequences serve this ds.

    False if that is off, if there are none, or if the ds has its own from before it was forced: it stays as it is then.
    """
    if day.marker("sessionize"):
        return False
    earlier = [ds for ds in day.workspace.days_with_sequences() if ds < day.ds]
    if not day.config.recommend.serve_stale or not earlier:
        return False
    day.new_record(parent_sequences=str(earlier[-1]), sequences_ds=str(earlier[-1]))
    return True


def other_settings(day: Day) -> list[str]:
    """What to say of a published day whose configuration is another by now; nothing if it is the same."""
    if day.marker("recommend") is None:
        return []
    kept = [stage.name for stage in plan(day) if not stage.runs]
    stale = {name: settings for name in kept if (settings := day.state(name).settings)}
    if not stale:
        return []
    changed = dict.fromkeys(text for settings in stale.values() for text in settings)
    roots = [name for name in stale if not all_before(name) & stale.keys()]
    redone = [name for name in STAGES if name in roots or all_before(name) & set(roots)]
    commands = ", ".join(f"`fuxi {name} --ds {day.ds} --force`" for name in roots)
    return [
        f"ds {day.ds} is published with other settings ({'; '.join(changed)}) and stays as it is: "
        f"{commands}, then `fuxi daily --ds {day.ds}`, redoes {', '.join(redone)} with them; with --force it "
        "redoes all stages"
    ]


@dataclass(frozen=True)
class PlannedStage:
    """What a run would do with a stage, and why."""

    name: str
    runs: bool
    why: str

    def __str__(self) -> str:
        """One line."""
        return f"{self.name:<12} {'to run' if self.runs else 'done':<7} {self.why}".rstrip()


def plan(day: Day) -> list[PlannedStage]:
    """What a run would do with each stage, without doing it."""
    planned: dict[str, PlannedStage] = {}
    refresh = day.refresh_inputs or _is_served_stale(day)
    for name in STAGES:
        before = [other for other in STAGE_INPUTS[name].after if planned[other].runs]
        planned[name] = PlannedStage(name, *_decision(day, name, before, refresh=refresh))
    due = [PlannedStage("maintain", True, f"every {day.config.maintain.every_days} days")] * maintenance_due(day)
    return [*planned.values(), *due]


def _decision(day: Day, name: str, before: list[str], *, refresh: bool) -> tuple[bool, str]:
    """Whether a stage would run, and why. before: stages it reads that would run."""
    state = day.state(name)
    settings = "; ".join(state.settings)
    unfinished = "was begun again and did not finish" if day.has_finished_before(name) else "has not finished"
    reasons = (
        (not state.finished, unfinished),
        (refresh, "the inputs are frozen anew"),
        (day.force, "--force"),
        (bool(state.stages), f"made before {', '.join(state.stages)} ran again"),
        (day.must_run(name), f"other settings: {settings}"),
        (bool(before), f"follows {', '.join(before)}"),
    )
    for holds, why in reasons:
        if holds:
            return True, why
    return False, f"published with other settings: {settings}" if settings else ""
