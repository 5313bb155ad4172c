"""Shared engines for the tests: one Spark session, one Ray instance, one S3 server, all on loopback."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from fuxi_beta.data.batches import Batch

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


@pytest.fixture
def make_batch() -> Callable[..., "Batch"]:
    """A function that draws a random jagged batch of given lengths; some neighbours share a second."""

    import torch

    from fuxi_beta.data.batches import Batch

    def make(lengths: list[int], *, songs: int = 20, seed: int = 0, target_share: float = 1.0) -> "Batch":
        random = np.random.default_rng(seed)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        total = int(offsets[-1])
        gaps = random.choice([0, 1, 60, 4_000, 90_000, 5_000_000], total)
        timestamp = np.concatenate([[0], 1_700_000_000 + np.cumsum(gaps)])[1:]
        next_timestamp = timestamp + random.choice([0, 1, 30, 86_400], total)
        items, targets = random.integers(1, songs + 1, total), random.integers(1, songs + 1, total)
        targets[random.random(total) >= target_share] = 0
        seen = [np.unique(items[offsets[row] : offsets[row + 1]]) for row in range(len(lengths))]
        arrays = {
            "offsets": offsets,
            "item_index": items,
            "timestamp": timestamp,
            "next_timestamp": next_timestamp,
            "target": targets,
            "sample": np.arange(len(lengths)) + 7,
            "seen_offsets": np.concatenate([[0], np.cumsum([len(songs) for songs in seen])]),
            "seen_items": np.concatenate([*seen, np.zeros(0)]),
        }
        return Batch(**{name: torch.from_numpy(array.astype(np.int64)) for name, array in arrays.items()})

    return make
