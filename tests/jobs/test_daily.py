"""The graph of a day: skipping, resuming, locking, and publishing in spite of failures.

The stages here are plain functions that note that they ran; tests/e2e runs the real ones.
"""

import datetime as dt
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from click.testing import CliRunner

from jobs.cli import cli
from jobs.config import MaintainConfig, load_config
from jobs.daily import DayResult, other_settings, plan, run_day
from jobs.day import STAGES, Day, Stage, open_day
from jobs.stage_inputs import all_before
from pipelines import delta_tables, storage
from pipelines.errors import BusyError, InputError
from tests.log_lines import said as shown

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


def make_day(tmp_path: Path, ds: dt.date = DS, settings: tuple[str, ...] = (), **options: Any) -> Day:
    overrides = [f"workspace={tmp_path}/w", "sequences.buckets=8", *settings]
    return open_day(load_config(overrides=overrides, environment={}), ds, **options)


def run_as_planned(recorder: Recorder, day: Day) -> tuple[list[str], DayResult]:
    """The stages that ran; they are those that a dry run names."""
    planned = [stage.name for stage in plan(day) if stage.runs]
    recorder.calls.clear()
    result = run_day(day, recorder.stages())
    assert recorder.calls == planned
    return recorder.calls, result


def below(stage: str) -> list[str]:
    return [name for name in STAGES if name == stage or stage in all_before(name)]


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


@pytest.mark.parametrize("flag", ["force", "refresh_inputs"])
def test_a_published_day_whose_input_is_refused_when_it_is_forced_stays_as_it_is(tmp_path: Path, flag: str) -> None:
    recorder = Recorder()
    publish_sequences(make_day(tmp_path, DS - dt.timedelta(2)))
    run_day(make_day(tmp_path), recorder.stages())
    before = make_day(tmp_path).record
    recorder.failing["sessionize"] = InputError("too few plays")
    with pytest.raises(InputError, match="too few plays"):
        run_day(make_day(tmp_path, force=flag == "force", refresh_inputs=flag != "force"), recorder.stages())
    assert make_day(tmp_path).record == before
    assert run_as_planned(recorder, make_day(tmp_path))[0] == []


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
    states = plan(make_day(tmp_path))
    assert [stage.name for stage in states] == list(STAGES)
    assert [stage.runs for stage in states] == [False] * 4 + [True] * 3
    assert str(states[4]) == "promote      to run  has not finished"


def test_a_day_whose_training_failed_is_judged_anew_once_it_is_trained(tmp_path: Path) -> None:
    """It used to say that promote was done, and to serve the old model with exit code 0."""
    recorder = Recorder()
    recorder.failing["train"] = RuntimeError("out of memory")
    assert run_day(make_day(tmp_path), recorder.stages()).degraded
    again, result = run_as_planned_after_failure(recorder, tmp_path)
    assert again == ["train"] and result.degraded  # nothing else has changed
    recorder.failing.clear()
    calls, result = run_as_planned(recorder, make_day(tmp_path))
    assert calls == ["train", "evaluate", "promote", "recommend", "report"] and not result.degraded
    assert run_as_planned(recorder, make_day(tmp_path))[0] == []


def run_as_planned_after_failure(recorder: Recorder, tmp_path: Path) -> tuple[list[str], DayResult]:
    recorder.calls.clear()
    return recorder.calls, run_day(make_day(tmp_path), recorder.stages())


def test_settings_that_made_training_fail_are_put_right_and_the_day_is_published_with_them(tmp_path: Path) -> None:
    recorder, wrong = Recorder(), ("train.lr=9",)
    recorder.failing["train"] = InputError("the training loss is nan: lower train.lr")
    assert run_day(make_day(tmp_path, settings=wrong), recorder.stages()).degraded
    recorder.failing.clear()
    assert not other_settings(make_day(tmp_path))  # for all stages that read it will run
    calls, result = run_as_planned(recorder, make_day(tmp_path))
    assert calls == ["train", "evaluate", "promote", "recommend", "report"] and not result.notes


def test_another_reason_of_a_failure_is_in_the_report_and_changes_nothing_else(tmp_path: Path) -> None:
    recorder = Recorder()
    recorder.failing["train"] = RuntimeError("out of memory")
    run_day(make_day(tmp_path), recorder.stages())
    recorder.failing["train"] = RuntimeError("no disk")
    assert run_as_planned_after_failure(recorder, tmp_path)[0] == ["train", "report"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_that_is_run_again_makes_everything_below_it_run_again(tmp_path: Path, stage: str) -> None:
    from jobs.day import run_stage

    recorder = Recorder()
    run_day(make_day(tmp_path), recorder.stages())
    run_stage(make_day(tmp_path, force=True), stage, recorder.stages()[stage])
    assert run_as_planned(recorder, make_day(tmp_path))[0] == below(stage)[1:]
    assert run_as_planned(recorder, make_day(tmp_path))[0] == []


@pytest.mark.parametrize(
    ("setting", "first"),
    [
        ("logs.columns={user_id: listener}", "sessionize"),
        ("train.epochs=9", "train"),
        ("evaluate.max_listeners=9", "evaluate"),
        ("gates.margin=0.5", "promote"),
    ],
)
def test_settings_of_a_day_without_lists_may_change_and_their_stages_run_again(
    tmp_path: Path, setting: str, first: str
) -> None:
    recorder = Recorder()
    recorder.failing["recommend"] = InputError("the lists failed the audit")
    with pytest.raises(InputError, match="audit"):
        run_day(make_day(tmp_path), recorder.stages())
    recorder.failing.clear()
    day = make_day(tmp_path, settings=(setting,))
    why = {stage.name: stage.why for stage in plan(day)}
    assert why[first].startswith(f"other settings: {setting.partition('=')[0]}: ")
    assert run_as_planned(recorder, day)[0] == below(first)


def test_settings_of_a_published_day_are_named_and_change_nothing(tmp_path: Path) -> None:
    recorder = Recorder()
    run_day(make_day(tmp_path), recorder.stages())
    settings = ("train.epochs=9", "recommend.k=20", "cluster.max_failures=1", "recommend.max_top_share=0.5")
    calls, result = run_as_planned(recorder, make_day(tmp_path, settings=settings))
    assert calls == [] and not result.degraded
    (note,) = result.notes
    assert "published with other settings (recommend.k: 30 -> 20; train.epochs: 5 -> 9) and stays" in note
    assert f"`fuxi hits --ds {DS} --force`, `fuxi train --ds {DS} --force`, then `fuxi daily --ds {DS}`, redoes" in note
    assert "redoes hits, train, evaluate, promote, recommend, report with them" in note
    assert not run_day(make_day(tmp_path), recorder.stages()).notes


def test_a_forced_stage_that_was_refused_leaves_its_day_as_published_and_a_killed_one_is_run_again(
    tmp_path: Path,
) -> None:
    from jobs.day import run_stage

    recorder = Recorder()
    run_day(make_day(tmp_path), recorder.stages())
    for error, again in ((InputError("refused"), []), (RuntimeError("killed"), below("evaluate"))):
        recorder.failing["evaluate"] = error
        with pytest.raises(type(error)):
            run_stage(make_day(tmp_path, force=True), "evaluate", recorder.stages()["evaluate"])
        recorder.failing.clear()
        assert run_as_planned(recorder, make_day(tmp_path))[0] == again


def test_markers_of_a_release_before_they_named_inputs_count_until_a_stage_above_runs_again(tmp_path: Path) -> None:
    recorder = Recorder()
    run_day(make_day(tmp_path), recorder.stages())
    day = make_day(tmp_path, settings=("train.epochs=9",))
    for name in STAGES:
        marker = storage.read_json(day.path(f"{name}.json"))
        del marker["inputs"], marker["digest"]
        storage.write_json(day.path(f"{name}.json"), marker | {"finished_at": "2026-03-02T01:00:00+00:00"})
    calls, result = run_as_planned(recorder, day)
    assert calls == [] and not result.notes  # with which settings they were made is not known
    Path(day.path("train.json")).unlink()
    assert run_as_planned(recorder, day)[0] == below("train")


def test_a_ds_in_the_future_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="in the future"):
        make_day(tmp_path, dt.date.today() + dt.timedelta(days=2))


def test_the_tables_are_maintained_on_sundays_after_the_report(tmp_path: Path, capfd: Any) -> None:
    recorder, sunday = Recorder(), dt.date(2026, 3, 1)
    run_day(make_day(tmp_path), recorder.stages())
    assert "maintain" not in capfd.readouterr().err and "maintain" not in {
        stage.name for stage in plan(make_day(tmp_path))
    }
    day = make_day(tmp_path, sunday)
    for number in range(20):
        delta_tables.append(
            day.workspace.metrics,
            pa.table({"n": [number]}),
            base=delta_tables.version(day.workspace.metrics),
            transaction=("test", number),
            metadata={},
        )
    assert str(plan(day)[-1]) == "maintain     to run  every 7 days"
    run_day(day, recorder.stages())
    lines = capfd.readouterr().err.splitlines()
    assert '"published"' in lines[-2] and "maintain done" in lines[-1]
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


def test_a_day_without_any_model_is_published_and_degraded(tmp_path: Path) -> None:
    recorder, reason = Recorder(), "the challenger failed: beats_popularity"
    stages = recorder.stages() | {"promote": lambda day: {"chosen": None, "reason": reason}}
    for _ in range(2):  # the second time everything is done already
        result = run_day(make_day(tmp_path), stages)
        assert result.degraded and result.without_model == reason
    assert not run_day(make_day(tmp_path / "b"), recorder.stages() | {"promote": lambda day: {"chosen": "3"}}).degraded


@pytest.mark.parametrize(
    ("chosen", "code", "said"),
    [
        ("3", 0, "fuxi: the challenger passed; lists of EASE serve"),
        (None, 3, "fuxi: published lists of EASE for everyone: the challenger passed; lists of EASE serve"),
    ],
)
def test_a_baseline_that_serves_in_place_of_a_model_that_may_is_said_and_nothing_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: str | None, code: int, said: str
) -> None:
    decided = {"chosen": chosen, "baseline": "ease", "reason": "the challenger passed; lists of EASE serve"}
    stages = Recorder().stages() | {"promote": lambda day: decided, "report": lambda day: {"uri": "page"}}
    monkeypatch.setattr("jobs.daily.stage_function", stages.__getitem__)
    day = make_day(tmp_path)
    result = CliRunner().invoke(cli, ["daily", "--ds", str(day.ds), "--workspace", day.workspace.uri])
    assert (result.exit_code, shown(result.stderr)[-1]) == (code, said), result.stderr


@pytest.mark.parametrize("refused", ["promote", "recommend"])
def test_a_day_that_is_refused_has_a_page_that_says_why_and_names_no_stage_that_was_not_begun(
    tmp_path: Path, refused: str
) -> None:
    from jobs.stages import report

    recorder = Recorder()
    recorder.failing[refused] = InputError("the bound is broken: change it")
    stages = recorder.stages() | {"report": report.run}
    day = make_day(tmp_path)
    for _ in range(2):
        with pytest.raises(InputError, match="the bound is broken"):
            run_day(make_day(tmp_path), stages)
        page = Path(day.workspace.report(DS)).read_text()
        assert f"The stage {refused} did not finish. The bound is broken: change it." in page
        assert f"Nothing is published for {DS}" in page and page.count("did not finish") == 1
    recorder.failing.clear()
    assert not run_day(make_day(tmp_path), stages).degraded
    assert "did not finish" not in Path(day.workspace.report(DS)).read_text()


def test_a_page_that_fails_hides_no_refusal(tmp_path: Path) -> None:
    recorder = Recorder()
    recorder.failing = {"recommend": InputError("the audit failed"), "report": RuntimeError("no template")}
    with pytest.raises(InputError, match="the audit failed"):
        run_day(make_day(tmp_path), recorder.stages())
