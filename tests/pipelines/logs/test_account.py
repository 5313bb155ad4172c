"""Nothing is lost without a count: the rows of any bytes are kept or quarantined, or their file is refused."""

import datetime as dt
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import InputError
from pipelines.logs import files
from pipelines.logs.files import LogFile, LogSpec
from pipelines.logs.formats.base import CsvSpec
from pipelines.logs.validate import ValidationRules, validate

NOON = 1_772_452_800  # 2026-03-02 12:00:00 UTC
LANDED = dt.date(2026, 3, 2)
HEADER = b"user_id,item_id,timestamp,title\n"


def read(folder, name, content, **options):
    """(rows, verdicts, texts of what is rejected, (user_id, item_id) of the plays) of a file; InputError if refused."""
    file = folder / "ds=2026-03-02" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    spec = LogSpec(str(folder), **options)
    rows, codes, texts, ids = 0, [], [], []
    for split in files.plan(spec, [LogFile(str(file), len(content), "", str(LANDED))]):
        for batch in files.read(spec, split):
            found = validate(batch, ValidationRules(), LANDED)
            rows += len(batch.unparseable)
            codes += found.tolist()
            texts += batch.as_read(np.flatnonzero(found >= 0))
            users, items = batch.columns["user_id"].to_pylist(), batch.columns["item_id"].to_pylist()
            ids += [(users[n], items[n]) for n in np.flatnonzero(found == -1)]
    assert rows == len(codes)
    for text in texts:
        text.encode()
    return rows, codes, texts, ids


def line(user, title="plain", item=5):
    return f"{user},{item},{NOON},{title}\n".encode()


STRAY = {
    "two strays": ({100: '"Heroes (live)', 400: '"Heroes (live)'}, 2),
    "a stray that an inch mark closes": ({100: '"Heroes', 400: 'Mix 12"'}, 1),
    "neighbours": ({100: '"Heroes', 101: 'Mix 12"'}, 1),
    "one that is never closed": ({100: '"Heroes'}, 1),
    "the last line": ({599: '"Heroes'}, 1),
    "text behind the closing quote": ({100: '"Heroes" live'}, 1),
    "in the middle of cells": ({100: 'Mix 12" version', 200: '7" and 12"'}, 0),
    "doubled and alone": ({100: '"say ""hi"" to', 300: '""'}, 1),
    "many": (dict.fromkeys(range(100, 500), '"Heroes'), 400),
}


@pytest.mark.parametrize("case", STRAY)
def test_a_stray_quote_costs_its_line_and_no_other(tmp_path, case):
    titles, broken = STRAY[case]
    content = HEADER + b"".join(line(n, titles.get(n, "plain")) for n in range(600))
    rows, _codes, texts, ids = read(tmp_path, "a.csv", content)
    assert (rows, len(texts), len(ids)) == (600, broken, 600 - broken)
    assert {user for user, _ in ids} | {int(text.split(",")[0]) for text in texts} == set(range(600))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("rows", [5, 2000])
def test_line_ends_within_quotes_are_part_of_the_cell_wherever_a_block_ends(tmp_path, end, rows):
    titles = ["one\ntwo", "plain", "a, b\nc", 'say ""hi""\n', "\n\n", "x" * 200]
    lines = [f'{n},5,"{titles[n % 6]}",{NOON}\n' for n in range(rows)]
    content = ("user_id,item_id,title,timestamp\n" + "".join(lines)).replace("\n", end).encode()
    found = read(tmp_path, "a.csv", content, batch_rows=40)  # blocks of 2,560 bytes
    assert (found[0], sorted(user for user, _ in found[3])) == (rows, list(range(rows)))


def test_lines_that_are_no_rows_are_kept_as_they_were_in_any_encoding(tmp_path):
    bad = [
        b"1,2,Caf\xe9",
        b"\xff\xfe",
        b"  ",
        b"a,b",
        b"1,2,3,4,5",
        b"\0\0\0",
        '1,2,"\ud83d'.encode(errors="surrogatepass"),
    ]
    content = HEADER + b"\n".join(
        [*bad, line(7).strip(), b"", line(8, "Caf\xe9".encode("latin-1").decode("latin-1")).strip()]
    )
    rows, _, texts, ids = read(tmp_path, "a.csv", content)
    assert (rows, [user for user, _ in ids]) == (len(bad) + 2, [7, 8])
    assert texts[:2] == ["1,2,Caf\\xe9", "\\xff\\xfe"] and texts[-1] == '1,2,"\\xed\\xa0\\xbd'


@pytest.mark.parametrize("escape", ["", "\\"])
def test_quotes_that_a_backslash_escapes_are_read_with_the_setting_and_counted_without(tmp_path, escape):
    rows = [f'{n},5,"say \\"hi\\", he said",{NOON}\n' for n in range(50)] + [f"\\N,5,x,{NOON}\n"]
    content = ("user_id,item_id,title,timestamp\n" + "".join(rows)).encode()
    found = read(tmp_path, "a.csv", content, csv=CsvSpec(escape=escape))
    assert (found[0], len(found[3])) == (51, 50 if escape else 0)


CELLS = st.sampled_from(
    [
        b"1",
        b"22",
        str(NOON).encode(),
        b'"',
        b'""',
        b'"a',
        b'b"',
        b'"a,b"',
        b'"x\ny"',
        b"\\",
        b"",
        b" ",
        b"\xe9",
        b"\xff\xfe",
        b"caf\xc3\xa9",
        b"\xed\xa0\xbd",
        b"\x00",
        b"\r",
        b"NULL",
        b"nan",
        b"1e5",
        b"-1",
        b"9" * 30,
        b"2026-03-02T12:00:00Z",
    ]
)
LINES = st.lists(st.lists(CELLS, min_size=1, max_size=5).map(b",".join), max_size=12)


def records(text):
    """Rows of CSV by RFC 4180 if all quotes are those of whole cells, else None. An independent count."""
    rows, inside, row = 0, False, b""
    for piece in text.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n"):
        row += piece
        inside ^= piece.count(b'"') % 2 == 1
        if not inside:
            rows, row = rows + bool(row), b""
    return rows


@settings(max_examples=300, deadline=None)
@given(LINES, st.sampled_from(["int64", "string"]), st.sampled_from(["", "\\"]), st.integers(1, 60))
def test_any_lines_of_csv_add_up(tmp_path_factory, lines, ids, escape, batch_rows):
    body = b"\n".join(lines)
    folder = tmp_path_factory.mktemp("csv")
    try:
        rows, _, texts, plays = read(
            folder,
            "a.csv",
            HEADER + body,
            user_id_type=ids,
            item_id_type=ids,
            csv=CsvSpec(escape=escape),
            batch_rows=batch_rows,
        )
    except InputError as error:
        assert "\n" not in str(error)
        return
    assert rows == len(texts) + len(plays)
    if b'"' not in body and not escape:
        assert rows == records(body)
    else:
        assert rows <= len([part for part in body.replace(b"\r", b"\n").split(b"\n") if part])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=4) | st.just("\ud83d"),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["id", "a"]), inner, max_size=2),
    max_leaves=4,
)
PLAY = st.fixed_dictionaries(
    {}, optional={n: JSON | st.integers(1, 9) for n in ("user_id", "item_id", "timestamp", "event_type", "play_ms")}
)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(PLAY | JSON, max_size=8),
    st.sampled_from(["\n", "", "\r\n", ",", "array", "indent"]),
    st.sampled_from(["int64", "string"]),
)
def test_any_values_of_json_add_up(tmp_path_factory, values, joined, ids):
    if joined in ("array", "indent"):
        values = [value for value in values if isinstance(value, dict)]
        text = json.dumps(values, indent=2 if joined == "indent" else None)
    else:
        values = [value for value in values if not isinstance(value, list)]
        values = values if joined in ("\n", "\r\n") else [value for value in values if isinstance(value, dict)]
        text = joined.join(map(json.dumps, values))
    try:
        rows, _, texts, plays = read(
            tmp_path_factory.mktemp("json"), "a.json", text.encode(), user_id_type=ids, item_id_type=ids
        )
    except InputError as error:
        assert "\n" not in str(error)
        return
    assert rows == len(texts) + len(plays) == len(values)


@pytest.fixture(scope="module")
def sound():
    """A good file of each format."""
    rows = [{"user_id": n, "item_id": n % 5, "timestamp": NOON + n, "event_type": "play"} for n in range(40)]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=10)
    text = "\n".join(map(json.dumps, rows))
    lines = [",".join(map(str, row)) for row in ([*rows[0]], *(row.values() for row in rows))]
    gz = pa.compress(text.encode(), "zstd", asbytes=True)
    return {
        "a.parquet": sink.getvalue().to_pybytes(),
        "a.json": text.encode(),
        "b.json": json.dumps(rows).encode(),
        "a.csv": "\n".join(lines).encode(),
        "b.csv": "\n".join(lines).encode("utf-16"),
        "a.json.zst": gz,
    }


@settings(max_examples=250, deadline=None)
@given(data=st.data(), name=st.sampled_from(["a.parquet", "a.json", "b.json", "a.csv", "b.csv", "a.json.zst"]))
def test_any_damage_is_counted_or_refused_in_one_line(tmp_path_factory, sound, data, name):
    content = bytearray(sound[name])
    kind = data.draw(st.sampled_from(["cut", "flip", "insert", "random"]))
    if kind == "cut":
        content = content[: data.draw(st.integers(0, len(content)))]
    elif kind == "random":
        content = bytearray(data.draw(st.binary(max_size=80)))
    else:
        for _ in range(data.draw(st.integers(1, 4))):
            place = data.draw(st.integers(0, len(content) - 1))
            new = data.draw(st.binary(min_size=1, max_size=3))
            content[place : place + (len(new) if kind == "flip" else 0)] = new
    try:
        rows, codes, texts, plays = read(tmp_path_factory.mktemp("any"), name, bytes(content))
    except InputError as error:
        assert "\n" not in str(error)
        return
    assert rows == len(texts) + len(plays) + codes.count(-2)


def test_a_file_whose_rows_do_not_add_up_is_refused(tmp_path, monkeypatch):
    from pipelines.logs.formats import FORMATS

    whole = type(FORMATS["csv"]).read

    def loses_one(self, spec, source, split):
        counted = yield from whole(self, spec, source, split)
        return counted and counted + 1

    monkeypatch.setattr(type(FORMATS["csv"]), "read", loses_one)
    with pytest.raises(InputError, match=r"a.csv has 3 rows, and 2 came out as csv: replace or remove"):
        read(tmp_path, "a.csv", HEADER + line(1) + line(2))
