"""The benchmark of the list task and of evaluation, small."""

import json

import pytest

from benchmarks import recommend
from benchmarks.lib.list_days import Size
from fuxi_beta.config import ModelConfig

SMALL = Size(320, songs=200, model=ModelConfig(dim=8, layers=2))


@pytest.fixture
def rows(request, capsys):
    recommend.run(SMALL, evaluate=request.param)
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["benchmark"] == "recommend"
    return found["rows"]


@pytest.mark.parametrize("rows", [False], indirect=True)
def test_a_task_is_measured_with_and_without_rules_and_its_parts_are_named(rows):
    assert [row["case"] for row in rows] == list(recommend.CASES)
    for row in rows:
        assert row["lists/s/core"] > 0 and row["two processes"] > 0 and row["peak MB"] > 0
        parts = [row[part] for part in [*recommend.PARTS, "rest"]]
        assert all(share >= 0 for share in parts) and sum(parts) == pytest.approx(1, abs=0.01)
        assert row["network"] > 0 and row["search"] > 0 and row["rules"] > 0


@pytest.mark.parametrize("rows", [True], indirect=True)
def test_evaluation_is_measured_together_and_by_recommender(rows):
    assert [row["case"] for row in rows[1:]] == rows[0]["case"].split(", ")
    assert {row["listeners"] for row in rows} == {rows[0]["listeners"]} and 0 < rows[0]["listeners"] <= 320
