"""The Delta table of metrics: one row a (ds, model version, protocol, slice, metric)."""

import datetime as dt
from collections.abc import Mapping

from pipelines import delta_tables
from pipelines.delta_tables import Row
from pipelines.schema import DS, LISTENERS, METRIC, METRICS_TABLE, MODEL_VERSION, PROTOCOL, SLICE, VALUE
from pipelines.workspace import Workspace


def write_metrics(
    workspace: Workspace,
    ds: dt.date,
    metrics: Mapping[str, Mapping[str, Mapping[str, float]]],
    *,
    protocol: str,
    listeners: Mapping[str, int],
) -> int:
    """Replace what was measured for `ds` under `protocol`; returns the table's Delta version.

    metrics: model version or baseline -> slice -> metric -> value. listeners: slice -> listeners measured on.
    """
    key = {DS: ds, PROTOCOL: protocol}
    rows = [
        {
            **key,
            MODEL_VERSION: recommender,
            SLICE: part,
            METRIC: metric,
            VALUE: float(value),
            LISTENERS: listeners.get(part, 0),
        }
        for recommender, slices in sorted(metrics.items())
        for part, values in slices.items()
        for metric, value in sorted(values.items())
    ]
    return delta_tables.overwrite(workspace.metrics, METRICS_TABLE, rows, key)


def read_metrics(workspace: Workspace, *, since: dt.date | None = None, before: dt.date | None = None) -> list[Row]:
    """Rows of the days in [since, before), oldest first; none if nothing was measured yet."""
    return delta_tables.read_days(workspace.metrics, since=since, before=before)
