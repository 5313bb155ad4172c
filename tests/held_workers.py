"""Python workers of Spark that wait at a point of their work, once, while a test does something to their executor.

A test sets `spark.python.daemon.module` to this module, and HELD_WORKERS to a folder. The first worker that comes to a
point makes `<point>.at` there, a link to its process id, and waits until there is `<point>.on`:

    reading     it has opened a run of the shuffle and written nothing into it
    building    it has written a shard that has not yet got its name
"""

import os
import time
from pathlib import Path
from typing import Any

from pyspark import daemon

WAIT_S = 120.0


def hold(point: str) -> None:
    """Wait, if no other worker has come to this point before."""
    folder = Path(os.environ["HELD_WORKERS"])
    try:
        (folder / f"{point}.at").symlink_to(str(os.getpid()))
    except FileExistsError:
        return
    until = time.monotonic() + WAIT_S
    while not (folder / f"{point}.on").exists() and time.monotonic() < until:
        time.sleep(0.02)


def held_worker(sock: Any, authenticated: bool) -> int:
    """What the daemon calls in each new worker; its imports may start threads, and so come behind the fork."""
    from pyarrow import ipc

    from pipelines.histories.writer import _HashingSink

    new_file, commit = ipc.new_file, _HashingSink.commit

    def new_run(*values: Any, **named: Any) -> Any:
        hold("reading")
        return new_file(*values, **named)

    def commit_shard(self: _HashingSink) -> None:
        if "/sequences/" in self._uri:
            hold("building")
        commit(self)

    ipc.new_file, _HashingSink.commit = new_run, commit_shard
    return worker(sock, authenticated)


worker = daemon.worker

if __name__ == "__main__":
    daemon.worker = held_worker
    daemon.manager()
