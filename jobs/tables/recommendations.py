"""The Delta table of the daily lists: part files written by many tasks, audited, published by one commit a day.

Tasks write `ds=D/part-<uuid>.parquet` below the table; readers see nothing of it until the driver commits all
parts of a day in one transaction that replaces exactly that day. Parts of a run that was killed are named by no
commit: `DeltaTable.vacuum(full=True)` removes them.
"""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions when it is imported)

import dataclasses
import datetime as dt
import hashlib
import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from jobs.config import RecommendConfig
from pipelines import storage
from pipelines.errors import InputError
from pipelines.schema import BUCKET, DS, ITEM_ID, ITEMS, SCORE, SOURCE, USER_ID, recommendations_schema
from pipelines.workspace import Workspace

MODEL, POPULAR = "model", "popular"
_ROW_GROUP_ROWS = 65_536
_MAX_ITEMS = 1000
_CONSTRAINT = "items_at_most"


@dataclass(frozen=True)
class Part:
    """A file below the table, with what the audit needs to know of its rows. `path` is relative to the table."""

    path: str
    size: int
    rows: int
    listeners: int  # rows with a user_id
    model_lists: int
    popular_lists: int
    repeated: int  # lists that name a song twice
    not_finite: int  # scores that are NaN or infinite
    longest: int
    shortest: int
    songs: pa.Table  # item_id, lists: in how many listeners' lists each song is


@dataclass(frozen=True)
class Check:
    """One line of the audit."""

    check: str
    passed: bool
    detail: str


def open_lists(workspace: Workspace) -> Any:
    """The table, created empty if it is not there. A day is committed on the state read here."""
    from deltalake import DeltaTable

    spec, options = workspace.spec, storage.delta_options(workspace.recommendations)
    if not DeltaTable.is_deltatable(workspace.recommendations, storage_options=options):
        storage.make_parent(storage.join(workspace.recommendations, "x"))
        DeltaTable.create(
            workspace.recommendations,
            schema=recommendations_schema(spec.user_id_type, spec.item_id_type),
            mode="ignore",
            partition_by=[DS],
            name="recommendations",
            storage_options=options,
        )
    table = DeltaTable(workspace.recommendations, storage_options=options)
    if f"delta.constraints.{_CONSTRAINT}" not in table.metadata().configuration:
        table.alter.add_constraint({_CONSTRAINT: f"array_length(items) <= {_MAX_ITEMS}"})
    return table


def write_part(table_uri: str, ds: dt.date, rows: pa.Table) -> Part:
    """Write one part and count what the audit asks for.

    rows: `recommendations_schema` without ds, sorted by user_id within a bucket. Nothing is published by this.
    """
    path = f"{DS}={ds}/part-{uuid.uuid4().hex}.parquet"
    sink = pa.BufferOutputStream()
    statistics = [name for name in rows.column_names if name not in (USER_ID, ITEMS)]
    pq.write_table(rows, sink, compression="zstd", row_group_size=_ROW_GROUP_ROWS, write_statistics=statistics)  # type: ignore[arg-type]
    content = sink.getvalue().to_pybytes()
    storage.write_bytes(storage.join(table_uri, path), content)

    counted = rows.filter(pc.is_valid(rows[USER_ID]))
    lengths = pc.list_value_length(rows[ITEMS])
    scores = pc.struct_field(pc.list_flatten(rows[ITEMS]), SCORE)
    return Part(
        path=path,
        size=len(content),
        rows=rows.num_rows,
        listeners=counted.num_rows,
        model_lists=pc.sum(pc.equal(counted[SOURCE], MODEL)).as_py() or 0,
        popular_lists=pc.sum(pc.equal(counted[SOURCE], POPULAR)).as_py() or 0,
        repeated=_lists_with_repeats(rows),
        not_finite=pc.sum(pc.invert(pc.is_finite(pc.fill_null(scores, float("nan"))))).as_py() or 0,
        longest=pc.max(lengths).as_py() or 0,
        shortest=pc.min(lengths).as_py() or 0,
        songs=_song_counts(counted),
    )


def _lists_with_repeats(rows: pa.Table) -> int:
    songs = pc.struct_field(pc.list_flatten(rows[ITEMS]), ITEM_ID)
    table = pa.table({"row": pc.list_parent_indices(rows[ITEMS]), "song": songs})
    per_row = table.group_by("row").aggregate([("song", "count"), ("song", "count_distinct")])
    return pc.sum(pc.not_equal(per_row["song_count"], per_row["song_count_distinct"])).as_py() or 0


def _song_counts(rows: pa.Table) -> pa.Table:
    songs = pa.table({ITEM_ID: pc.struct_field(pc.list_flatten(rows[ITEMS]), ITEM_ID)})
    return songs.group_by(ITEM_ID).aggregate([([], "count_all")]).rename_columns([ITEM_ID, "lists"])


def summary(parts: Sequence[Part], *, eligible: int) -> dict[str, Any]:
    """listeners, model_lists, popular_lists, coverage (share of eligible songs in any list), top_share."""
    listeners = sum(part.listeners for part in parts)
    songs = pa.concat_tables([part.songs for part in parts]).group_by(ITEM_ID).aggregate([("lists", "sum")])
    return {
        "listeners": listeners,
        "model_lists": sum(part.model_lists for part in parts),
        "popular_lists": sum(part.popular_lists for part in parts),
        "coverage": songs.num_rows / max(eligible, 1),
        "top_share": (pc.max(songs["lists_sum"]).as_py() or 0) / max(listeners, 1),
    }


def audit(
    parts: Sequence[Part], found: dict[str, Any], *, config: RecommendConfig, earlier: tuple[dt.date, int] | None
) -> list[Check]:
    """Whether the lists of a day may be published. found: of `summary`; earlier: the last day and its listeners."""
    listeners, popular = found["listeners"], found["popular_lists"]
    share = popular / max(listeners, 1)
    longest, shortest = max(part.longest for part in parts), min(part.shortest for part in parts)
    broken = sum(part.repeated for part in parts), sum(part.not_finite for part in parts)
    coverage, top = found["coverage"], found["top_share"]
    checks = [
        Check("listeners", listeners > 0, f"{listeners:,} lists"),
        Check("popular", share <= config.max_fallback_share, _share(share, config.max_fallback_share, "are popular")),
        Check("coverage", coverage >= config.min_coverage, _share(coverage, config.min_coverage, "of songs", "least")),
        Check("top_song", top <= config.max_top_share, _share(top, config.max_top_share, "name one song")),
        Check("length", longest <= config.k, f"{shortest} to {longest} songs a list, at most {config.k}"),
        Check("sound", broken == (0, 0), f"{broken[0]} lists repeat a song, {broken[1]} scores are not finite"),
    ]
    if earlier is not None:
        least = earlier[1] * (1 - config.max_listener_drop)
        detail = f"{listeners:,} listeners, {earlier[1]:,} on {earlier[0]}, at least {least:,.0f}"
        checks.insert(1, Check("listeners_kept", listeners >= least, detail))
    return checks


def _share(value: float, limit: float, what: str, side: str = "most") -> str:
    return f"{value:.1%} {what}, at {side} {limit:.1%}"


def commit_key(*parts: str | None) -> int:
    """A number that names what a commit was made from; stored as the commit's application transaction."""
    return int(hashlib.sha256("|".join(part or "" for part in parts).encode()).hexdigest()[:15], 16)


def check_parts(table_uri: str, parts: Sequence[Part]) -> None:
    """Every part is there and whole: a commit that names a missing file is accepted, and breaks its readers."""
    for part in parts:
        uri = storage.join(table_uri, part.path)
        fs, path = storage.filesystem(uri)
        info = fs.get_file_info(path)
        if info.type != pafs.FileType.File or info.size != part.size:
            raise InputError(f"{uri} is missing or incomplete: run `fuxi recommend` again")


def commit(table: Any, ds: dt.date, parts: Sequence[Part], *, key: int, metadata: dict[str, str]) -> int:
    """Replace the lists of `ds` by these parts in one transaction; returns the table's version.

    table: of `open_lists`, read before the work began. InputError if somebody else committed the same day since
    then; nothing is published then.
    """
    from deltalake.exceptions import CommitFailedError
    from deltalake.transaction import CommitProperties, Transaction

    properties = CommitProperties(
        custom_metadata={**metadata, "generated_at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds")},
        app_transactions=[Transaction(app_id=_application(ds), version=key)],
    )
    try:
        table.create_write_transaction(
            [_add_action(ds, part) for part in parts],
            "overwrite",
            table.schema(),
            partition_by=[DS],
            partition_filters=[(DS, "=", str(ds))],
            commit_properties=properties,
        )
    except CommitFailedError as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"the lists of {ds} were published by another run meanwhile ({reason}): run `fuxi recommend` again"
        ) from None
    table.update_incremental()
    return table.version()


def replace_parts(table: Any, ds: dt.date, removed: Sequence[tuple[str, int]], added: Sequence[Part]) -> int:
    """Take parts (path, size) of a published day out and put others in, in one transaction; returns the version.

    The log says which files, and nothing of the rows they differ in. The day stays published from what it was.
    """
    from deltalake.exceptions import CommitFailedError
    from deltalake.transaction import CommitProperties, RemoveAction

    now = int(time.time() * 1000)
    gone = [RemoveAction(path, True, now, size, {DS: str(ds)}) for path, size in removed]
    actions = [*gone, *(_add_action(ds, part) for part in added)]
    properties = CommitProperties(max_commit_retries=0)
    try:
        table.create_write_transaction(
            actions, "append", table.schema(), partition_by=[DS], commit_properties=properties
        )
    except CommitFailedError as error:
        reason = " ".join(str(error).split())
        raise InputError(f"the lists of {ds} were changed by another run meanwhile ({reason}): run again") from None
    table.update_incremental()
    return table.version()


def _application(ds: dt.date) -> str:
    return f"recommendations:{ds}"


def _add_action(ds: dt.date, part: Part) -> Any:
    from deltalake.transaction import AddAction

    # No minima and maxima in the log: ids of listeners do not belong there, and delta-rs's PyArrow reader takes the
    # missing minimum of one column as null as soon as another has one, and then finds no row by user_id. Readers
    # skip by bucket from the Parquet footers.
    stats = {"numRecords": part.rows}
    return AddAction(part.path, part.size, {DS: str(ds)}, int(time.time() * 1000), True, json.dumps(stats))


def published_result(table: Any, ds: dt.date, key: int) -> dict[str, Any] | None:
    """The result noted in the commit of `ds` made from the same `key`, if that is what readers see today."""
    if table.transaction_version(_application(ds)) != key:
        return None
    for entry in table.history():
        if entry.get("ds") == str(ds):
            return {**json.loads(entry["result"]), "delta_version": entry["version"]} if "result" in entry else None
    return None


def discard(table_uri: str, parts: Sequence[Part]) -> None:
    """Remove parts that will not be published."""
    for part in parts:
        fs, path = storage.filesystem(storage.join(table_uri, part.path))
        if fs.get_file_info(path).type == pafs.FileType.File:
            fs.delete_file(path)


def published_days(workspace: Workspace) -> list[dt.date]:
    """Every day that has lists, oldest first."""
    from deltalake import DeltaTable

    options = storage.delta_options(workspace.recommendations)
    if not DeltaTable.is_deltatable(workspace.recommendations, storage_options=options):
        return []
    table = DeltaTable(workspace.recommendations, storage_options=options)
    return sorted({dt.date.fromisoformat(str(partition[DS])) for partition in table.partitions()})


def listeners_before(table: Any, ds: dt.date) -> tuple[dt.date, int] | None:
    """The latest earlier day with lists and its number of listeners (its default list not counted)."""
    actions = pa.table(table.get_add_actions(flatten=True))
    if actions.num_rows == 0:
        return None
    days = pa.table({DS: actions[f"partition.{DS}"], "rows": actions["num_records"]})
    days = days.filter(pc.less(days[DS], pa.scalar(ds, pa.date32())))
    if days.num_rows == 0:
        return None
    latest = pc.max(days[DS])
    rows = pc.sum(days.filter(pc.equal(days[DS], latest))["rows"]).as_py()
    return latest.as_py(), rows - 1


def read_list(workspace: Workspace, ds: dt.date, user_id: int | str | None) -> dict[str, Any] | None:
    """One listener's row of a day, as a mapping; the list for unknown listeners if user_id is None."""
    from deltalake import DeltaTable

    from pipelines.histories.buckets import user_bucket

    table = DeltaTable(workspace.recommendations, storage_options=storage.delta_options(workspace.recommendations))
    wanted = pc.field(DS) == pa.scalar(ds, pa.date32())
    if user_id is None:
        wanted &= pc.field(USER_ID).is_null()
    else:
        ids = pa.array([user_id], recommendations_schema(workspace.spec.user_id_type, "int64").field(USER_ID).type)
        wanted &= (pc.field(BUCKET) == int(user_bucket(ids, workspace.spec.buckets)[0])) & (
            pc.field(USER_ID) == user_id
        )
    rows = table.to_pyarrow_dataset().to_table(filter=wanted).to_pylist()
    return rows[0] if rows else None


def as_dicts(checks: Sequence[Check]) -> list[dict[str, Any]]:
    """The audit as stage results hold it."""
    return [dataclasses.asdict(check) for check in checks]
