"""The graph of a day: skipping, resuming, locking, and publishing in spite of failures.

The stages here are plain functions that note that they ran; tests/e2e runs the real ones.
"""

import datetime as dt
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from jobs.config import MaintainConfig, load_config
from jobs.daily import plan, run_day
from jobs.day import STAGES, Day, Stage, open_day
from pipelines import delta_tables, storage
from pipelines.errors import BusyError, InputError

DS = dt.date(2026, 3, 2)


class Recorder:
    """Stages that note their calls; `failing` maps a stage to the error it raises."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.failing: dict[str, Exception] = {}

    def stages(self) -> dict[str, Stage]:
        return {name: self._stage(name) for name in STAGES}

    def _stage(self, name: str) -> Stage:
        def run(day: Day) -> dict[str, Any]:
            if name == "sessionize" and (day.refresh_inputs or not day.has_record):
                day.new_record()
            self.calls.append(name)
            if name in self.failing:
                raise self.failing[name]
            return {"calls": len(self.calls)}

        return run


def make_day(tmp_path: Path, ds: dt.date = DS, **options: Any) -> Day:
    overrides = [f"workspace={tmp_path}/w", "sequences.buckets=8"]
    return open_day(load_config(overrides=overrides, environment={}), ds, **options)


def publish_sequences(day: Day) -> None:
    storage.write_json(storage.join(day.workspace.sequences(day.ds), "_manifest.json"), {})


def test_every_stage_runs_once_in_order_and_never_again(tmp_path: Path) -> None:
    recorder = Recorder()
    first = run_day(make_day(tmp_path), recorder.stages())
    assert recorder.calls == list(STAGES)
    assert not first.degraded
    second = run_day(make_day(tmp_path), recorder.stages())
    assert recorder.calls == list(STAGES)
    assert all(result["skipped"] for result in second.stages.values())


def test_a_run_that_died_resumes_at_the_stage_that_was_not_done(tmp_path: Path) -> None:
    recorder = Recorder()
    recorder.failing["recommend"] = RuntimeError("machine lost")
    with pytest.raises(RuntimeError, match="machine lost"):
        run_day(make_day(tmp_path), recorder.stages())
    recorder.failing.clear()
    recorder.calls.clear()
    run_day(make_day(tmp_path), recorder.stages())
    assert recorder.calls == ["recommend", "report"]


def test_force_runs_everything_and_refresh_invalidates_everything(tmp_path: Path) -> None:
    recorder = Recorder()
    run_day(make_day(tmp_path), recorder.stages())
    run_day(make_day(tmp_path, force=True), recorder.stages())
    run_day(make_day(tmp_path, refresh_inputs=True), recorder.stages())
    assert recorder.calls == list(STAGES) * 3


@pytest.mark.parametrize("failing", ["hits", "train", "evaluate"])
def test_the_day_is_published_when_hits_training_or_evaluation_fail(tmp_path: Path, failing: str) -> None:
    recorder = Recorder()
    recorder.failing[failing] = RuntimeError("out of memory")
    result = run_day(make_day(tmp_path), recorder.stages())
    assert result.failures == {failing: "RuntimeError: out of memory"}
    assert {"promote", "recommend", "report"} <= result.stages.keys()
    assert ("evaluate" in recorder.calls) == (failing != "train")


def test_refused_input_is_served_from_the_last_good_sequences_and_tried_again(tmp_path: Path) -> None:
    recorder = Recorder()
    publish_sequences(make_day(tmp_path, DS - dt.timedelta(2)))
    recorder.failing["sessionize"] = InputError("logs/ds=2026-03-01 is not there")
    day = make_day(tmp_path)
    result = run_day(day, recorder.stages())
    assert result.degraded
    assert day.stale_days == 2
    assert not {"hits", "train"} & set(recorder.calls)
    assert recorder.calls[-2:] == ["recommend", "report"]
    recorder.failing.clear()
    recorder.calls.clear()
    day = make_day(tmp_path)
    assert not run_day(day, recorder.stages()).degraded
    assert recorder.calls == list(STAGES)
    assert day.stale_days == 0


def test_refused_input_is_final_without_earlier_sequences_or_when_switched_off(tmp_path: Path) -> None:
    recorder = Recorder()
    recorder.failing["sessionize"] = InputError("no logs")
    with pytest.raises(InputError, match="no logs"):
        run_day(make_day(tmp_path), recorder.stages())
    publish_sequences(make_day(tmp_path, DS - dt.timedelta(1)))
    day = make_day(tmp_path)
    off = day.config.recommend.model_copy(update={"serve_stale": False})
    day.config = day.config.model_copy(update={"recommend": off})
    with pytest.raises(InputError, match="no logs"):
        run_day(day, recorder.stages())
    assert "recommend" not in recorder.calls


def test_a_second_run_of_the_same_ds_at_the_same_time_is_refused(tmp_path: Path) -> None:
    recorder = Recorder()
    stages = recorder.stages()

    def second(day: Day) -> dict[str, Any]:
        with pytest.raises(BusyError, match="held by another run"):
            run_day(make_day(tmp_path), recorder.stages())
        return {}

    result = run_day(make_day(tmp_path), {**stages, "train": second})
    assert recorder.calls == [name for name in STAGES if name != "train"]
    assert not result.degraded


def test_a_plan_says_what_is_left(tmp_path: Path) -> None:
    recorder = Recorder()
    recorder.failing["promote"] = RuntimeError("lost")
    with pytest.raises(RuntimeError):
        run_day(make_day(tmp_path), recorder.stages())
    states = dict(plan(make_day(tmp_path)))
    assert [states[name] for name in STAGES] == ["done"] * 4 + ["to run"] * 3


def test_a_ds_in_the_future_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="in the future"):
        make_day(tmp_path, dt.date.today() + dt.timedelta(days=2))


def test_the_tables_are_maintained_on_sundays_after_the_report(tmp_path: Path, capfd: Any) -> None:
    recorder, sunday = Recorder(), dt.date(2026, 3, 1)
    run_day(make_day(tmp_path), recorder.stages())
    assert "maintain" not in capfd.readouterr().err and "maintain" not in dict(plan(make_day(tmp_path)))
    day = make_day(tmp_path, sunday)
    for number in range(20):
        delta_tables.append(
            day.workspace.metrics,
            pa.table({"n": [number]}),
            base=delta_tables.version(day.workspace.metrics),
            transaction=("test", number),
            metadata={},
        )
    assert plan(day)[-1] == ("maintain", "to run")
    run_day(day, recorder.stages())
    lines = capfd.readouterr().err.splitlines()
    assert "report done" in lines[-2] and "maintain done" in lines[-1]
    table = delta_tables.open_table(day.workspace.metrics)
    assert table is not None and len(table.file_uris()) == 1


def test_a_day_is_published_whatever_goes_wrong_in_maintenance(tmp_path: Path, capfd: Any) -> None:
    day = make_day(tmp_path, dt.date(2026, 3, 1))
    (Path(day.workspace.metrics) / "_delta_log").mkdir(parents=True)
    (Path(day.workspace.metrics) / "_delta_log" / f"{0:020}.json").write_text("no JSON")
    result = run_day(day, Recorder().stages())
    assert not result.degraded and list(result.stages) == list(STAGES)
    assert "maintain failed; the day is published" in capfd.readouterr().err.splitlines()[-1]


def test_maintenance_can_be_switched_off(tmp_path: Path, capfd: Any) -> None:
    day = make_day(tmp_path, dt.date(2026, 3, 1))
    day.config = day.config.model_copy(update={"maintain": MaintainConfig(every_days=0)})  # type: ignore[call-arg]
    run_day(day, Recorder().stages())
    assert "maintain" not in capfd.readouterr().err
