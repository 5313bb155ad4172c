"""What counts as a play, with the rows in memory; the Spark pass over files is in
tests/jobs/stages/test_sessionize.py."""

import datetime as dt
import json
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from pipelines import schema
from pipelines.forget import blocklist
from pipelines.logs.files import LogFile, LogSpec, RawBatch, plan, read
from pipelines.logs.validate import (
    IGNORED,
    REASONS,
    VALID,
    ValidationRules,
    completion,
    plays_of,
    validate,
    without_blocked,
)
from pipelines.schema import UNCHOSEN

LANDED = dt.date(2026, 3, 2)
RULES = ValidationRules(play_events=("play",), other_events=("like",), max_late_days=60)
NOON = int(dt.datetime(2026, 3, 2, 12, tzinfo=dt.UTC).timestamp())
GOOD = {
    "user_id": 1,
    "item_id": 10,
    "timestamp": NOON,
    "event_type": "play",
    "play_ms": 5,
    "duration_ms": 10,
    "play_source": "shuffle",
}
TYPES = {"event_type": pa.string(), "play_source": pa.string()}


def verdict(rules=RULES, landed=LANDED, unparseable=False, **changes):
    row = {**GOOD, **changes}
    columns = {name: pa.array([value], TYPES.get(name, pa.int64())) for name, value in row.items() if value != "absent"}
    code = validate(RawBatch(columns, np.array([unparseable]), lambda rows: []), rules, landed)[0]
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
        ({"play_source": None}, "valid"),
        ({"play_source": "absent"}, "valid"),
        ({"play_source": "never heard of"}, "valid"),
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
    rules = ValidationRules(timezone=zone)
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


@pytest.mark.parametrize("format", ["parquet", "csv", "json"])
@pytest.mark.parametrize(
    ("sources", "unchosen", "marked"),
    [
        (["click", "shuffle", None, "radio"], ("shuffle", "radio"), [0, 1, 0, 1]),
        ([True, False, None, True], ("true",), [1, 0, 0, 1]),
        ([1, 0, None, 1], ("0",), [0, 1, 0, 0]),
        (["click", "shuffle", None, "radio"], (), [0, 0, 0, 0]),  # the column is not read at all
    ],
)
def test_plays_that_nobody_chose_are_marked_whatever_the_format(tmp_path, format, sources, unchosen, marked):
    rows = [
        {"user_id": n, "item_id": 5, "timestamp": NOON, "play_ms": n, "duration_ms": 4, "how": source}
        for n, source in enumerate(sources)
    ]
    file = tmp_path / "ds=2026-03-02" / f"a.{format}"
    file.parent.mkdir()
    if format == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    elif format == "csv":
        pa_csv.write_csv(pa.Table.from_pylist(rows), file)
    else:
        file.write_text("\n".join(json.dumps({k: v for k, v in row.items() if v is not None}) for row in rows))
    spec = LogSpec(str(tmp_path), columns={"play_source": "how"}, unchosen_sources=unchosen)
    log = LogFile(str(file), file.stat().st_size, "", "2026-03-02")
    codes = []
    for split in plan(spec, [log]):
        for batch in read(spec, split):
            assert ("play_source" in batch.columns) == bool(unchosen)
            codes += plays_of(batch, validate(batch, RULES, LANDED) == VALID, spec).play_code.tolist()
    assert codes == [25 * n + UNCHOSEN * mark for n, mark in enumerate(marked)]


def log_batches(folder, name, content):
    """The rows of a log file without those of the listeners on the list: batches, and what each was before."""
    file = folder / "ds=2026-03-02" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        file.write_text(content)
    else:
        pq.write_table(content, file)
    spec = LogSpec(str(folder), columns={"user_id": "listener"})
    log = LogFile(str(file), file.stat().st_size, "", "2026-03-02")
    for split in plan(spec, [log]):
        for batch in read(spec, split):
            yield spec, batch


@pytest.mark.parametrize("format", ["parquet", "csv", "json"])
def test_rows_of_the_forgotten_are_dropped_from_batches_and_the_others_are_still_as_read(tmp_path, format):
    users = (3, 4, 3, 5)
    if format == "parquet":
        rows = [{"listener": user, "item_id": 5, "timestamp": 1, "more": n} for n, user in enumerate(users)]
        content = pa.Table.from_pylist(rows)
    elif format == "csv":
        lines = [f"{user},5,{'x' if user == 3 else 1}" for user in users]
        content = "\n".join(["listener,item_id,timestamp", *lines, "3,5,1,9,9", "8,5,1,9,9", ""])
    else:
        rows = [{"listener": user, "item_id": 5, "timestamp": "x" if user == 3 else 1} for user in users]
        content = "\n".join([*(json.dumps(row) for row in rows), '{"listener": 3, "item', '{"listener": 8, "item'])
    blocklist.add(str(tmp_path / "list"), pa.array([3, 77]))
    listed = blocklist.load(str(tmp_path / "list"))
    texts, left, dropped = [], [], 0
    for spec, batch in log_batches(tmp_path, f"a.{format}", content):
        assert without_blocked(batch, blocklist.empty(), spec) == (batch, 0)
        rest, number = without_blocked(batch, listed, spec)
        dropped += number
        left += rest.columns["user_id"].to_pylist()
        texts += rest.as_read(np.arange(len(rest.unparseable)))
    unparsed = 0 if format == "parquet" else 1
    assert (dropped, left) == (2 + unparsed, [4, 5] + [None] * unparsed)
    assert len(texts) == 2 + unparsed and all(sign in text for sign, text in zip("458", texts, strict=False))
    if format == "parquet":
        assert [json.loads(text)["more"] for text in texts] == [1, 3]
