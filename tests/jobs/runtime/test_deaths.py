"""Real processes of Spark and Ray that are killed in mid-work: each is named in one line, and its stage begun again."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from jobs.runtime import deaths, failures
from tests.log_lines import said

DS = "2026-03-02"
DAY = """
import os, pathlib, time
from jobs import cli, daily
from jobs.runtime import engines

begun = pathlib.Path(os.environ["BEGUN"])


def busy(day):
    if begun.exists():
        return {"uri": ""}
    if os.environ["ENGINE"] == "ray":
        ray = engines.ray_session(day.config.cluster)
        begun.touch()
        ray.get(ray.remote(lambda: time.sleep(300)).remote())
    context = engines.spark_session(day.config.cluster).sparkContext
    begun.touch()
    context.parallelize([1, 2], 2).mapPartitions(lambda rows: time.sleep(300) or rows).count()


def other(day):
    if not day.has_record:
        day.new_record()
    return {"uri": "", "chosen": "1"}


daily.stage_function = lambda name: busy if name == "recommend" else other
cli.main()
"""
IS = {
    "raylet": lambda process: process.name() == "raylet",
    "gcs_server": lambda process: process.name() == "gcs_server",
    "java": lambda process: process.name() == "java",
    "python": lambda process: "pyspark.daemon" in process.cmdline() and "pyspark.daemon" in process.parent().cmdline(),
}


def kill_one(command: int, name: str) -> list[psutil.Process]:
    """Kill a process below a command as soon as it is there; returns all that are."""
    until = time.monotonic() + 90
    while time.monotonic() < until:
        found = psutil.Process(command).children(recursive=True)
        for process in found:
            try:
                if IS[name](process):
                    time.sleep(0.5)
                    process.kill()
                    return found
            except psutil.Error:
                continue
        time.sleep(0.1)
    raise AssertionError(f"no {name} below {command}")


@pytest.mark.parametrize(
    ("engine", "name", "died"),
    [
        ("ray", "gcs_server", r"Ray's gcs_server \(process \d+\) was ended by SIGKILL, .*"),
        pytest.param("ray", "raylet", r"Ray's raylet \(process \d+\) was ended by SIGKILL, .*", marks=pytest.mark.slow),
        ("spark", "java", r"Spark's JVM \(process \d+\) was ended by SIGKILL, .*"),
        pytest.param("spark", "python", "a Python worker of Spark died", marks=pytest.mark.slow),
    ],
)
def test_a_killed_process_of_an_engine_is_named_and_the_stage_is_begun_again(
    tmp_path: Path, engine: str, name: str, died: str
) -> None:
    environment = {**os.environ, "ENGINE": engine, "BEGUN": str(tmp_path / "begun")}
    command = [sys.executable, "-c", DAY, "daily", "--ds", DS, "--workspace", str(tmp_path / "w")]
    command += ["--set", "cluster.spark_master=local[2]"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            while not (tmp_path / "begun").exists():
                assert process.poll() is None
                time.sleep(0.1)
            started = kill_one(process.pid, name)
            killed = time.monotonic()
            _, written = process.communicate(timeout=60)
        finally:
            process.kill()
    assert time.monotonic() - killed < 30
    lines = said(written)
    assert len(lines) == 1 and process.returncode == 0, written
    assert re.fullmatch(rf"fuxi: recommend of {DS}: {died}: it is begun again, 1 of 2 times", lines[0]), lines
    assert not psutil.wait_procs(started, timeout=5)[1]


def test_errors_that_come_from_deaths_are_told_from_others() -> None:
    from py4j.protocol import Py4JNetworkError
    from ray.exceptions import ActorDiedError, OutOfMemoryError, WorkerCrashedError

    for error, died in (
        (Py4JNetworkError("Answer from Java side is empty"), "Spark's JVM died"),
        (ActorDiedError(), "an actor of Ray died"),
        (WorkerCrashedError(), "a worker of Ray died"),
        (OutOfMemoryError("x"), "a worker of Ray, because memory ran out, died"),
        (ConnectionRefusedError(111, "of something else"), None),
        (ValueError("the Ray Python worker of my text"), None),
    ):
        outer = RuntimeError("while making lists")
        outer.__cause__ = error
        assert deaths.what_died(outer) == died


def test_how_a_process_ended_is_said_in_words() -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        assert deaths.exit_code(child.pid) is None
        os.kill(child.pid, signal.SIGSEGV)
        until = time.monotonic() + 10
        while (code := deaths.exit_code(child.pid)) is None and time.monotonic() < until:
            time.sleep(0.01)
    assert code == -signal.SIGSEGV == child.returncode  # looked at, not waited for
    assert deaths.ended("Ray's raylet", 7, -signal.SIGSEGV) == "Ray's raylet (process 7) was ended by SIGSEGV"
    assert deaths.ended("Ray's raylet", 7, 1) == "Ray's raylet (process 7) ended with code 1"


class Py4JJavaError(Exception):
    """As Py4J raises it: the JVM's whole trace is its text."""


Py4JJavaError.__module__ = "py4j.protocol"
SPARK_TRACE = """An error occurred while calling o56.collectToPython.
: org.apache.spark.SparkException: Job aborted due to stage failure: Task 0 in stage 3.0 failed 1 times: {why}
\tat java.base/java.io.DataInputStream.readInt(DataInputStream.java:397)
\tat {where}(PythonRunner.scala:774)"""


@pytest.mark.parametrize(
    ("error", "died"),
    [
        ("Python worker exited unexpectedly (crashed)", "a Python worker of Spark died"),
        ("java.io.EOFException", "a Python worker of Spark died"),
        ("java.net.SocketException: Connection reset", "a Python worker of Spark died"),
        ("java.lang.IllegalStateException: no", None),
    ],
)
def test_what_the_jvm_says_of_a_worker_that_died_is_known(error: str, died: str | None) -> None:
    where = "org.apache.spark.api.python.PythonRunner$$anon$3.read"
    assert deaths.what_died(Py4JJavaError(SPARK_TRACE.format(why=error, where=where))) == died


def test_an_error_whose_text_the_dead_jvm_was_to_give_is_its_death() -> None:
    """A worker dies, then the JVM before it is asked for the trace: every look at the error is refused."""

    class AsksJvmError(Py4JJavaError):
        def __str__(self) -> str:
            raise ConnectionRefusedError(111, "Connection refused")

    outer = RuntimeError("while sessionizing")
    outer.__context__ = AsksJvmError()
    for error in (AsksJvmError(), outer):
        assert failures.explain(error) is None
        assert deaths.what_died(error) == "Spark's JVM died"


def test_an_end_of_a_file_that_no_worker_wrote_is_no_death() -> None:
    trace = SPARK_TRACE.format(why="java.io.EOFException", where="org.apache.hadoop.fs.FSDataInputStream.read")
    assert deaths.what_died(Py4JJavaError(trace)) is None


def test_ray_that_does_not_start_because_a_part_of_it_died_is_a_death() -> None:
    said = "The current node timed out during startup. This could happen because some of the raylet failed to startup"
    assert deaths.what_died(Exception(said)) == "a part of Ray died while it started"
    assert deaths.what_died(Exception("something else")) is None
