"""What counts as a play, with the rows in memory; the Spark pass over files is in
tests/jobs/stages/test_sessionize.py."""

import datetime as dt
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pytest

from pipelines import schema
from pipelines.logs.files import RawBatch
from pipelines.logs.validate import IGNORED, REASONS, VALID, Rules, completion, judge

LANDED = dt.date(2026, 3, 2)
RULES = Rules(play_events=("play",), other_events=("like",), max_late_days=60)
NOON = int(dt.datetime(2026, 3, 2, 12, tzinfo=dt.UTC).timestamp())
GOOD = {"user_id": 1, "item_id": 10, "timestamp": NOON, "event_type": "play", "play_ms": 5, "duration_ms": 10}
TYPES = {"event_type": pa.string()}


def verdict(rules=RULES, landed=LANDED, unparseable=False, **changes):
    row = {**GOOD, **changes}
    columns = {name: pa.array([value], TYPES.get(name, pa.int64())) for name, value in row.items() if value != "absent"}
    code = judge(RawBatch(columns, np.array([unparseable]), lambda rows: []), rules, landed)[0]
    return {VALID: "valid", IGNORED: "ignored"}.get(code) or REASONS[code]


@pytest.mark.parametrize(
    ("changes", "judged"),
    [
        ({}, "valid"),
        ({"user_id": None}, "null_user_id"),
        ({"item_id": None}, "null_item_id"),
        ({"timestamp": None}, "null_timestamp"),
        ({"event_type": "buy"}, "unknown_event_type"),
        ({"event_type": None}, "unknown_event_type"),
        ({"event_type": "absent"}, "valid"),
        ({"event_type": "like"}, "ignored"),
        ({"event_type": "like", "user_id": None}, "ignored"),
        ({"play_ms": -1}, "negative_duration"),
        ({"duration_ms": -1}, "negative_duration"),
        ({"play_ms": None, "duration_ms": None}, "valid"),
        ({"duration_ms": "absent"}, "valid"),
        ({"unparseable": True, "event_type": "like"}, "unparseable"),
        ({"user_id": None, "timestamp": None}, "null_user_id"),
    ],
)
def test_a_row_is_judged_by_the_first_rule_it_breaks(changes, judged):
    assert verdict(**changes) == judged


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "America/New_York"])
@pytest.mark.parametrize("landed", [dt.date(2026, 3, 2), dt.date(2026, 3, 29)])  # Berlin's clocks change on the 29th
def test_the_window_of_a_landing_day_follows_the_time_zone(zone, landed):
    def wall(day):
        return int(dt.datetime(day.year, day.month, day.day, tzinfo=ZoneInfo(zone)).timestamp())

    end, first = wall(landed + dt.timedelta(days=1)), wall(landed - dt.timedelta(days=60))
    rules = Rules(timezone=zone)
    at = {"rules": rules, "landed": landed}
    assert verdict(**at, timestamp=end - 1) == "valid"
    assert verdict(**at, timestamp=end) == "timestamp_after_landing"
    assert verdict(**at, timestamp=first) == "valid"
    assert verdict(**at, timestamp=first - 1) == "timestamp_too_old"


@pytest.mark.parametrize(
    ("played", "duration", "percent"),
    [(0, 200, 0), (1, 200, 1), (30, 200, 15), (199, 200, 100), (200, 200, 100), (500, 200, 100), (5, 0, 100)],
)
def test_completion_is_percent_played(played, duration, percent):
    assert completion(pa.array([played]), pa.array([duration]), 1).tolist() == [percent]


def test_unknown_completion_is_a_full_play():
    some, none = pa.array([5], pa.int64()), pa.array([None], pa.int64())
    assert completion(some, none, 1).tolist() == completion(none, some, 1).tolist() == [100]
    assert completion(None, some, 1).tolist() == completion(some, None, 1).tolist() == [100]


def test_every_column_of_a_play_is_known_to_the_schema():
    assert set(GOOD) == {*schema.REQUIRED_COLUMNS, *schema.OPTIONAL_COLUMNS}
