"""The Delta table of hits: what listeners did with a day's lists, a row a (ds, segment, source, metric, position)."""

import datetime as dt

from fuxi_beta.evaluation.served import HitSums
from pipelines import delta_tables
from pipelines.delta_tables import Row
from pipelines.schema import (
    DEFAULT_SEGMENT,
    DS,
    EVERY,
    LIST_HITS_TABLE,
    LISTENERS,
    MEASURED_DS,
    METRIC,
    POSITION,
    SEGMENT,
    SOURCE,
    VALUE,
)
from pipelines.workspace import Workspace


def write_list_hits(workspace: Workspace, ds: dt.date, sums: HitSums, *, measured_ds: dt.date) -> int:
    """Replace the rows of the lists of `ds` in one commit; returns the table's version.

    sums: by segment and source, `EVERY` for all. Where no list has a segment, there are no rows by segment.
    measured_ds: whose histories the plays are from.
    """
    segments = {segment for segment, _ in sums.sums} - {EVERY}
    rows = []
    for segment, source in sums.sums:
        if segment == DEFAULT_SEGMENT and segments == {DEFAULT_SEGMENT}:
            continue
        row = {DS: ds, SEGMENT: segment, SOURCE: source, MEASURED_DS: measured_ds}
        for (metric, position), (value, listeners) in sums.values((segment, source)).items():
            rows.append({**row, METRIC: metric, POSITION: position, VALUE: value, LISTENERS: listeners})
    return delta_tables.overwrite(workspace.list_hits, LIST_HITS_TABLE, rows, {DS: ds})


def read_list_hits(workspace: Workspace, *, since: dt.date, before: dt.date) -> list[Row]:
    """The rows of the lists of the days in [since, before); none without a table."""
    return delta_tables.read_days(workspace.list_hits, since=since, before=before)
