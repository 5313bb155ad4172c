"""Whether a day's input may be published: its statistics against their bounds, stored in the Delta table `quality`.

The table has the rows of refused days, too, but these days do not count when the bounds of later days are computed.
What becomes of a refused day is decided in `jobs.daily`.
"""

import datetime as dt

import pyarrow as pa
import pyarrow.compute as pc

from jobs.day import Day
from jobs.runtime.console import log
from jobs.tables.quality import write_quality
from pipelines import delta_tables
from pipelines.errors import InputError
from pipelines.histories import vocabulary
from pipelines.histories.shards import Manifest, read_listed
from pipelines.logs.quality import Bounds, DayStats, accepted_days, check_day, refusal
from pipelines.logs.validate import Cleaned
from pipelines.schema import FIRST_DS, ITEM_ID, LANDING_DAY, PLAYS

HISTORY_DAYS = 2 * 366
"""How far back published days are looked for; `quality.trailing_days` of them are used."""


def day_stats(day: Day, cleaned: Cleaned, parent: Manifest | None) -> DayStats:
    """The statistics of this ds that are known before its shards are built."""
    return DayStats(
        day_start=day.calendar.day_start(day.ds),
        rows_read=cleaned.rows_read,
        accepted=cleaned.accepted,
        ignored=cleaned.ignored,
        rejected=dict(cleaned.rejected),
        landing_days=_landing_days(day, parent),
        songs=cleaned.songs.num_rows,
        unknown_plays=_unknown_plays(day, cleaned.songs) if parent else None,
        newest=cleaned.newest,
        nulls=dict(cleaned.nulls),
        examples=dict(cleaned.examples),
    )


def enforce_bounds(day: Day, stats: DayStats) -> list[str]:
    """Check the statistics of this ds and write both to the table.

    Returns a line for each check that failed and was accepted with `--accept-quality`. Raises InputError, one line
    with every check that failed, if any did and that flag is not set or not enough (there are no plays).
    """
    since = day.ds - dt.timedelta(days=HISTORY_DAYS)
    past = accepted_days(delta_tables.read_days(day.workspace.quality, since=since, before=day.ds))
    bounds = Bounds(max_rejected_share=day.config.logs.max_rejected_share, **day.config.quality.model_dump())
    checks = check_day(stats, past, bounds)
    broken = [check for check in checks if not check.passed]
    accepted = day.accept_quality and all(check.overridable for check in broken)
    write_quality(day.workspace, day.ds, stats, checks, accepted=accepted)
    if broken and not accepted:
        raise InputError(refusal(day.ds, broken))
    if broken and stats.duplicates is not None:  # only after the build, so that it is logged once
        log("quality bounds are broken; taken with --accept-quality", ds=day.ds, broken=[c.detail for c in broken])
    return [check.detail for check in broken]


def _landing_days(day: Day, parent: Manifest | None) -> int:
    """Landing days of this ds, without those of which an earlier ds had a file: a late file adds no landing day."""
    landed = {file.landing_day for file in day.record.files}
    if parent is not None:
        landed -= set(read_listed(parent, parent.inputs, [LANDING_DAY])[LANDING_DAY].to_pylist())
    return max(len(landed), 1)


def _unknown_plays(day: Day, songs: pa.Table) -> int:
    """Valid plays of songs that had no index before this ds. songs: item_id, plays."""
    known = vocabulary.read(day.workspace.vocabulary, day.workspace.spec.item_id_type).table
    known = known.filter(pc.less(known[FIRST_DS], pa.scalar(day.ds, pa.date32())))
    unknown = pc.invert(pc.is_in(songs[ITEM_ID], value_set=known[ITEM_ID].combine_chunks()))
    return pc.sum(songs[PLAYS].filter(unknown)).as_py() or 0
