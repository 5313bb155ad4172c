"""`fuxi backfill`: days in order, skipping what is done, stopping where one is refused, one backfill at a time."""

import datetime as dt
import functools
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from jobs.cli import cli
from jobs.commands import backfill
from jobs.daily import DayResult, run_day
from jobs.day import STAGES, Day
from pipelines import leases
from pipelines.errors import BusyError, InputError

from ..test_daily import Recorder, make_day

ONE, TWO, THREE = (dt.date(2026, 3, day) for day in (2, 3, 4))
DAYS = [ONE, TWO, THREE]


def runner(began: list[dt.date], recorders: dict[dt.date, Recorder]) -> Callable[[Day], DayResult]:
    def run_one(day: Day) -> DayResult:
        began.append(day.ds)
        return run_day(day, recorders.setdefault(day.ds, Recorder()).stages())

    return run_one


def test_days_run_in_order_and_what_is_done_is_skipped(tmp_path: Path) -> None:
    began: list[dt.date] = []
    recorders: dict[dt.date, Recorder] = {}
    run = functools.partial(backfill.run, DAYS, functools.partial(make_day, tmp_path), run_day=runner(began, recorders))
    run_day(make_day(tmp_path, TWO), Recorder().stages())
    assert [(day.ds, day.state) for day in run()] == [(ds, backfill.PUBLISHED) for ds in DAYS]
    assert began == DAYS and recorders[TWO].calls == [] and recorders[THREE].calls == list(STAGES)
    assert not any(
        stage.runs for _, stages in backfill.plans(DAYS, functools.partial(make_day, tmp_path)) for stage in stages
    )


@pytest.mark.parametrize("keep_going", [False, True])
def test_a_refused_day_ends_it_and_running_again_goes_on(tmp_path: Path, keep_going: bool) -> None:
    began: list[dt.date] = []
    recorders = {ds: Recorder() for ds in DAYS}
    recorders[TWO].failing["recommend"] = InputError("the lists failed the audit")
    opened = functools.partial(make_day, tmp_path)
    done = list(backfill.run(DAYS, opened, keep_going=keep_going, run_day=runner(began, recorders)))
    assert began == (DAYS if keep_going else [ONE, TWO])
    assert done[1].refused and done[1].why == "the lists failed the audit"
    recorders[TWO].failing.clear()
    again = list(backfill.run(DAYS, opened, run_day=runner(began, recorders)))
    assert [day.state for day in again] == [backfill.PUBLISHED] * 3
    assert recorders[ONE].calls == list(STAGES) and recorders[TWO].calls.count("train") == 1


def test_a_day_without_a_stage_or_a_model_is_published_and_said(tmp_path: Path) -> None:
    recorders = {ds: Recorder() for ds in DAYS}
    recorders[TWO].failing["train"] = InputError("no songs to learn from")
    done = list(backfill.run(DAYS, functools.partial(make_day, tmp_path), run_day=runner([], recorders)))
    assert [day.state for day in done] == [backfill.PUBLISHED, backfill.WITHOUT_A_STAGE, backfill.PUBLISHED]
    assert done[1].why == "train: no songs to learn from"


def test_one_backfill_at_a_time_and_each_ends_its_lease(tmp_path: Path) -> None:
    opened = functools.partial(make_day, tmp_path)
    with (
        leases.lease(f"{tmp_path}/w/runs/{backfill.LEASE}", purpose="another"),
        pytest.raises(BusyError, match="another"),
    ):
        list(backfill.run(DAYS, opened, run_day=runner([], {})))
    assert len(list(backfill.run(DAYS, opened, run_day=runner([], {})))) == 3


def test_what_the_operator_types_and_sees(tmp_path: Path) -> None:
    options = ["--workspace", f"{tmp_path}/w", "--set", "sequences.buckets=8"]
    turned = CliRunner().invoke(cli, ["backfill", "--from", "2026-03-04", "--to", "2026-03-02", *options])
    assert isinstance(turned.exception, InputError) and "give the older day first" in str(turned.exception)
    for ds in DAYS[:2]:
        run_day(make_day(tmp_path, ds), Recorder().stages())
    planned = CliRunner().invoke(cli, ["backfill", "--from", "2026-03-02", "--to", "2026-03-04", "--dry-run", *options])
    assert planned.output.splitlines()[:2] == ["2026-03-02  done", "2026-03-03  done"]
    assert planned.output.splitlines()[2].startswith("2026-03-04  to run: sessionize, hits, train")
    finished = CliRunner().invoke(cli, ["backfill", "--from", "2026-03-02", "--to", "2026-03-03", *options])
    assert finished.exit_code == 0 and finished.output.count("published") == 2
