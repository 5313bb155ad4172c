"""The signals that ask a command to stop; imported before the supervisor forks, so it loads nothing else."""

import signal

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Of a scheduler, of Ctrl-C, of a terminal that is closed."""


def heeded() -> list[signal.Signals]:
    """`STOPPING`, but for SIGHUP under `nohup`, which ignores it."""
    return [number for number in STOPPING if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]
