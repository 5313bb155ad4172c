"""The Delta table of a day's input statistics: one row a (ds, metric), for refused days too."""

import datetime as dt
from collections.abc import Iterable

from pipelines import delta_tables
from pipelines.delta_tables import Row
from pipelines.logs.quality import BoundCheck, DayStats
from pipelines.schema import ACCEPTED_OVERRIDE, DS, LOWER, METRIC, PASSED, QUALITY_TABLE, UPPER, VALUE
from pipelines.workspace import Workspace

HISTORY_DAYS = 2 * 366
"""How far back published days are looked for; `quality.trailing_days` of them are used."""


def write_quality(
    workspace: Workspace, ds: dt.date, stats: DayStats, checks: Iterable[BoundCheck], *, accepted: bool
) -> int:
    """Replace the rows of `ds`; returns the table's Delta version. accepted: in spite of checks that failed."""
    judged = {check.name: check for check in checks if check.judged}
    values = stats.values() | {name: check.value for name, check in judged.items() if check.value is not None}
    rows = [_row(ds, name, value, judged.get(name), accepted) for name, value in values.items()]
    return delta_tables.overwrite(workspace.quality, QUALITY_TABLE, rows, {DS: ds})


def read_quality(workspace: Workspace, *, since: dt.date | None = None, before: dt.date | None = None) -> list[Row]:
    """Rows of the days in [since, before), oldest first; none if no day was checked yet."""
    return delta_tables.read_days(workspace.quality, since=since, before=before)


def _row(ds: dt.date, name: str, value: float, check: BoundCheck | None, accepted: bool) -> Row:
    return {
        DS: ds,
        METRIC: name,
        VALUE: value,
        LOWER: check.lower if check else None,
        UPPER: check.upper if check else None,
        PASSED: check.passed if check else None,
        ACCEPTED_OVERRIDE: accepted and check is not None and not check.passed,
    }
