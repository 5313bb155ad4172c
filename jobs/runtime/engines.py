"""Spark and Ray, started once a process, bound to loopback unless the configuration says otherwise."""

import contextlib
import logging
import os
import secrets
import sys
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

import psutil

from jobs.config import ClusterConfig
from jobs.runtime import account, attempt, deaths, scratch, starting, stop
from jobs.runtime.console import doing, polled_progress
from pipelines import leases, object_store
from pipelines.errors import InputError, MachineError

if TYPE_CHECKING:
    from pyspark import Accumulator
    from pyspark.sql import SparkSession


def spark_session(cluster: ClusterConfig) -> "SparkSession":
    """The process's Spark session, started on first use.

    Under spark-submit the submission decides where Spark runs and with which resources; its settings are kept. Raises
    InputError if the configuration names another master than the submission, MachineError without a Java to start.
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
            # This JVM only schedules, no rows pass through it: optimising its code costs more than it saves.
            "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
        }
    defaults = {key: value for key, value in options.items() if key not in submitted}
    running = SparkSession.getActiveSession() is not None
    with starting.spark(own=not submitted), contextlib.nullcontext() if running else doing("starting Spark"):
        if not submitted and not account.name_of_user():
            _log_in(defaults | cluster.spark_options)
        session = SparkSession.builder.config(map=defaults | cluster.spark_options).getOrCreate()  # type: ignore[attr-defined]
    if not submitted:  # a submission sets the log level itself
        session.sparkContext.setLogLevel("ERROR")
    _set_worker_environment(session, local=local)
    logging.getLogger().addFilter(_not_of_py4j)
    logging.getLogger("py4j").setLevel(logging.CRITICAL)  # it logs the traces of errors that the caller gets
    attempt.watch_engines()
    stop.keep()
    leases.at_stop(end)
    return session


def _log_in(options: dict[str, str]) -> None:
    """Start Spark's JVM and give Hadoop, which Spark asks who it is, a name: its own login fails without one."""
    from pyspark import SparkConf, SparkContext

    SparkContext._ensure_initialized(conf=SparkConf().setAll(list(options.items())))
    jvm: Any = SparkContext._jvm
    users = jvm.org.apache.hadoop.security.UserGroupInformation
    users.setLoginUser(users.createRemoteUser(account.substitute_name()))


def _not_of_py4j(record: logging.LogRecord) -> bool:
    """Py4J logs a trace, by the root logger, for a command that was interrupted; the caller gets the error anyway."""
    return not str(record.msg).endswith("while sending command.")


def _submission() -> dict[str, str]:
    """Every setting of spark-submit; none where Python starts Spark itself."""
    if "PYSPARK_GATEWAY_PORT" not in os.environ:  # how spark-submit tells Python where its JVM listens
        return {}
    from pyspark import SparkConf, SparkContext

    SparkContext._ensure_initialized()  # connects; without it SparkConf does not see the JVM's settings
    return dict(SparkConf().getAll())


def _master(cluster: ClusterConfig, submitted: dict[str, str]) -> str:
    master = submitted.get("spark.master", "")
    if master and cluster.spark_master not in ("", master):
        raise InputError(
            f"cluster.spark_master is {cluster.spark_master}, but spark-submit was told {master}: "
            "take cluster.spark_master out of the configuration, or start without spark-submit"
        )
    return master or cluster.spark_master or "local[*]"


def _set_worker_environment(session: "SparkSession", *, local: bool) -> None:
    """Set the object store and the memory options of Python workers.

    Workers inherit the environment of the JVM that started them, which may be older than this process or on another
    machine. Credentials are passed on this machine only; a cluster's workers have an identity of their own.
    """
    names = [*object_store.ENVIRONMENT, *(object_store.CREDENTIALS if local else ())]
    environment = session.sparkContext.environment
    # Else glibc returns the memory of every array that a task drops to the kernel.
    environment |= {"MALLOC_MMAP_THRESHOLD_": str(1 << 32), "MALLOC_TRIM_THRESHOLD_": str(1 << 32)}
    for name in names:
        if name in os.environ:
            environment[name] = os.environ[name]
        else:
            environment.pop(name, None)


@contextlib.contextmanager
def spark_progress(spark: "SparkSession", description: str, total: int, unit: str) -> "Iterator[Accumulator[int]]":
    """A progress bar over a Spark accumulator, which is yielded: tasks add to it what they have finished."""
    finished = spark.sparkContext.accumulator(0)
    with polled_progress(description, lambda: (finished.value, total), unit=unit, remaining=True):
        yield finished


def ray_session(cluster: ClusterConfig) -> ModuleType:
    """The process's Ray client, started or connected on first use. Returns the ray module."""
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    import ray._private.worker

    ray._private.worker.print_to_stdstream = _to_standard_error
    if not ray.is_initialized():
        scratch.check_sockets()
        starting.check_ray(cluster)
        if cluster.ray_address == "local" and "RAY_AUTH_TOKEN_PATH" not in os.environ:
            # Else Ray keeps one in the home, which may be read-only, for whoever may read files there.
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(16))
        store = {"include_dashboard": False, "object_store_memory": cluster.ray_object_store_mb * 2**20}
        local = store if cluster.ray_address == "local" else {}
        try:
            with doing("starting Ray" if local else "connecting to Ray"):
                ray.init(address=cluster.ray_address, log_to_driver=False, logging_level=logging.ERROR, **local)
        except (ValueError, ConnectionError) as error:
            settings = "cluster.ray_object_store_mb" if local else "cluster.ray_address"
            raise MachineError(f"Ray did not start ({error}): correct {settings}") from error
        attempt.watch_engines()
        stop.keep()
    leases.at_stop(end)
    return ray


def _to_standard_error(message: dict[str, Any], ignore_prefix: bool = False) -> None:
    """In place of Ray's own function, which prints the news of its cluster among a command's results."""
    text = "".join(f"(ray) {line}\n" for line in message.get("lines", ()))
    with contextlib.suppress(OSError):
        if attempt.supervised():  # beside what Ray's processes write
            os.write(2, text.encode())
        else:
            sys.stderr.write(text)


def end() -> None:
    """End Spark and Ray of this process and all that they have started here, in mid-work too; within 20 seconds."""
    deaths.unwatch()
    children = psutil.Process().children(recursive=True)
    threads = [threading.Thread(target=end_one, daemon=True) for end_one in (_end_ray, _end_spark)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=8)
    psutil.wait_procs(children, timeout=2)
    stop.kill_children(children)


def _end_ray() -> None:
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        ray.shutdown()


def _end_spark() -> None:
    pyspark = sys.modules.get("pyspark")
    context = pyspark and pyspark.SparkContext._active_spark_context
    if context:
        context.cancelAllJobs()
        context.stop()


def need(cluster: ClusterConfig, count: float, *, setting: str, kind: Literal["CPU", "GPU"] = "GPU") -> None:
    """InputError if this machine has less of a kind than configured, for which Ray would wait for ever.

    count: in all. Not checked on a cluster, which may grow. Needs the session.
    """
    import ray

    found = ray.cluster_resources().get(kind, 0.0)
    if cluster.ray_address == "local" and count > found:
        remedy = "set it to 0, or see what `fuxi doctor` says of the GPU" if kind == "GPU" else "lower it"
        raise InputError(
            f"cluster.{setting} asks for {count:g} {kind}s in all, Ray finds {found:g} on this machine: {remedy}"
        )
