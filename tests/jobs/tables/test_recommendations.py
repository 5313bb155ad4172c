"""The table of lists: commits that race, parts that are missing, and how a list is found."""

import datetime as dt
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import write_deltalake

from jobs.tables import recommendations as lists
from pipelines.errors import InputError
from pipelines.schema import DS, recommendations_table

DAY_ONE, DAY_TWO = dt.date(2026, 3, 2), dt.date(2026, 3, 3)
SCHEMA = recommendations_table("int64", "int64").schema


def part(workspace: Any, ds: dt.date, users: list[int | None], songs: list[list[Any]], source: str = "model") -> Any:
    """A part in which user number n has the songs [(item_id, score), ...] or [item_id, ...]."""
    pairs = [[song if isinstance(song, tuple) else (song, 0.5) for song in row] for row in songs]
    columns = {
        "bucket": [0] * len(users),
        "user_id": users,
        "items": [[{"item_id": item, "score": score} for item, score in row] for row in pairs],
        "source": [source] * len(users),
        "model_version": ["1"] * len(users),
        "stale_days": [0] * len(users),
        "segment": [None] * len(users),
        "short": [False] * len(users),
    }
    schema = SCHEMA.remove(SCHEMA.get_field_index(DS))
    return lists.write_part(workspace.recommendations, ds, pa.table(columns, schema=schema))


def publish(workspace: Any, ds: dt.date, table: Any = None, key: int = 1) -> int:
    table = table or lists.open_lists(workspace)
    parts = [part(workspace, ds, [1, 2], [[10, 11], [12]])]
    return lists.commit(table, ds, parts, key=key, metadata={"ds": str(ds), "result": "{}"})


def test_of_two_writers_of_one_day_the_second_is_refused_in_one_line(deployment: Callable[..., Any]) -> None:
    workspace = deployment().day(DAY_ONE).workspace
    first, second = lists.open_lists(workspace), lists.open_lists(workspace)
    version = publish(workspace, DAY_ONE, first)
    with pytest.raises(InputError, match="published by another run meanwhile") as error:
        publish(workspace, DAY_ONE, second)
    assert "\n" not in str(error.value)
    assert lists.open_lists(workspace).version() == version


def test_writers_of_different_days_do_not_hinder_each_other(deployment: Callable[..., Any]) -> None:
    workspace = deployment().day(DAY_ONE).workspace
    first, second = lists.open_lists(workspace), lists.open_lists(workspace)
    publish(workspace, DAY_ONE, first)
    publish(workspace, DAY_TWO, second)
    assert lists.published_days(workspace) == [DAY_ONE, DAY_TWO]


def test_a_part_that_is_missing_or_cut_is_found_before_the_commit(deployment: Callable[..., Any]) -> None:
    workspace = deployment().day(DAY_ONE).workspace
    table = lists.open_lists(workspace)
    kept = part(workspace, DAY_ONE, [1], [[10]])
    lists.check_parts(workspace.recommendations, [kept])
    with pytest.raises(InputError, match="missing or incomplete"):
        lists.check_parts(workspace.recommendations, [replace(kept, size=kept.size + 1)])
    lists.discard(workspace.recommendations, [kept])
    with pytest.raises(InputError, match="missing or incomplete"):
        lists.check_parts(workspace.recommendations, [kept])
    assert table.file_uris() == []


def test_a_list_is_found_by_user_and_the_default_by_none(deployment: Callable[..., Any]) -> None:
    from pipelines.histories.buckets import user_bucket

    workspace = deployment().day(DAY_ONE).workspace
    table = lists.open_lists(workspace)
    users = [7, 8, 9]
    buckets = user_bucket(pa.array(users), workspace.spec.buckets).tolist()
    schema = SCHEMA.remove(SCHEMA.get_field_index(DS))
    rows = pa.table(
        {
            "bucket": [None, *buckets],
            "user_id": [None, *users],
            "items": [[{"item_id": 1, "score": 0.1}], *([{"item_id": user, "score": 0.5}] for user in users)],
            "source": ["popular", "model", "model", "model"],
            "model_version": [None, "1", "1", "1"],
            "stale_days": [0] * 4,
            "segment": [None] * 4,
            "short": [False] * 4,
        },
        schema=schema,
    )
    parts = [lists.write_part(workspace.recommendations, DAY_ONE, rows)]
    lists.commit(table, DAY_ONE, parts, key=1, metadata={})
    found = lists.read_list(workspace, DAY_ONE, 8)
    assert found is not None and found["items"] == [{"item_id": 8, "score": 0.5, "propensity": None, "reasons": None}]
    default = lists.read_list(workspace, DAY_ONE, None)
    assert default is not None and default["items"][0]["item_id"] == 1
    assert lists.read_list(workspace, DAY_ONE, 10) is None
    assert lists.read_list(workspace, DAY_TWO, 8) is None


def test_the_table_says_which_day_is_the_latest_before_another(deployment: Callable[..., Any]) -> None:
    workspace = deployment().day(DAY_ONE).workspace
    publish(workspace, DAY_ONE)
    publish(workspace, DAY_TWO)
    table = lists.open_lists(workspace)
    assert lists.listeners_before(table, DAY_ONE) is None
    assert lists.listeners_before(table, DAY_TWO) == (DAY_ONE, 2)
    assert lists.listeners_before(table, DAY_TWO + dt.timedelta(days=9)) == (DAY_TWO, 2)


def test_the_log_holds_no_user_id(deployment: Callable[..., Any]) -> None:
    workspace = deployment().day(DAY_ONE).workspace
    table = lists.open_lists(workspace)
    parts = [part(workspace, DAY_ONE, [987_654_321], [[10]])]
    lists.commit(table, DAY_ONE, parts, key=1, metadata={})
    log = "".join(file.read_text() for file in Path(workspace.recommendations, "_delta_log").glob("*.json"))
    assert "987654321" not in log and '"user_id"' not in log.split('"stats"')[-1]


def test_a_table_of_an_earlier_release_gets_the_columns_it_lacks(deployment: Callable[..., Any]) -> None:
    workspace = deployment().day(DAY_ONE).workspace
    item = pa.struct([("item_id", pa.int64()), ("score", pa.float32())])
    columns = [f.with_type(pa.list_(item)) if f.name == "items" else f for f in SCHEMA]
    earlier = pa.schema([field for field in columns if field.name not in ("segment", "short")])
    row = {"ds": DAY_ONE, "bucket": 0, "user_id": 1, "items": [{"item_id": 5, "score": 0.25}], "source": "model"}
    write_deltalake(
        workspace.recommendations, pa.Table.from_pylist([row], earlier), partition_by=["ds"], name="recommendations"
    )
    publish(workspace, DAY_TWO)
    table = lists.open_lists(workspace)
    assert pa.schema(table.schema()).names == SCHEMA.names
    rows = table.to_pyarrow_dataset().to_table().sort_by([("ds", "ascending"), ("user_id", "ascending")]).to_pylist()
    assert rows[0]["items"] == [{"item_id": 5, "score": 0.25, "propensity": None, "reasons": None}]
    assert rows[0]["segment"] is None and rows[1]["short"] is False and rows[1]["items"][0]["item_id"] == 10
