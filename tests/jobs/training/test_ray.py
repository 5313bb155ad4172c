"""Checkpoints of a training run on an S3 server: written by its workers, found again by the next driver."""

from typing import Any

import pytest

from jobs.stages import train
from jobs.training.position import CheckpointPosition
from jobs.training.ray import fit
from pipelines import storage

from ..conftest import DAY_ONE, Deployment


@pytest.fixture
def ray_after_s3(s3: str, deployment: Any) -> Any:
    """Ray started when the S3 server is known, so that workers inherit its address and credentials."""
    import ray

    yield s3
    ray.shutdown()


def test_checkpoints_live_on_s3_and_a_finished_run_is_resumed_at_its_end(deployment, ray_after_s3: str) -> None:
    settings = ("model.dim=8", "model.layers=1", "train.epochs=1", "train.min_listeners=2", "train.batch_size=16")
    house: Deployment = deployment(*settings, listeners=40)
    manifest, day = house.sessionized(DAY_ONE), house.day(DAY_ONE)
    loop = train._loop_config(day, manifest, parent="")
    positions = []
    for _ in range(2):
        checkpoint = fit(house.config.cluster, loop, storage_uri=f"{ray_after_s3}/checkpoints", name="run")
        with checkpoint.as_directory() as folder:
            positions.append(CheckpointPosition.read(folder))
    assert storage.exists(f"{ray_after_s3}/checkpoints/run/checkpoint_manager_snapshot.json")
    assert positions[0] == positions[1] and positions[0].epoch == 1 and positions[0].samples == 40
