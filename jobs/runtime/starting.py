"""Why Spark or Ray does not start: a setting, this machine, or a process that was killed. One line each."""

import contextlib
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from typing import Any

from jobs.config import ClusterConfig
from jobs.runtime import attempt, deaths
from jobs.runtime.deaths import StageDiedError
from jobs.runtime.failures import EngineError

JAVA_MAJORS = (17, 21)
CONNECT_S = 5.0
_DYING_S = 1.0
_SETTINGS = "correct cluster.spark_master, cluster.spark_driver_memory or cluster.spark_options"


def java() -> tuple[str, str]:
    """Which Java is there, and what to do if it is not one that Spark runs on, else ""."""
    packages = "openjdk-17-jre-headless (Debian, Ubuntu), java-17-openjdk (Fedora) or openjdk@17 (Homebrew)"
    remedy = f"Spark needs Java 17 or 21: install {packages}"
    home = os.environ.get("JAVA_HOME")
    program = f"{home}/bin/java" if home else shutil.which("java")
    if not program or not shutil.which(program):
        return f"none at JAVA_HOME={home}" if home else "none on the PATH", remedy
    output = subprocess.run([program, "-version"], capture_output=True, text=True, timeout=60, check=False).stderr
    match = re.search(r'version "(\d+)(?:\.(\d+))?', output)
    major = int(match[2] if match and match[1] == "1" else match[1]) if match else 0
    return f"{major or 'unknown version'} at {program}", "" if major in JAVA_MAJORS else remedy


@contextlib.contextmanager
def spark() -> Iterator[None]:
    """Around the start of Spark: StageDiedError if its JVM is killed meanwhile, EngineError if it does not start."""
    import pyspark.java_gateway as gateway

    started: list[subprocess.Popen[bytes]] = []
    popen = gateway.Popen

    def start(*arguments: Any, **named: Any) -> "subprocess.Popen[bytes]":
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
        found, remedy = java()
        why = f"Spark did not start, its JVM ended with code {code}: {_SETTINGS}, or run again"
        return EngineError(f"Java: {found}: {remedy}" if remedy else why)
    said = str(getattr(error, "java_exception", None) or error).strip().splitlines()
    return EngineError(f"Spark did not start ({' '.join(said[:1])[:200]}): {_SETTINGS}")


def check_ray(cluster: ClusterConfig) -> None:
    """EngineError within seconds if nobody listens at the address of a cluster, for which Ray waits for minutes."""
    address = cluster.ray_address.removeprefix("ray://")
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
    except OSError as error:
        raise EngineError(
            f"cluster.ray_address {cluster.ray_address} does not answer ({error.strerror or error}): see whether the "
            "cluster runs, or correct it"
        ) from None
