"""Listeners are removed from quarantine files."""

import datetime as dt
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.forget.listeners import ListenersToForget, Matches
from pipelines.forget.quarantine import erase_from_quarantine
from pipelines.logs.validate import QUARANTINE_SCHEMA

LANDED = dt.date(2026, 3, 3)


def test_quarantined_rows_go_with_their_statistics_and_the_rest_stays(tmp_path):
    texts = [
        json.dumps({"listener": 7_310_559_002_218_347, "track": 5}),
        json.dumps({"listener": 7_310_559_002_218_348, "track": 7_310}),
        "7310559002218347,5,too,many,fields",
        "5,6,too,many,fields",
    ]
    uri = str(tmp_path / "part-a.parquet")
    fixed = [["unparseable"] * 4, [LANDED] * 4, ["log"] * 4]
    pq.write_table(pa.table([*fixed, texts], schema=QUARANTINE_SCHEMA), uri, row_group_size=2)
    alone = str(tmp_path / "part-b.parquet")
    pq.write_table(pa.table([[v[0]] for v in (*fixed, texts)], schema=QUARANTINE_SCHEMA), alone)
    listeners = ListenersToForget(pa.array([7_310_559_002_218_347, 12]))
    before = (tmp_path / "part-a.parquet").read_bytes()
    assert erase_from_quarantine([uri, alone], listeners, column="listener", dry_run=True) == Matches(2, 3)
    assert (tmp_path / "part-a.parquet").read_bytes() == before
    assert erase_from_quarantine([uri, alone], listeners, column="listener") == Matches(2, 3)
    assert pq.read_table(uri)["row"].to_pylist() == [texts[1], texts[3]]
    assert b"7310559002218347" not in Path(uri).read_bytes() and not Path(alone).exists()
    assert listeners.found.tolist() == [True, False]
