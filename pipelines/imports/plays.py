"""Plays in memory as the shards of one ds, on one machine and without Spark.

Plays of the same second stay in the order of their rows: exports of other services often have whole pages of events
with one timestamp, and protocols that hold out the last event need their order.
"""

import datetime as dt

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines import storage
from pipelines.calendar import Calendar
from pipelines.errors import InputError
from pipelines.histories.buckets import by_bucket
from pipelines.histories.merge import Events, Plays, in_given_order, ranked
from pipelines.histories.publish import BuildSpec, BuiltShards, publish_shards, write_bases
from pipelines.histories.shards import Manifest
from pipelines.schema import COMPLETION, ITEM_ID, TIMESTAMP, USER_ID, id_type_name, vocabulary_rows

VOCABULARY_FILE = "vocabulary.parquet"
_LATEST_SECOND = 1 << 36
"""Of year 4147. Larger timestamps are milliseconds or finer."""


def write_histories(
    plays: pa.Table,
    folder: str,
    *,
    ds: dt.date | None = None,
    timezone: str = "UTC",
    buckets: int = 1,
    max_history: int = 2000,
    session_gap_s: int = 1800,
    row_group_events: int = 1_000_000,
) -> tuple[Manifest, pa.Table]:
    """Write plays as the shards of one ds, and their songs as its vocabulary.

    plays: columns user_id and item_id (whole numbers or text), timestamp (Unix seconds, or an Arrow timestamp) and
    optionally completion (percent played; default 100), without nulls. Of plays with equal user, timestamp and song one
    is kept, in the place of the first and as completed as any. folder: becomes the folder of the ds. ds: every play
    must be before it, in `timezone`; default the day after the last play. The rest as in `BuildSpec`.

    Returns the manifest, and the vocabulary (rows of `schema.vocabulary_table`, indices by ascending item_id), which is
    also written to VOCABULARY_FILE in the folder. Raises InputError that names the column if plays are not as above.
    """
    user_id, timestamp = _ids(plays, USER_ID), _seconds(plays)
    songs, song = ranked(_ids(plays, ITEM_ID))
    calendar = Calendar(timezone)
    ds = _day_after(int(timestamp.max()), ds, calendar)
    spec = BuildSpec(
        folder=storage.absolute(folder),
        ds=ds,
        data_end=calendar.day_start(ds),
        vocabulary_size=len(songs),
        buckets=buckets,
        max_history=max_history,
        session_gap_s=session_gap_s,
        row_group_events=row_group_events,
        user_id_type=id_type_name(user_id.type),
        item_id_type=id_type_name(songs.type),
        timezone=timezone,
    )
    built = build_histories(Plays(user_id, timestamp, (song + 1).astype(np.int32), _percent(plays)), spec)
    vocabulary = vocabulary_rows(songs, ds)
    storage.write_table(storage.join(spec.folder, VOCABULARY_FILE), vocabulary)
    counts = {"rows_read": plays.num_rows, "accepted": plays.num_rows, "duplicates": built.duplicates}
    return publish_shards(spec, built, counts=counts), vocabulary


def _day_after(last_play: int, ds: dt.date | None, calendar: Calendar) -> dt.date:
    """The given ds, or the day after the last play. InputError if the last play is not before it."""
    day = calendar.date_of(last_play)
    if ds and ds <= day:
        raise InputError(f"plays: the last is on {day}, not before ds {ds}: give a later ds, or none")
    return ds or day + dt.timedelta(days=1)


def build_histories(plays: Plays, spec: BuildSpec) -> BuiltShards:
    """Write every bucket's base from plays whose songs have their index; `publish_shards` then writes the manifest.

    Plays of the same listener and second stay in the order given. Another day must not be laid over these shards: that
    sorts such plays by song.
    """
    if spec.buckets < 1 or spec.buckets & (spec.buckets - 1):
        raise InputError(f"buckets is {spec.buckets}: it must be a power of two")
    users, rank = ranked(plays.user_id)
    first, completion = _distinct_plays(rank, plays)
    order = np.lexsort((plays.timestamp[first], rank[first]))  # stable
    first, completion = first[order], completion[order]
    events = Events(rank[first], plays.timestamp[first], plays.item_index[first], completion)
    histories = in_given_order(events, users, max_history=spec.max_history)
    built = write_bases(spec, by_bucket(histories, spec.buckets))
    built.duplicates = len(rank) - len(first)
    return built


def _distinct_plays(rank: np.ndarray, plays: Plays) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the first of equal plays, ascending, and the furthest that any of its equals was played."""
    columns = (rank, plays.timestamp, plays.item_index)
    order = np.lexsort(columns)
    starts = np.zeros(len(order), bool)
    starts[:1] = True
    for column in columns:
        starts[1:] |= np.diff(column[order]) != 0
    first = order[starts]
    completion = np.maximum.reduceat(plays.play_code[order], np.flatnonzero(starts))
    by_row = np.argsort(first)
    return first[by_row], completion[by_row]


def whole_numbers(source: str, table: pa.Table, name: str) -> pa.ChunkedArray:
    """A column as int64, Arrow timestamps as Unix seconds. InputError that names source and column if it is neither."""
    values = existing_column(source, table, name)
    try:
        if pa.types.is_timestamp(values.type):
            values = values.cast(pa.timestamp("s", values.type.tz), safe=False)
        return values.cast(pa.int64())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise InputError(f"{source}: column {name} is {values.type}, expected whole numbers: convert it") from None


def existing_column(source: str, table: pa.Table, name: str) -> pa.ChunkedArray:
    """A column. InputError that names source and column if it is missing."""
    if name not in table.column_names:
        found = ", ".join(table.column_names) or "none"
        raise InputError(f"{source}: column {name} is missing (found {found}): add it")
    return table[name]


def _ids(plays: pa.Table, name: str) -> pa.Array:
    values = existing_column("plays", plays, name)
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        values = values.cast(pa.string())
    else:
        values = whole_numbers("plays", plays, name)
    return _without_nulls(values, name).combine_chunks()


def _seconds(plays: pa.Table) -> np.ndarray:
    seconds = _without_nulls(whole_numbers("plays", plays, TIMESTAMP), TIMESTAMP).to_numpy()
    if not len(seconds):
        raise InputError("plays: there are no rows")
    if int(seconds.max()) >= _LATEST_SECOND:
        raise InputError(
            f"plays: timestamp is up to {seconds.max()}, expected Unix seconds: convert it from finer units"
        )
    return seconds


def _percent(plays: pa.Table) -> np.ndarray:
    if COMPLETION not in plays.column_names:
        return np.full(plays.num_rows, 100, np.uint8)
    percent = _without_nulls(whole_numbers("plays", plays, COMPLETION), COMPLETION).to_numpy()
    if int(percent.min()) < 0 or int(percent.max()) > 100:
        raise InputError(f"plays: completion is from {percent.min()} to {percent.max()}, expected percent, 0 to 100")
    return percent.astype(np.uint8)


def _without_nulls(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    if column.null_count:
        row = pc.index(column.is_null(), True).as_py()
        raise InputError(
            f"plays: column {name} has {column.null_count} nulls, the first in row {row}: remove those rows"
        )
    return column
