"""Which plays count: rows of the logs are validated, invalid ones quarantined, plays staged for the shuffle.

Whether a row is valid depends on the row and its landing day, never on ds or the clock: the same logs give the same
plays on every day they are read.
"""

import datetime as dt
import functools
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines import storage
from pipelines.calendar import Calendar
from pipelines.forget import blocklist
from pipelines.forget.blocklist import Blocklist
from pipelines.forget.redact import possible_users
from pipelines.histories.shuffle import RUN_ROWS, Shuffle, ShuffleRows, ShuffleRun, ShuffleWriter
from pipelines.histories.writer import ParquetSink
from pipelines.logs import faults, files
from pipelines.schema import (
    DURATION_MS,
    EVENT_TYPE,
    ITEM_ID,
    LANDING_DAY,
    PLAY_MS,
    PLAY_SOURCE,
    PLAYS,
    REASON,
    SOURCE_FILE,
    TIMESTAMP,
    UNCHOSEN,
    USER_ID,
    id_type,
)
from pipelines.spark import run_tasks

UNPARSEABLE = "unparseable"
REASONS = (
    UNPARSEABLE,
    "null_user_id",
    "null_item_id",
    "null_timestamp",
    "unknown_event_type",
    "negative_duration",
    "timestamp_after_landing",
    "timestamp_too_old",
)
"""Why a row is rejected; of several reasons the first counts."""

VALID, IGNORED = -1, -2
"""`validate` of a row that is not rejected: a play, or a known event other than a play."""

_QUARANTINE_ROW_GROUP = 1 << 18
QUARANTINE_SCHEMA = pa.schema(
    [
        (REASON, pa.string()),
        (LANDING_DAY, pa.date32()),
        (SOURCE_FILE, pa.string()),
        ("row", pa.string()),  # as read: JSON of the logs' own columns; the raw text where it could not be split
    ]
)


@dataclass(frozen=True)
class ValidationRules:
    """What makes a row a valid play."""

    play_events: tuple[str, ...] = ("play",)
    other_events: tuple[str, ...] = ()
    max_late_days: int = 60
    timezone: str = "UTC"

    def window(self, landing_day: dt.date) -> tuple[int, int]:
        """The Unix seconds [first, end) in which the events of a landing day must lie."""
        calendar = Calendar(self.timezone)
        first = calendar.day_start(landing_day - dt.timedelta(days=self.max_late_days))
        return first, calendar.day_start(landing_day + dt.timedelta(days=1))


@dataclass(frozen=True)
class CleanSpec:
    """How logs are read and validated, and where their plays and rejects are written."""

    logs: files.LogSpec
    rules: ValidationRules
    shuffle: Shuffle
    staging: str  # folder, which is there
    quarantine: str  # folder
    attempt: str = "0"  # part of the names of quarantined files, new for every run of the stage
    blocked: Blocklist = field(default_factory=blocklist.empty)  # listeners whose rows are dropped


@dataclass
class Cleaned:
    """What reading the logs gave: runs of plays for the shuffle, and counts."""

    songs: pa.Table  # item_id, plays: the distinct songs of valid plays and how often each was played
    runs: list[ShuffleRun] = field(default_factory=list)
    quarantined: list[str] = field(default_factory=list)  # URIs
    rows_read: int = 0
    accepted: int = 0
    ignored: int = 0
    forgotten: int = 0  # rows of listeners on the blocklist; they are kept nowhere
    duplicates: int = 0  # of busy listeners, whose plays are deduplicated in their run
    rejected: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)  # reason -> a line on a row that was rejected for it
    nulls: Counter[str] = field(default_factory=Counter)  # our column -> nulls among rows_read, of files that have it
    newest: int | None = None  # Unix second of the newest valid play
    task_seconds: float = 0.0  # processor time of all tasks

    @property
    def item_ids(self) -> pa.Array:
        """The distinct songs of valid plays."""
        return self.songs[ITEM_ID].combine_chunks()


def validate(batch: files.RawBatch, rules: ValidationRules, landing_day: dt.date) -> np.ndarray:
    """A code for every row, int8: VALID, IGNORED, or the position of its reason in REASONS.

    On landing day 2026-03-02 with the defaults:

    =======  =======  ===================  ==========  =======  ===================================
    user_id  item_id  timestamp            event_type  play_ms  code
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
    if _all_valid(batch, rules, first, end):
        return np.full(rows, VALID, np.int8)
    timestamp = columns[TIMESTAMP].fill_null(first).to_numpy(zero_copy_only=False)
    ignored = unknown = negative = np.zeros(rows, bool)
    if EVENT_TYPE in columns:
        ignored = _is_in(columns[EVENT_TYPE], rules.other_events) & ~batch.unparseable
        unknown = ~_is_in(columns[EVENT_TYPE], rules.play_events)
        if EVENT_TYPE in batch.lacking:  # rows of a client that does not send the key are plays, as a file without it
            unknown &= ~batch.lacking[EVENT_TYPE]
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
    return np.select([ignored, *conditions], [IGNORED, *range(len(REASONS))], default=VALID).astype(np.int8)


def _all_valid(batch: files.RawBatch, rules: ValidationRules, first: int, end: int) -> bool:
    """Whether every row is a valid play, as in most batches: a few passes over columns answer it."""
    columns = batch.columns
    if batch.unparseable.any() or not len(batch.unparseable):
        return False
    if any(columns[name].null_count for name in (USER_ID, ITEM_ID, TIMESTAMP)):
        return False
    timestamp = columns[TIMESTAMP].to_numpy(zero_copy_only=False)
    if timestamp.min() < first or timestamp.max() >= end:
        return False
    plays = set(rules.play_events).difference(rules.other_events)
    if EVENT_TYPE in columns and not plays.issuperset(pc.unique(columns[EVENT_TYPE]).to_pylist()):
        return False
    return all((pc.min(columns[name]).as_py() or 0) >= 0 for name in (PLAY_MS, DURATION_MS) if name in columns)


def explained(
    spec: files.LogSpec, batch: files.RawBatch, codes: np.ndarray, known: Mapping[str, str]
) -> dict[str, str]:
    """Reason -> a line on the first row that `validate` rejects for it: column, value and the setting to see.

    known: the lines of batches before, which stay.
    """
    lines = dict(known)
    for code in np.unique(codes[codes >= 0]):
        reason = REASONS[code]
        if reason in known:
            continue
        column = faults.COLUMN_OF.get(reason)
        if reason == UNPARSEABLE:
            found = [faults.explained(spec, fault) for fault in batch.faults]
            lines[reason] = found[0] if found else ""
        elif column in batch.columns:
            value = batch.columns[column][int((codes == code).argmax())].as_py()
            lines[reason] = faults.of_reason(spec, reason, value)
    return lines


def completion(play_ms: pa.Array | None, duration_ms: pa.Array | None, rows: int) -> np.ndarray:
    """Percent played, uint8 in 0..100, halves rounded up; 100 where either column is null or the duration is 0.

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


def clean(spark: Any, spec: CleanSpec, splits: Sequence[files.Split], *, finished: Any = None) -> Cleaned:
    """Read and validate the rows of `splits` with Spark; write plays as runs to `staging`, rejects to `quarantine`.

    Both folders get files with new names; older files stay. What a repeated task quarantines replaces the same file, so
    that one that nobody waits for any more leaves nothing behind. The driver receives one summary a task. finished: a
    Spark accumulator that counts rows, for progress. Raises InputError naming a file that cannot be read.
    """
    tasks = list(enumerate(assign_to_tasks(splits, spark.sparkContext.defaultParallelism)))
    summaries = run_tasks(spark, functools.partial(_run_task, spec, finished), tasks)
    result = Cleaned(merge_songs([summary["songs"] for summary in summaries], id_type(spec.logs.item_id_type)))
    result.newest = max((summary["newest"] for summary in summaries if summary["accepted"]), default=None)
    for summary in summaries:
        result.runs += summary["runs"]
        result.quarantined += summary["quarantined"]
        for name in ("rows_read", "accepted", "ignored", "forgotten", "duplicates", "task_seconds"):
            setattr(result, name, getattr(result, name) + summary[name])
        result.rejected.update(summary["rejected"])
        result.nulls.update(summary["nulls"])
        result.examples = summary["examples"] | result.examples
    _check_account(result)
    return result


def _check_account(cleaned: Cleaned) -> None:
    """Every row that was read was kept, ignored, forgotten or quarantined."""
    told = cleaned.accepted + cleaned.ignored + cleaned.forgotten + cleaned.rejected.total()
    if told != cleaned.rows_read:
        raise RuntimeError(f"{cleaned.rows_read:,} rows were read, and {told:,} are accounted for")


def merge_songs(uris: Sequence[str], kind: pa.DataType) -> pa.Table:
    """The tasks' tables of songs summed to one, a few at a time so that memory is bounded by the distinct songs."""
    pending: list[pa.Table] = []
    for uri in uris:
        pending.append(storage.read_table(uri))
        if sum(table.num_rows for table in pending[1:]) > 4_000_000:
            pending = [_sum_plays(pending, kind)]
    return _sum_plays(pending, kind)


def _sum_plays(tables: Sequence[pa.Table], kind: pa.DataType) -> pa.Table:
    """One row a song of ids of a type, even if there are no tables."""
    empty = pa.schema([(ITEM_ID, kind), (PLAYS, pa.int64())]).empty_table()
    summed = pa.concat_tables([empty, *tables]).group_by(ITEM_ID).aggregate([(PLAYS, "sum")])
    return summed.rename_columns([ITEM_ID, PLAYS])


def _is_in(column: pa.Array, values: Sequence[str]) -> np.ndarray:
    return pc.is_in(column, value_set=pa.array(values, pa.string())).to_numpy(zero_copy_only=False)


def _is_null(column: pa.Array) -> np.ndarray:
    return column.is_null().to_numpy(zero_copy_only=False)


def assign_to_tasks(splits: Sequence[files.Split], parallelism: int) -> list[list[files.Split]]:
    """Splits grouped, in order, into tasks of similar size, so that many small files do not make many small tasks."""
    total = sum(split.rows for split in splits)
    target = min(max(total // (4 * parallelism), 100_000), RUN_ROWS)
    tasks: list[list[files.Split]] = [[]]
    size = 0
    for split in splits:
        if tasks[-1] and size + split.rows // 2 > target:
            tasks.append([])
            size = 0
        tasks[-1].append(split)
        size += split.rows
    return tasks


def _run_task(spec: CleanSpec, finished: Any, numbered: tuple[int, list[files.Split]]) -> dict[str, Any]:
    number, splits = numbered
    # A second attempt writes runs with other names than the first: those may be read while it writes. Only files in a
    # task's summary are read.
    task = CleanTask(spec, f"{number:05d}", attempt=uuid.uuid4().hex)
    for split in splits:
        task.read(split)
    if finished is not None:
        finished.add(sum(split.rows for split in splits))
    return task.finish()


class CleanTask:
    """Counts and files of one task."""

    def __init__(self, spec: CleanSpec, name: str, *, attempt: str):
        self._spec, self._logs = spec, spec.logs
        self._plays = ShuffleWriter(spec.shuffle, spec.staging, f"plays-{name}-{attempt}")
        self._songs = storage.join(spec.staging, f"songs-{name}-{attempt}.parquet")
        self._quarantined = storage.join(spec.quarantine, f"part-{name}-{spec.attempt}.parquet")
        self._rejects = ParquetSink(self._quarantined, QUARANTINE_SCHEMA, row_group_rows=_QUARANTINE_ROW_GROUP)
        self._counts = {"rows_read": 0, "accepted": 0, "ignored": 0, "forgotten": 0}
        self._rejected: Counter[str] = Counter()
        self._nulls: Counter[str] = Counter()
        self._examples: dict[str, str] = {}
        self._newest: int | None = None  # Unix second of the newest play

    def read(self, split: files.Split) -> None:
        """Validate the rows of a split, and write plays to the runs and rejects to the quarantine."""
        landing_day = dt.date.fromisoformat(split.file.landing_day)
        lacking: Counter[str] = Counter()  # rows without an optional column, of a format where each may lack it
        nulls: Counter[str] = Counter()
        rows = 0
        for unfiltered in files.read(self._logs, split):
            rows += len(unfiltered.unparseable)
            batch, dropped = without_blocked(unfiltered, self._spec.blocked, self._logs)
            self._counts["rows_read"] += dropped
            self._counts["forgotten"] += dropped
            codes = validate(batch, self._spec.rules, landing_day)
            plays = plays_of(batch, codes == VALID, self._logs)
            self._counts["rows_read"] += len(codes)
            self._counts["accepted"] += len(plays)
            self._counts["ignored"] += int((codes == IGNORED).sum())
            nulls.update({name: column.null_count for name, column in batch.columns.items()})
            nulls.update({name: len(codes) for name in batch.lacking if name not in batch.columns})
            lacking.update({name: int(mask.sum()) for name, mask in unfiltered.lacking.items()})
            if len(plays):
                self._plays.write(plays)
                newest = int(plays.timestamp.max())
                self._newest = newest if self._newest is None else max(self._newest, newest)
            rejected = np.flatnonzero(codes >= 0)
            if len(rejected):
                self._rejects.write(_quarantined(batch, rejected, codes[rejected], split.file))
                self._rejected.update(REASONS[code] for code in codes[rejected])
                self._examples = explained(self._logs, batch, codes, self._examples)
        # Whether a file has a column is known at its end only: until then it may be one that no row of it has.
        has = {name for name in nulls if name not in lacking or lacking[name] < rows}
        self._nulls.update({name: nulls[name] for name in has})

    def finish(self) -> dict[str, Any]:
        """Close the files and return their URIs and what was counted.

        The quarantine first: in a task that goes on after its stage the next line ends it.
        """
        quarantined = [self._quarantined] if self._rejects.close() else []
        self._plays.flush()
        kind = id_type(self._logs.item_id_type)
        songs = [pa.table({ITEM_ID: ids.cast(kind), PLAYS: plays}) for ids, plays in self._plays.songs]
        storage.write_table(self._songs, _sum_plays(songs, kind), new_folder=False)
        return {
            "runs": self._plays.runs,
            "songs": self._songs,
            "newest": self._newest,
            "duplicates": self._plays.duplicates,
            "quarantined": quarantined,
            "rejected": dict(self._rejected),
            "nulls": dict(self._nulls),
            "examples": self._examples,
            **self._counts,
        }


def without_blocked(batch: files.RawBatch, blocked: Blocklist, spec: files.LogSpec) -> tuple[files.RawBatch, int]:
    """A batch without the rows of listeners on the blocklist, and how many rows they had.

    In an unparseable row without a user id any token may be the id.
    """
    if not len(blocked):
        return batch, 0
    users = batch.columns[USER_ID]
    dropped = blocked.mask(users.cast(id_type(spec.user_id_type)))
    unclear = np.flatnonzero(batch.unparseable & _is_null(users))
    if len(unclear):
        kind, column = spec.user_id_type, spec.column(USER_ID)
        texts = batch.as_read(unclear)
        dropped[unclear] = [blocked.any_of(possible_users(text, column, kind), kind) for text in texts]
    if not dropped.any():
        return batch, 0
    kept = np.flatnonzero(~dropped)
    columns = {name: column.take(pa.array(kept)) for name, column in batch.columns.items()}
    rest = replace(
        batch,
        columns=columns,
        unparseable=batch.unparseable[kept],
        as_read=lambda positions: batch.as_read(kept[positions]),
        lacking={name: mask[kept] for name, mask in batch.lacking.items()},
        faults=(),  # their examples may be of the rows that are dropped
    )
    return rest, int(dropped.sum())


def plays_of(batch: files.RawBatch, valid: np.ndarray, spec: files.LogSpec) -> ShuffleRows:
    """The valid rows of a batch as plays; those of `unchosen_sources` are marked. valid: bool, a row each."""
    columns = batch.columns
    play_code = completion(columns.get(PLAY_MS), columns.get(DURATION_MS), len(valid))
    if PLAY_SOURCE in columns:
        play_code += _is_in(columns[PLAY_SOURCE], spec.unchosen_sources) * np.uint8(UNCHOSEN)
    user_id = columns[USER_ID].cast(id_type(spec.user_id_type))
    item_id = columns[ITEM_ID].cast(id_type(spec.item_id_type))
    timestamp = columns[TIMESTAMP]
    if not valid.all():
        mask = pa.array(valid)
        user_id, item_id, timestamp = user_id.filter(mask), item_id.filter(mask), timestamp.filter(mask)
        play_code = play_code[valid]
    return ShuffleRows(user_id, item_id, timestamp.to_numpy(zero_copy_only=False), play_code)


def _quarantined(batch: files.RawBatch, positions: np.ndarray, reasons: np.ndarray, file: files.LogFile) -> pa.Table:
    return pa.table(
        {
            REASON: [REASONS[code] for code in reasons],
            LANDING_DAY: [dt.date.fromisoformat(file.landing_day)] * len(positions),
            SOURCE_FILE: [file.uri] * len(positions),
            "row": batch.as_read(positions),
        },
        schema=QUARANTINE_SCHEMA,
    )
