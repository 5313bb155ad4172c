"""docs/output.md: its columns are those of the schemas, and every query runs on a workspace after two serving days."""

import ast
import functools
import inspect
import math
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipelines import schema
from pipelines.logs.validate import QUARANTINE_SCHEMA

TEXT = (Path(__file__).parents[2] / "docs" / "output.md").read_text()
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", TEXT, re.M | re.S))
DAY = "2026-01-27"  # the second of the fixture's days
TABLES = {
    "recommendations": 1,
    "list_quality": 1,
    "list_hits": 1,
    "metrics": 1,
    "quality": 1,
    "vocabulary": 1,
    "Sequence shards": 2,  # histories, and listeners of a song
    "quarantine": 1,
}
"""Sections with tables of columns, and how many."""


def schemas(kind: str) -> list[pa.Schema]:
    """Every schema of `pipelines.schema`, with ids of a type ("int64" or "string"), and that of the quarantine."""
    found = [QUARANTINE_SCHEMA]
    for name, value in vars(schema).items():
        made = value
        if inspect.isfunction(value) and name.endswith(("_schema", "_table")):
            made = value(*[kind] * len(inspect.signature(value).parameters))
        made = getattr(made, "schema", made)  # of a specification of a Delta table
        found += [made] if isinstance(made, pa.Schema) else []
    return found


def named(kind: pa.DataType) -> str:
    """An Arrow type as the page writes it."""
    if pa.types.is_list(kind):
        return f"list<{named(kind.value_type)}>"
    if pa.types.is_struct(kind):
        return f"struct<{', '.join(f'{field.name}: {named(field.type)}' for field in kind)}>"
    names = {"date32[day]": "date", "float": "float32", "double": "float64"}
    return names.get(str(kind), str(kind))


def all_columns() -> list[list[tuple[str, str]]]:
    """(name, type) of the columns of each schema; the type of ids is `id`."""

    def columns(numbers: pa.Schema, texts: pa.Schema) -> list[tuple[str, str]]:
        pairs = zip(numbers, texts, strict=True)
        return [(n.name, named(n.type) if n.type == t.type else named(n.type).replace("int64", "id")) for n, t in pairs]

    return [columns(*pair) for pair in zip(schemas("int64"), schemas("string"), strict=True)]


def tables_of_columns(section: str) -> list[list[list[str]]]:
    tables = re.findall(r"^\| column \| type \|.*\n\|.*\n((?:\|.*\n)+)", SECTIONS[section], re.M)
    return [[[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines()] for table in tables]


@pytest.mark.parametrize(("section", "number"), [(name, n) for name, count in TABLES.items() for n in range(count)])
def test_the_columns_are_those_of_a_schema(section: str, number: int) -> None:
    rows = tables_of_columns(section)[number]
    written = [(name.strip("`"), kind.strip("`")) for name, kind, *_ in rows]
    likely = min(all_columns(), key=lambda columns: len({name for name, _ in columns} ^ dict(written).keys()))
    assert written == likely
    made = next(made for made in schemas("int64") if made.names == list(dict(written)))
    required = {field.name for field in made if not field.nullable}
    assert required <= {name.strip("`") for name, _, null, *_ in rows if null == "never"}


def test_every_table_of_columns_is_checked() -> None:
    assert {name: len(found) for name in SECTIONS if (found := tables_of_columns(name))} == TABLES


def test_an_increment_has_the_columns_of_a_history_but_the_sessions() -> None:
    assert "An increment has the same columns without `session_index`" in TEXT
    history = [(name.strip("`"), kind.strip("`")) for name, kind, *_ in tables_of_columns("Sequence shards")[0]]
    assert [column for column in history if column[0] != "session_index"] in all_columns()


def rows_of(answer: Any) -> list[tuple[Any, ...]]:
    """Rows of any engine's answer as tuples of plain values, floats rounded as the queries of metrics do."""
    if hasattr(answer, "fetchall"):  # DuckDB
        rows = answer.fetchall()
    elif hasattr(answer, "collect") and hasattr(answer, "sparkSession"):
        rows = [tuple(row) for row in answer.collect()]
    elif hasattr(answer, "rows"):  # Polars
        rows = answer.rows()
    else:
        rows = list(answer.itertuples(index=False, name=None))
    return [tuple(plain(value) for value in row) for row in rows]


def plain(value: Any) -> Any:
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, float):
        return None if math.isnan(value) else round(value, 4)
    return value


@pytest.fixture(scope="module")
def names(two_days: Any, spark: Any) -> dict[str, Any]:
    """What the page's blocks share: they run in its order, as a reader would run them in a notebook."""
    return {"spark": spark, "__name__": "page"}


@pytest.fixture(scope="module")
def known(two_days: Any) -> dict[str, str]:
    """What the page says of its own workspace -> what holds of this one."""
    listener = next(row for row in two_days.lists(two_days.results[1].ds) if row[2] == "model")
    return {
        '"./workspace"': repr(str(two_days.root)),
        "2026-03-03": DAY,
        "1042": str(listener[0]),
        "100147, 101550": f"{listener[1][0]}, {listener[1][1]}",
        "1772440000, 1772440300": "1769400000, 1769400300",
        "1772524800": "1769500800",
    }


def blocks() -> list[tuple[str, str]]:
    """(section, code) of every block of Python, in the page's order."""
    return [(name, code) for name, text in SECTIONS.items() for code in re.findall(r"```python\n(.*?)```", text, re.S)]


def run(code: str, names: dict[str, Any]) -> Any:
    """What the last expression of a block is worth; None if it does not end with one."""
    tree = ast.parse(code)
    last = tree.body[-1]
    if not isinstance(last, ast.Expr):
        return exec(compile(tree, "docs/output.md", "exec"), names)
    exec(compile(ast.Module(tree.body[:-1], []), "docs/output.md", "exec"), names)
    return eval(compile(ast.Expression(last.value), "docs/output.md", "eval"), names)


def test_every_query_runs_and_the_engines_agree(names: dict[str, Any], known: dict[str, str]) -> None:
    answers: dict[tuple[str, int], dict[str, list[tuple[Any, ...]]]] = {}
    others = []
    for section, written in blocks():
        code = functools.reduce(lambda text, word: text.replace(word, known[word]), known, written)
        answer = run(code, names)
        engine = code.partition("\n")[0].removeprefix("# ")
        if engine in ENGINES:
            number = sum(engine in found for (name, _), found in answers.items() if name == section)
            answers.setdefault((section, number), {})[engine] = rows_of(answer)
        elif answer is not None:
            others.append((section, answer))
    for (section, _), found in answers.items():
        first = found["DuckDB"]
        assert first, f"the queries of {section} find nothing"
        assert set(found) == (set(ENGINES) if section != "quarantine" else {"DuckDB"})
        assert all(rows == first for rows in found.values()), (section, found)
    assert {section for section, _ in answers} >= TABLES.keys() - {"Sequence shards", "quarantine"}
    assert len(answers["recommendations", 0]["DuckDB"]) == 30
    markers = [answer for section, answer in others if section == "Stage markers"]
    trained_for, lists = [answer for section, answer in others if section == "Models"]
    assert markers == ["2"] and trained_for == DAY
    assert list(lists.columns) == ["items", "scores"] and len(lists["items"][0]) == 5


ENGINES = ("DuckDB", "Polars", "pandas", "Spark")
