"""A folder for the temporary files of a command and of all that it starts on this machine: Spark, Ray, MLflow, torch.

It goes when the command ends. What a killed command left goes with the next command: a lock of the kernel beside the
folder, which ends with its process, says whether anybody is using it. What engines wrote to standard error is kept
beside it for the operator after a failure, until the next command that starts engines.
"""

import atexit
import contextlib
import fcntl
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil

_PREFIX = "fuxi-"
_SOCKET_BYTES, _BELOW = 107, len("/ray/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store")
"""The longest name of a socket in Linux, and what Ray appends to the folder for the longest of its own."""

_ENGINES = "fuxi-engines-"

_mine: list[tuple[Path, int]] = []
"""The folder of this process and the descriptor of its lock."""


def enter() -> None:
    """Make the folder, let this process and its children use it, and remove those of commands that were killed.

    Nothing changes where no folder can be made. Ray stays where it was if the name would be too long for its sockets.
    """
    if _mine:
        return
    with contextlib.suppress(OSError):
        root = Path(tempfile.gettempdir()).absolute()
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


class EngineLog:
    """A file with what the engines of a command wrote, which nobody removes while this process runs."""

    def __init__(self, text: str) -> None:
        descriptor, self.name = tempfile.mkstemp(prefix=_ENGINES, suffix=".log")
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        self._stream = os.fdopen(descriptor, "w")  # open, and so locked, as long as this object is there
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError:
            self.remove()
            raise

    def remove(self) -> None:
        """Nobody needs it any more."""
        Path(self.name).unlink(missing_ok=True)


def remove_engine_logs() -> None:
    """Remove such files of commands of this user that have ended."""
    for path in Path(tempfile.gettempdir()).glob(f"{_ENGINES}*.log"):
        with _unused(path) as unused:
            if unused:
                path.unlink()


@contextlib.contextmanager
def _unused(path: Path) -> Iterator[bool]:
    """Hold the lock of a file of this user; False if a process uses it, or it is another user's or gone."""
    with contextlib.ExitStack() as stack:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
            stack.callback(os.close, descriptor)
            unused = os.fstat(descriptor).st_uid == os.getuid()
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            unused = False
        yield unused


def remove_abandoned(root: Path) -> None:
    """Remove the folders of commands of this user that were killed, below the machine's folder for temporary files.

    Processes that such a command has started, and that have not noticed yet, are killed: Ray's agents wait for minutes.
    """
    for lock in root.glob(f"{_PREFIX}*.lock"):
        with _unused(lock) as unused, contextlib.suppress(OSError):
            if unused:
                _kill_users(lock.with_suffix(""))
                shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
                if not lock.with_suffix("").exists():
                    lock.unlink()


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
