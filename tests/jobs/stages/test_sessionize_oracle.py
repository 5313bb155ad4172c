"""`fuxi sessionize` end to end against DuckDB, which reads the same files and decides everything by itself.

Logs of several landing days, in Parquet, CSV and JSON lines, with dirt of every kind thrown in at random. For every row
DuckDB says whether it is a play, none of our business or rejected and why; from the plays it computes every history,
the numbers of the songs and their listeners. Every row must be accounted for, to the row.
"""

import datetime as dt
import json
import re
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.config import load_config
from jobs.day import open_day, run_stage
from jobs.stages import sessionize
from pipelines import storage
from pipelines.histories import vocabulary
from pipelines.histories.shards import read_item_counts, read_manifest
from pipelines.logs.validate import REASONS

pytestmark = pytest.mark.usefixtures("spark")

FIRST = dt.date(2026, 3, 2)
COLUMNS = ("n", "user_id", "item_id", "timestamp", "event_type", "play_ms", "duration_ms")
KINDS = ("text", "no", "far", "event", "negative", "unknown", "whole")


@dataclass(frozen=True)
class Case:
    """What the logs are like and how histories are kept."""

    seed: int
    ids: str
    max_history: int
    days: int = 5
    rows: int = 260  # of each file, before dirt

    def user(self, number):
        return int(number) * 7 - 40 if self.ids == "int64" else f"ü{number}"

    def song(self, number):
        return int(number) * 10 if self.ids == "int64" else f"s{number:03d}"


def clean_rows(case, rng, day, first_number):
    """Rows as Python values: plays of a few listeners, some days late, on a grid so that times collide."""
    start = int(dt.datetime.combine(day, dt.time(), dt.UTC).timestamp())
    late = np.where(rng.random(case.rows) < 0.3, rng.integers(0, 4, case.rows), 0)
    times = start - late * 86_400 + rng.integers(0, 96, case.rows) * 900
    rows = []
    for place in range(case.rows):
        rows.append(
            {
                "n": first_number + place,
                "user_id": case.user(rng.integers(1, 14)),
                "item_id": case.song(rng.integers(1, 20 + 6 * (day - FIRST).days)),
                "timestamp": int(times[place]),
                "event_type": str(rng.choice(["play", "play", "play", "like"])),
                "play_ms": int(rng.integers(0, 260_000)),
                "duration_ms": 200_000,
            }
        )
    return rows


def dirty(rows, rng):
    """The same rows, a fifth of them spoilt in one or two ways that any format can say, and some that come again."""
    day = 86_400
    spoil = [
        lambda row: row.update(user_id=None),
        lambda row: row.update(item_id=None),
        lambda row: row.update(timestamp=None),
        lambda row: row.update(event_type=None),
        lambda row: row.update(event_type="buy"),
        lambda row: row.update(play_ms=-5),
        lambda row: row.update(duration_ms=-1),
        lambda row: row.update(play_ms=None),
        lambda row: row.update(duration_ms=None),
        lambda row: row.update(duration_ms=0),
        lambda row: row.update(timestamp=row["timestamp"] and row["timestamp"] + 5 * day),
        lambda row: row.update(timestamp=row["timestamp"] and row["timestamp"] - 70 * day),
        lambda row: row.update(timestamp=-(2**40)),
        lambda row: row.update(timestamp=0),
    ]
    number = rows[-1]["n"] + 1
    for place in rng.permutation(len(rows))[: len(rows) // 10]:
        again = dict(rows[place], n=number)
        if rng.random() < 0.5:
            again["play_ms"] = int(rng.integers(0, 260_000))
        rows.append(again)
        number += 1
    for place in rng.permutation(len(rows))[: len(rows) // 5]:
        for which in rng.integers(0, len(spoil), rng.integers(1, 3)):
            spoil[which](rows[place])
    return [rows[place] for place in rng.permutation(len(rows))]


def write_parquet(path, rows, case, rng):
    """Fractions, NaN and empty strings are what this format can add."""
    id_type = pa.int64() if case.ids == "int64" else pa.string()
    for row in rows:
        if row["play_ms"] is not None and rng.random() < 0.2:
            row["play_ms"] = float(rng.choice([row["play_ms"] + 0.5, np.nan, np.inf, -0.25]))
        if case.ids == "string" and rng.random() < 0.02:
            row["user_id"] = ""
    types = {"user_id": id_type, "item_id": id_type, "event_type": pa.string(), "play_ms": pa.float64()}
    table = pa.table({name: pa.array([row[name] for row in rows], types.get(name, pa.int64())) for name in COLUMNS})
    pq.write_table(table, path, row_group_size=100)


def write_csv(path, rows, case, rng):
    """Lines that cannot be split, numbers that are none, ISO times, blanks around values."""
    lines = [",".join(COLUMNS)]
    for row in rows:
        cells = ["" if row[name] is None else str(row[name]) for name in COLUMNS]
        chance = rng.random()
        if chance < 0.03:
            cells[1 if case.ids == "int64" else 3] = str(rng.choice(["abc", "1.5", "12345678901234567890", "1e3"]))
        elif chance < 0.06:
            cells[int(rng.choice([5, 6]))] = str(rng.choice(["long", "1,5", "0x10"]))  # one of them is a cell too many
        elif chance < 0.09:
            cells = cells[: int(rng.integers(2, 7))]
        elif chance < 0.20 and row["timestamp"] is not None:
            moment = dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(seconds=max(row["timestamp"], 0))
            east = moment.astimezone(dt.timezone(dt.timedelta(hours=2)))
            cells[3] = str(rng.choice([moment.strftime("%Y-%m-%dT%H:%M:%S"), east.isoformat(" ")]))
        elif chance < 0.25:
            cells = [f"  {cell} " if cell else cell for cell in cells]
        elif chance < 0.30 and row["play_ms"] is not None:
            cells[5] = f"{row['play_ms']}.75"
        lines.append(",".join(cells))
        if rng.random() < 0.02:
            lines.append("")
    path.write_text("\n".join(lines) + "\n")


def write_json(path, rows, case, rng):
    """Lines that are no objects, values of another type, keys that are not there, times as text and with fractions."""
    lines = []
    for full in rows:
        row, chance = full, rng.random()
        if chance < 0.03:
            key = str(rng.choice(["user_id", "item_id", "play_ms", "event_type"]))
            row[key] = {"a": 1} if key == "event_type" else str(row[key]) if case.ids == "int64" else True
        elif chance < 0.06:
            row = {name: value for name, value in row.items() if value is not None}
        elif chance < 0.10 and row["timestamp"] is not None:
            row["timestamp"] = rng.choice([str(row["timestamp"]), row["timestamp"] + 0.5]).item()
            row["timestamp"] = float(row["timestamp"]) if str(row["timestamp"]).endswith(".5") else row["timestamp"]
        line = json.dumps(row, ensure_ascii=bool(rng.random() < 0.5))
        if chance > 0.97:
            line = line[: len(line) - int(rng.integers(1, 20))]
        lines.append(line)
    path.write_text("\n\n".join(lines[:3]) + "\n" + "\n".join(lines[3:]))


def write_day(logs, case, rng, day, first_number, name):
    """One file of each format; the next free row number."""
    folder = Path(logs) / f"ds={day}"
    folder.mkdir(parents=True, exist_ok=True)
    for ending, write in (("parquet", write_parquet), ("csv", write_csv), ("jsonl", write_json)):
        rows = dirty(clean_rows(case, rng, day, first_number), rng)
        first_number += len(rows)
        write(folder / f"{name}.{ending}", rows, case, rng)
    return first_number


# What a row of each format is, as (n, who, item, sec, event, play, duration, unparseable); all ids as text.
INTEGER = "[+-]?[0-9]{1,18}"
NUMBER = "[+-]?[0-9]+(\\.[0-9]*)?(e[0-9]+)?"


def csv_rows(file, ids):
    cell = "nullif(trim(c[{}]), '')"
    who, item, sec, event, play, duration = (cell.format(place) for place in range(2, 8))
    texts = [] if ids == "string" else [who, item]
    bad = [f"({text} IS NOT NULL AND NOT regexp_full_match({text}, '{INTEGER}'))" for text in texts]
    bad += [
        f"({text} IS NOT NULL AND NOT regexp_full_match({text}, '{INTEGER}(\\.[0-9]*)?'))" for text in (play, duration)
    ]
    iso = f"floor(epoch(try_cast({sec} AS TIMESTAMPTZ)))::BIGINT"
    number = f"try_cast(floor(try_cast({sec} AS DOUBLE)) AS BIGINT)"
    seconds = f"CASE WHEN regexp_full_match({sec}, '{NUMBER}') THEN {number} ELSE {iso} END"
    bad.append(f"({sec} IS NOT NULL AND {seconds} IS NULL)")

    def whole(text):
        return f"try_cast(regexp_replace({text}, '\\..*$', '') AS BIGINT)"

    return f"""
        SELECT c[1]::INT AS n, {who} AS who, {item} AS item, {seconds} AS sec, {event} AS event, {whole(play)} AS play,
            {whole(duration)} AS duration, len(c) <> 7 OR {" OR ".join(bad)} AS unparseable
        FROM (SELECT string_split(line, ',') AS c FROM ({lines_of(file)}) WHERE NOT starts_with(line, 'n,'))"""


def json_rows(file, ids):
    def typed(key):
        return f"json_type(line, '$.{key}')"

    def text(key):
        return f"nullif(json_extract_string(line, '$.{key}'), '')"

    whole, number = "('UBIGINT', 'BIGINT', 'VARCHAR', 'NULL')", "('UBIGINT', 'BIGINT', 'DOUBLE', 'VARCHAR', 'NULL')"
    id_types = whole if ids == "int64" else "('VARCHAR', 'NULL')"
    allowed = {"user_id": id_types, "item_id": id_types, "event_type": "('VARCHAR', 'NULL')"}
    allowed |= {"play_ms": number, "duration_ms": number}
    bad = [f"coalesce({typed(key)} NOT IN {types}, false)" for key, types in allowed.items()]
    numbers = ["play_ms", "duration_ms", *(["user_id", "item_id"] if ids == "int64" else [])]
    bad += [
        f"coalesce({typed(key)} = 'VARCHAR' AND NOT regexp_full_match({text(key)}, '{INTEGER}'), false)"
        for key in numbers
    ]
    event = f"CASE WHEN json_exists(line, '$.event_type') THEN {text('event_type')} ELSE 'play' END"
    return f"""
        SELECT regexp_extract(line, '"n": ([0-9]+)', 1)::INT AS n, {text("user_id")} AS who, {text("item_id")} AS item,
            floor({text("timestamp")}::DOUBLE)::BIGINT AS sec, {event} AS event,
            floor(try_cast({text("play_ms")} AS DOUBLE))::BIGINT AS play,
            floor(try_cast({text("duration_ms")} AS DOUBLE))::BIGINT AS duration, {" OR ".join(bad)} AS unparseable
        FROM (SELECT * FROM ({lines_of(file)}) WHERE json_valid(line))
        UNION ALL SELECT regexp_extract(line, '"n": ([0-9]+)', 1)::INT, NULL, NULL, NULL, NULL, NULL, NULL, true
        FROM (SELECT * FROM ({lines_of(file)}) WHERE NOT json_valid(line))"""


def lines_of(file):
    lines = f"SELECT unnest(string_split(content, chr(10))) AS line FROM read_text('{file}')"
    return f"SELECT line FROM ({lines}) WHERE line <> ''"


def parquet_rows(file, ids):
    return f"""
        SELECT n::INT AS n, nullif(user_id::VARCHAR, '') AS who, nullif(item_id::VARCHAR, '') AS item,
            timestamp AS sec, event_type AS event,
            CASE WHEN isfinite(play_ms) THEN floor(play_ms)::BIGINT END AS play, duration_ms AS duration,
            false AS unparseable
        FROM read_parquet('{file}')"""


class Oracle:
    """DuckDB's view of the logs."""

    def __init__(self, case):
        self.case, self.sql = case, duckdb.connect()
        self.sql.execute("SET TimeZone = 'UTC'")
        self.sql.execute(
            "CREATE TABLE rows (file VARCHAR, landed DATE, run INT, n INT, who VARCHAR, item VARCHAR, sec BIGINT, "
            "event VARCHAR, play BIGINT, duration BIGINT, unparseable BOOLEAN)"
        )

    def read(self, file, run):
        """Take in a log file, which arrives for a run."""
        read = {".parquet": parquet_rows, ".csv": csv_rows, ".jsonl": json_rows}[file.suffix]
        landed = file.parent.name.removeprefix("ds=")
        self.sql.execute(
            f"INSERT INTO rows SELECT '{file}', DATE '{landed}', {run}, n, who, item, sec, event, play, duration, "
            f"unparseable FROM ({read(file, self.case.ids)})"
        )

    def judge(self):
        """Why each row is rejected, as the rules say it; '' for plays, 'ignored' for other events."""
        self.sql.execute("""
            CREATE OR REPLACE VIEW judged AS SELECT *, CASE
                WHEN NOT unparseable AND event IN ('like', 'pause', 'seek') THEN 'ignored'
                WHEN unparseable THEN 'unparseable'
                WHEN who IS NULL THEN 'null_user_id'
                WHEN item IS NULL THEN 'null_item_id'
                WHEN sec IS NULL THEN 'null_timestamp'
                WHEN event IS NULL OR event <> 'play' THEN 'unknown_event_type'
                WHEN play < 0 OR duration < 0 THEN 'negative_duration'
                WHEN sec >= epoch(landed + INTERVAL 1 DAY) THEN 'timestamp_after_landing'
                WHEN sec < epoch(landed - INTERVAL 60 DAY) THEN 'timestamp_too_old'
                ELSE '' END AS verdict,
                CASE WHEN play IS NULL OR coalesce(duration, 0) = 0 THEN 100
                    ELSE floor(100.0 * least(play, duration) / duration + 0.5) END::INT AS percent
            FROM rows""")
        order = "item::BIGINT" if self.case.ids == "int64" else "item COLLATE C"
        self.sql.execute(f"""
            CREATE OR REPLACE TABLE songs AS SELECT item, row_number() OVER (ORDER BY run, {order})::INT AS song
            FROM (SELECT item, min(run) AS run FROM judged WHERE verdict = '' GROUP BY item)""")

    def all(self, query):
        return self.sql.execute(query).fetchall()

    def counts(self, run):
        """Rows and rows of each verdict that a run reads."""
        return dict(self.all(f"SELECT verdict, count(*)::INT FROM judged WHERE run = {run} GROUP BY verdict"))

    def distinct_plays(self, until):
        [(count,)] = self.all(
            f"SELECT count(DISTINCT (who, sec, item))::INT FROM judged WHERE verdict = '' AND run <= {until}"
        )
        return count

    def histories(self, until):
        """user -> row of a shard, from everything up to a run."""
        most = self.case.max_history
        rows = self.all(f"""
            WITH plays AS (
                SELECT who, sec, song, max(percent) AS percent FROM judged JOIN songs USING (item)
                WHERE verdict = '' AND run <= {until} GROUP BY who, sec, song),
            ranked AS (SELECT *, row_number() OVER (PARTITION BY who ORDER BY sec DESC, song DESC) AS age FROM plays),
            cut AS (SELECT *, coalesce(sec - lag(sec) OVER w > 1800, false)::INT AS starts FROM ranked
                WHERE age <= {most} WINDOW w AS (PARTITION BY who ORDER BY sec, song)),
            numbered AS (SELECT *, sum(starts) OVER (PARTITION BY who ORDER BY sec, song)::INT AS session FROM cut),
            older AS (
                SELECT who, list(DISTINCT song ORDER BY song) AS heard FROM ranked WHERE age > {most} GROUP BY who)
            SELECT who, list(song ORDER BY sec, song), list(sec ORDER BY sec, song), list(percent ORDER BY sec, song),
                list(session ORDER BY sec, song), coalesce(any_value(heard), []), count(*)::INT
            FROM numbered LEFT JOIN older USING (who) GROUP BY who""")
        names = ("item_index", "timestamp", "completion", "session_index", "heard_before", "num_events")
        return {row[0]: dict(zip(names, row[1:], strict=True)) for row in rows}


def stored(manifest):
    """user -> row, as whoever reads the shards sees it."""
    found = {}
    for file, group, rows in manifest.row_groups():
        table = manifest.read(file, group)
        assert table.num_rows == rows
        for row in table.to_pylist():
            user = str(row.pop("user_id"))
            assert user not in found
            found[user] = row
    return found


def quarantined(workspace, ds):
    """n -> reason of every quarantined row, and the file and landing day it came from."""
    found = {}
    for file in storage.list_files(f"{workspace}/quarantine/ds={ds}"):
        for row in storage.read_table(file.uri).to_pylist():
            named = re.search(r'"n": "? *(\d+)', row["row"]) or re.match(r" *(\d+),", row["row"])
            assert named, row
            number = int(named.group(1))
            assert number not in found
            found[number] = (row["reason"], row["landing_day"], row["source_file"])
    return found


@pytest.mark.parametrize(
    "case",
    [
        Case(seed=1, ids="int64", max_history=100_000),
        Case(seed=2, ids="string", max_history=12),
        Case(seed=3, ids="int64", max_history=1),
        Case(seed=4, ids="string", max_history=100_000, rows=1000),
    ],
    ids=lambda case: f"{case.ids}-{case.max_history}",
)
def test_duckdb_finds_the_same_histories_reasons_and_counts_in_the_same_files(case, tmp_path):
    """Five runs, the second with a late file of the first landing day; increments, and buckets compacted in turn."""
    rng = np.random.default_rng(case.seed)
    settings = load_config(
        environment={},
        overrides=[
            f"workspace={tmp_path}/workspace",
            f"logs.path={tmp_path}/logs",
            "logs.max_rejected_share=1",
            f"quality.min_plays={10**9}",  # the gate has tests of its own
            f"sequences.user_id_type={case.ids}",
            f"sequences.item_id_type={case.ids}",
            "sequences.buckets=4",
            f"sequences.max_history={case.max_history}",
            "sequences.row_group_events=60",
            "sequences.max_increments=2",
        ],
    )
    oracle, number, read, accounted, increments = Oracle(case), 0, set(), 0, set()
    for run in range(case.days):
        landed = FIRST + dt.timedelta(days=run)
        number = write_day(tmp_path / "logs", case, rng, landed, number, "part")
        if run == 1:
            number = write_day(tmp_path / "logs", case, rng, FIRST, number, "late")
        for file in sorted(set((tmp_path / "logs").rglob("*.*")) - read):
            oracle.read(file, run)
            read.add(file)
        oracle.judge()
        ds = landed + dt.timedelta(days=1)
        day = open_day(settings, ds)
        result = run_stage(day, "sessionize", sessionize.run)
        manifest = read_manifest(day.workspace.sequences(ds))

        check_counts(oracle, run, result)
        check_quarantine(oracle, run, quarantined(settings.workspace, ds))
        accounted += result["rows_read"] - result["ignored"] - sum(result["rejected"].values()) - result["duplicates"]
        if case.max_history > number:  # a play that was cut off is forgotten, so that its duplicate looks new
            assert accounted == oracle.distinct_plays(run) == manifest.events
        assert stored(manifest) == oracle.histories(run)
        check_songs(oracle, run, settings.workspace, manifest)
        increments |= {len(file.increments) for file in manifest.files if run == case.days - 1}
    assert len(increments) > 1, "every bucket was in the same state, so compaction did not come in turn"


def check_counts(oracle, run, result):
    """Every row that was read is a play, ignored, or rejected for a reason: as many of each as DuckDB says."""
    counts = oracle.counts(run)
    assert set(counts) >= {*REASONS, "", "ignored"}, "the dirt does not show every reason"
    assert result["rows_read"] == sum(counts.values())
    assert (result["accepted"], result["ignored"]) == (counts.pop(""), counts.pop("ignored"))
    assert result["rejected"] == counts


def check_quarantine(oracle, run, found):
    query = f"SELECT n, verdict, landed, file FROM judged WHERE run = {run} AND verdict NOT IN ('', 'ignored')"
    assert found == {number: tuple(rest) for number, *rest in oracle.all(query)}


def check_songs(oracle, run, workspace, manifest):
    """Songs are numbered in the order of the day they were first heard, then of their ids; and who heard them."""
    until = f"verdict = '' AND run <= {run}"
    numbers = dict(oracle.all("SELECT item, song FROM songs"))
    table = vocabulary.read(f"{workspace}/vocabulary", manifest.item_id_type).table
    items, indices = (table[name].to_pylist() for name in ("item_id", "item_index"))
    assert dict(zip(map(str, items), indices, strict=True)) == numbers
    listeners = oracle.all(
        f"SELECT song, count(DISTINCT who)::INT FROM judged JOIN songs USING (item) WHERE {until} GROUP BY song"
    )
    expected = [0] * (manifest.vocabulary_size + 1)
    for song, count in listeners:
        expected[song] = count
    assert read_item_counts(manifest).tolist() == expected
