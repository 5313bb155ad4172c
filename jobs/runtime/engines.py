"""Spark and Ray, started once a process, bound to loopback unless the configuration says otherwise."""

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

from jobs.config import ClusterConfig
from jobs.runtime.console import progress
from pipelines.errors import InputError


def spark_session(cluster: ClusterConfig) -> Any:
    """The process's Spark session, started on first use.

    Under spark-submit the submission decides where Spark runs and with how much; what it says is left alone. Raises
    InputError if the configuration names another master than the submission.
    """
    from pyspark.sql import SparkSession

    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    submitted = _submission()
    master = _master(cluster, submitted)
    local = master.startswith("local")  # local[2], and local-cluster[...], whose executors are on this machine too
    options = {"spark.app.name": "fuxi", "spark.master": master}
    if local or not submitted:
        options |= {"spark.ui.enabled": "false", "spark.ui.showConsoleProgress": "false"}
    if local:
        os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
        options |= {
            "spark.driver.host": "127.0.0.1",
            "spark.driver.bindAddress": "127.0.0.1",
            "spark.driver.memory": cluster.spark_driver_memory,
            # This JVM only schedules, rows never pass through it: optimising its code costs more than it saves.
            "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
        }
    ours = {key: value for key, value in options.items() if key not in submitted}
    builder = SparkSession.builder
    for key, value in (ours | cluster.spark_options).items():
        builder = builder.config(key, value)
    session = builder.getOrCreate()  # type: ignore[attr-defined]
    if not submitted:  # a submission says itself what is logged
        session.sparkContext.setLogLevel("ERROR")
    _set_worker_environment(session, local=local)
    return session


def _submission() -> dict[str, str]:
    """What spark-submit was told, every key of it; nothing where Python starts Spark itself."""
    if "PYSPARK_GATEWAY_PORT" not in os.environ:  # how spark-submit tells Python where its JVM listens
        return {}
    from pyspark import SparkConf, SparkContext

    SparkContext._ensure_initialized()  # connects; without it SparkConf does not see the JVM's settings
    return dict(SparkConf().getAll())


def _master(cluster: ClusterConfig, submitted: dict[str, str]) -> str:
    told = submitted.get("spark.master", "")
    if told and cluster.spark_master not in ("", told):
        raise InputError(
            f"cluster.spark_master is {cluster.spark_master}, but spark-submit was told {told}: "
            "take cluster.spark_master out of the configuration, or start without spark-submit"
        )
    return told or cluster.spark_master or "local[*]"


def _set_worker_environment(session: Any, *, local: bool) -> None:
    """Tell the Python workers which object store the driver uses, and to keep their memory.

    They inherit the environment of the JVM that started them, which may be older than ours or on another machine.
    Credentials travel on this machine only; a cluster's workers have an identity of their own.
    """
    names = ["AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION"]
    if local:
        names += ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"]
    environment = session.sparkContext.environment
    # Arrays of a task are made and dropped all the time: glibc shall not give their pages back to the kernel each time.
    environment |= {"MALLOC_MMAP_THRESHOLD_": str(1 << 32), "MALLOC_TRIM_THRESHOLD_": str(1 << 32)}
    for name in names:
        if name in os.environ:
            environment[name] = os.environ[name]
        else:
            environment.pop(name, None)


@contextlib.contextmanager
def spark_progress(spark: Any, description: str, total: int, unit: str) -> Iterator[Any]:
    """A progress bar over a Spark accumulator, which this yields: tasks add what they have finished."""
    finished, done = spark.sparkContext.accumulator(0), threading.Event()
    with progress(description, total, unit=unit, remaining=True) as advance:

        def watch() -> None:
            seen, last = 0, False
            while not last:
                last = done.wait(0.25)
                now = min(finished.value, total)  # an attempt that is repeated counts again
                advance(now - seen)
                seen = now

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield finished
        finally:
            done.set()
            watcher.join()


def ray_session(cluster: ClusterConfig) -> Any:
    """The process's Ray client, started or connected on first use. Returns the ray module."""
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if not ray.is_initialized():
        options: dict[str, Any] = {"address": cluster.ray_address, "log_to_driver": False, "logging_level": "ERROR"}
        if cluster.ray_address == "local":
            options |= {"include_dashboard": False, "object_store_memory": cluster.ray_object_store_mb * 2**20}
        ray.init(**options)
    return ray


def need_gpus(cluster: ClusterConfig, count: float, *, setting: str) -> None:
    """InputError if this machine has fewer GPUs than the configuration asks for; Ray would wait for more for ever.

    A cluster elsewhere may grow. Needs the session.
    """
    import ray

    there = ray.cluster_resources().get("GPU", 0.0)
    if cluster.ray_address == "local" and count > there:
        raise InputError(
            f"cluster.{setting} asks for {count:g} GPUs, Ray finds {there:g} on this machine: set it to 0, or see what "
            "`fuxi doctor` says of the GPU"
        )
