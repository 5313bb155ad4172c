"""How the days of a workspace stand, and what a re-run of an old day leaves out of date."""

import datetime as dt
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from jobs.cli import cli
from jobs.commands.status import run
from jobs.config import Config, load_config
from jobs.daily import run_day, wait_for_earlier
from jobs.day import STAGES, Day, Stage, run_stage
from jobs.runtime.console import waiting
from jobs.status import backfill, out_of_date
from pipelines import leases
from pipelines.errors import BusyError, InputError

from .conftest import Deployment
from .test_daily import make_day, publish_sequences

ONE, TWO, THREE = (dt.date(2026, 3, day) for day in (2, 3, 4))


def stages(shards: str, version: str = "1") -> dict[str, Stage]:
    """Stages that return what status looks at. version: of the model that a day trains and publishes with."""

    def of(name: str) -> Stage:
        def stage(day: Day) -> dict[str, Any]:
            earlier = [ds for ds in day.workspace.days_with_sequences() if ds < day.ds]
            parent = day.at(earlier[-1]).result("sessionize") if earlier else None
            if name == "sessionize":
                if not day.has_record or day.refresh_inputs:
                    day.new_record(parent_sequences=str(earlier[-1]) if earlier else None)
                publish_sequences(day)
                return {"shards": shards} | ({"parent_shards": parent["shards"]} if parent else {})
            if name == "train":
                before = day.at(earlier[-1]).result("recommend") if earlier else None
                day.update_record(parent_model=before["model_version"] if before else "")
            return {"model_version": version}

        return stage

    return {name: of(name) for name in STAGES}


def workspace_of(folder: Path) -> Config:
    return load_config(overrides=[f"workspace={folder}/w"], environment={})


@pytest.fixture
def three_days(tmp_path: Path) -> Path:
    for number, ds in enumerate((ONE, TWO, THREE), start=1):
        run_day(make_day(tmp_path, ds), stages(f"shards-{number}", version=f"{number}"))
    return tmp_path


def test_finished_days_are_published_and_up_to_date(three_days: Path) -> None:
    days = run(workspace_of(three_days))
    assert [(day.ds, day.state, day.done) for day in days] == [(ds, "published", STAGES) for ds in (ONE, TWO, THREE)]
    assert not any(day.stale or day.missing or day.out_of_date for day in days)


def test_an_old_day_run_again_to_the_same_leaves_nothing_out_of_date(three_days: Path) -> None:
    result = run_day(make_day(three_days, ONE, force=True), stages("shards-1"))
    assert not result.notes and not any(day.out_of_date for day in run(workspace_of(three_days)))


def test_what_an_old_day_run_again_leaves_out_of_date_is_said_by_it_by_status_and_by_the_next_run(
    three_days: Path,
) -> None:
    result = run_day(make_day(three_days, ONE, force=True), stages("others", version="9"))
    _, two, three = run(workspace_of(three_days))
    assert two.out_of_date == (
        f"built on ds {ONE}, which has other histories now",
        f"trained from model 1; model 9 serves ds {ONE}",
    )
    assert three.out_of_date == ()
    assert f"ds {TWO} is out of date: built on ds {ONE}, which has other histories now; trained" in result.notes[0]
    assert run_day(make_day(three_days, THREE), stages("shards-3")).notes[0].startswith(f"ds {TWO} is out of date: ")
    run_day(make_day(three_days, TWO, refresh_inputs=True), stages("shards-2", version="2"))
    assert list(out_of_date(make_day(three_days, TWO))) == []


def test_status_names_what_is_stale_not_run_and_running_as_a_table_and_as_json(three_days: Path) -> None:
    run_stage(make_day(three_days, TWO, force=True), "train", stages("x")["train"])
    four = THREE + dt.timedelta(1)
    run_stage(make_day(three_days, four), "sessionize", stages("shards-4")["sessionize"])
    with leases.lease(make_day(three_days, THREE).path("daily.lock"), purpose="fuxi daily"):
        days = run(workspace_of(three_days))
        printed = CliRunner().invoke(cli, ["status", f"{three_days}/w"]).output
    assert [day.state for day in days] == ["published", "published", "running", "unfinished"]
    assert days[1].stale == ("evaluate", "promote", "report")
    assert days[3].done == ("sessionize",) and days[3].missing == STAGES[1:]
    assert "fuxi daily, process" in days[2].run_by and f"{THREE}: fuxi daily, process" in printed
    assert all(len(line) <= 80 or ":" in line for line in printed.splitlines())
    found = json.loads(CliRunner().invoke(cli, ["status", f"{three_days}/w", "--json"]).output)
    assert [day["ds"] for day in found] == [str(ONE), str(TWO), str(THREE), str(four)]


def test_a_folder_that_is_no_workspace_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a workspace"):
        run(load_config(overrides=[f"workspace={tmp_path}"], environment={}))


def test_a_day_in_the_middle_and_one_before_the_first_say_what_becomes_of_the_days_after(tmp_path: Path) -> None:
    for ds in (ONE, THREE):
        run_day(make_day(tmp_path, ds), stages(f"{ds}"))
    (middle,) = backfill(make_day(tmp_path, TWO))
    assert middle.startswith(f"ds {TWO} is older than ds {THREE}: it is built on ds {ONE}; the days after it")
    (first,) = backfill(make_day(tmp_path, ONE - dt.timedelta(1)))
    assert f"is older than ds {ONE} and 1 later: it is built from all logs that landed before it" in first
    assert run_day(make_day(tmp_path, TWO), stages("between")).notes[0] == middle
    assert not backfill(make_day(tmp_path, TWO)) and not backfill(make_day(tmp_path, THREE + dt.timedelta(1)))


def test_a_day_is_refused_beside_an_earlier_one_that_it_builds_on_or_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for ds in (ONE, TWO):
        run_day(make_day(tmp_path, ds), stages(f"{ds}"))
    three = make_day(tmp_path, THREE)
    with leases.lease(make_day(tmp_path, ONE).path("daily.lock"), purpose="a backfill"):
        wait_for_earlier(three)  # nothing of that day is read
        with pytest.raises(BusyError, match=rf"ds {TWO} builds on an earlier day.*daily.lock is held .*--wait"):
            run_day(make_day(tmp_path, TWO), stages("x"))
    with leases.lease(make_day(tmp_path, THREE).path("daily.lock"), purpose="a later day"):
        wait_for_earlier(make_day(tmp_path, TWO))
    lock = leases.lease(make_day(tmp_path, TWO).path("daily.lock"), purpose="yesterday")
    lock.__enter__()
    waited: list[float] = []

    def ends(seconds: float) -> None:
        waited.append(seconds)
        lock.__exit__(None, None, None)

    monkeypatch.setattr("jobs.daily.time.sleep", ends)
    wait_for_earlier(make_day(tmp_path, THREE, wait=waiting))
    assert len(waited) == 1


def test_what_a_day_read_published_and_took(deployment: Callable[..., Deployment]) -> None:
    """The metric is that of the model that serves, be it the challenger or the champion."""
    house = deployment("gates.metric=hr_30")
    measured = {"challenger": 0.3, "champion": 0.4, "popularity": 0.1, "item-knn": 0.2}
    for ds, chosen in ((ONE, "4"), (TWO, "3"), (THREE, None)):
        day = house.day(ds)
        day.new_record(chosen_model=chosen)
        day.finish(
            "sessionize", {"rows_read": 100, "accepted": 90, "rejected": {"null_item_id": 6, "null_user_id": 2}}, 3.0
        )
        day.finish("train", {"model_version": "4"}, 20.0)
        house.evaluated(ds, **measured)
        if ds != THREE:
            day.finish("recommend", {"listeners": 55, "model_version": chosen}, 4.0)
    one, two, three = (day.figures for day in run(house.config))
    assert one and two and three
    assert (one.rows, one.accepted, one.rejected, one.listeners, one.served_by) == (100, 90, 8, 55, "4")
    assert (one.value, two.value, three.value, three.served_by) == (0.3, 0.4, None, None)
    assert one.best_baseline == ("item-knn", 0.2) and one.seconds["train"] == 20.0
    assert [day.ds for day in run(house.config, days=2)] == [TWO, THREE]
    printed = CliRunner().invoke(cli, ["status", house.config.workspace], env={"COLUMNS": "80"})
    assert all(len(line) <= 80 for line in printed.output.splitlines() if line.startswith(" "))
