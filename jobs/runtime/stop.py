"""SIGTERM, SIGINT, SIGHUP: a commit being made is finished, engines end, leases are released, one line says so."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterable
from types import FrameType

import psutil

from jobs.runtime import scratch, signals
from pipelines import leases

_state: dict[str, int] = {}
"""`installed`: whether this process stops in this way; `asked`: the signal that it got."""


def install() -> None:
    """Stop in this way from now on, in place of handlers that an engine may have set."""
    if threading.current_thread() is threading.main_thread():
        _state["installed"] = 1
        for number in signals.heeded():
            signal.signal(number, _stop)


def keep() -> None:
    """After an engine was started: stop as before, if this process does."""
    if _state.get("installed"):
        install()


def exit_code() -> int:
    """Of a process that was asked to stop: 143 after SIGTERM, 130 after SIGINT, 129 after SIGHUP."""
    return 128 + _state.get("asked", signal.SIGINT)


def was_asked() -> bool:
    """Whether this process got a signal."""
    return "asked" in _state


def describe(stop: BaseException) -> str:
    """How far the work came: the notes of the stages that it went through."""
    name = signal.Signals(exit_code() - 128).name
    return "; ".join([f"stopped by {name}", *getattr(stop, "__notes__", []), "run it again to go on"])


def leave(code: int) -> None:
    """End this process now: at the interpreter's own end, engines that were stopped in mid-work may crash."""
    sys.stdout.flush()
    sys.stderr.flush()
    scratch.leave()
    os._exit(code)


def kill_children(children: Iterable[psutil.Process] | None = None) -> None:
    """Kill processes, by default all that this one and they have started."""
    for child in psutil.Process().children(recursive=True) if children is None else children:
        with contextlib.suppress(psutil.Error):  # it has ended
            child.kill()


def _stop(number: int, _: FrameType | None) -> None:
    if "asked" in _state:  # asked for again: at once
        kill_children()
        os._exit(128 + number)
    _state["asked"] = number
    leases.interrupt(KeyboardInterrupt())
