"""Shared engines for the tests: one Spark session, one Ray instance, one S3 server, all on loopback."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator

import pytest

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")


@pytest.fixture(scope="session")
def spark():
    """The Spark session that `jobs` starts, on all local cores."""
    from jobs.config import ClusterConfig
    from jobs.runtime.engines import spark_session

    session = spark_session(ClusterConfig())  # type: ignore[call-arg]
    yield session
    session.stop()


@pytest.fixture(scope="module")
def ray_local():
    """A Ray instance as `jobs` starts it; one module's, because other modules build clusters of their own."""
    from jobs.config import ClusterConfig
    from jobs.runtime.engines import ray_session

    ray = ray_session(ClusterConfig())  # type: ignore[call-arg]
    yield ray
    ray.shutdown()


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A real S3 server (moto) on loopback with an empty bucket; yields `s3://workspace-test`."""
    import boto3

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    endpoint = f"http://127.0.0.1:{port}"
    environment = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    try:
        for _ in range(150):
            try:
                urllib.request.urlopen(f"{endpoint}/moto-api/", timeout=1)
                break
            except OSError:
                time.sleep(0.2)
        boto3.client("s3").create_bucket(Bucket="workspace-test")
        yield "s3://workspace-test"
    finally:
        server.terminate()
        server.wait()
