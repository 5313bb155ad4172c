"""Temporary files of a command are in one folder, which goes with it, or with the next command if it was killed."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from jobs.runtime import scratch
from pipelines.errors import MachineError

USE = """
import os, subprocess, sys, tempfile
from jobs.runtime import scratch
scratch.enter()
print(tempfile.mkdtemp(), flush=True)
print(subprocess.run(["mktemp", "-d"], capture_output=True, text=True, check=True).stdout, flush=True)
print(os.environ.get("SPARK_SUBMIT_OPTS", ""), flush=True)
{}
"""


def start(root: Path, then: str = "sys.stdin.read()", **environment: str) -> tuple[subprocess.Popen[str], list[str]]:
    """A command with its temporary files below a root, and what it said: two folders, and Spark's options."""
    before = {name: value for name, value in os.environ.items() if name not in ("RAY_TMPDIR", "SPARK_SUBMIT_OPTS")}
    process = subprocess.Popen(
        [sys.executable, "-c", USE.format(then)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**before, "TMPDIR": str(root), **environment},
    )
    assert process.stdout
    lines = [process.stdout.readline().strip() for _ in range(4)]
    return process, [line for line in lines if line]


def test_all_that_a_command_starts_uses_its_folder_and_the_folder_goes_with_it(tmp_path: Path) -> None:
    process, (folder, child, options) = start(tmp_path, SPARK_SUBMIT_OPTS="-Da=b")
    own = Path(folder).parent
    assert own.resolve().parent == tmp_path and own.name.startswith("fuxi-") and Path(child).parent == own
    assert options == f'-Da=b -Djava.io.tmpdir="{own}"'
    process.communicate("")
    assert process.returncode == 0 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("how", ["os._exit(3)", "os.kill(os.getpid(), 9)"])
def test_what_a_killed_command_left_goes_with_the_next_and_that_of_a_running_one_stays(
    tmp_path: Path, how: str
) -> None:
    killed, (left, *_) = start(tmp_path, how)
    killed.communicate()
    assert Path(left).exists()
    running, (used, *_) = start(tmp_path)
    assert not Path(left).parent.exists() and Path(used).exists()
    third, (other, *_) = start(tmp_path)
    assert Path(used).exists() and other != used
    running.communicate("")
    third.communicate("")
    assert not list(tmp_path.iterdir())


def test_processes_of_a_killed_command_end_with_the_next_and_those_of_a_running_one_go_on(tmp_path: Path) -> None:
    begin = 'print(subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL).pid, flush=True); '
    (killed, dead), (running, alive) = (
        (process, int(process.stdout.readline()))  # type: ignore[union-attr]
        for process, _ in (start(tmp_path, begin + "sys.stdin.read()") for _ in range(2))
    )
    killed.kill()
    killed.wait()
    assert psutil.pid_exists(dead)
    third, _ = start(tmp_path)
    assert not psutil.pid_exists(dead) or psutil.Process(dead).status() == psutil.STATUS_ZOMBIE
    assert psutil.Process(alive).status() != psutil.STATUS_ZOMBIE
    psutil.Process(alive).kill()
    for process in (running, third):
        process.communicate("")


def test_a_command_that_is_stopped_removes_its_folder(tmp_path: Path) -> None:
    stopped, _ = start(tmp_path, "from jobs.runtime import stop; stop.leave(130)")
    stopped.communicate()
    assert stopped.returncode == 130 and not list(tmp_path.iterdir())


def test_other_files_of_the_machine_stay(tmp_path: Path) -> None:
    for name in ("fuxi-train-1", "fuxi-notes", "other.lock"):
        (tmp_path / name).mkdir()
    (tmp_path / "fuxi-of-a-link.lock").symlink_to(tmp_path / "target")
    scratch.remove_abandoned(tmp_path)
    assert len(list(tmp_path.iterdir())) == 4


def test_a_folder_with_a_name_too_long_for_sockets_is_used_by_a_short_link_that_goes_with_it(tmp_path: Path) -> None:
    root = tmp_path / ("x" * 80)
    root.mkdir()
    listen = "import socket; socket.socket(socket.AF_UNIX).bind(os.environ['TMPDIR'] + '/' + 's' * 68)"
    process, (made, *_) = start(root, listen + "; sys.stdin.read()")
    link = Path(made).parent
    assert link.is_symlink() and link.resolve().parent == root and not scratch.too_long(link)
    process.communicate("")
    assert process.returncode == 0 and not link.is_symlink() and not list(root.iterdir())


def test_the_link_of_a_killed_command_goes_with_the_next(tmp_path: Path) -> None:
    root = tmp_path / ("x" * 80)
    root.mkdir()
    killed, (made, *_) = start(root, "os._exit(3)")
    killed.communicate()
    assert Path(made).parent.is_symlink()
    following, _ = start(root)
    assert not Path(made).parent.is_symlink()
    following.communicate("")


def test_sockets_that_cannot_be_made_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/" + "x" * 90)
    with pytest.raises(
        MachineError, match=r"RAY_TMPDIR is /x+, 91 bytes: .* set RAY_TMPDIR to a folder with a shorter"
    ):
        scratch.check_sockets()
