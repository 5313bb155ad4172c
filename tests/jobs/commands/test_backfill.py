"""`fuxi backfill`: days in order, skipping what is done, stopping where one is refused, one backfill at a time."""

import datetime as dt
import functools
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from jobs.cli import cli
from jobs.commands import backfill
from jobs.daily import run_day
from jobs.day import STAGES
from pipelines import leases
from pipelines.errors import BusyError, InputError
from tests.log_lines import lines

from ..test_daily import Recorder, make_day

ONE, TWO, THREE = (dt.date(2026, 3, day) for day in (2, 3, 4))
DAYS = [ONE, TWO, THREE]


def runner(tmp_path: Path, recorders: dict[dt.date, Recorder]) -> Callable[[dt.date], int]:
    """Runs days with recorded stages, and returns what `fuxi daily` would."""

    def run_one(ds: dt.date) -> int:
        try:
            result = run_day(make_day(tmp_path, ds), recorders.setdefault(ds, Recorder()).stages())
        except InputError:
            return 2
        return 3 if result.degraded else 0

    return run_one


def test_days_run_in_order_and_what_is_done_is_skipped(tmp_path: Path) -> None:
    recorders: dict[dt.date, Recorder] = {}
    opened = functools.partial(make_day, tmp_path)
    run_day(make_day(tmp_path, TWO), Recorder().stages())
    done = list(backfill.run(DAYS, opened, runner(tmp_path, recorders)))
    assert [(day.ds, day.state) for day in done] == [(ds, "published") for ds in DAYS]
    assert recorders[TWO].calls == [] and recorders[THREE].calls == list(STAGES)
    assert not any(stage.runs for _, stages in backfill.plans(DAYS, opened) for stage in stages)
    assert backfill.exit_code(done) == 0


@pytest.mark.parametrize("keep_going", [False, True])
def test_a_refused_day_ends_it_and_running_again_goes_on(tmp_path: Path, keep_going: bool) -> None:
    recorders = {ds: Recorder() for ds in DAYS}
    recorders[TWO].failing["recommend"] = InputError("the lists failed the audit")
    opened, run_one = functools.partial(make_day, tmp_path), runner(tmp_path, recorders)
    done = list(backfill.run(DAYS, opened, run_one, keep_going=keep_going))
    assert [day.ds for day in done] == (DAYS if keep_going else [ONE, TWO])
    assert done[1].state == "refused" and done[1].why == "recommend: the lists failed the audit"
    assert backfill.exit_code(done) == 2
    recorders[TWO].failing.clear()
    again = list(backfill.run(DAYS, opened, run_one))
    assert [day.state for day in again] == ["published"] * 3
    assert recorders[ONE].calls == list(STAGES) and recorders[TWO].calls.count("train") == 1


@pytest.mark.parametrize("code", [1, 143])
def test_a_day_that_broke_off_ends_it_whatever_was_asked(tmp_path: Path, code: int) -> None:
    done = list(backfill.run(DAYS, functools.partial(make_day, tmp_path), lambda ds: code, keep_going=True))
    assert [day.ds for day in done] == [ONE] and backfill.exit_code(done) == code


def test_a_day_without_a_stage_is_published_and_said(tmp_path: Path) -> None:
    recorders = {ds: Recorder() for ds in DAYS}
    recorders[TWO].failing["train"] = InputError("no songs to learn from")
    done = list(backfill.run(DAYS, functools.partial(make_day, tmp_path), runner(tmp_path, recorders)))
    assert [day.state for day in done] == ["published", "published, degraded", "published"]
    assert done[1].why == "train: no songs to learn from" and backfill.exit_code(done) == 3


def test_one_backfill_at_a_time_and_each_ends_its_lease(tmp_path: Path) -> None:
    opened, run_one = functools.partial(make_day, tmp_path), runner(tmp_path, {})
    lease = leases.lease(f"{tmp_path}/w/runs/{backfill.LEASE}", purpose="another")
    with lease, pytest.raises(BusyError, match="another"):
        list(backfill.run(DAYS, opened, run_one))
    assert len(list(backfill.run(DAYS, opened, run_one))) == 3


def test_what_the_operator_types_and_sees(tmp_path: Path) -> None:
    options = ["--workspace", f"{tmp_path}/w", "--set", "sequences.buckets=8"]
    turned = CliRunner().invoke(cli, ["backfill", "--from", "2026-03-04", "--to", "2026-03-02", *options])
    assert isinstance(turned.exception, InputError) and "give the older day first" in str(turned.exception)
    for ds in DAYS[:2]:
        run_day(make_day(tmp_path, ds), Recorder().stages())
    planned = CliRunner().invoke(cli, ["backfill", "--from", "2026-03-02", "--to", "2026-03-04", "--dry-run", *options])
    assert planned.output.splitlines()[:2] == ["2026-03-02  done", "2026-03-03  done"]
    assert planned.output.splitlines()[2].startswith("2026-03-04  to run: sessionize, hits, train")


def command(tmp_path: Path, *more: str) -> list[str]:
    span = ["--from", "2026-03-02", "--to", "2026-03-03", "--workspace", f"{tmp_path}/w"]
    return [sys.executable, "-m", "jobs.cli", "backfill", *span, *more]


def test_each_day_is_fuxi_daily_with_what_was_typed(tmp_path: Path) -> None:
    """Without logs the first day is refused, in the line of `fuxi daily`; with --keep-going so is the second."""
    settings = ("--set", f"logs.path={tmp_path}/logs", "--set", "sequences.buckets=8", "--keep-going")
    ended = subprocess.run(command(tmp_path, *settings), capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 2
    written = lines(ended.stdout + ended.stderr)
    assert ended.stderr.count(f"{tmp_path}/logs") >= 2
    refused = [line for line in written if line["message"] == "refused"]
    assert [(line["ds"], line["exit_code"]) for line in refused] == [("2026-03-02", 2), ("2026-03-03", 2)]


def test_a_backfill_that_is_stopped_leaves_no_day_running(tmp_path: Path) -> None:
    run_one = backfill.daily(["--workspace", f"{tmp_path}/w"])

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupted)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_one(ONE)
    finally:
        signal.signal(signal.SIGALRM, before)
    found = subprocess.run(
        ["pgrep", "-f", f"daily --ds {ONE} --workspace {tmp_path}/w"], capture_output=True, check=False
    )
    assert not found.stdout
