"""Rows that Python, Arrow or Spark cannot show cost themselves alone: they are quarantined as escaped text."""

import datetime as dt
import decimal
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.logs.files import LogSpec
from pipelines.logs.formats import values
from tests.pipelines.logs.test_account import NOON, read

STRING = pa.string()
GOOD = {"user_id": pa.array([1, 2, 3]), "item_id": pa.array([5, 6, 7]), "timestamp": pa.array([NOON] * 3)}


def raw_text(values, kind=STRING):
    """Strings with any bytes, as writers that do not check them leave them."""
    plain = pa.array(values, pa.large_binary() if kind == pa.large_string() else pa.binary())
    return pa.Array.from_buffers(kind, len(plain), plain.buffers())


def parquet(**columns):
    sink = pa.BufferOutputStream()
    table = {**GOOD, **columns}
    pq.write_table(pa.table(list(table.values()), names=list(table)), sink, coerce_timestamps=None)
    return sink.getvalue().to_pybytes()


BAD = b"Andr\xe9"
UNUSED = {
    "timestamp beyond 9999": pa.array([2**55] * 3, pa.timestamp("us")),
    "timestamp in seconds beyond 9999": pa.array([NOON * 1000] * 3, pa.timestamp("ms")),
    "timestamp before 1": pa.array([-(2**57)] * 3, pa.timestamp("us", "UTC")),
    "timestamp beyond 9999 in its zone": pa.array([253402300799 * 10**3] * 3, pa.timestamp("ms", "Asia/Tokyo")),
    "unknown zone": pa.array([NOON * 1000] * 3, pa.timestamp("ms", "Mars/Olympus")),
    "date beyond 9999": pa.array([2**30] * 3, pa.date32()),
    "duration": pa.array([2**62] * 3, pa.duration("ms")),
    "nanoseconds": pa.array([NOON * 10**9 + 1] * 3, pa.timestamp("ns")),
    "time with nanoseconds": pa.array([1] * 3, pa.time64("ns")),
    "text that is not UTF-8": raw_text([BAD] * 3),
    "large text that is not UTF-8": raw_text([BAD] * 3, pa.large_string()),
    "dictionary": pa.DictionaryArray.from_arrays(pa.array([0, 0, 0], pa.int8()), raw_text([BAD])),
    "list of such": pa.ListArray.from_arrays([0, 1, 2, 3], raw_text([BAD] * 3)),
    "struct of such": pa.StructArray.from_arrays(
        [pa.array([2**55] * 3, pa.timestamp("us")), raw_text([BAD] * 3)], ["a", "b"]
    ),
    "struct with two fields of a name": pa.StructArray.from_arrays(
        [pa.array([1, 2, 3]), raw_text([BAD] * 3)], ["a", "a"]
    ),
    "map": pa.array([[("a", b"\xff")]] * 3, pa.map_(pa.string(), pa.binary())),
    "binary": pa.array([b"\x00\xff"] * 3),
    "decimal": pa.array([decimal.Decimal("1.50")] * 3),
    "infinity": pa.array([float("inf"), float("nan"), 1.0]),
}


@pytest.mark.parametrize("kind", UNUSED)
def test_a_rejected_row_is_shown_whatever_its_other_columns_hold(tmp_path, kind):
    content = parquet(user_id=pa.array([1, None, None]), note=UNUSED[kind])
    rows, _, texts, plays = read(tmp_path, "a.parquet", content)
    assert (rows, plays, len(texts)) == (3, [(1, 5)], 2)
    shown = json.loads(texts[0])
    assert shown["item_id"] == 6
    assert "note" in shown or kind == "dictionary"  # Arrow does not read a dictionary whose texts are not UTF-8
    if "UTF-8" in kind or kind == "list of such":
        assert "Andr\\\\xe9" in texts[0]


@pytest.mark.parametrize(
    "times",
    [
        pa.array([NOON, NOON * 1000, -(2**40)], pa.timestamp("s")),
        pa.array([NOON * 10**6, 2**62, -(2**62)], pa.timestamp("us", "Asia/Tokyo")),
        pa.array([NOON, 2**62, -(2**62)], pa.int64()),
        pa.array([float(NOON), 1e300, -1e18]),
        pa.array(["2026-03-02T12:00:00Z", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59"]),
        pa.array([dt.date(2026, 3, 2), dt.date(9999, 1, 1), dt.date(1, 1, 1)]),
    ],
)
def test_times_that_no_calendar_has_cost_their_row(tmp_path, times):
    rows, _, texts, plays = read(tmp_path, "a.parquet", parquet(timestamp=times), timestamp_unit="s")
    assert (rows, plays, len(texts)) == (3, [(1, 5)], 2)


@pytest.mark.parametrize("column", ["user_id", "item_id", "event_type"])
@pytest.mark.parametrize("ending", ["parquet", "csv", "json"])
def test_text_that_is_not_utf8_costs_its_row_in_every_format(tmp_path, column, ending):
    bad = b"play\xe9" if column == "event_type" else BAD
    good = b"play" if column == "event_type" else b"x"
    rows = [{"user_id": b"a", "item_id": b"b", "event_type": b"play", column: cell} for cell in (good, bad, good)]
    if ending == "parquet":
        columns = {name: raw_text([row[name] for row in rows]) for name in rows[0]}
        content = parquet(**columns)
    elif ending == "csv":
        cells = [b",".join((r["user_id"], r["item_id"], b"%d" % NOON, r["event_type"])) for r in rows]
        content = b"\n".join([b"user_id,item_id,timestamp,event_type", *cells])
    else:
        pattern = b'{"user_id": "%b", "item_id": "%b", "timestamp": %d, "event_type": "%b"}'
        content = b"\n".join(pattern % (r["user_id"], r["item_id"], NOON, r["event_type"]) for r in rows)
    found, codes, texts, plays = read(tmp_path, f"a.{ending}", content, user_id_type="string", item_id_type="string")
    assert (found, codes, len(plays)) == (3, [-1, 0, -1], 2)
    assert "xe9" in texts[0] or "udce9" in texts[0]


@pytest.mark.parametrize("column", ["user_id", "item_id", "event_type"])
@pytest.mark.parametrize("bad", ["\\ud83d", "x\\udc00y", "\\udc00\\ud83d"])
def test_an_unpaired_surrogate_costs_its_row(tmp_path, column, bad):
    row = {"user_id": "a", "item_id": "b", "timestamp": NOON, "event_type": "play"}
    lines = [json.dumps(row), json.dumps({**row, column: "@"}).replace("@", bad), json.dumps(row)]
    found = read(tmp_path, "a.json", "\n".join(lines).encode(), user_id_type="string", item_id_type="string")
    assert found[1] == [-1, 0, -1] and bad.split("\\u")[1][:4] in found[2][0]


@pytest.mark.parametrize(
    ("kind", "column", "expected", "bad"),
    [
        (values.ID, pa.array([1, 2**63, None], pa.uint64()), [1, None, None], [1]),
        (values.ID, pa.array([12.0, 1.5, float("nan"), 2.0**53]), [12, None, None, None], [1, 3]),
        (
            values.ID,
            pa.array([decimal.Decimal(12), decimal.Decimal("1.5"), decimal.Decimal(10**20)]),
            [12, None, None],
            [1, 2],
        ),
        (
            values.ID,
            pa.array(["12", " 12 ", "12.0", "007", "0", "1e3", "NULL", "nan", "\\N", "", "x"]),
            [12, 12, 12, None, 0, *[None] * 6],
            [3, 5, 10],
        ),
        (values.ID, pa.array([b"12", b"\xff"]), [12, None], [1]),
        (values.TEXT, pa.array(["a ", "NULL", "007", "NA"]), ["a", None, "007", "NA"], []),
        (values.TEXT, pa.array([12.0, 1.5]), ["12", None], [1]),
        (values.TEXT, pa.array([12, None]), ["12", None], []),
        (values.TEXT, pa.array([b"\x12" * 16], pa.uuid()), ["12121212-1212-1212-1212-121212121212"], []),
        (values.TEXT, pa.array(["a", "b"]).dictionary_encode(), ["a", "b"], []),
        (values.LABEL, pa.array([True, False, None]), ["true", "false", None], []),
        (values.LABEL, pa.array([1, 0, None]), ["1", "0", None], []),
        (values.LABEL, pa.array(["shuffle ", "NULL", "True"]), ["shuffle", None, "True"], []),
        (values.LABEL, pa.array(["shuffle", "radio"]).dictionary_encode(), ["shuffle", "radio"], []),
        (
            values.LENGTH,
            pa.array(["1.2E+5", "1500.7", "-0.5", "inf", "nan", "1,5"]),
            [120000, 1500, -1, None, None, None],
            [5],
        ),
        (values.LENGTH, pa.array([1, 2], pa.duration("s")), [1000, 2000], []),
        (values.LENGTH, pa.array([2**62], pa.duration("s")), [None], [0]),
    ],
)
def test_a_value_counts_where_nothing_of_it_is_lost(kind, column, expected, bad):
    found = values.read_column(kind, column)
    assert found.values.to_pylist() == expected
    assert np.flatnonzero(found.bad if found.bad is not None else []).tolist() == bad


FORMS = """%Y-%m-%dT%H:%M:%S.123456789Z|%Y-%m-%dT%H:%M:%S+0000|%Y-%m-%d %H:%M:%S+00|%Y-%m-%dt%H:%M:%Sz
%Y-%m-%dT%H:%M:%S,5Z|%Y%m%dT%H%M%SZ|%Y-%m-%dT%H:%MZ|%Y-%m-%d %H:%M:%S UTC|%Y-%m-%dT%H:%M:%SZ[UTC]|%Y/%m/%d %H:%M:%S
%d %b %Y, %H:%M|%a, %d %b %Y %H:%M:%S GMT|%Y-%m-%dT%H:%M:%S Z|%Y-%m-%d %H:%M:%S"""


@pytest.mark.parametrize("form", FORMS.replace("\n", "|").split("|"))
def test_times_are_read_in_every_form_that_means_one_thing(form):
    text = dt.datetime.fromtimestamp(NOON, dt.UTC).strftime(form)
    for others in ([], ["no time"]):  # by whole columns, and one by one
        found = values.read_column(values.TIME, pa.array([text, *others]))
        assert found.values.to_pylist() == [NOON, *[None] * len(others)]


@pytest.mark.parametrize("unit", values.UNITS)
@pytest.mark.parametrize("ending", ["parquet", "csv", "json"])
@pytest.mark.parametrize("setting", ["auto", "given"])
def test_numbers_are_times_in_the_unit_of_most_of_a_day_and_others_are_quarantined(tmp_path, unit, ending, setting):
    ticks = values.UNITS[unit]
    times = [(NOON + n) * ticks for n in range(20)] + [NOON * (1000 if ticks == 1 else ticks // 1000)]
    if ending == "parquet":
        content = parquet(user_id=pa.array(range(21)), item_id=pa.array(range(21)), timestamp=pa.array(times))
    elif ending == "csv":
        content = "\n".join(
            ["user_id,item_id,timestamp", *(f"{n},{n},{time}" for n, time in enumerate(times))]
        ).encode()
    else:
        rows = [{"user_id": n, "item_id": n, "timestamp": time} for n, time in enumerate(times)]
        content = json.dumps(rows).encode()
    given = unit if setting == "given" else "auto"
    found = read(tmp_path, f"a.{ending}", content, timestamp_unit=given)
    assert (found[0], len(found[3]), len(found[2])) == (21, 20, 1)


def test_the_verdict_on_a_row_without_an_event_type_does_not_depend_on_other_rows(tmp_path):
    old, new = (
        {"user_id": 1, "item_id": 2, "timestamp": NOON},
        {"user_id": 1, "item_id": 2, "timestamp": NOON, "event_type": "play"},
    )
    like, null = {**new, "event_type": "buy"}, {**new, "event_type": None}
    for rows in ([old, new, like, null], [like, null, old, new], [new, *[old] * 3, like, null]):
        for batch_rows in (1, 2, 100):
            content = "\n".join(map(json.dumps, rows)).encode()
            _, codes, _, _ = read(tmp_path, "a.json", content, batch_rows=batch_rows)
            assert [code == -1 for code in codes] == [row in (old, new) for row in rows]


@pytest.mark.parametrize(
    "text",
    [
        '{"user_id": 1, "item_id": 2, "user_id": 3, "timestamp": %d}',
        '{"item_id": 2, "user_id": 1, "timestamp": 5, "timestamp": %d}',
    ],
)
def test_a_key_that_a_row_has_twice_makes_it_unparseable(tmp_path, text):
    content = f'{text % NOON}\n{{"user_id": 1, "item_id": 2, "timestamp": {NOON}, "x": {{"x": 1}}}}'
    assert read(tmp_path, "a.json", content.encode())[1] == [0, -1]


def test_ids_within_structs_and_objects_are_named_by_their_path(tmp_path):
    columns = {"user_id": "user.id", "item_id": "track.meta.id"}
    rows = [{"user": {"id": n}, "track": {"meta": {"id": n}}, "timestamp": NOON} for n in (1, 2)]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    for name, content in (("a.parquet", sink.getvalue().to_pybytes()), ("a.json", json.dumps(rows).encode())):
        assert read(tmp_path, name, content, columns=columns)[3] == [(1, 1), (2, 2)]
    assert LogSpec("x", columns=columns).column("item_id") == "track.meta.id"
