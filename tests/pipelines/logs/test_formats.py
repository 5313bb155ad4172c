"""The same play means the same in every format: one row written as Parquet, CSV and JSON lines, read back."""

import datetime as dt
import gzip
import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.logs import files
from pipelines.logs.files import LogSpec
from pipelines.logs.formats import by_ending, read_small

NAMES = ("user_id", "item_id", "timestamp", "play_ms", "duration_ms")
GOOD = {"user_id": 1, "item_id": 10, "timestamp": 1_772_452_800, "play_ms": 1000.0, "duration_ms": 2000.0}


def read_as(folder, ending, rows):
    """(values, whether it could be parsed) of each row, by one of the formats."""
    day = folder / ending / "ds=2026-03-02"
    day.mkdir(parents=True, exist_ok=True)
    file = day / f"part-0.{ending}"
    if ending == "parquet":
        pq.write_table(pa.Table.from_pylist(rows, schema=pa.Table.from_pylist([GOOD]).schema), file)
    elif ending == "csv":
        cells = [["" if row[name] is None else str(row[name]) for name in NAMES] for row in rows]
        file.write_text("\n".join(",".join(line) for line in [NAMES, *cells]) + "\n")
    else:
        file.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    spec = LogSpec(str(folder / ending), timestamp_unit="s")
    [split] = files.plan(spec, files.discover(spec, before=dt.date(2026, 3, 3)))
    found = []
    for batch in files.read(spec, split):
        nothing = pa.nulls(len(batch.unparseable))  # a column without a value need not be there
        columns = [batch.columns.get(name, nothing).to_pylist() for name in NAMES]
        found += list(zip(*columns, (not bad for bad in batch.unparseable), strict=True))
    return found


def same_in_all(folder, rows):
    expected = read_as(folder, "parquet", rows)
    assert read_as(folder, "csv", rows) == expected
    assert read_as(folder, "jsonl", rows) == expected


number = st.none() | st.integers(1 - 10**18, 10**18 - 1)
length = st.none() | st.integers(0, 10**12).map(float) | st.integers(0, 10**9).map(lambda n: n / 8)
row = st.fixed_dictionaries({**dict.fromkeys(NAMES[:3], number), **dict.fromkeys(NAMES[3:], length)})


@settings(max_examples=60, deadline=None)
@given(st.lists(row, min_size=1, max_size=20))
def test_a_row_has_the_same_values_in_every_format(tmp_path_factory, rows):
    same_in_all(tmp_path_factory.mktemp("logs"), rows)


@pytest.mark.parametrize("id", [2**63 - 1, 10**18, -(2**63)])
def test_ids_of_nineteen_digits_are_read_from_csv_too(tmp_path, id):
    same_in_all(tmp_path, [{**GOOD, "user_id": id}])


def test_a_negative_fraction_of_a_millisecond_is_negative_in_every_format(tmp_path):
    same_in_all(tmp_path, [{**GOOD, "play_ms": -0.5}])


@pytest.mark.parametrize("name", ["a.parquet", "a.csv", "A.CSV", "a.csv.gz", "a.json", "a.jsonl", "a.ndjson.gz"])
def test_a_small_table_is_read_by_its_ending_with_the_columns_it_has(tmp_path, name):
    rows = [{"item_id": 1, "title": "One", "other": 5}, {"item_id": 2, "title": "Two", "other": 6}]
    if name.endswith("parquet"):
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name)
    else:
        lines = [",".join(map(str, line)) for line in (rows[0], *(row.values() for row in rows))]
        text = "\n".join(lines if "csv" in name.lower() else map(json.dumps, rows)) + "\n"
        (tmp_path / name).write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    table = read_small(str(tmp_path / name), ("item_id", "title", "artist"))
    assert table.to_pylist() == [{"item_id": 1, "title": "One"}, {"item_id": 2, "title": "Two"}]
    assert by_ending(f"{name}.txt") is None


PAGE = (Path(__file__).parents[3] / "docs" / "own-logs.md").read_text()
TABLE = re.findall(r"^\| `(.+?)` \| (.+?) \| (.+?) \| (.+?) \| (.+?) \|$", PAGE, re.MULTILINE)


def becomes(folder, column, value, ending, **options):
    """A value in a column of a file, as the page writes it."""
    row = {"user_id": 1, "item_id": 10, "timestamp": 1_772_452_800, "play_ms": 1, column: value}
    day = folder / "ds=2026-03-02"
    day.mkdir(parents=True, exist_ok=True)
    if ending == "parquet":
        big = isinstance(value, int) and value >= 2**63
        kinds = {name: pa.uint64() if name == column and big else None for name in row}
        table = pa.table({name: pa.array([cell], kinds[name]) for name, cell in row.items()})
        pq.write_table(table, day / "a.parquet")
    else:
        (day / f"a.{ending}").write_text(json.dumps(row))
    spec = LogSpec(str(folder), timestamp_unit="s", **options)
    [split] = files.plan(spec, files.discover(spec, before=dt.date(2026, 3, 3)))
    [batch] = files.read(spec, split)
    if batch.unparseable[0]:
        return "rejected"
    found = batch.columns[column][0].as_py()
    return "no value" if found is None else json.dumps(found)


@pytest.mark.parametrize("ending", ["parquet", "json"])
@pytest.mark.parametrize("row", TABLE, ids=lambda row: row[0])
def test_the_page_says_what_a_value_becomes(tmp_path, row, ending):
    value = json.loads(row[0])
    asked = [("item_id", {}), ("item_id", {"item_id_type": "string"}), ("timestamp", {}), ("play_ms", {})]
    for number, ((column, options), expected) in enumerate(zip(asked, row[1:], strict=True)):
        assert becomes(tmp_path / str(number), column, value, ending, **options) == expected


def test_the_page_has_the_table():
    assert len(TABLE) == 14


@pytest.mark.parametrize("name", ["a.csv", "A.CSV.GZ", "a.tsv", "a.ndjson"])
def test_a_small_table_keeps_names_and_ids_as_they_are(tmp_path, name):
    rows = [("007", "NULL", "N/A", 1), ("7", "Caf\\xe9", "", 2), ("12", "nan", "null", 3)]
    if name.endswith("ndjson"):
        keys = ("item_id", "title", "artist", "year")
        content = "\n".join(json.dumps(dict(zip(keys, row, strict=True))) for row in rows).encode()
    else:
        mark = "\t" if name.endswith("tsv") else ";"
        lines = [("item_id", "title", "artist", "year"), *rows]
        content = "\n".join(mark.join(map(str, line)) for line in lines).encode()
    content = content.replace(b"\\\\xe9" if name.endswith("ndjson") else b"\\xe9", b"\xe9")
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("GZ") else content)
    table = read_small(str(tmp_path / name), ("item_id", "title", "artist", "year"), texts=("title", "artist"))
    assert table["item_id"].to_pylist() == ["007", "7", "12"]
    assert table["artist"].to_pylist() == ["N/A", None, "null"]
    titles = table["title"].to_pylist()
    assert (titles[0], titles[2], table["year"].to_pylist()) == ("NULL", "nan", [1, 2, 3])
    assert titles[1] in ("Caf\\xe9", "Caf\\xed\\xb3\\xa9", "Caf\\udce9")
