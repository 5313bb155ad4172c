"""`fuxi sessionize` on an object store whose lists lack what was written a moment ago; read by name, it is there."""

import contextlib
import datetime as dt
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from jobs.config import load_config
from jobs.day import open_day, run_stage
from jobs.stages import sessionize
from pipelines import storage
from pipelines.calendar import Calendar
from pipelines.digests import read_digests
from pipelines.histories import shards
from pipelines.schema import parse_ds

DAYS = [parse_ds("2026-03-02") + dt.timedelta(days=n) for n in range(3)]
NEVER_S, COMMITS_S = 3600.0, 2.0


def plays(day: dt.date) -> pa.Table:
    """A landing day in which every fiftieth row is rejected, and songs are new."""
    random, rows = np.random.default_rng(day.toordinal()), 2000
    users = pa.array(random.integers(0, 80, rows), mask=np.arange(rows) % 50 == 0)
    songs = pa.array(random.integers(0, 60, rows) + 20 * (day - DAYS[0]).days)
    return pa.table(
        {
            "user_id": users,
            "item_id": songs,
            "timestamp": pa.array(Calendar().day_start(day) + random.integers(0, 86_400, rows)),
        }
    )


def sessionized(workspace: str, logs: str) -> list[tuple[dict[str, Any], shards.Manifest]]:
    """The days after each landing day, one laid over the other."""
    settings = [f"workspace={workspace}", f"logs.path={logs}", "sequences.buckets=4"]
    config, found = load_config(environment={}, overrides=settings), []
    for ds in (day + dt.timedelta(days=1) for day in DAYS):
        day = open_day(config, ds)
        found.append((run_stage(day, "sessionize", sessionize.run), day.manifest(ds)))
    return found


@contextlib.contextmanager
def late_lists(endpoint: str) -> Iterator[tuple[str, Counter[str]]]:
    """A proxy in a process of its own: delta-rs holds this one's lock while it waits for some answers."""
    command = [sys.executable, "-m", "benchmarks.lib.fault_proxy", endpoint]
    options = ["--stale-lists", str(NEVER_S), "--stale-commits", str(COMMITS_S)]
    counts = Counter[str]()
    with subprocess.Popen([*command, *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as proxy:
        assert proxy.stdin and proxy.stdout
        try:
            yield proxy.stdout.readline().strip(), counts
        finally:
            proxy.stdin.close()
            counts.update(json.loads(proxy.stdout.readline()))


@pytest.mark.slow  # a minute on two busy cores: nine days' worth of commits, each listed two seconds late
def test_days_are_the_same_where_lists_are_late(s3: str, spark: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for day in DAYS:
        storage.write_table(f"{s3}/logs/ds={day}/part-0.parquet", plays(day))
    expected = sessionized(f"{s3}/expected", f"{s3}/logs")
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    with late_lists(endpoint) as (url, counts):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        found = sessionized(f"{s3}/late", f"{s3}/logs")
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    assert counts["left_out"]
    noted = [read_digests(f"{s3}/late/quarantine/ds={manifest.ds}") for _, manifest in found]
    names = [
        {storage.name(file.uri) for file in storage.list_files(f"{s3}/late/quarantine/ds={m.ds}")} for _, m in found
    ]
    assert [{storage.name(uri) for uri in files} for files in noted] == names and all(names)
    for (result, manifest), (wanted, other) in zip(found, expected, strict=True):
        assert manifest.parent == other.parent
        assert shards.content_digest(manifest) == shards.content_digest(other)
        for name in ("rows_read", "accepted", "rejected", "duplicates", "songs", "new_songs", "listeners", "events"):
            assert result[name] == wanted[name]
