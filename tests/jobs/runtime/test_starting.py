"""Spark and Ray that do not start are one line, and no refused input."""

import subprocess
import sys

import pytest

from jobs.config import load_config
from jobs.runtime import engines
from jobs.runtime.deaths import StageDiedError
from jobs.runtime.starting import check_ray, spark
from pipelines.errors import InputError, MachineError

NOT_SPARK = """
import sys
from jobs.config import load_config
from jobs.runtime import engines
try:
    engines.spark_session(load_config(overrides=sys.argv[1:], environment={}).cluster)
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("cluster.spark_driver_memory=banana", "MachineError Spark did not start, its JVM ended with code 1: correct"),
        ("cluster.spark_master=locale[2]", "MachineError Spark did not start (org.apache.spark.SparkException: Could"),
    ],
)
def test_settings_that_spark_does_not_start_with_are_named(setting: str, said: str) -> None:
    done = subprocess.run([sys.executable, "-c", NOT_SPARK, setting], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(said) and done.stdout.count("\n") == 1


class Py4JError(Exception):
    """As Py4J raises it when the JVM is gone."""


Py4JError.__module__ = "py4j.protocol"


@pytest.mark.parametrize("death", ["kill -KILL $$", "exit 137"])
def test_a_jvm_that_is_killed_while_it_starts_is_a_death(death: str) -> None:
    from pyspark import java_gateway

    with pytest.raises(StageDiedError, match=r"Spark's JVM \(process \d+\) was ended by SIGKILL"), spark(own=True):
        java_gateway.Popen(["sh", "-c", death])
        raise Py4JError("An error occurred while calling o0.x")
    assert java_gateway.Popen is subprocess.Popen


@pytest.mark.parametrize("address", ["127.0.0.1:9", "ray://127.0.0.1:9"])
def test_a_cluster_of_ray_that_is_not_there_is_named_at_once(address: str) -> None:
    config = load_config(overrides=[f"cluster.ray_address={address}"], environment={})
    with pytest.raises(MachineError, match=rf"cluster.ray_address {address} does not answer"):
        check_ray(config.cluster)


def test_more_processors_than_there_are_are_refused(ray_local: object) -> None:
    cluster = load_config(environment={}).cluster
    with pytest.raises(InputError, match=r"cluster.train_cpus_per_worker asks for 4096 CPUs in all, Ray finds \d+"):
        engines.need(cluster, 4096, setting="train_cpus_per_worker", kind="CPU")
