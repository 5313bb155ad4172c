"""A command whose work dies or stands still: begun again a bounded number of times, named, and nothing left running."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from jobs.runtime import supervisor
from tests.log_lines import lines, said

DS = "2026-03-02"
DAY = """
import json, os, pathlib, signal, subprocess, sys, time
from jobs import cli, daily
from jobs.stage_inputs import STAGE_INPUTS

ran = pathlib.Path(os.environ["RAN"])


def stage(name):
    def run(day):
        calls = ran.read_text().split() if ran.exists() else []
        ran.write_text(" ".join([*calls, name]))
        if name == "sessionize" and not day.has_record:
            day.new_record()
        if name == os.environ["STAGE"] and calls.count(name) < int(os.environ["TIMES"]):
            exec(os.environ["DEATH"])
        return {"uri": "the page", "chosen": "1", "reason": "", "quality": []}

    return run


stages = {name: stage(name) for name in STAGE_INPUTS}
daily.stage_function = stages.get
cli.main()
"""
KILLED = "os.kill(os.getpid(), signal.SIGKILL)"
HANGS = "from pipelines import progress; progress.note('half of it'); time.sleep(600)"


class Command:
    """A `fuxi` command with stages of which one dies; `ran`: the stages that ran, in order."""

    def __init__(self, folder: Path, death: str, *, stage: str, times: int, settings: tuple[str, ...] = ()) -> None:
        self.ran_file = folder / "ran"
        self.environment = {
            **os.environ,
            "RAN": str(self.ran_file),
            "STAGE": stage,
            "TIMES": str(times),
            "DEATH": death,
            "TMPDIR": str(folder),
        }
        overrides = [part for setting in (*settings, "sequences.buckets=4") for part in ("--set", setting)]
        self.options = ["--ds", DS, "--workspace", str(folder / "w"), *overrides]

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        arguments = arguments or ("daily",)
        command = [sys.executable, "-c", DAY, *arguments, *self.options]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=self.environment
        )

    def run(self, *arguments: str) -> tuple[int, list[str]]:
        """The exit code, and the lines for people on standard error."""
        with self.start(*arguments) as process:
            try:
                printed, written = process.communicate(timeout=100)
            finally:
                process.kill()
        self.written = lines(printed + written)
        return process.returncode, said(written)

    @property
    def ran(self) -> list[str]:
        return self.ran_file.read_text().split()


DAY_STAGES = ["sessionize", "hits", "train", "evaluate", "promote", "recommend", "report"]


def test_a_stage_that_dies_is_begun_again_and_the_finished_ones_are_not(tmp_path: Path) -> None:
    for force in ((), ("--force",)):
        command = Command(tmp_path, KILLED, stage="train", times=2)
        code, shown = command.run("daily", *force)
        assert code == 0
        pattern = rf"fuxi: train of {DS}: the process of the work \(process \d+\) was ended by SIGKILL, .*: it is begun"
        assert [re.sub(r"\d+(?=\))", "N", line).rpartition(" again, ")[2] for line in shown] == [
            "1 of 2 times",
            "2 of 2 times",
        ]
        assert all(re.match(pattern, line) for line in shown)
        assert command.ran == ["sessionize", "hits", "train", "train", *DAY_STAGES[2:]]
        command.ran_file.unlink()


@pytest.mark.parametrize(("stage", "code"), [("train", 3), ("recommend", 1)])
def test_after_the_retries_the_day_goes_on_without_the_stage_or_ends_in_one_line(
    tmp_path: Path, stage: str, code: int
) -> None:
    noise = f"os.write(2, b'JVM: s3://ann:planted-secret@host');{KILLED}"
    command = Command(tmp_path, noise, stage=stage, times=99, settings=("cluster.stage_retries=1",))
    found, shown = command.run()
    assert found == code
    assert "begun again, 1 of 1 times" in shown[0]
    assert f"{stage} of {DS}: the process of the work" in shown[1] and "SIGKILL" in shown[1]
    assert ", 2 times in this run" in shown[1]
    if stage == "train":
        assert "the day goes on without it" in shown[1] and "train failed, published without it" in shown[2]
        assert command.ran[-1] == "report" and command.ran.count("train") == 2
    else:
        assert "what was published is unchanged, run it again to go on" in shown[1] and len(shown) == 2
    (log,) = tmp_path.glob("fuxi-engines-*.log")  # what native code wrote is kept, without secrets
    assert str(log) in shown[1] and log.read_text().startswith("JVM: s3://***@host")
    subprocess.run([sys.executable, "-m", "jobs.cli", "--version"], check=True, env=command.environment)
    assert log.exists()  # to look at something removes nothing
    code, _ = Command(tmp_path, "", stage="", times=0).run()
    assert code == 0 and not list(tmp_path.glob("fuxi-*"))


def test_what_engines_wrote_goes_with_a_command_that_ends_well_and_stays_while_one_works(tmp_path: Path) -> None:
    noise = f"os.write(2, b'JVM: no');{KILLED}"
    settings = ("cluster.stage_retries=0",)
    dies_in_train = Command(tmp_path, noise, stage="train", times=1, settings=settings)
    assert dies_in_train.run()[0] == 3
    (log,) = tmp_path.glob("fuxi-engines-*.log")  # other attempts of the command began after it
    code, shown = Command(tmp_path, noise, stage="sessionize", times=9, settings=settings).run("daily", "--force")
    assert code == 1 and not log.exists()  # the next command's is there in its place
    (log,) = tmp_path.glob("fuxi-engines-*.log")
    assert any(str(log) in line for line in shown)


def test_a_full_folder_for_temporary_files_hides_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    watching = supervisor._Supervisor(lambda ended: None)
    watching.written = b"JVM: no"
    monkeypatch.setattr(tempfile, "tempdir", "/proc")  # where nobody can write
    assert "is lost" in watching._store_written() and not watching.logs


def test_a_stage_that_stands_still_is_ended_and_named_with_who_is_stopped(tmp_path: Path) -> None:
    stopped = f"os.kill(subprocess.Popen(['sleep', '600']).pid, signal.SIGSTOP); {HANGS}"
    command = Command(tmp_path, stopped, stage="evaluate", times=1, settings=("cluster.stall_minutes=0.2",))
    before = set(psutil.pids())
    code, shown = command.run()
    assert code == 0 and len(shown) == 1
    assert re.match(
        rf"fuxi: evaluate of {DS}: no progress for 0.2 minutes after 'half of it' \(cluster.stall_minutes\); "
        r"sleep \(process \d+\) is stopped: it is begun again, 1 of 2 times$",
        shown[0],
    )
    left = [process for process in map(describe, set(psutil.pids()) - before) if "sleep 600" in process]
    assert not left


def describe(pid: int) -> str:
    try:
        return " ".join(psutil.Process(pid).cmdline())
    except psutil.Error:
        return ""


@pytest.mark.slow  # it waits for longer than the deadline
def test_a_stage_that_tells_what_it_does_is_not_ended(tmp_path: Path) -> None:
    slow = "from pipelines import progress\nfor n in range(20): time.sleep(1); progress.note(str(n))"
    command = Command(tmp_path, slow, stage="hits", times=1, settings=("cluster.stall_minutes=0.25",))
    assert command.run() == (0, [])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_to_the_command_ends_its_work(tmp_path: Path, number: signal.Signals) -> None:
    command = Command(tmp_path, HANGS, stage="hits", times=1)
    with command.start() as process:
        try:
            until = time.monotonic() + 60
            while not command.ran_file.exists() or "hits" not in command.ran:
                assert time.monotonic() < until and process.poll() is None
                time.sleep(0.1)
            children = psutil.Process(process.pid).children(recursive=True)
            os.kill(process.pid, number)
            _, written = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == (143 if number == signal.SIGTERM else -9)
    assert len(children) == 1 and not psutil.wait_procs(children, timeout=10)[1]
    assert ("stopped by SIGTERM; hits of 2026-03-02 did not finish" in written) == (number == signal.SIGTERM)
    assert command.ran == ["sessionize", "hits"]


def test_a_single_stage_is_begun_again_too_and_prints_its_result(tmp_path: Path) -> None:
    Command(tmp_path, "", stage="", times=0).run("sessionize")
    command = Command(tmp_path, KILLED, stage="hits", times=1)
    with command.start("hits") as process:
        printed, written = process.communicate(timeout=100)
    assert process.returncode == 0 and "begun again, 1 of 2 times" in written
    [result] = lines(printed)
    assert result["uri"] == "the page" and result["stage"] == "hits"


def test_an_error_of_the_program_is_a_trace_and_is_not_tried_again(tmp_path: Path) -> None:
    command = Command(tmp_path, "1 / 0", stage="promote", times=99)
    with command.start() as process:
        _, written = process.communicate(timeout=100)
    assert process.returncode == 1 and "begun again" not in written
    last = lines(written)[-1]
    assert (last["kind"], last["exit_code"], last["stage"]) == ("unknown", 1, "promote")
    assert last["message"] == "ZeroDivisionError: division by zero" and "in run" in last["traceback"]
    assert command.ran.count("promote") == 1


def test_the_supervisor_forks_before_any_library_has_started_a_thread() -> None:
    code = "import os, jobs.cli, jobs.runtime.supervisor; print(len(os.listdir('/proc/self/task')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"
