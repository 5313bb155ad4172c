"""Lists as served against what listeners played: real shards, tables and lists, worked by hand.

The lists of D = 2026-03-02 have three songs; their plays are in the histories of the days after.
"""

import datetime as dt
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from jobs.daily import run_day
from jobs.day import Day, run_stage
from jobs.stages import hits
from jobs.tables import recommendations as lists
from pipelines import delta_tables
from pipelines.errors import InputError
from pipelines.histories.buckets import user_bucket
from pipelines.schema import id_type, recommendations_table

D, E = dt.date(2026, 3, 2), dt.date(2026, 3, 3)
MIDNIGHT = int(dt.datetime(2026, 3, 2, tzinfo=dt.UTC).timestamp())
HOUR = 3600
PLAYED, SKIPPED = 100, 10  # per cent of the song
DISCOUNT = 1 / math.log2(3)  # of the second position

LISTS: list[tuple[int | None, str, str | None, list[Any]]] = [
    (None, "popular", None, [6, 1, 2]),
    (1, "model", None, [1, (2, 0.5), (3, 0.25)]),  # two songs drawn to explore, with these probabilities
    (2, "popular", None, [4, 5]),
    (4, "model", "kids", [7, 8, 9]),
    (5, "model", None, [1, 2, 3]),
]
"""Listener, source, segment, songs."""

PLAYS = {
    1: [
        (9, MIDNIGHT - 5 * 24 * HOUR, PLAYED),  # heard before: a play of the day counts all the same
        (3, MIDNIGHT + 8 * HOUR - 1, PLAYED),  # before the request
        (2, MIDNIGHT + 8 * HOUR, PLAYED),
        (1, MIDNIGHT + 10 * HOUR, SKIPPED),
        (9, MIDNIGHT + 11 * HOUR, PLAYED),
        (2, MIDNIGHT + 12 * HOUR, PLAYED),
        (2, MIDNIGHT + 13 * HOUR, SKIPPED),  # played before: no skip
    ],
    2: [(5, MIDNIGHT + 24 * HOUR, PLAYED)],  # after the day
    3: [(6, MIDNIGHT + 20 * HOUR, PLAYED)],  # saw the default list
    4: [(7, MIDNIGHT + 9 * HOUR, SKIPPED)],
    6: [(1, MIDNIGHT - HOUR, PLAYED)],
}


def publish(made: Any, ds: dt.date, rows: list[Any] = LISTS, *, without: tuple[str, ...] = ()) -> None:
    """Commit lists of `ds`, a part a bucket. without: columns, also of the songs, that earlier releases lacked."""
    day = made.day(ds)
    schema = recommendations_table(made.user_id_type, made.item_id_type).schema
    kept = [field for field in schema.field("items").type.value_type if field.name not in without]
    items = pa.field("items", pa.list_(pa.struct(kept)))
    columns = [items if f.name == "items" else f for f in schema if f.name not in (*without, "ds")]
    by_bucket: dict[int | None, list[dict[str, Any]]] = {}
    for number, source, segment, songs in rows:
        user = None if number is None else made.user(number)
        ids = pa.array([user], id_type(made.user_id_type))
        bucket = None if number is None else int(user_bucket(ids, day.workspace.spec.buckets)[0])
        pairs = [song if isinstance(song, tuple) else (song, None) for song in songs]
        listed = [{"item_id": made.item_id(song), "score": 0.5, "propensity": p} for song, p in pairs]
        row = {"bucket": bucket, "user_id": user, "items": listed, "source": source, "segment": segment}
        by_bucket.setdefault(bucket, []).append(row)
    table = lists.open_lists(day.workspace)
    uri = day.workspace.recommendations
    tables = [pa.Table.from_pylist(part, schema=pa.schema(columns)) for part in by_bucket.values()]
    lists.commit(table, ds, [lists.write_part(uri, ds, part) for part in tables], key=1, metadata={"ds": str(ds)})


def plays_of(made: Any, plays: dict[int, Any] = PLAYS) -> dict[Any, Any]:
    return {made.user(number): events for number, events in plays.items()}


def values_of(day: Day, ds: dt.date = D) -> dict[tuple[Any, ...], float]:
    """(segment, source, metric, position) -> value; every row has its own."""
    rows = [row for row in delta_tables.read_days(day.workspace.list_hits) if row["ds"] == ds]
    found = {(row["segment"], row["source"], row["metric"], row["position"]): row["value"] for row in rows}
    assert len(found) == len(rows)
    return found


def of_all(day: Day, ds: dt.date = D, segment: str = "all", source: str = "all") -> dict[Any, float]:
    """Values of a group: by metric, or by (metric, position)."""
    values = {key[2:]: value for key, value in values_of(day, ds).items() if key[:2] == (segment, source)}
    return {metric if position is None else (metric, position): value for (metric, position), value in values.items()}


@pytest.fixture
def made(deployment: Callable[..., Any]) -> Any:
    """Lists of D, and their listeners' plays in the histories of E."""
    made = deployment("recommend.k=3")
    publish(made, D)
    made.sessionized(E, plays_of(made))
    return made


@pytest.mark.parametrize("kind", ["int64", "string"])
def test_every_value_of_a_few_listeners(deployment: Callable[..., Any], kind: str) -> None:
    made = deployment("recommend.k=3", user_id_type=kind, item_id_type=kind)
    publish(made, D)
    made.sessionized(E, plays_of(made))
    (result,) = hits.run(made.day(E))["days"]
    assert of_all(made.day(E)) == pytest.approx(
        {
            "lists": 4,  # of listeners 1, 2, 4 and 5
            "played": 2,  # listener 1 songs 2 and 9, listener 3 song 6
            "plays": 4,
            "play_share": 3 / 4,  # all but that of song 9
            "hr_3": 1,
            "recall_3": (1 / 2 + 1) / 2,
            "ndcg_3": (DISCOUNT / (1 + DISCOUNT) + 1) / 2,
            "hits": 2,
            ("hits", 1): 1,
            ("hits", 2): 1,
            ("hits", 3): 0,
            "skips": 2,  # song 1 by listener 1, song 7 by listener 4
            ("skips", 1): 2,
            ("skips", 2): 0,
            ("skips", 3): 0,
            "explored": 2,
            "explored_hit_share": 1 / 2,
            "explored_ips": (1 / 0.5) / (1 / 0.5 + 1 / 0.25),
        }
    )
    assert result == {
        "ds": "2026-03-02",
        "lists": 4,
        "played": 2,
        "hr_3": 1,
        "recall_3": 0.75,
        "ndcg_3": pytest.approx((DISCOUNT / (1 + DISCOUNT) + 1) / 2, abs=1e-6),
        "play_share": 0.75,
        "hits": 2,
        "skips": 2,
    }


def test_lists_count_by_source_and_by_segment_and_a_listener_without_one_for_the_default_list(made: Any) -> None:
    hits.run(made.day(E))
    day = made.day(E)
    default = of_all(day, source="default")
    assert (default["lists"], default["played"], default["hits"], default["recall_3"]) == (0, 1, 1, 1)
    assert "explored" not in default
    popular = of_all(day, source="popular")
    assert popular == {"lists": 1, "played": 0}  # its listener came after midnight, so no share is there
    kids = of_all(day, segment="kids")
    assert (kids["lists"], kids["played"], kids["skips"], kids["skips", 1]) == (1, 0, 1, 1)
    assert "hr_3" not in kids
    assert of_all(day, segment="default")["lists"] == 3
    rows = delta_tables.read_days(day.workspace.list_hits)
    listeners = {(row["segment"], row["source"], row["metric"]): row["listeners"] for row in rows}
    assert listeners["all", "all", "skips"] == 3 and listeners["all", "all", "hits"] == 2
    assert {row["measured_ds"] for row in rows} == {E}


def test_running_again_replaces_and_a_later_day_measures_nothing_twice(made: Any) -> None:
    hits.run(made.day(E))
    first = values_of(made.day(E))
    publish(made, D, LISTS[:2])
    hits.run(made.day(E))
    assert of_all(made.day(E))["lists"] == 1
    publish(made, D)
    assert hits.run(made.day(E))["days"][0]["lists"] == 4
    assert values_of(made.day(E)) == first
    later = E + dt.timedelta(days=1)
    made.sessionized(later, plays_of(made))
    assert hits.run(made.day(later)) == {"days": []}
    assert values_of(made.day(later)) == first


def test_days_that_were_not_run_are_made_up_for(deployment: Callable[..., Any]) -> None:
    made = deployment("recommend.k=3")
    long_ago = D - dt.timedelta(days=8)
    for ds in (long_ago, D, E):
        publish(made, ds)
    later = E + dt.timedelta(days=2)
    made.sessionized(later, plays_of(made, PLAYS | {2: [(5, MIDNIGHT + 33 * HOUR, PLAYED)]}))
    measured = hits.run(made.day(later))["days"]
    assert [(day["ds"], day["hits"]) for day in measured] == [("2026-03-02", 2), ("2026-03-03", 1)]
    assert of_all(made.day(later), E, source="popular")["hits"] == 1
    assert not values_of(made.day(later), long_ago)


def test_lists_wait_for_late_plays(deployment: Callable[..., Any]) -> None:
    made = deployment("recommend.k=3")
    publish(made, D)
    made.sessionized(E, plays_of(made, {6: PLAYS[6]}))
    assert hits.run(made.day(E)) == {"days": []}
    later = E + dt.timedelta(days=1)
    made.sessionized(later, plays_of(made))
    assert [day["ds"] for day in hits.run(made.day(later))["days"]] == ["2026-03-02"]
    assert {row["measured_ds"] for row in delta_tables.read_days(made.day(later).workspace.list_hits)} == {later}
    assert hits.run(made.day(E)) == {"days": []}  # run again, the earlier day leaves them alone


def test_without_any_lists_nothing_is_measured(deployment: Callable[..., Any]) -> None:
    made = deployment()
    made.sessionized(E, plays_of(made))
    assert hits.run(made.day(E)) == {"days": []}
    assert not Path(made.day(E).workspace.list_hits).exists()


def test_lists_of_an_earlier_release_have_no_segments_and_explored_nothing(deployment: Callable[..., Any]) -> None:
    made = deployment("recommend.k=3")
    publish(made, D, without=("segment", "short", "propensity", "reasons"))
    made.sessionized(E, plays_of(made))
    hits.run(made.day(E))
    found = values_of(made.day(E))
    assert {segment for segment, *_ in found} == {"all"}
    assert of_all(made.day(E))["hits"] == 2 and "explored" not in of_all(made.day(E))


def test_listeners_who_were_forgotten_since_are_in_neither(deployment: Callable[..., Any]) -> None:
    made = deployment("recommend.k=3")
    publish(made, D, [row for row in LISTS if row[0] != 1])
    made.sessionized(E, plays_of(made, {number: plays for number, plays in PLAYS.items() if number != 1}))
    hits.run(made.day(E))
    found = of_all(made.day(E))
    assert (found["lists"], found["played"], found["hits"]) == (3, 1, 1)


def test_without_a_default_list_only_listeners_with_a_list_count(deployment: Callable[..., Any]) -> None:
    made = deployment("recommend.k=3")
    publish(made, D, LISTS[1:])
    made.sessionized(E, plays_of(made))
    hits.run(made.day(E))
    assert of_all(made.day(E))["played"] == 1
    assert not of_all(made.day(E), source="default")


def test_before_the_histories_are_there_it_is_refused_in_one_line(deployment: Callable[..., Any]) -> None:
    made = deployment()
    with pytest.raises(InputError, match="run `fuxi sessionize` for this ds first"):
        hits.run(made.day(E))


def test_a_file_of_lists_that_is_gone_stops_neither_the_day_nor_a_later_try(made: Any) -> None:
    day = made.day(E)
    gone, *_ = Path(day.workspace.recommendations, f"ds={D}").glob("*.parquet")
    content = gone.read_bytes()
    gone.unlink()
    result = run_day(day, {"hits": hits.run, "train": lambda _: {"model_version": "1"}})
    assert result.failures.keys() == {"hits"} and gone.name in result.failures["hits"]
    assert result.stages.keys() == {"train"}
    assert not Path(day.workspace.list_hits).exists()
    gone.write_bytes(content)
    assert run_stage(made.day(E), "hits", hits.run)["days"][0]["hits"] == 2
    assert made.day(E).failure("hits") is None
