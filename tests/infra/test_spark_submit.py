"""`infra/spark/sessionize.py` under spark-submit, as a driver's container on Kubernetes runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.histories.shards import read_manifest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "infra" / "spark" / "sessionize.py"
START = 1_772_409_600  # 2026-03-02T00:00Z


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    """The configuration of a small log in which every listener plays 50 songs on one day."""
    folder = tmp_path / "logs" / "ds=2026-03-02"
    folder.mkdir(parents=True)
    user = np.repeat(np.arange(1, 21), 50)
    plays = pa.table({"user_id": user, "item_id": np.arange(1000) % 70, "timestamp": START + np.arange(1000)})
    pq.write_table(plays, folder / "part-0.parquet")
    file = tmp_path / "daily.yaml"
    file.write_text(f"workspace: {tmp_path}/workspace\nlogs: {{path: {tmp_path}/logs}}\nsequences: {{buckets: 2}}\n")
    return file


def submit(command: list[object], spark_home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "SPARK_HOME": str(spark_home), "PYSPARK_PYTHON": sys.executable, **environment}
    words = [str(word) for word in command]
    return subprocess.run(words, env=environment, cwd=spark_home, capture_output=True, text=True, check=False)


def test_a_driver_started_as_kubernetes_starts_it_publishes_the_day(settings: Path, spark_home: Path) -> None:
    """The entry point calls spark-submit; master, application and their settings come from a properties file."""
    events = spark_home / "events"
    events.mkdir()
    (spark_home / "spark.properties").write_text(
        "spark.master=local[2]\n"
        "spark.app.name=as-submitted\n"
        "spark.executor.cores=3\n"
        "spark.driver.extraJavaOptions=-XX:TieredStopAtLevel=1 -XX:+UseSerialGC\n"
        f"spark.eventLog.enabled=true\nspark.eventLog.compress=false\nspark.eventLog.dir={events}\n"
    )
    options = ["--properties-file", spark_home / "spark.properties", "--class", "org.apache.spark.deploy.PythonRunner"]
    arguments = [f"local://{SCRIPT}", "--ds", "2026-03-03", "--config", settings]
    entrypoint = ROOT / "infra" / "docker" / "entrypoint.sh"
    done = submit([entrypoint, "driver", *options, *arguments], spark_home, SPARK_DRIVER_BIND_ADDRESS="127.0.0.1")
    assert done.returncode == 0, done.stderr[-3000:]
    manifest = read_manifest(f"{settings.parent}/workspace/sequences/ds=2026-03-03")
    assert (manifest.rows, manifest.events) == (20, 1000)

    lines = [line for file in events.rglob("events*") for line in file.read_text().splitlines() if line]
    [found] = [line for line in map(json.loads, lines) if line["Event"] == "SparkListenerEnvironmentUpdate"]
    spark = found["Spark Properties"]
    assert (spark["spark.master"], spark["spark.app.name"]) == ("local[2]", "as-submitted")
    assert spark["spark.executor.cores"] == "3"
    assert spark["spark.driver.host"] == "127.0.0.1"  # a local master listens on loopback only


def test_another_master_in_the_configuration_is_refused_with_the_command_s_exit_code(
    settings: Path, spark_home: Path
) -> None:
    settings.write_text(settings.read_text() + "cluster: {spark_master: 'spark://head:7077'}\n")
    command = [spark_home / "bin" / "spark-submit", "--master", "local[1]", SCRIPT]
    done = submit([*command, "--ds", "2026-03-03", "--config", settings], spark_home)
    assert done.returncode == 2
    assert "cluster.spark_master is spark://head:7077, but spark-submit was told local[1]" in done.stdout
    assert not list(settings.parent.glob("workspace/sequences/*"))
