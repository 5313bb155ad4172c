"""Events of a day that does not go well, and the names of data sets; tests/e2e has those of two real days."""

import importlib.util
from pathlib import Path

import pytest

from jobs.config import load_config
from jobs.monitoring import lineage
from pipelines.errors import InputError

from ...lineage_events import read_events
from ..runtime.test_supervisor import DS, KILLED, Command

TRANSPORT = {"OPENLINEAGE__TRANSPORT__TYPE": "file", "OPENLINEAGE__TRANSPORT__APPEND": "true"}


def day(folder: Path, death: str, stage: str, **environment: str) -> Command:
    settings = ("lineage.openlineage=true", "lineage.namespace=music", "cluster.stage_retries=0")
    command = Command(folder, death, stage=stage, times=99, settings=settings)
    command.environment |= environment
    return command


def test_a_stage_that_dies_and_a_refused_day_are_told_as_failed(tmp_path: Path) -> None:
    file = tmp_path / "events"
    told = {**TRANSPORT, "OPENLINEAGE__TRANSPORT__LOG_FILE_PATH": str(file)}
    assert day(tmp_path, KILLED, "recommend", **told).run()[0] == 1
    refusal = "from pipelines.errors import InputError; raise InputError('s3://ann:planted-secret@w: correct it')"
    assert day(tmp_path, refusal, "recommend", **told).run()[0] == 2
    events = read_events(file)
    found = [(event.job.name, event.eventType.value) for event in events]
    died = [("daily", "START"), ("recommend", "FAIL"), ("daily", "FAIL")]
    assert found == [*died, ("daily", "START"), ("daily", "FAIL")]
    assert {event.job.namespace for event in events} == {"music"}
    start, stage, end, again, refused = events
    assert start.run.runId == end.run.runId == stage.run.facets["parent"].run.runId != stage.run.runId
    assert again.run.runId == refused.run.runId != start.run.runId
    assert "SIGKILL" in stage.run.facets["errorMessage"].message
    assert refused.run.facets["errorMessage"].message == "InputError: s3://***@w: correct it"
    assert refused.run.facets["tags"].tags[0].value == DS


@pytest.mark.parametrize(
    ("environment", "why"),
    [({**TRANSPORT, "OPENLINEAGE__TRANSPORT__LOG_FILE_PATH": "/proc/nowhere/x"}, "nowhere"), ({}, "no transport is")],
)
def test_events_that_nobody_takes_are_one_warning(tmp_path: Path, environment: dict[str, str], why: str) -> None:
    code, shown = day(tmp_path, "", "", **environment).run()
    assert code == 0 and len(shown) == 1
    assert shown[0].startswith("fuxi: lineage.openlineage: the START event of daily was not taken") and why in shown[0]


def test_a_client_that_is_not_installed_is_named_before_the_day_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(overrides=["lineage.openlineage=true"], environment={})
    lineage.check(config)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="openlineage-python is not installed: install it, or set it to false"):
        lineage.check(config)
    lineage.check(load_config(environment={}))


def test_data_sets_have_the_names_of_openlineage() -> None:
    assert lineage._name("s3://music/fuxi/recommendations") == ("s3://music", "fuxi/recommendations")
    assert lineage._name("/srv/fuxi/metrics") == ("file", "/srv/fuxi/metrics")
    served = lineage._name("https://ann:planted-secret@mlflow:5000/models/fuxi-beta-daily")
    assert served == ("https://mlflow:5000", "models/fuxi-beta-daily")
