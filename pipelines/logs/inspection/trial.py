"""A sample of logs read and validated as the job would: what it keeps, what it rejects, and why."""

import datetime as dt
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.errors import InputError
from pipelines.logs import files as logs
from pipelines.logs.formats.base import LogFile, LogSpec, RawBatch
from pipelines.logs.inspection.columns import FIRST_TIME
from pipelines.logs.validate import IGNORED, REASONS, VALID, ValidationRules, explained, validate
from pipelines.schema import ITEM_ID, REQUIRED_COLUMNS, TIMESTAMP, USER_ID

_TOO_OLD = REASONS.index("timestamp_too_old")


@dataclass
class Trial:
    """What became of the rows of a sample."""

    rows: int = 0
    accepted: int = 0
    ignored: int = 0
    duplicates: int = 0  # accepted plays of one listener, song and second that are there already
    listeners: int = 0
    songs: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)  # reason -> a line: column, value, setting
    refused: list[str] = field(default_factory=list)  # a line on each file that the job would not take at all
    units: dict[str, str] = field(default_factory=dict)  # landing day -> the unit of its times
    first: int | None = None  # Unix seconds of the plays
    last: int | None = None
    late_days: int = 0  # days between the oldest row that is too old, of a time after 2000, and its landing day

    @property
    def rejected_share(self) -> float:
        """Of the rows that are no ignored events, as the job counts it: in [0, 1]."""
        return self.rejected.total() / max(self.rows, 1)


def read(spec: LogSpec, rules: ValidationRules, files: Sequence[LogFile], *, rows: int) -> Trial:
    """Read the first rows of each file. Files without a landing day are taken as of the day of their newest row."""
    trial, plays = Trial(), []
    for file in files:
        try:
            splits = logs.plan(spec, [file])
            unit = trial.units.setdefault(file.landing_day, splits[0].unit if splits else "s")
            left = rows
            for batch in logs.first_rows(spec, file, rows, unit=unit):
                part = _cut(batch, left)
                left -= len(part.unparseable)
                plays.append(_add(trial, spec, rules, file, part))
                if left <= 0:
                    break
        except InputError as error:
            trial.refused.append(str(error))
    if plays:
        _count(trial, pa.concat_tables([pa.Table.from_batches([part]) for part in plays]))
    return trial


def _cut(batch: RawBatch, rows: int) -> RawBatch:
    """At most so many rows of a batch."""
    if len(batch.unparseable) <= rows:
        return batch
    return replace(
        batch,
        columns={name: column.slice(0, rows) for name, column in batch.columns.items()},
        unparseable=batch.unparseable[:rows],
        lacking={name: mask[:rows] for name, mask in batch.lacking.items()},
    )


def _add(trial: Trial, spec: LogSpec, rules: ValidationRules, file: LogFile, batch: RawBatch) -> pa.RecordBatch:
    """Validate a batch, count it, and return its plays: user_id and item_id as text, timestamp."""
    codes = validate(batch, rules, _landing_day(file, batch))
    trial.rows += len(codes)
    trial.accepted += int((codes == VALID).sum())
    trial.ignored += int((codes == IGNORED).sum())
    trial.rejected.update(REASONS[code] for code in codes[codes >= 0])
    trial.late_days = max(trial.late_days, _late_days(batch, codes, _landing_day(file, batch)))
    trial.examples = explained(spec, batch, codes, trial.examples)
    kept = pa.array(np.flatnonzero(codes == VALID))
    columns = {name: batch.columns[name].take(kept) for name in REQUIRED_COLUMNS}
    types = {USER_ID: pa.string(), ITEM_ID: pa.string(), TIMESTAMP: pa.int64()}
    return pa.record_batch({name: column.cast(types[name]) for name, column in columns.items()})


def _late_days(batch: RawBatch, codes: np.ndarray, landing_day: dt.date) -> int:
    """How many days before it landed the oldest row is that is too old; 0 if none is, or their times are no times."""
    times = batch.columns[TIMESTAMP].filter(pa.array(codes == _TOO_OLD)).to_numpy()
    times = times[times >= FIRST_TIME]
    newest = (landing_day - dt.date(1970, 1, 1)).days
    return int(newest - times.min() // 86_400) if len(times) else 0


def _landing_day(file: LogFile, batch: RawBatch) -> dt.date:
    if file.landing_day:
        return dt.date.fromisoformat(file.landing_day)
    times = np.sort(batch.columns[TIMESTAMP].drop_null().to_numpy())
    newest = int(times[int(len(times) * 0.99)]) if len(times) else 0  # a clock that is years ahead is no landing day
    try:
        return dt.datetime.fromtimestamp(newest, dt.UTC).date()
    except (ValueError, OverflowError, OSError):
        return dt.date(2100, 1, 1)


def _count(trial: Trial, plays: pa.Table) -> None:
    """Listeners, songs, duplicates and times of the plays of all files."""
    distinct = plays.group_by(plays.column_names).aggregate([])
    trial.duplicates = len(plays) - len(distinct)
    trial.listeners = pc.count_distinct(plays[USER_ID]).as_py()
    trial.songs = pc.count_distinct(plays[ITEM_ID]).as_py()
    bounds = pc.min_max(plays[TIMESTAMP]).as_py()
    trial.first, trial.last = bounds["min"], bounds["max"]
