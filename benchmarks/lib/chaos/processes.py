"""The processes of a run: which of them is the driver, a worker, the raylet or the JVM, and which outlive it."""

import contextlib
import os
import re
import signal
import time
from collections.abc import Collection

import psutil

_COMMANDS = {
    "jvm": r"\S*java .*org\.apache\.spark\.deploy\.SparkSubmit",
    "raylet": r"\S*/raylet ",
    "ray worker": r"ray::(?!IDLE)",
    "spark worker": r"\S*python\S* -m pyspark\.daemon",
}


def victims(driver: int, what: str) -> list[psutil.Process]:
    """The processes of one kind among a driver's descendants. what: a key of `disturbances.VICTIMS`."""
    with contextlib.suppress(psutil.Error):
        root = psutil.Process(driver)
        if what == "driver":  # and the process that it has forked for the work, where it has one
            command = command_of(root)
            return [one for one in (root, *root.children()) if command and command_of(one) == command]
        found = [one for one in root.children(recursive=True) if re.match(_COMMANDS[what], command_of(one))]
        if what == "spark worker":  # the daemon forks a worker for each task at work; its own parent is the JVM
            found = [one for one in found if re.match(_COMMANDS[what], command_of(one.parent()))]
        return found
    return []


def command_of(process: psutil.Process | None) -> str:
    """The command line; "" of a process that has ended."""
    with contextlib.suppress(psutil.Error):
        if process is not None and process.status() != psutil.STATUS_ZOMBIE:
            return " ".join(process.cmdline())
    return ""


def kill(process: psutil.Process) -> bool:
    """SIGKILL; False if it has ended already."""
    try:
        process.send_signal(signal.SIGKILL)
    except psutil.Error:
        return False
    return True


def children() -> set[int]:
    """The process ids of this process's own children, adopted ones included."""
    return {child.pid for child in psutil.Process().children()}


def outliving(known: Collection[int], *, seconds: float) -> list[str]:
    """Commands of this process's descendants that are still there after so long, which are then killed.

    known: process ids that do not count, nor do their descendants.
    """
    deadline = time.monotonic() + seconds
    while alive := _descendants(known):
        if time.monotonic() > deadline:
            names = [command_of(one)[:100] for one in alive]
            for one in alive:
                kill(one)
            return [name for name in names if name]
        time.sleep(0.1)
    return []


def _descendants(known: Collection[int]) -> list[psutil.Process]:
    alive = []
    for child in psutil.Process().children():
        if child.pid in known:
            continue
        with contextlib.suppress(psutil.Error):
            if child.status() == psutil.STATUS_ZOMBIE:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(child.pid, os.WNOHANG)
                continue
            alive += [child, *child.children(recursive=True)]
    return alive
