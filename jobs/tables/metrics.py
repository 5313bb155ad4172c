"""The Delta table of metrics: one row a (ds, model version, protocol, slice, metric)."""

import datetime as dt
from collections.abc import Mapping

from pipelines import delta_tables
from pipelines.schema import DS, LISTENERS, METRIC, METRICS_TABLE, MODEL_VERSION, PROTOCOL, SLICE, VALUE
from pipelines.workspace import Workspace

CHALLENGER, CHAMPION, REFERENCE = "challenger", "champion", "reference"
"""What the models of a day are called while they are measured; the table has their versions."""
OF_REFERENCE = "_of_reference"
"""Ending of a metric that is a model's value as a share of the last full retrain's."""


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
    rows = []
    for recommender, slices in sorted(metrics.items()):
        for name, values in slices.items():
            row = {**key, MODEL_VERSION: recommender, SLICE: name, LISTENERS: listeners.get(name, 0)}
            rows += [{**row, METRIC: metric, VALUE: float(value)} for metric, value in sorted(values.items())]
    return delta_tables.overwrite(workspace.metrics, METRICS_TABLE, rows, key)
