"""Which plays count: rows of the logs validated, rejected ones quarantined, the rest staged for the sequences.

Whether a row is valid depends on the row and on the day it landed, never on ds or the clock: the same logs give
the same plays on every day they are looked at.
"""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions when it is imported)

import datetime as dt
import functools
import json
import re
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines import logs, storage
from pipelines.calendar import Calendar
from pipelines.schema import (
    COMPLETION,
    DURATION_MS,
    EVENT_TYPE,
    ITEM_ID,
    LANDING_DAY,
    PLAY_MS,
    REASON,
    SOURCE_FILE,
    TIMESTAMP,
    USER_ID,
    InputError,
    id_type,
)

REASONS = (
    "unparseable",
    "null_user_id",
    "null_item_id",
    "null_timestamp",
    "unknown_event_type",
    "negative_duration",
    "timestamp_after_landing",
    "timestamp_too_old",
)
"""Why a row is rejected, the first that holds."""

VALID, IGNORED = -1, -2
"""What `judge` says of a row that is no reject: a play, or a known event that is none."""

_STAGED_ROW_GROUP = 1 << 20
QUARANTINE_SCHEMA = pa.schema(
    [
        (REASON, pa.string()),
        (LANDING_DAY, pa.date32()),
        (SOURCE_FILE, pa.string()),
        ("row", pa.string()),  # as read: JSON of the logs' own columns; the raw text where it could not be split
    ]
)


@dataclass(frozen=True)
class Rules:
    """What makes a row a play."""

    play_events: tuple[str, ...] = ("play",)
    other_events: tuple[str, ...] = ()
    max_late_days: int = 60
    timezone: str = "UTC"

    def window(self, landing_day: dt.date) -> tuple[int, int]:
        """The Unix seconds [first, end) in which events may lie that landed on a day."""
        calendar = Calendar(self.timezone)
        first = calendar.day_start(landing_day - dt.timedelta(days=self.max_late_days))
        return first, calendar.day_start(landing_day + dt.timedelta(days=1))


@dataclass(frozen=True)
class Staged:
    """A file of valid plays, written by one task."""

    uri: str
    row_groups: int


@dataclass
class Cleaned:
    """What the pass over the logs found."""

    item_ids: pa.Array  # distinct songs of valid plays
    staged: list[Staged] = field(default_factory=list)
    quarantined: list[str] = field(default_factory=list)  # URIs
    rows_read: int = 0
    accepted: int = 0
    ignored: int = 0
    rejected: Counter[str] = field(default_factory=Counter)

    @property
    def rejected_share(self) -> float:
        """Rejected rows as a share of all rows read."""
        return self.rejected.total() / max(self.rows_read, 1)


def judge(batch: logs.RawBatch, rules: Rules, landing_day: dt.date) -> np.ndarray:
    """For every row VALID, IGNORED or the position of its reason in REASONS. int8, one a row.

    On landing day 2026-03-02 with the defaults:

    =======  =======  ===================  ==========  =======  ===================================
    user_id  item_id  timestamp            event_type  play_ms  judged
    =======  =======  ===================  ==========  =======  ===================================
    1        10       2026-03-02 23:59:59  play        5000     VALID
    1        10       2026-03-03 00:00:00  play        5000     timestamp_after_landing
    1        10       2025-12-31 23:59:59  play        5000     timestamp_too_old (61 days)
    (null)   10       2026-03-02 12:00:00  play        5000     null_user_id
    1        10       2026-03-02 12:00:00  buy         5000     unknown_event_type
    1        10       2026-03-02 12:00:00  play        -1       negative_duration
    (null)   (null)   (null)               like                 IGNORED, where "like" is known
    =======  =======  ===================  ==========  =======  ===================================
    """
    columns, rows = batch.columns, len(batch.unparseable)
    first, end = rules.window(landing_day)
    timestamp = columns[TIMESTAMP].fill_null(first).to_numpy(zero_copy_only=False)
    none = np.zeros(rows, bool)
    ignored = unknown = none
    if EVENT_TYPE in columns:
        ignored = _is_in(columns[EVENT_TYPE], rules.other_events) & ~batch.unparseable
        unknown = ~_is_in(columns[EVENT_TYPE], rules.play_events)
    negative = none
    for name in (PLAY_MS, DURATION_MS):
        if name in columns:
            negative = negative | (columns[name].fill_null(0).to_numpy(zero_copy_only=False) < 0)
    conditions = [
        batch.unparseable,
        _is_null(columns[USER_ID]),
        _is_null(columns[ITEM_ID]),
        _is_null(columns[TIMESTAMP]),
        unknown,
        negative,
        timestamp >= end,
        timestamp < first,
    ]
    choices = list(range(len(REASONS)))
    return np.select([ignored, *conditions], [IGNORED, *choices], default=VALID).astype(np.int8)


def completion(play_ms: pa.Array | None, duration_ms: pa.Array | None, rows: int) -> np.ndarray:
    """Percent played, uint8 in 0..100, halves rounded up; 100 where either number is unknown or the duration is 0.

    >>> completion(pa.array([30_000, 500_000, None]), pa.array([200_000, 200_000, 200_000]), 3)
    array([ 15, 100, 100], dtype=uint8)
    """
    if play_ms is None or duration_ms is None:
        return np.full(rows, 100, np.uint8)
    duration = np.maximum(duration_ms.fill_null(0).to_numpy(zero_copy_only=False), 0)
    played = np.clip(play_ms.fill_null(0).to_numpy(zero_copy_only=False), 0, duration)
    unknown = (duration == 0) | _is_null(play_ms)
    percent = np.floor(100.0 * played / np.where(unknown, 1, duration) + 0.5)
    return np.where(unknown, 100, percent).astype(np.uint8)


def clean(
    spark: Any,
    spec: logs.LogSpec,
    rules: Rules,
    splits: Sequence[logs.Split],
    *,
    staging: str,
    quarantine: str,
    finished: Any = None,
) -> Cleaned:
    """Read, validate and stage the plays of `splits` with Spark; write rejected rows to `quarantine`.

    Both folders get files with new names; what was in them stays. The driver receives the distinct songs and
    one summary a task. finished: a Spark accumulator that counts splits, for progress. Raises InputError naming
    a file that cannot be read.
    """
    tasks = _pack(splits, spark.sparkContext.defaultParallelism)
    start = functools.partial(_CleanTask, spec, rules, staging, quarantine)
    work = functools.partial(_clean_partition, tasks, start, finished)
    item_type = "string" if spec.item_id_type == "string" else "bigint"
    frame = spark.range(0, len(tasks), 1, len(tasks)).mapInArrow(work, f"{ITEM_ID} {item_type}, summary string")
    table = run_spark(lambda: frame.distinct().toArrow())
    result = Cleaned(table[ITEM_ID].combine_chunks().drop_null().cast(id_type(spec.item_id_type)))
    for text in sorted(table["summary"].drop_null().to_pylist()):
        summary = json.loads(text)
        if summary["staged"]:
            result.staged.append(Staged(summary["staged"], summary["row_groups"]))
        if summary["quarantined"]:
            result.quarantined.append(summary["quarantined"])
        for name in ("rows_read", "accepted", "ignored"):
            setattr(result, name, getattr(result, name) + summary[name])
        result.rejected.update(summary["rejected"])
    return result


def read_staged(uri: str, row_group: int) -> Iterator[pa.RecordBatch]:
    """The plays of a row group of a staged file."""
    fs, path = storage.filesystem(uri)
    with fs.open_input_file(path) as source:
        yield from pq.ParquetFile(source).iter_batches(logs.BATCH_ROWS, row_groups=[row_group])


def run_spark(action: Callable[[], Any]) -> Any:
    """Run a Spark action; an InputError raised in a task comes out as that one line."""
    try:
        return action()
    except Exception as error:
        found = re.search(r"pipelines\.schema\.InputError: (.+)", str(error))
        if found:
            raise InputError(found.group(1).strip()) from None
        raise


def _is_in(column: pa.Array, values: Sequence[str]) -> np.ndarray:
    return pc.is_in(column, value_set=pa.array(values, pa.string())).to_numpy(zero_copy_only=False)


def _is_null(column: pa.Array) -> np.ndarray:
    return column.is_null().to_numpy(zero_copy_only=False)


def _pack(splits: Sequence[logs.Split], parallelism: int) -> list[list[logs.Split]]:
    """Splits dealt to tasks of similar size, so that many small files do not become many small tasks."""
    total = sum(split.bytes for split in splits)
    target = min(max(total // (4 * parallelism), 1 << 20), 128 << 20)
    tasks: list[list[logs.Split]] = [[]]
    size = 0
    for split in splits:
        if tasks[-1] and size + split.bytes > target:
            tasks.append([])
            size = 0
        tasks[-1].append(split)
        size += split.bytes
    return tasks


def _clean_partition(
    tasks: list[list[logs.Split]],
    start: Callable[[str], "_CleanTask"],
    finished: Any,
    batches: Iterator[pa.RecordBatch],
) -> Iterator[pa.RecordBatch]:
    """The body of a Spark task: its rows are numbers of `tasks`."""
    for batch in batches:
        for number in batch.column(0).to_pylist():
            # An attempt that is repeated writes other files than the first; only reported ones are read.
            task = start(f"{number:05d}-{uuid.uuid4().hex}.parquet")
            for split in tasks[number]:
                task.read(split)
                if finished is not None:
                    finished.add(1)
            yield from task.finish()


class _CleanTask:
    """Counts and files of one task."""

    def __init__(self, spec: logs.LogSpec, rules: Rules, staging: str, quarantine: str, name: str):
        self._spec, self._rules, self._name = spec, rules, name
        self._plays = _TableSink(storage.join(staging, f"plays-{name}"))
        self._rejects = _TableSink(storage.join(quarantine, f"part-{name}"))
        self._items = pa.array([], id_type(spec.item_id_type))
        self._counts = {"rows_read": 0, "accepted": 0, "ignored": 0}
        self._rejected: Counter[str] = Counter()

    def read(self, split: logs.Split) -> None:
        """Judge the rows of a split and write them where they belong."""
        landing_day = dt.date.fromisoformat(split.file.landing_day)
        for batch in logs.read(self._spec, split):
            verdict = judge(batch, self._rules, landing_day)
            plays = _plays(batch, verdict == VALID, self._spec)
            self._counts["rows_read"] += len(verdict)
            self._counts["accepted"] += plays.num_rows
            self._counts["ignored"] += int((verdict == IGNORED).sum())
            if plays.num_rows:
                self._plays.write(plays)
                unique = pc.unique(plays[ITEM_ID]).cast(self._items.type)
                self._items = pc.unique(pa.concat_arrays([self._items, unique]))
            rejected = np.flatnonzero(verdict >= 0)
            if len(rejected):
                self._rejects.write(_quarantined(batch, rejected, verdict[rejected], split.file))
                self._rejected.update(REASONS[code] for code in verdict[rejected])

    def finish(self) -> Iterator[pa.RecordBatch]:
        """Close the files; a summary, then the distinct songs."""
        summary = {
            "task": self._name,
            "staged": self._plays.close(),
            "row_groups": self._plays.row_groups,
            "quarantined": self._rejects.close(),
            "rejected": dict(self._rejected),
            **self._counts,
        }
        names, items = [ITEM_ID, "summary"], self._items
        yield pa.record_batch([pa.nulls(1, items.type), pa.array([json.dumps(summary)])], names=names)
        for start in range(0, len(items), logs.BATCH_ROWS):
            part = items[start : start + logs.BATCH_ROWS]
            yield pa.record_batch([part, pa.nulls(len(part), pa.string())], names=names)


def _plays(batch: logs.RawBatch, valid: np.ndarray, spec: logs.LogSpec) -> pa.Table:
    columns = batch.columns
    percent = completion(columns.get(PLAY_MS), columns.get(DURATION_MS), len(valid))
    table = pa.table(
        {
            USER_ID: columns[USER_ID].cast(id_type(spec.user_id_type)),
            ITEM_ID: columns[ITEM_ID].cast(id_type(spec.item_id_type)),
            TIMESTAMP: columns[TIMESTAMP],
            COMPLETION: pa.array(percent.astype(np.int16)),  # Spark has no unsigned bytes
        }
    )
    return table if valid.all() else table.filter(pa.array(valid))


def _quarantined(batch: logs.RawBatch, positions: np.ndarray, reasons: np.ndarray, file: logs.LogFile) -> pa.Table:
    return pa.table(
        {
            REASON: [REASONS[code] for code in reasons],
            LANDING_DAY: [dt.date.fromisoformat(file.landing_day)] * len(positions),
            SOURCE_FILE: [file.uri] * len(positions),
            "row": batch.as_read(positions),
        },
        schema=QUARANTINE_SCHEMA,
    )


class _TableSink:
    """A Parquet file written row group by row group; no rows, no file."""

    def __init__(self, uri: str):
        self.uri, self.row_groups = uri, 0
        self._writer: pq.ParquetWriter | None = None
        self._pending: list[pa.Table] = []
        self._rows = 0

    def write(self, table: pa.Table) -> None:
        self._pending.append(table)
        self._rows += table.num_rows
        if self._rows >= _STAGED_ROW_GROUP:
            self._flush()

    def close(self) -> str | None:
        """The URI of the finished file, None if there is none."""
        self._flush()
        if self._writer is None:
            return None
        self._writer.close()
        return self.uri

    def _flush(self) -> None:
        if not self._rows:
            return
        table = pa.concat_tables(self._pending)
        if self._writer is None:
            storage.make_parent(self.uri)
            fs, path = storage.filesystem(self.uri)
            options: dict[str, Any] = {"compression": "zstd", "compression_level": 1}
            self._writer = pq.ParquetWriter(path, table.schema, filesystem=fs, **options)
        self._writer.write_table(table, row_group_size=self._rows)
        self.row_groups += 1
        self._pending, self._rows = [], 0
