"""The gate of `fuxi sessionize` on real logs: what it refuses, what it leaves, and what `--accept-quality` notes."""

import datetime as dt
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from jobs.cli import cli
from jobs.config import Config, load_config
from jobs.daily import run_day
from jobs.day import Day, open_day, run_stage
from jobs.stages import sessionize
from pipelines import delta_tables, storage
from pipelines.calendar import Calendar
from pipelines.errors import InputError
from pipelines.histories.shards import read_manifest

pytestmark = pytest.mark.usefixtures("spark")

FIRST = dt.date(2026, 3, 2)
ROWS, LISTENERS, SONGS = 400, 50, 80
"""Rows of a landing day; more than quality.min_plays."""


def landed(number: int) -> dt.date:
    return FIRST + dt.timedelta(days=number)


DS = landed(6)
"""The day whose input is broken. The first build before it has three landing days, two merges have one each."""


def plays(number: int) -> pa.Table:
    """A landing day's plays, each at a second of its own; one row in twenty does not say how long it was played."""
    rng = np.random.default_rng(number)
    return pa.table(
        {
            "user_id": rng.integers(1, LISTENERS + 1, ROWS),
            "item_id": rng.integers(1, SONGS + 1, ROWS) * 10,
            "timestamp": Calendar().day_start(landed(number)) + np.arange(ROWS) * 210,
            "play_ms": pa.array(rng.integers(0, 250_000, ROWS), mask=np.arange(ROWS) % 20 == 0),
            "duration_ms": np.full(ROWS, 200_000),
        }
    )


def put(logs: Path, number: int, table: pa.Table, name: str = "part-0.parquet") -> None:
    file = logs / f"ds={landed(number)}" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file)


def overrides(workspace: Path, logs: Path) -> list[str]:
    return [f"workspace={workspace}", f"logs.path={logs}", "sequences.buckets=4", "train.min_listeners=3"]


def settings(workspace: Path, logs: Path) -> Config:
    return load_config(environment={}, overrides=overrides(workspace, logs))


def run(config: Config, ds: dt.date, **flags: Any) -> dict[str, Any]:
    return run_stage(open_day(config, ds, **flags), "sessionize", sessionize.run)


def noted(config: Config, ds: dt.date) -> dict[str, dict[str, Any]]:
    rows = delta_tables.read_days(open_day(config, ds).workspace.quality, since=ds, before=ds + dt.timedelta(days=1))
    assert len({row["metric"] for row in rows}) == len(rows)
    return {row["metric"]: row for row in rows}


def broken(rows: dict[str, dict[str, Any]]) -> list[str]:
    return sorted(name for name, row in rows.items() if row["passed"] is False)


def tree(*folders: Path) -> dict[str, bytes]:
    return {str(f): f.read_bytes() for folder in folders for f in sorted(folder.rglob("*")) if f.is_file()}


@pytest.fixture(scope="module")
def three_days(tmp_path_factory: pytest.TempPathFactory, spark: Any) -> Path:
    """Logs and a workspace with three published days: ds 3 (landing days 0 to 2), 4 and 5."""
    root = tmp_path_factory.mktemp("quality")
    for number in range(5):
        put(root / "logs", number, plays(number))
    for number in (3, 4, 5):
        run(settings(root / "workspace", root / "logs"), landed(number))
    return root


@dataclass
class Copy:
    """A copy of the published workspace; the logs are shared, and those of the day before DS are the test's."""

    config: Config
    logs: Path

    @property
    def root(self) -> Path:
        return Path(self.config.workspace)

    def land(self, table: pa.Table) -> None:
        put(self.logs, 5, table)

    def published(self) -> dict[str, bytes]:
        return tree(self.root / "sequences", self.root / "vocabulary")


@pytest.fixture
def copy(three_days: Path, tmp_path: Path) -> Copy:
    workspace = tmp_path / "workspace"
    shutil.copytree(three_days / "workspace", workspace)
    shutil.rmtree(three_days / "logs" / f"ds={landed(5)}", ignore_errors=True)
    for late in (three_days / "logs").rglob("late.parquet"):
        late.unlink()
    return Copy(settings(workspace, three_days / "logs"), three_days / "logs")


def test_plays_are_counted_a_landing_day_and_the_first_days_have_nothing_usual(three_days: Path) -> None:
    config = settings(three_days / "workspace", three_days / "logs")
    first = noted(config, landed(3))
    assert (first["accepted"]["value"], first["landing_days"]["value"]) == (3 * ROWS, 3)
    assert first["plays_per_landing_day"]["value"] == ROWS
    assert first["plays_per_landing_day"]["passed"] is None
    assert "unknown_song_share" not in first
    assert first["duplicate_share"]["passed"] is True
    last = noted(config, landed(5))
    assert (last["plays_per_landing_day"]["value"], last["landing_days"]["value"]) == (ROWS, 1)
    assert last["plays_per_landing_day"]["passed"] is None
    assert (last["unknown_song_share"]["value"], last["unknown_song_share"]["upper"]) == (0, 0.5)
    assert last["newest_play_age_s"]["value"] == 86_400 - 210 * (ROWS - 1)
    assert last["null_share_play_ms"]["value"] == 0.05
    assert last["listeners"]["value"] == LISTENERS
    assert not any(row["accepted_override"] for row in last.values())


def with_column(table: pa.Table, name: str, values: Any) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, pa.array(values))


def fewer(table: pa.Table) -> pa.Table:
    return table.slice(220)


def unknown(table: pa.Table) -> pa.Table:
    return with_column(table, "item_id", np.asarray(table["item_id"]) + 100_000)


def stale(table: pa.Table) -> pa.Table:
    return with_column(table, "timestamp", np.asarray(table["timestamp"]) - 2 * 86_400 - 7)


def anonymous(table: pa.Table) -> pa.Table:
    users = pa.array(np.asarray(table["user_id"]), mask=np.arange(ROWS) % 50 < 11)
    return with_column(table, "user_id", users)


def silent(table: pa.Table) -> pa.Table:
    return table.drop(["play_ms"])


def twice(table: pa.Table) -> pa.Table:
    return pa.concat_tables([table, table])


@pytest.mark.parametrize(
    ("damage", "names", "lines"),
    [
        (
            [fewer, unknown],
            ["plays_per_landing_day", "unknown_song_share"],
            [
                "180 plays a landing day, 0.45 of 400, the median of the last 3 published days "
                "(quality.min_volume_ratio allows 0.5)",
                "100% of plays are of songs unknown before this day (quality.max_unknown_song_share allows 50%)",
            ],
        ),
        (
            [stale],
            ["newest_play_age_s"],
            ["the newest play is 48.7 h older than ds 00:00 (175,417 s, quality.max_age_s allows 172,800)"],
        ),
        ([anonymous], ["null_share_user_id"], ["22% of rows have no user_id (quality.max_null_share allows 20%)"]),
        (
            [silent],
            ["null_share_play_ms"],
            [
                "100% of rows have no play_ms (quality.max_null_rise allows 25% more than the median 5% of the last "
                "3 published days)"
            ],
        ),
        (
            [twice],
            ["duplicate_share"],
            ["50% of plays are duplicates (quality.max_duplicate_share allows 30%)"],
        ),
    ],
)
def test_a_broken_day_is_refused_in_one_line_and_changes_nothing_published(
    copy: Copy, damage: list[Callable[[pa.Table], pa.Table]], names: list[str], lines: list[str]
) -> None:
    table = plays(5)
    for spoil in damage:
        table = spoil(table)
    copy.land(table)
    before = copy.published()
    with pytest.raises(InputError) as refused:
        run(copy.config, DS)
    remedy = "correct the logs and run with --refresh-inputs, or --accept-quality to take the day as it is"
    assert str(refused.value) == f"ds {DS}: {'; '.join(lines)}: {remedy}"
    assert copy.published() == before
    rows = noted(copy.config, DS)
    assert broken(rows) == names
    assert not any(row["accepted_override"] for row in rows.values())
    assert not (copy.root / "runs" / f"ds={DS}" / "staging").exists()


def test_a_refused_day_is_served_stale_until_it_is_accepted_and_that_is_noted(copy: Copy) -> None:
    copy.land(unknown(fewer(plays(5))))
    only: dict[str, Callable[[Day], dict[str, Any]]] = {"sessionize": sessionize.run}
    day = open_day(copy.config, DS)
    failed = run_day(day, only)
    assert failed.degraded and day.stale_days == 1
    assert "--accept-quality" in failed.failures["sessionize"]

    accepted = run_day(open_day(copy.config, DS, accept_quality=True), only)
    assert not accepted.degraded
    manifest = read_manifest(day.workspace.sequences(DS))
    details = accepted.stages["sessionize"]["accepted_quality"]
    assert [detail[:9] for detail in details] == ["180 plays", "100% of p"]
    assert manifest.counts["accepted_quality"] == details
    rows = noted(copy.config, DS)
    assert broken(rows) == ["plays_per_landing_day", "unknown_song_share"]
    assert [name for name, row in sorted(rows.items()) if row["accepted_override"]] == broken(rows)
    assert rows["duplicates"]["value"] == 0

    again = run_day(open_day(copy.config, DS), only)
    assert again.stages["sessionize"]["skipped"] is True
    flags = [part for text in overrides(copy.root, copy.logs) for part in ("--set", text)]
    command = ["sessionize", "--ds", str(DS), "--force", *flags]
    without = CliRunner().invoke(cli, command)
    assert isinstance(without.exception, InputError)
    done = CliRunner().invoke(cli, [*command, "--accept-quality", "--json"], catch_exceptions=False)
    assert json.loads(done.stdout)["accepted_quality"] == details
    assert noted(copy.config, DS) == rows
    assert read_manifest(day.workspace.sequences(DS)).counts["accepted_quality"] == details


def test_a_refused_second_run_of_a_published_day_leaves_it_published(copy: Copy) -> None:
    """Refused after the build: the new shards lie beside the published ones and only they may go."""
    copy.land(plays(5))
    run(copy.config, DS)
    before = copy.published()
    copy.land(twice(plays(5)))
    with pytest.raises(InputError, match=r"50% of plays are duplicates"):
        run(copy.config, DS, refresh_inputs=True)
    assert copy.published() == before
    assert broken(noted(copy.config, DS)) == ["duplicate_share"]


def test_a_good_day_passes_and_an_accepted_or_refused_one_before_it_counts_as_it_was(copy: Copy) -> None:
    """After a day that was refused, the next takes both landing days; a late file makes no landing day of its own."""
    copy.land(fewer(plays(5)))
    with pytest.raises(InputError, match=r"quality\.min_volume_ratio"):
        run(copy.config, DS)
    copy.land(plays(5))
    put(copy.logs, 0, plays(40).slice(0, 5), name="late.parquet")
    put(copy.logs, 6, plays(6))
    try:
        result = run(copy.config, landed(7))
    finally:
        shutil.rmtree(copy.logs / f"ds={landed(6)}")
    assert result["accepted_quality"] == []
    rows = noted(copy.config, landed(7))
    assert broken(rows) == []
    assert rows["landing_days"]["value"] == 2
    assert rows["plays_per_landing_day"]["lower"] == 0.5 * ROWS
    assert not storage.exists(storage.join(copy.config.workspace, "sequences", f"ds={DS}", "_manifest.json"))
