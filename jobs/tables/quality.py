"""The Delta table of a day's input statistics: one row a (ds, metric), for refused days too."""

import datetime as dt
from collections.abc import Iterable

from pipelines import delta_tables
from pipelines.logs.quality import BoundCheck, DayStats
from pipelines.schema import ACCEPTED_OVERRIDE, DS, LOWER, METRIC, PASSED, QUALITY_TABLE, UPPER, VALUE
from pipelines.workspace import Workspace


def write_quality(
    workspace: Workspace, ds: dt.date, stats: DayStats, checks: Iterable[BoundCheck], *, accepted: bool
) -> int:
    """Replace the rows of `ds`; returns the table's Delta version. accepted: in spite of checks that failed."""
    judged = {check.name: check for check in checks if check.judged}
    values = stats.values() | {name: check.value for name, check in judged.items() if check.value is not None}
    rows = []
    for name, value in values.items():
        row = {DS: ds, METRIC: name, VALUE: value, ACCEPTED_OVERRIDE: False}
        if check := judged.get(name):
            overridden = accepted and not check.passed
            row |= {LOWER: check.lower, UPPER: check.upper, PASSED: check.passed, ACCEPTED_OVERRIDE: overridden}
        rows.append(row)
    return delta_tables.overwrite(workspace.quality, QUALITY_TABLE, rows, {DS: ds})
