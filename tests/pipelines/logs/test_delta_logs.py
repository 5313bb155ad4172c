"""Delta tables as logs: what the table's log says counts, whatever its folders look like."""

import datetime as dt
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake

from pipelines.errors import InputError
from pipelines.logs import files
from pipelines.logs.files import LogSpec

AFTER = dt.date(2026, 3, 9)
DAYS = [dt.date(2026, 3, day) for day in (1, 2, 3)]


def day_of(day, rows=3, **more):
    columns = {"user_id": range(rows), "item_id": range(rows), "timestamp": [1] * rows, "ds": [day] * rows}
    return pa.table({**columns, **{name: [value] * rows for name, value in more.items()}})


def found(spec):
    """Landing day -> rows that are read."""
    rows = {}
    for split in files.plan(spec, files.discover(spec, before=AFTER)):
        for batch in files.read(spec, split):
            rows[split.file.landing_day] = rows.get(split.file.landing_day, 0) + len(batch.unparseable)
    return rows


@pytest.mark.parametrize("name", ["plain", "Plays of Zoë #1 100%", "q?a=b&c", 'it\'s "so"', "a+b;c"])
def test_a_table_is_read_wherever_it_is(tmp_path, name):
    (tmp_path / name).mkdir()
    for day in DAYS:
        write_deltalake((tmp_path / name).as_uri(), day_of(day), partition_by=["ds"], mode="append")
    assert found(LogSpec(str(tmp_path / name))) == {str(day): 3 for day in DAYS}


def test_a_folder_that_delta_rs_would_look_for_elsewhere_is_refused(tmp_path):
    (tmp_path / "a%20b" / "_delta_log").mkdir(parents=True)
    with pytest.raises(InputError, match=r"a%20b: Delta tables cannot be below a folder with %20 in its name: rename"):
        files.discover(LogSpec(str(tmp_path / "a%20b")), before=AFTER)


@pytest.mark.parametrize("value", ["x", "a b", "50% #1", "ü?", "k=v"])
def test_other_partitions_may_hold_anything(tmp_path, value):
    write_deltalake(str(tmp_path), day_of(DAYS[0], group=value), partition_by=["group", "ds"])
    assert found(LogSpec(str(tmp_path))) == {str(DAYS[0]): 3}


@pytest.mark.parametrize("kind", ["text", "year, month, day", "another name"])
def test_the_day_may_be_in_columns_of_other_types_and_names(tmp_path, kind):
    table, keys = day_of(DAYS[1]).drop(["ds"]), ["ds"]
    if kind == "text":
        table = table.append_column("ds", pa.array([str(DAYS[1])] * 3))
    elif kind == "another name":
        table, keys = table.append_column("date", pa.array([DAYS[1]] * 3)), ["date"]
    else:
        keys = ["year", "month", "day"]
        for key, number in zip(keys, (2026, 3, 2), strict=True):
            table = table.append_column(key, pa.array([number] * 3))
    write_deltalake(str(tmp_path), table, partition_by=keys)
    assert found(LogSpec(str(tmp_path), partition=tuple(keys))) == {"2026-03-02": 3}


def hand_written(root, *, path, configuration=None, protocol=None, values=None):
    """A table of one file whose log is written here."""
    (root / "_delta_log").mkdir()
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(day_of(DAYS[0]).drop(["ds"]), target)
    kinds = (("user_id", "long"), ("item_id", "long"), ("timestamp", "long"), ("ds", "date"))
    fields = [{"name": name, "type": kind, "nullable": True, "metadata": {}} for name, kind in kinds]
    schema = json.dumps({"type": "struct", "fields": fields})
    meta = {"id": "11111111-2222-4333-8444-555555555555", "format": {"provider": "parquet", "options": {}}}
    meta |= {"schemaString": schema, "partitionColumns": ["ds"], "configuration": configuration or {}, "createdTime": 1}
    encoded = str(path).replace("%", "%25").replace(" ", "%20")
    add = {"path": encoded, "partitionValues": values or {"ds": str(DAYS[0])}, "size": target.stat().st_size}
    add |= {"modificationTime": 1, "dataChange": True}
    actions = [
        {"protocol": protocol or {"minReaderVersion": 1, "minWriterVersion": 2}},
        {"metaData": meta},
        {"add": add},
    ]
    (root / "_delta_log" / f"{0:020}.json").write_text("\n".join(map(json.dumps, actions)))


@pytest.mark.parametrize("path", ["aB/part-0.parquet", "part 0 50%.parquet", "ds=2020-01-01/part.parquet"])
def test_the_partition_of_a_file_is_what_the_log_says(tmp_path, path):
    hand_written(tmp_path, path=path)
    assert found(LogSpec(str(tmp_path))) == {str(DAYS[0]): 3}


def features(name):
    return {"minReaderVersion": 3, "minWriterVersion": 7, "readerFeatures": [name], "writerFeatures": [name]}


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"configuration": {"delta.columnMapping.mode": "name"}}, "columnMapping"),
        ({"configuration": {"delta.columnMapping.mode": "id"}}, "columnMapping"),
        ({"protocol": features("deletionVectors")}, "deletionVectors"),
        ({"protocol": features("neverHeardOf")}, "neverHeardOf"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(tmp_path, options, named):
    hand_written(tmp_path, path="a.parquet", **options)
    with pytest.raises(InputError, match=named) as error:
        files.discover(LogSpec(str(tmp_path)), before=AFTER)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("maintenance", ["compact", "z-order", "delete", "twice"])
def test_files_of_maintenance_are_named_with_those_whose_rows_they_hold(tmp_path, maintenance):
    spec = LogSpec(str(tmp_path))
    for _ in range(2):
        write_deltalake(str(tmp_path), day_of(DAYS[0]), partition_by=["ds"], mode="append")
    first = {file.uri for file in files.discover(spec, before=AFTER)}
    table = DeltaTable(str(tmp_path))
    if maintenance == "z-order":
        table.optimize.z_order(["user_id"])
    elif maintenance == "delete":
        table.delete("user_id = 1")
    else:
        table.optimize.compact()
    live = {file.uri for file in files.discover(spec, before=AFTER)}
    rewritten = files.rewritten(spec)
    assert live and not live & first
    assert {source for uri in live for source in rewritten[uri]} == first
    if maintenance == "twice":
        write_deltalake(str(tmp_path), day_of(DAYS[0]), mode="append")
        [late] = {file.uri for file in files.discover(spec, before=AFTER)} - live
        DeltaTable(str(tmp_path)).optimize.compact()
        [last] = [file.uri for file in files.discover(spec, before=AFTER)]
        assert set(files.rewritten(spec)[last]) == {*live, late}
