"""A day that is asked to stop in the middle of an engine's work: what it leaves, what it says, how it exits."""

import datetime as dt
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pipelines import leases
from tests.log_lines import lines, said

DAY = """
import sys, time
from jobs import cli, daily
from jobs.runtime import engines


def sessionize(day):
    day.new_record()
    return {}


def busy(session):
    session.mapPartitions(lambda rows: time.sleep(120) or rows).count()


def train(day):
    ray, spark = engines.ray_session(day.config.cluster), engines.spark_session(day.config.cluster)
    print("busy", flush=True)
    if ENGINE == "ray":
        ray.get(ray.remote(lambda: time.sleep(120)).remote())
    busy(spark.sparkContext.parallelize([1, 2], 2))


stages = {"sessionize": sessionize, "hits": lambda day: {}, "train": train}
daily.stage_function = lambda name: stages.get(name, lambda day: {})
cli.main()
"""


@pytest.mark.parametrize(("number", "engine", "code"), [
        (signal.SIGTERM, "ray", 143),
        (signal.SIGINT, "spark", 130),
        pytest.param(signal.SIGHUP, "spark", 129, marks=pytest.mark.slow),
    ])
def test_a_stopped_day_leaves_nothing_running_and_says_how_far_it_came(
    tmp_path: Path, number: signal.Signals, engine: str, code: int
) -> None:
    ds = dt.date(2026, 3, 2)
    command = [
        sys.executable,
        "-c",
        f"ENGINE = {engine!r}\n{DAY}",
        "daily",
        "--ds",
        str(ds),
        "--workspace",
        str(tmp_path),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout and lines(process.stdout.readline())[0]["message"] == "busy"
            time.sleep(1)
            started = psutil.Process(process.pid).children(recursive=True)
            assert len(started) > 3
            assert leases.lease_holder(str(tmp_path / "runs" / f"ds={ds}" / "daily.lock"))
            os.kill(process.pid, number)
            asked = time.monotonic()
            _, written = process.communicate(timeout=40)
        finally:
            process.kill()
    assert process.returncode == code, written
    assert time.monotonic() - asked < 30
    assert said(written)[-1] == (
        f"fuxi: stopped by {number.name}; train of {ds} did not finish; done: sessionize, hits; run it again to go on"
    )
    last = lines(written)[-1]
    assert (last["kind"], last["exit_code"]) == ("stopped", code)
    assert "Traceback" not in written and "SIGABRT" not in written
    assert not psutil.wait_procs(started, timeout=5)[1]
    assert not leases.lease_holder(str(tmp_path / "runs" / f"ds={ds}" / "daily.lock"))


@pytest.mark.parametrize(("ignored", "code"), [(False, 129), (True, 7)])
def test_a_closed_terminal_stops_a_command_unless_nohup_keeps_it(ignored: bool, code: int) -> None:
    program = "import os, signal, sys, time\nfrom jobs.runtime import stop\nstop.install()\ntry:\n"
    program += "    os.kill(os.getpid(), signal.SIGHUP)\n    time.sleep(0.2)\nexcept KeyboardInterrupt:\n"
    program += "    sys.exit(stop.exit_code())\nsys.exit(7)"
    command = [sys.executable, "-c", program]
    assert subprocess.run([*["nohup"] * ignored, *command], check=False, stdin=subprocess.DEVNULL).returncode == code
