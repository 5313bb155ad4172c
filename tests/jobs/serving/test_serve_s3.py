"""The serving stages on a workspace in S3: registry artifacts, lists and metrics, on a real S3 server."""

import datetime as dt
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from jobs.commands import show
from jobs.config import ClusterConfig
from jobs.day import run_stage
from jobs.registry import versions
from jobs.runtime.engines import ray_session
from jobs.stages import evaluate, promote, recommend
from jobs.tables import recommendations
from pipelines import delta_tables

DAY_ONE = dt.date(2026, 3, 2)


@pytest.fixture
def ray_with_s3(s3: str) -> Iterator[str]:
    """Ray started after the S3 server's address is in the environment, so that its workers have it too."""
    ray = ray_session(ClusterConfig())  # type: ignore[call-arg]
    yield s3
    ray.shutdown()


def test_a_day_is_measured_promoted_and_published_on_s3(
    deployment: Callable[..., Any], ray_with_s3: str, empty_registry: Any, tmp_path: Any
) -> None:
    workspace = f"{ray_with_s3}/music"
    tracking = f"mlflow.tracking_uri=sqlite:///{tmp_path}/workspace/mlflow.db"
    made = deployment(tracking, workspace=workspace, listeners=60)
    made.sessionized(DAY_ONE)
    version = made.trained(DAY_ONE)
    day = made.day(DAY_ONE)
    run_stage(day, "evaluate", evaluate.run)
    assert {row["ds"] for row in delta_tables.read_days(day.workspace.metrics)} == {DAY_ONE}
    run_stage(day, "promote", promote.run)
    made.choose(DAY_ONE, version)  # whatever the gates made of an untrained model

    result = run_stage(day, "recommend", recommend.run)
    assert result["listeners"] == 60
    assert recommendations.published_days(day.workspace) == [DAY_ONE]
    assert len(show.show(made.config, "3", DAY_ONE)["items"]) == 30
    assert versions.download_model(day, version)
