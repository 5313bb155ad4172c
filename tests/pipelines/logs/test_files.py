"""Reading play logs in every format, and refusing what cannot be read."""

import datetime as dt
import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake

from pipelines.errors import InputError
from pipelines.logs import files
from pipelines.logs.files import LogSpec

NOON = 1_772_452_800  # 2026-03-02 12:00:00 UTC
PLAYS = {
    "user_id": [1, 2, None],
    "item_id": [10, 20, 30],
    "timestamp": [NOON, NOON + 1, NOON + 2],
    "event_type": ["play", "like", "play"],
    "play_ms": [1000, None, 3000],
    "duration_ms": [2000, 2000, None],
}
AFTER = dt.date(2026, 3, 3)


def put(root, content, *, name="part-0.parquet", day="2026-03-02"):
    file = root / f"ds={day}" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, pa.Table):
        pq.write_table(content, file)
    else:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def read_all(spec):
    """Every row as (columns, parseable), and the rows as read."""
    rows, texts = [], []
    for split in files.plan(spec, files.discover(spec, before=AFTER)):
        for batch in files.read(spec, split):
            columns = {name: column.to_pylist() for name, column in batch.columns.items()}
            for n, bad in enumerate(batch.unparseable):
                rows.append(({name: values[n] for name, values in columns.items()}, not bad))
            texts += batch.as_read(np.arange(len(batch.unparseable)))
    return rows, texts


def expected(columns=None):
    columns = columns or PLAYS
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def test_parquet_rows_come_with_our_names_and_types(tmp_path):
    table = pa.table(PLAYS).rename_columns(["listener", "song", "at", "event_type", "play_ms", "duration_ms"])
    table = table.set_column(0, "listener", table["listener"].cast(pa.int32()))
    put(tmp_path, table)
    columns = {"user_id": "listener", "item_id": "song", "timestamp": "at"}
    rows, texts = read_all(LogSpec(str(tmp_path), columns=columns))
    assert rows == [(row, True) for row in expected()]
    assert json.loads(texts[0])["listener"] == 1


@pytest.mark.parametrize("zone", [None, "UTC", "America/New_York"])
@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_timestamp_types_become_unix_seconds(tmp_path, unit, zone):
    seconds = pa.array([NOON, None], pa.timestamp("s", zone)).cast(pa.timestamp(unit, zone))
    put(tmp_path, pa.table({"user_id": [1, 2], "item_id": [3, 4], "timestamp": seconds}))
    assert [row["timestamp"] for row, _ in read_all(LogSpec(str(tmp_path)))[0]] == [NOON, None]


def test_csv_is_read_by_its_header_and_bad_rows_are_kept_as_they_were(tmp_path):
    text = (
        "item_id,user_id,timestamp,event_type,play_ms\n"
        f"10,1,{NOON},play,1500.7\n"
        f"10, 2 ,2026-03-02T12:00:00Z,play,\n"
        f"10,2,2026-03-02T13:00:00+01:00,play,\n"
        f"10,,2026-03-02 12:00:00,play,5\n"
        f"ten,3,{NOON},play,5\n"
        f"10,3,{NOON}\n"
        f'10,3,{NOON},"play",1x\n'
    )
    put(tmp_path, text, name="plays.csv")
    rows, texts = read_all(LogSpec(str(tmp_path)))
    good = {"item_id": 10, "timestamp": NOON, "event_type": "play"}
    assert rows[:4] == [
        ({**good, "user_id": 1, "play_ms": 1500}, True),
        ({**good, "user_id": 2, "play_ms": None}, True),
        ({**good, "user_id": 2, "play_ms": None}, True),
        ({**good, "user_id": None, "play_ms": 5}, True),
    ]
    assert [parseable for _, parseable in rows[4:]] == [False] * 3
    assert json.loads(texts[4])["item_id"] == "ten"
    assert texts[-1] == f"10,3,{NOON}"  # rows that do not split come last


def test_csv_text_that_is_not_utf8_spoils_its_row_only(tmp_path):
    put(tmp_path, b"user_id,item_id,timestamp\nann,1,5\n\xff\xfe,1,5\nbob,1,5\n", name="plays.csv")
    rows, texts = read_all(LogSpec(str(tmp_path), user_id_type="string"))
    assert [(row["user_id"], parseable) for row, parseable in rows] == [("ann", True), (None, False), ("bob", True)]
    assert "\\\\xff" in texts[1]


def test_json_lines_are_read_and_bad_lines_are_kept_as_they_were(tmp_path):
    lines = [json.dumps(row) for row in expected()]
    lines += ["", '{"user_id": 1, "item_id"', '["list"]', '{"user_id": "1x", "item_id": 5, "timestamp": 6}']
    lines += [json.dumps({"user_id": 4, "item_id": 5, "timestamp": "2026-03-02T12:00:00Z", "play_ms": 7.9})]
    put(tmp_path, "\n".join(lines), name="plays.jsonl")
    rows, texts = read_all(LogSpec(str(tmp_path)))
    assert rows[:3] == [(row, True) for row in expected()]
    assert [parseable for _, parseable in rows[3:]] == [False, False, False, True]
    assert (rows[6][0]["timestamp"], rows[6][0]["play_ms"]) == (NOON, 7)
    assert texts[3] == '{"user_id": 1, "item_id"'


@pytest.mark.parametrize("name", ["plays.csv.gz", "plays.json.gz"])
def test_compressed_text_is_read(tmp_path, name):
    text = "user_id,item_id,timestamp\n1,2,3\n" if ".csv" in name else '{"user_id": 1, "item_id": 2, "timestamp": 3}'
    put(tmp_path, gzip.compress(text.encode()), name=name)
    assert read_all(LogSpec(str(tmp_path)))[0] == [({"user_id": 1, "item_id": 2, "timestamp": 3}, True)]


def test_only_live_files_of_a_delta_table_are_read(tmp_path):
    day = pa.table({**PLAYS, "ds": [dt.date(2026, 3, 2)] * 3})
    write_deltalake(str(tmp_path), day, partition_by=["ds"])
    write_deltalake(str(tmp_path), day.slice(0, 1), mode="overwrite", predicate="ds = '2026-03-02'")
    write_deltalake(str(tmp_path), day.set_column(6, "ds", pa.array([AFTER] * 3)), mode="append")
    assert len(list(tmp_path.rglob("*.parquet"))) == 3
    assert read_all(LogSpec(str(tmp_path)))[0] == [(expected()[0], True)]
    [file] = files.discover(LogSpec(str(tmp_path), format="delta"), before=AFTER)
    assert file.landing_day == "2026-03-02" and file.uri in DeltaTable(str(tmp_path)).file_uris()


def test_files_are_found_by_landing_day_and_hidden_ones_left_out(tmp_path):
    table = pa.table(PLAYS)
    for day in ("2026-03-01", "2026-03-02", "2026-03-03"):
        put(tmp_path, table, day=day)
        put(tmp_path, b"", name="_SUCCESS", day=day)
    put(tmp_path, b"", name="README.txt", day="x").parent.rename(tmp_path / "notes")
    found = files.discover(LogSpec(str(tmp_path)), before=AFTER)
    assert [file.landing_day for file in found] == ["2026-03-01", "2026-03-02"]


def test_big_parquet_files_are_cut_at_row_groups(tmp_path):
    file = put(tmp_path, pa.table(PLAYS))
    pq.write_table(pa.table({name: values * 10 for name, values in PLAYS.items()}), file, row_group_size=6)
    spec = LogSpec(str(tmp_path))
    splits = files.plan(spec, files.discover(spec, before=AFTER), split_bytes=1)
    assert [split.row_groups for split in splits] == [(0,), (1,), (2,), (3,), (4,)]
    assert sum(len(batch.unparseable) for split in splits for batch in files.read(spec, split)) == 30


def replaced(**columns):
    return pa.table({**PLAYS, **columns})


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (
            pa.table({"user_id": [1], "timestamp": [2]}),
            "a.parquet",
            r"column item_id \(item_id\) is missing, found user",
        ),
        (
            replaced(timestamp=[True, False, True]),
            "a.parquet",
            r"column timestamp \(timestamp\) is bool, expected times: numbers since 1970, timestamps or ISO 8601",
        ),
        (
            replaced(user_id=[{"id": 1}, {"id": 2}, {"id": 3}]),
            "a.parquet",
            r"column user_id \(user_id\) is struct<id: int64>, expected whole numbers: .*\{user_id: user_id.id\}",
        ),
        (replaced(play_ms=[True, False, True]), "a.parquet", r"column play_ms \(play_ms\) is bool"),
        (b"PAR1 not a parquet file", "a.parquet", r"a.parquet cannot be read as parquet \(.*\): replace or remove"),
        (b"", "a.parquet", r"a.parquet cannot be read as parquet"),
        (b"", "a.csv", r"a.csv cannot be read as csv \(the file is empty, not even a header\)"),
        (b"user_id,timestamp\n1,2\n", "a.csv", r"a.csv: column item_id \(item_id\) is missing"),
        (b'{"user_id": 1, "timestamp": 5}\n', "a.json", r"a.json: column item_id \(item_id\) is missing"),
        (b"hello", "a.txt", r"a.txt: no log format for this file ending: set logs.format"),
        (b"not gzip", "a.csv.gz", r"a.csv.gz cannot be read as csv"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_in_one_line(tmp_path, content, name, message):
    put(tmp_path, content, name=name)
    spec = LogSpec(str(tmp_path))
    with pytest.raises(InputError, match=message) as error:
        files.plan(spec, files.discover(spec, before=AFTER))
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


@pytest.mark.parametrize("ending", ["parquet", "csv", "json"])
@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (
            "user_id",
            "u7",
            r"column user_id has 'u7', expected whole numbers: set sequences.user_id_type: string",
        ),
        ("item_id", "007", r"column item_id has '007', expected whole numbers: set sequences.item_id_type: string"),
        (
            "timestamp",
            "1st of March",
            r"column timestamp has '1st of March', expected times: .*: .*logs.timestamp_unit",
        ),
    ],
)
def test_a_column_without_a_value_that_can_be_read_is_named_before_the_day_begins(
    tmp_path, ending, column, value, message
):
    rows = [{"user_id": 1, "item_id": 2, "timestamp": NOON, column: value}] * 30
    if ending == "parquet":
        put(tmp_path, pa.Table.from_pylist(rows))
    elif ending == "csv":
        put(
            tmp_path,
            "\n".join(",".join(map(str, row)) for row in ([*rows[0]], *(r.values() for r in rows))),
            name="a.csv",
        )
    else:
        put(tmp_path, "\n".join(map(json.dumps, rows)), name="a.json")
    spec = LogSpec(str(tmp_path))
    with pytest.raises(InputError, match=rf"ds=2026-03-02/.*{ending}: {message}"):
        files.plan(spec, files.discover(spec, before=AFTER))


def test_a_parquet_file_with_damaged_pages_is_named_when_it_is_read(tmp_path):
    file = put(tmp_path, pa.table({name: values * 1000 for name, values in PLAYS.items()}))
    content = bytearray(file.read_bytes())
    content[4 : len(content) // 2] = b"\xff" * (len(content) // 2 - 4)
    file.write_bytes(content)
    spec = LogSpec(str(tmp_path))
    with pytest.raises(InputError, match=r"part-0.parquet cannot be read as parquet"):
        read_all(spec)


def test_an_unknown_column_in_the_mapping_gets_the_nearest_name():
    with pytest.raises(InputError, match="'usr_id' is not a column of plays: did you mean 'user_id'"):
        LogSpec("logs", columns={"usr_id": "x"})


def test_a_folder_that_is_no_day_and_a_missing_path_are_refused(tmp_path):
    put(tmp_path, pa.table(PLAYS), day="2026-3-2")
    with pytest.raises(InputError, match=r"ds=2026-3-2: its name is not a landing day: rename it to ds=YYYY-MM-DD"):
        files.discover(LogSpec(str(tmp_path)), before=AFTER)
    with pytest.raises(InputError, match=r"logs.path is empty"):
        files.discover(LogSpec(""), before=AFTER)


def test_a_delta_table_without_days_is_refused(tmp_path):
    write_deltalake(str(tmp_path), pa.table(PLAYS))
    with pytest.raises(InputError, match=r"must be partitioned by \['ds'\]"):
        files.discover(LogSpec(str(tmp_path)), before=AFTER)


def test_changed_and_missing_files_are_noticed(tmp_path):
    first, second = put(tmp_path, pa.table(PLAYS)), put(tmp_path, pa.table(PLAYS), name="part-1.parquet")
    found = files.discover(LogSpec(str(tmp_path)), before=AFTER)
    assert files.changed(found) == []
    first.unlink()
    second.write_bytes(b"other")
    problems = files.changed(found)
    assert len(problems) == 2 and "part-0.parquet is not there" in problems[0] and "has changed" in problems[1]
