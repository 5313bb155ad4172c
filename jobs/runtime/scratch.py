"""A folder for the temporary files of a command and of all that it starts on this machine: Spark, Ray, MLflow, torch.

It goes when the command ends. What a killed command left goes with the next command: a lock of the kernel beside the
folder, which ends with its process, says whether anybody is using it.
"""

import atexit
import contextlib
import fcntl
import os
import shutil
import tempfile
import uuid
from pathlib import Path

import psutil

from pipelines.errors import MachineError

_PREFIX = "fuxi-"
_SOCKET_BYTES, _BELOW = 107, len("/ray/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store")
"""The longest name of a socket in Linux, and what Ray appends to the folder for the longest of its own."""

_mine: list[tuple[Path, int]] = []
"""The folder of this process and the descriptor of its lock."""
_state = {"refused": ""}
"""`refused`: why there is none."""


def enter() -> None:
    """Make the folder, let this process and its children use it, and remove those of commands that were killed.

    Nothing changes where no folder can be made, until somebody needs one (`need`). Ray stays where it was if the name
    would be too long for its sockets.
    """
    if _mine:
        return
    wanted = os.environ.get("TMPDIR", "")
    try:
        root = Path(tempfile.gettempdir()).absolute()
        if wanted and root != Path(wanted).absolute():
            _state["refused"] = f"TMPDIR is {wanted}, which cannot be written: correct it"
            return
        remove_abandoned(root)
        folder = root / f"{_PREFIX}{uuid.uuid4().hex[:8]}"
        if len(os.fsencode(folder)) + _BELOW > _SOCKET_BYTES:
            os.environ.setdefault("RAY_TMPDIR", str(root))
        lock = os.open(folder.with_suffix(".lock"), os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        folder.mkdir(mode=0o700)
        _mine.append((folder, lock))
        _use(folder)
        atexit.register(leave)  # before any engine is loaded: so it is called after their own ends
    except OSError as error:
        _state["refused"] = f"no folder for temporary files can be made ({error.strerror or error}): set TMPDIR to one"


def need() -> None:
    """MachineError if temporary files have no folder, or another than TMPDIR says."""
    if _state["refused"]:
        raise MachineError(_state["refused"])


def _use(folder: Path) -> None:
    tempfile.tempdir = os.environ["TMPDIR"] = str(folder)
    before = os.environ.get("SPARK_SUBMIT_OPTS", "")  # of the JVM that Python starts, which does not read TMPDIR
    os.environ["SPARK_SUBMIT_OPTS"] = f'{before} -Djava.io.tmpdir="{folder}"'.strip()


def leave() -> None:
    """Remove the folder; what another process is still writing there is left to the next command."""
    while _mine:
        folder, lock = _mine.pop()
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            folder.with_suffix(".lock").unlink(missing_ok=True)
        os.close(lock)


def remove_abandoned(root: Path) -> None:
    """Remove the folders of commands of this user that were killed, below the machine's folder for temporary files.

    Processes that such a command has started, and that have not noticed yet, are killed: Ray's agents wait for minutes.
    """
    for lock in root.glob(f"{_PREFIX}*.lock"):
        with contextlib.suppress(OSError):  # in use, another user's, or just removed
            descriptor = os.open(lock, os.O_RDWR | os.O_NOFOLLOW)
            try:
                if os.fstat(descriptor).st_uid == os.getuid():
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    _kill_users(lock.with_suffix(""))
                    shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
                    if not lock.with_suffix("").exists():
                        lock.unlink()
            finally:
                os.close(descriptor)


def _kill_users(folder: Path) -> None:
    """Kill the processes of this user whose temporary files are in a folder."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # it has ended, or is another user's
            if process.uids().real == os.getuid() and _uses(process, folder):
                process.kill()


def _uses(process: psutil.Process, folder: Path) -> bool:
    """By its environment, or by open files: a process that renamed itself, as Ray's do, has overwritten the former."""
    if process.environ().get("TMPDIR") == str(folder):
        return True
    return any(file.path.startswith(f"{folder}/") for file in process.open_files())
