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

from pipelines.errors import MachineError

_PREFIX = "fuxi-"
_SOCKET_BYTES, _BELOW = 107, len("/ray/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store")
"""The longest name of a socket in Linux, and what Ray appends to the folder for the longest of its own."""
_SHORT = ("/tmp", "/var/tmp", "/dev/shm")
"""Where a folder whose name is too long for sockets gets a second, short name: a link."""

_ENGINES = "fuxi-engines-"

_mine: list[tuple[Path, int, Path]] = []
"""The folder of this process, the descriptor of its lock, and the name by which it is used."""
_state = {"refused": ""}
"""`refused`: why there is none."""


def enter() -> None:
    """Make the folder, let this process and its children use it, and remove those of commands that were killed.

    Nothing changes where no folder can be made, until somebody needs one (`need`).
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
        lock = os.open(folder.with_suffix(".lock"), os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        folder.mkdir(mode=0o700)
        name = _short_name(folder)
        _mine.append((folder, lock, name))
        _use(name)
        atexit.register(leave)  # before any engine is loaded: so it is called after their own ends
    except OSError as error:
        _state["refused"] = f"no folder for temporary files can be made ({error.strerror or error}): set TMPDIR to one"


def need() -> None:
    """MachineError if temporary files have no folder, or another than TMPDIR says."""
    if _state["refused"]:
        raise MachineError(_state["refused"])


def too_long(folder: str | Path) -> bool:
    """Whether sockets of Ray below a folder for temporary files would have names that Linux refuses."""
    return len(os.fsencode(folder)) + _BELOW > _SOCKET_BYTES


def described() -> str:
    """Where temporary files are, and the short name of that folder if it needs one. OSError if there is none."""
    if not _mine:
        return tempfile.gettempdir()
    folder, _, name = _mine[0]
    link = (
        "" if name == folder else f", {len(os.fsencode(folder))} bytes: used by the link {name}, short enough for Ray"
    )
    return f"{folder.parent}{link}"


def check_sockets() -> None:
    """MachineError if Ray could not open its sockets, which it would say in a trace only."""
    name = "RAY_TMPDIR" if os.environ.get("RAY_TMPDIR") else "TMPDIR"
    folder = os.environ.get(name) or tempfile.gettempdir()
    if too_long(folder):
        raise MachineError(
            f"{name} is {folder}, {len(os.fsencode(folder))} bytes: names of Ray's sockets below it would be too long, "
            f"at most {_SOCKET_BYTES - _BELOW} bytes go: set {name} to a folder with a shorter name, or make one of "
            f"{', '.join(_SHORT)} writable"
        )


def _short_name(folder: Path) -> Path:
    """The folder, or a link to it where its own name is too long for sockets."""
    for short in _SHORT if too_long(folder) else ():
        with contextlib.suppress(OSError):
            link = Path(short, folder.name)
            link.symlink_to(folder, target_is_directory=True)
            return link
    return folder


def _use(folder: Path) -> None:
    tempfile.tempdir = os.environ["TMPDIR"] = str(folder)
    before = os.environ.get("SPARK_SUBMIT_OPTS", "")  # of the JVM that Python starts, which does not read TMPDIR
    os.environ["SPARK_SUBMIT_OPTS"] = f'{before} -Djava.io.tmpdir="{folder}"'.strip()


def leave() -> None:
    """Remove the folder; what another process is still writing there is left to the next command."""
    while _mine:
        folder, lock, name = _mine.pop()
        shutil.rmtree(folder, ignore_errors=True)
        if name != folder:
            name.unlink(missing_ok=True)
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
    for short in _SHORT:
        for link in Path(short).glob(f"{_PREFIX}*"):
            with contextlib.suppress(OSError):
                if link.is_symlink() and link.lstat().st_uid == os.getuid() and not link.exists():
                    link.unlink()


def _kill_users(folder: Path) -> None:
    """Kill the processes of this user whose temporary files are in a folder."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # it has ended, or is another user's
            if process.uids().real == os.getuid() and _uses(process, folder):
                process.kill()


def _uses(process: psutil.Process, folder: Path) -> bool:
    """By its environment, or by open files: a process that renamed itself, as Ray's do, has overwritten the former."""
    if os.path.realpath(process.environ().get("TMPDIR", "")) == os.path.realpath(folder):
        return True
    return any(file.path.startswith(f"{folder}/") for file in process.open_files())
