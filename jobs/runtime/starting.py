"""Why Spark or Ray does not start: a setting, this machine, or a process that was killed. One line each."""

import contextlib
import socket
import subprocess
from collections.abc import Iterator
from typing import Any

from jobs.config import ClusterConfig
from jobs.runtime import attempt, deaths, java
from jobs.runtime.deaths import StageDiedError
from pipelines.errors import MachineError

CONNECT_S = 5.0
_DYING_S = 1.0
_SETTINGS = "correct cluster.spark_master, cluster.spark_driver_memory or cluster.spark_options"


@contextlib.contextmanager
def spark(*, own: bool) -> Iterator[None]:
    """Around the start of Spark: StageDiedError if its JVM is killed meanwhile, MachineError if it does not start.

    own: Python starts the JVM, and not spark-submit. MachineError if there is no Java for it.
    """
    if own and java.program()[0] is None:
        raise MachineError(f"Java: {java.look()[0]}: {java.REMEDY}")
    import pyspark.java_gateway as gateway

    started: list[Any] = []
    popen = gateway.Popen

    def start(*arguments: Any, **named: Any) -> Any:
        started.append(popen(*arguments, **named))
        return started[-1]

    gateway.Popen = start  # type: ignore[assignment]
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith(("py4j.", "pyspark.")) and not started:
            raise
        raise _spark_not_started(error, started[-1] if started else None) from error
    finally:
        gateway.Popen = popen


def _spark_not_started(error: Exception, jvm: "subprocess.Popen[bytes] | None") -> Exception:
    """jvm: the process that was started; None under spark-submit, whose own it is."""
    code = None
    if jvm:
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = jvm.wait(_DYING_S)
    if jvm and code is not None and (code < 0 or code > 128):  # a shell that starts it tells a signal as 128 + number
        return StageDiedError(deaths.ended(deaths.NAMES["java"], jvm.pid, code if code < 0 else 128 - code))
    if code is None and (died := deaths.what_died(error)):
        return StageDiedError(died)
    attempt.keep_written()
    if code is not None:
        found, fits = java.look()
        if not fits:
            return MachineError(f"Java: {found} does not start for Spark: {java.REMEDY}")
        return MachineError(f"Spark did not start, its JVM ended with code {code}: {_SETTINGS}, or run again")
    said = str(getattr(error, "java_exception", None) or error).strip().splitlines()
    return MachineError(f"Spark did not start ({' '.join(said[:1])[:200]}): {_SETTINGS}")


def check_ray(cluster: ClusterConfig) -> None:
    """MachineError within seconds if nobody listens at the address of a cluster, for which Ray waits for minutes."""
    address = cluster.ray_address.removeprefix("ray://")
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
    except OSError as error:
        raise MachineError(
            f"cluster.ray_address {cluster.ray_address} does not answer ({error.strerror or error}): see whether the "
            "cluster runs, or correct it"
        ) from None
