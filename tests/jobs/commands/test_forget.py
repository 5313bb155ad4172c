"""`fuxi forget`, proved by decoding every file of a workspace: who was found everywhere before is nowhere afterwards.

Shards, increments and a compaction come from `sessionize` on real logs, the lists from the code of the Ray tasks, the
report from `fuxi report`, the model from MLflow on sqlite; what killed runs leave is written by the code they ran.
"""

import contextlib
import datetime as dt
import hashlib
import html
import json
import os
import re
import sqlite3
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from deltalake import DeltaTable

from jobs import cli
from jobs.commands import forget, forget_stores, show
from jobs.daily import run_day
from jobs.day import LEASE, Day, run_stage
from jobs.report.examples import pick_listeners
from jobs.reproduce import runs
from jobs.serving.make_lists import default_part, make_part
from jobs.stages import report, sessionize
from jobs.stages.recommend import list_job
from jobs.tables import recommendations as lists
from pipelines import leases, storage
from pipelines.calendar import Calendar
from pipelines.errors import BusyError, InputError
from pipelines.forget import blocklist
from pipelines.forget.listeners import ListenersToForget
from pipelines.histories.shards import listed_uris, read_manifest
from pipelines.histories.shuffle import Shuffle, ShuffleRows, ShuffleRun, ShuffleWriter, ranges_of, read_in_passes

pytestmark = pytest.mark.usefixtures("spark")

FIRST = dt.date(2026, 3, 2)  # the first landing day; its ds is the next
BASE = 7_310_559_002_218_000  # ids that no other number of a workspace is by chance
PEOPLE = 16
DAYS = 3


def landing(n: int) -> dt.date:
    return FIRST + dt.timedelta(days=n)


def ds_of(n: int) -> dt.date:
    return FIRST + dt.timedelta(days=n + 1)


# ---- the decoder: does a file hold an id, in whatever way? -----------------------------------------------------------


@dataclass(frozen=True)
class Needle:
    """An id in every form in which a file may hold it."""

    user: Any

    @property
    def raw(self) -> list[bytes]:
        found = [str(self.user).encode()]
        if isinstance(self.user, int):
            found += [self.user.to_bytes(8, "little"), self.user.to_bytes(8, "big")]
        return found

    def in_bytes(self, content: bytes) -> bool:
        return any(form in content for form in self.raw)

    def in_value(self, value: Any) -> bool:
        if isinstance(value, bytes):
            return self.in_bytes(value)
        return str(self.user) in str(value)

    def in_array(self, array: Any) -> bool:
        """Any depth of lists, structs and dictionaries."""
        if isinstance(array, pa.ChunkedArray):
            return any(self.in_array(chunk) for chunk in array.chunks)
        kind = array.type
        if pa.types.is_dictionary(kind):
            return self.in_array(array.dictionary)
        if pa.types.is_struct(kind):
            return any(self.in_array(array.field(n)) for n in range(kind.num_fields))
        if pa.types.is_map(kind):
            return self.in_array(array.keys) or self.in_array(array.items)
        if pa.types.is_list(kind) or pa.types.is_large_list(kind):
            return self.in_array(array.flatten())
        return any(self.in_value(value) for value in array.unique().to_pylist())


def places(folder: Path, user: Any) -> dict[str, set[str]]:
    """Every file below a folder that holds the id -> how: rows, statistics, metadata, sqlite, member, bytes."""
    needle, found = Needle(user), {}
    for file in sorted(folder.rglob("*")):
        if file.is_file() and (how := set(_ways(file, needle))):
            found[str(file.relative_to(folder))] = how
    return found


def _ways(file: Path, needle: Needle) -> Any:
    content = file.read_bytes()
    if needle.in_bytes(content):
        yield "bytes"
    if needle.in_value(str(file)):
        yield "name"
    if content[:4] == b"PAR1" and content[-4:] == b"PAR1":
        yield from _parquet_ways(file, needle)
    elif file.parent.name == "staging":
        yield from _staged_ways(file, needle)
    elif content[:15] == b"SQLite format 3":
        yield from _sqlite_ways(file, needle)
    elif content[:2] == b"PK":
        with zipfile.ZipFile(file) as archive:
            if any(needle.in_bytes(archive.read(name)) for name in archive.namelist()):
                yield "member"


def _parquet_ways(file: Path, needle: Needle) -> Any:
    parquet = pq.ParquetFile(file)
    if any(needle.in_array(column) for column in parquet.read().columns):
        yield "rows"
    for group in range(parquet.num_row_groups):
        row_group = parquet.metadata.row_group(group)
        for number in range(row_group.num_columns):
            statistics = row_group.column(number).statistics
            bounds = [statistics.min, statistics.max] if statistics is not None and statistics.has_min_max else []
            if any(needle.in_value(value) for value in bounds):
                yield "statistics"
    if any(needle.in_bytes(value) for value in (parquet.metadata.metadata or {}).values()):
        yield "metadata"


_STAGED: dict[str, tuple[ShuffleRun, int]] = {}
"""Runs of the shuffle that a test left: what their writer says of them, and their partitions."""


def _staged_ways(file: Path, needle: Needle) -> Any:
    """A run of the shuffle, read as a building task reads it."""
    run, partitions = _STAGED[str(file)]
    rows = [rows for partition in range(partitions) for rows in read_in_passes(ranges_of([run], partition))]
    if any(needle.in_array(part.user_id) for part in rows):
        yield "rows"


def _sqlite_ways(file: Path, needle: Needle) -> Any:
    with contextlib.closing(sqlite3.connect(file)) as database:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            if any(needle.in_value(value) for row in database.execute(f'SELECT * FROM "{table}"') for value in row):
                yield "sqlite"


def tree(folder: Path) -> dict[str, str]:
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


# ---- the workspace ---------------------------------------------------------------------------------------------------


@dataclass
class Service:
    """A deployment whose days were really run, and its logs outside the workspace."""

    made: Any
    logs: Path

    @property
    def folder(self) -> Path:
        return Path(self.made.config.workspace)

    def user(self, n: int) -> Any:
        return BASE + n if self.made.user_id_type == "int64" else f"anna:{BASE + n}/x"

    def land(self, n: int) -> None:
        """The plays of a landing day, with dirt of everybody's: Parquet, and CSV with lines that are no rows."""
        rng, start = np.random.default_rng([n, 5]), Calendar().day_start(landing(n))
        folder = self.logs / f"ds={landing(n)}"
        folder.mkdir(parents=True)
        rows: list[dict[str, Any]] = []
        for person in range(PEOPLE):
            for _ in range(2 + person % 7):
                rows.append({"listener": self.user(person), "item_id": int(rng.integers(1, 40)), "what": "play"})
        for person in range(PEOPLE):
            rows += [{"listener": self.user(person), "item_id": 5, "what": "bought"}]
            rows += [{"listener": self.user(person), "item_id": 5, "what": "like"}]
        for row in rows:
            row |= {"timestamp": start + int(rng.integers(0, 86_400)), "note": f"by {row['listener']}"}
        pq.write_table(pa.Table.from_pylist(rows), folder / "a.parquet")
        lines = ["listener,item_id,timestamp,what"]
        for person in range(PEOPLE):
            lines += [f"{self.user(person)},{n % 9 + 1},{start + person},play"]
        for person in range(PEOPLE // 2):
            lines += [f"{self.user(person)},3,{start},play,too,many", f'"{self.user(person)}",3,soon,play']
        (folder / "b.csv").write_text("\n".join([*lines, ""]))

    def sessionize(self, n: int, **flags: Any) -> dict[str, Any]:
        day = self.made.day(ds_of(n))
        for name, value in flags.items():
            setattr(day, name, value)
        return run_stage(day, "sessionize", sessionize.run)

    def publish_lists(self, n: int) -> None:
        """The lists of a day as the Ray tasks make them, in this process."""
        day = self.made.day(ds_of(n))
        job = list_job(day)
        table = lists.open_lists(day.workspace)
        parts = [default_part(job), *(make_part(job, file) for file in job.manifest.files)]
        lists.commit(table, ds_of(n), parts, key=1, metadata={"ds": str(ds_of(n))})
        day.finish("recommend", {"listeners": PEOPLE, "audit": []}, 1.0)

    def table(self) -> DeltaTable:
        return DeltaTable(self.made.day(ds_of(0)).workspace.recommendations)

    def others(self, gone: Any) -> dict[str, Any]:
        """Everything that is kept of everybody else, and what is kept of nobody."""
        days = [self.made.day(ds_of(n)) for n in range(DAYS)]
        manifests = [read_manifest(day.workspace.sequences(day.ds)) for day in days]
        sequences = [
            [row for file in m.files for row in m.read(file).to_pylist() if row["user_id"] != gone] for m in manifests
        ]
        rows = self.table().to_pyarrow_dataset().to_table().sort_by([("ds", "ascending"), ("user_id", "ascending")])
        quarantined = sorted(
            (row["row"], row["reason"], row["source_file"])
            for file in (self.folder / "quarantine").rglob("*.parquet")
            for row in pq.read_table(file).to_pylist()
            if str(gone) not in row["row"]
        )
        return {
            "sequences": sequences,
            "lists": [row for row in rows.to_pylist() if row["user_id"] != gone],
            "quarantine": quarantined,
            "unchanged": [tree(self.folder / name) for name in ("vocabulary", "mlartifacts", "quality")],
        }


@pytest.fixture(params=["int64", "string"])
def service(request: pytest.FixtureRequest, deployment: Callable[..., Any], tmp_path: Path) -> Service:
    return three_days(deployment, tmp_path, request.param)


def three_days(deployment: Callable[..., Any], tmp_path: Path, kind: str) -> Service:
    """Three days with increments and a compaction, a registered model, lists of two days, a report."""
    made = deployment(
        f"logs.path={tmp_path}/logs",
        "logs.columns={user_id: listener, event_type: what}",
        "logs.max_rejected_share=0.6",
        "sequences.max_increments=1",
        "sequences.row_group_events=30",
        "sequences.max_history=9",
        user_id_type=kind,
    )
    found = Service(made, tmp_path / "logs")
    for n in range(DAYS):
        found.land(n)
        found.sessionize(n)
    layers = [file.layers for n in range(DAYS) for file in _manifest(found, n).files]
    assert {len(layer) for layer in layers} == {1, 2}  # with increments and without
    assert len({file.path for n in range(DAYS) for file in _manifest(found, n).files if file.bucket == 0}) > 1
    made.songs = _manifest(found, 1).vocabulary_size
    version = made.trained(ds_of(1))
    for n in (1, 2):
        made.choose(ds_of(n), version)
        found.publish_lists(n)
        report.run(made.day(ds_of(n)))
    return found


def _manifest(service: Service, n: int) -> Any:
    return read_manifest(service.made.day(ds_of(n)).workspace.sequences(ds_of(n)))


def shown_in_a_report(service: Service) -> Any:
    """Somebody whom the report of the last day shows."""
    return pick_listeners(service.made.day(ds_of(2)))[-1][1]


def leave_leftovers(service: Service, user: Any) -> None:
    """What killed runs leave: unnamed shards, a half-written one, runs, an orphan part, a note; and an experiment."""
    day, folder = service.made.day(ds_of(2)), service.folder
    manifest = _manifest(service, 2)
    killed = folder / "sequences" / f"ds={ds_of(3)}" / "bucket=00000"
    killed.mkdir(parents=True)
    for n, file in enumerate(manifest.files):
        content = Path(manifest.uri_of(file)).read_bytes()
        (killed / f"part-{n}.parquet").write_bytes(content)
        (killed / f"part-half-{n}.parquet.{n:032x}.tmp").write_bytes(content[: len(content) // 2])
    spread = Shuffle(2, manifest.buckets, 9)
    ids = pa.array([user] * 3, pa.int64() if isinstance(user, int) else pa.string())
    staging = f"{day.workspace.run(ds_of(3))}/staging"
    storage.make_folder(staging)
    writer = ShuffleWriter(spread, staging, "plays")
    writer.write(ShuffleRows(ids, pa.array([1, 2, 3]), np.arange(3), np.zeros(3, np.uint8)))
    writer.flush()
    _STAGED.update({run.uri: (run, spread.partitions) for run in writer.runs})
    for uri in service.table().file_uris():
        if user in pq.read_table(uri, columns=["user_id"])["user_id"].to_pylist():
            Path(uri).with_name("part-orphan.parquet").write_bytes(Path(uri).read_bytes())
    service.publish_lists(2)  # so that the version before is history
    service.table().create_checkpoint()
    day.note_failure("train", f"KeyError: listener {user} has no history")
    runs.write_ranks(folder / "reproduce", "a-run", [user, service.user(99)], np.array([1.0, 2.0]))
    (folder / "reproduce" / "a-run.json").write_text(json.dumps({"name": "a-run", "listeners": {"all": 2}}))


def arguments(service: Service, *more: str) -> list[str]:
    config = service.made.config
    return [
        "forget",
        *more,
        "--workspace",
        config.workspace,
        "--set",
        "logs.columns={user_id: listener, event_type: what}",
        "--set",
        "sequences.row_group_events=30",
        *("--set", f"sequences.user_id_type={service.made.user_id_type}"),
        *("--set", "sequences.buckets=4"),
    ]


def fuxi(service: Service, *more: str, **how: Any) -> Any:
    done = CliRunner().invoke(cli.cli, arguments(service, *more), **how)
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


# ---- the proof -------------------------------------------------------------------------------------------------------


def test_a_listener_who_is_everywhere_is_nowhere_afterwards_and_never_comes_back(service: Service) -> None:
    user = shown_in_a_report(service)
    leave_leftovers(service, user)
    folder = service.folder
    before, others = places(folder, user), service.others(user)
    stored = {kind: [how for name, how in before.items() if name.startswith(f"{kind}/")] for kind in _KINDS}
    assert all(stored.values()), stored  # the control: the decoder finds them, in every kind of place
    assert any("statistics" in how for how in stored["sequences"])
    assert {name.split("/")[0] for name in before} == set(_KINDS)
    everything = tree(folder)
    assert any("input_example" in name for name in everything) and "mlflow.db" in everything

    looked = fuxi(service, str(user), "--dry-run")
    assert "Would be removed" in looked.output and tree(folder) == everything
    done = fuxi(service, str(user), "--yes")
    assert places(folder, user) == {}
    assert service.others(user) == others
    table, planned = (re.findall(r"^\w.* +\d+(?: +\d+)?$", said.output, re.M) for said in (done, looked))
    assert table == planned and len(table) >= len(_KINDS)
    assert str(user) not in done.output + done.stderr
    pages = [Path(service.made.day(ds_of(n)).workspace.report(ds_of(n))).read_text() for n in (1, 2)]
    assert all("<h3>Listener" in page for page in pages)  # others in their place
    named = set().union(*(listed_uris(_manifest(service, n)) for n in range(DAYS)))
    assert {str(file) for file in (folder / "sequences").rglob("*.parquet")} == named
    assert json.loads((folder / "reproduce" / "a-run.json").read_text())["listeners"]["all"] == 1

    shown = show.show(service.made.config, str(user), ds_of(2))
    assert (shown["known"], shown["source"], shown["recent"]) == (False, "popular", [])

    service.land(3)  # with the listener in it, as play and as dirt
    counts = service.sessionize(3)
    assert places(folder, user) == {}
    assert counts["forgotten"] >= 4
    kept = counts["accepted"] + counts["ignored"] + sum(counts["rejected"].values())
    assert counts["rows_read"] == kept + counts["forgotten"]
    assert service.user(0) in _users(service, 3) or service.user(1) in _users(service, 3)

    for n in range(DAYS):  # a rebuild from all logs
        storage.delete_folder(str(folder / "sequences" / f"ds={ds_of(n)}"))
    rebuilt = service.sessionize(3, refresh_inputs=True)
    assert rebuilt["forgotten"] > counts["forgotten"] and len(_users(service, 3)) == PEOPLE - 1
    assert places(folder, user) == {}
    assert "nothing holds it" in fuxi(service, str(user), "--yes").output


def test_the_delta_log_names_every_removed_part_as_it_was_added(service: Service) -> None:
    """Another reader replays the log literally: a path written in two ways would leave dead files alive."""
    user = shown_in_a_report(service)
    fuxi(service, str(user), "--yes")
    live: set[str] = set()
    for commit in sorted((service.folder / "recommendations" / "_delta_log").glob("*.json")):
        for action in map(json.loads, commit.read_text().splitlines()):
            if "remove" in action:
                live.remove(action["remove"]["path"])
            if "add" in action:
                live.add(action["add"]["path"])
                assert set(json.loads(action["add"]["stats"])) == {"numRecords"}
    files = sorted(str(service.folder / "recommendations" / unquote(path)) for path in live)
    assert files == sorted(str(file) for file in (service.folder / "recommendations").rglob("part-*.parquet"))
    rows = [row for file in files for row in pq.ParquetFile(file).read(["user_id"])["user_id"].to_pylist()]
    assert user not in rows and len(rows) == service.table().to_pyarrow_dataset().count_rows()


WHOLE = (
    "logs.columns={user_id: listener, event_type: what}",
    "logs.max_rejected_share=0.6",
    "model.dim=8",
    "model.layers=1",
    "model.max_history=16",
    "train.epochs=2",
    "train.batch_size=4",
    "train.checkpoint_every_steps=2",
    "train.min_listeners=2",
    "recommend.k=10",
    "recommend.max_top_share=1",
    "recommend.max_fallback_share=1",
)


@pytest.mark.usefixtures("ray_local")
def test_a_day_run_by_the_product_keeps_listeners_in_four_places_and_forgets_them(
    deployment: Callable[..., Any], tmp_path: Path
) -> None:
    """Every stage is real, training and its checkpoints, the registry and the tables of metrics and quality too."""
    service = Service(deployment(f"logs.path={tmp_path}/logs", *WHOLE), tmp_path / "logs")
    service.land(0)
    service.land(1)
    first = run_day(service.made.day(ds_of(1)))
    assert first.failures == {}
    everything = tree(service.folder)
    for kind in ("checkpoints", "export-", "mlartifacts/", "input_example", "mlflow.db", "metrics/", "quality/"):
        assert any(kind in name for name in everything), kind
    kept = {name.split("/")[0] for n in range(PEOPLE) for name in places(service.folder, service.user(n))}
    assert kept == {"sequences", "recommendations", "quarantine", "reports"}

    gone = [pick_listeners(service.made.day(ds_of(1)))[-1][1], service.user(0)]
    forget.forget(service.made.config, pa.array(gone))
    service.land(2)
    second = run_day(service.made.day(ds_of(2)))
    assert second.failures == {} and second.stages["sessionize"]["forgotten"] > 0
    assert second.stages["recommend"]["listeners"] == PEOPLE - 2
    assert [places(service.folder, user) for user in gone] == [{}, {}]


_KINDS = ("sequences", "recommendations", "quarantine", "runs", "reports", "reproduce")


def _users(service: Service, n: int) -> set[Any]:
    manifest = _manifest(service, n)
    return {user for file in manifest.files for user in manifest.read(file, None, ["user_id"])["user_id"].to_pylist()}


KILLED = """
import os, sys
from pipelines import storage

def dying(write):
    def call(*arguments, **named):
        left[0] -= 1
        if not left[0]:
            os._exit(9)
        return write(*arguments, **named)
    return call

left = [int(sys.argv.pop(1))]
for name in ("write_bytes", "delete_files", "delete_folder"):
    setattr(storage, name, dying(getattr(storage, name)))
from jobs.cli import main
main()
"""


def test_killed_again_and_again_it_is_finished_by_running_it_again(
    deployment: Callable[..., Any], tmp_path: Path
) -> None:
    service = three_days(deployment, tmp_path, "int64")
    user = shown_in_a_report(service)
    leave_leftovers(service, user)
    others = service.others(user)
    killed = 0
    for writes in (1, 2, 3, 4, 6, 8, 10, 12):
        command = [sys.executable, "-c", KILLED, str(writes), *arguments(service, str(user), "--yes")]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ}, check=False)
        assert done.returncode in (0, 9), done.stderr
        killed += done.returncode == 9
        assert service.others(user) == others  # whatever day it died on, everybody else reads what they read before
        show.show(service.made.config, str(service.user(1)), ds_of(2))
    assert killed >= 4
    fuxi(service, str(user), "--yes")
    assert places(service.folder, user) == {} and service.others(user) == others


# ---- who may, and what is refused ------------------------------------------------------------------------------------


@pytest.fixture
def small(deployment: Callable[..., Any], tmp_path: Path) -> Service:
    """One day, no lists."""
    made = deployment("logs.columns={user_id: listener, event_type: what}", f"logs.path={tmp_path}/logs")
    made.config = made.config.model_copy(
        update={"logs": made.config.logs.model_copy(update={"max_rejected_share": 0.6})}
    )
    found = Service(made, tmp_path / "logs")
    found.land(0)
    found.sessionize(0)
    return found


def test_while_a_day_runs_nothing_is_changed(small: Service) -> None:
    day: Day = small.made.day(ds_of(5))
    uri = storage.join(day.workspace.run(day.ds), LEASE)
    before = tree(small.folder)
    with leases.lease(uri, purpose="a day"), pytest.raises(BusyError, match=r"is held by another run \(a day.*again"):
        fuxi(small, str(small.user(1)), "--yes")
    locks = {str(Path(uri).relative_to(small.folder)), "forgotten/forget.lock"}
    assert {name: file for name, file in tree(small.folder).items() if name not in locks} == before


def test_a_day_that_begins_meanwhile_keeps_its_files_until_the_next_run(
    small: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    user, day = small.user(1), small.made.day(ds_of(1))
    old = listed_uris(_manifest(small, 0))
    stage, add = contextlib.ExitStack(), blocklist.add

    def begin(folder: str, ids: pa.Array) -> int:
        stage.enter_context(leases.lease(storage.join(day.workspace.run(day.ds), LEASE), purpose="fuxi sessionize"))
        return add(folder, ids)

    monkeypatch.setattr(blocklist, "add", begin)
    with stage, pytest.raises(BusyError, match="run `fuxi forget` again when it has ended"):
        fuxi(small, str(user), "--yes")
    assert user not in _users(small, 0) and all(Path(uri).exists() for uri in old)
    monkeypatch.undo()
    fuxi(small, str(user), "--yes")
    assert places(small.folder, user) == {}


def test_what_a_day_publishes_meanwhile_is_looked_at_again(
    deployment: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A day that had read the old files ends after the lists were rewritten and before nobody was found running."""
    service = three_days(deployment, tmp_path, "int64")
    user = service.user(PEOPLE - 1)
    workspace = service.made.day(ds_of(2)).workspace
    row = lists.read_list(workspace, ds_of(2), user)
    assert row is not None
    erase, late = forget_stores.erase_from_lists, [ds_of(2)]

    def erased_then_published(removal: Any, advance: Any) -> Any:
        matches = erase(removal, advance)
        if late and not removal.dry_run:
            schema = service.table().to_pyarrow_dataset().schema
            rows = pa.Table.from_pylist([row], schema=schema).drop(["ds"])
            part = lists.write_part(workspace.recommendations, late[0], rows)
            lists.replace_parts(service.table(), late.pop(), [], [part])
        return matches

    monkeypatch.setattr(forget_stores, "erase_from_lists", erased_then_published)
    result = forget.forget(service.made.config, pa.array([user]))
    assert not late and places(service.folder, user) == {}
    assert result.stores["recommendations"].rows == 3


def test_an_unknown_listener_is_put_on_the_list_all_the_same(small: Service) -> None:
    before = tree(small.folder / "sequences")
    done = fuxi(small, str(BASE + 500), "--yes")
    assert done.exit_code == 0
    assert "1 listener; nothing holds it; 1 newly on the list" in done.output
    assert tree(small.folder / "sequences") == before
    listed = blocklist.load(small.made.day(ds_of(0)).workspace.forgotten)
    assert listed.mask(pa.array([BASE + 500, BASE])).tolist() == [True, False]
    assert "0 newly on the list" in fuxi(small, str(BASE + 500), "--yes").output


def test_a_file_of_ids_forgets_them_all(small: Service, tmp_path: Path) -> None:
    file = tmp_path / "ids.txt"
    file.write_text("\ufeff" + "\r\n".join([*(str(small.user(n)) for n in range(PEOPLE - 1)), "", str(BASE + 77), ""]))
    done = fuxi(small, str(small.user(3)), "--file", str(file), "--yes")
    assert f"{PEOPLE} listeners; nothing holds 1 of them; {PEOPLE} newly" in done.output
    assert _users(small, 0) == {small.user(PEOPLE - 1)}
    assert all(places(small.folder, small.user(n)) == {} for n in range(PEOPLE - 1))


def test_everybody_may_go(small: Service) -> None:
    fuxi(small, *(str(small.user(n)) for n in range(PEOPLE)), "--yes")
    manifest = _manifest(small, 0)
    assert (manifest.rows, manifest.files) == (0, ())
    assert not list((small.folder / "sequences").rglob("part-*.parquet"))


@pytest.mark.parametrize(
    ("users", "text", "message"),
    [
        (["12a"], "", r"listener '12a' is not an int64 id: this workspace's listeners have numbers"),
        (["9" * 19], "", r"is not an int64 id"),
        (["1_000"], "", r"is not an int64 id"),
        ([], "12\nx\n", r"ids.txt, line 2: 'x' is not an int64 id"),
        ([], "\n\n", r"nobody to forget: give user ids, or --file FILE"),
        ([], None, r"ids.txt is not there"),
    ],
)
def test_what_is_no_id_is_refused_in_one_line(
    small: Service, tmp_path: Path, users: list[str], text: str | None, message: str
) -> None:
    file = tmp_path / "ids.txt"
    if text:
        file.write_text(text)
    given = ["--file", str(file)] if text or text is None else []
    before = tree(small.folder)
    with pytest.raises(InputError, match=message) as error:
        fuxi(small, *users, *given, "--yes")
    assert "\n" not in str(error.value) and tree(small.folder) == before


def test_without_yes_it_asks_and_off_a_terminal_it_refuses(small: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="no terminal to ask on: give --yes"):
        fuxi(small, str(small.user(1)))
    asked: list[str] = []
    monkeypatch.setattr(cli.sys, "stdin", type("Terminal", (), {"isatty": lambda self: True})())
    monkeypatch.setattr(cli.click, "confirm", lambda text, abort: asked.append(text) or sys.exit(130))
    with pytest.raises(SystemExit):
        cli.cli(arguments(small, str(small.user(1))), standalone_mode=False)
    assert asked == [f"Remove 1 listener from {small.folder}, for ever?"]
    assert small.user(1) in _users(small, 0)


def test_on_an_object_store(s3: str, deployment: Callable[..., Any], tmp_path: Path) -> None:
    """Shards, quarantine and the list; leases are objects, and none is held."""
    made = deployment(
        f"logs.path={tmp_path}/logs",
        "logs.columns={user_id: listener, event_type: what}",
        "logs.max_rejected_share=0.6",
        workspace=f"{s3}/workspace",
    )
    service = Service(made, tmp_path / "logs")
    for n in range(2):
        service.land(n)
        service.sessionize(n)
    user = service.user(1)
    config = forget.forget(made.config, pa.array([user]))
    assert config.found == 1 and config.stores["sequences"].files >= 2 and config.stores["quarantine"].files >= 1
    storage.download_folder(f"{s3}/workspace", str(tmp_path / "copy"))
    assert places(tmp_path / "copy", user) == {}
    locks = [file.uri for file in storage.list_files(f"{s3}/workspace") if file.uri.endswith(".lock")]
    assert locks and not any(map(leases.lease_holder, locks))
    service.land(2)
    assert service.sessionize(2)["forgotten"] > 0 and user not in _users(service, 2)


def test_rejected_rows_on_a_page_are_found_by_the_ids_they_may_have_and_by_nothing_else(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    row = html.escape('{"user_id": 1011, "item_id": 102002}')
    page.write_text(f'<p>1,011 rows</p><pre data-listeners="1011">{row}</pre><pre data-listeners="5&#10;70">5;70</pre>')
    found = {
        ids: forget_stores._mentions(str(page), ListenersToForget(pa.array(ids, pa.int64())))
        for ids in [(1011,), (70,)]
    }
    assert found == {(1011,): 1, (70,): 1}
    assert forget_stores._mentions(str(page), ListenersToForget(pa.array([102002, 7], pa.int64()))) == 0
