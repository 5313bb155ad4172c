"""The Delta table of metrics: one row a (ds, model version, protocol, slice, metric)."""

import datetime as dt
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines import storage
from pipelines.schema import DS, METRICS_SCHEMA, MODEL_VERSION
from pipelines.workspace import Workspace

_FIELDS = (MODEL_VERSION, "protocol", "slice", "metric", "value")


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
    from deltalake import DeltaTable, write_deltalake

    rows = [
        {DS: ds, MODEL_VERSION: name, "protocol": protocol, "slice": part, "metric": metric, "value": float(value)}
        | {"listeners": listeners.get(part, 0)}
        for name, slices in sorted(metrics.items())
        for part, values in slices.items()
        for metric, value in sorted(values.items())
    ]
    options = storage.delta_options(workspace.metrics)
    if not DeltaTable.is_deltatable(workspace.metrics, storage_options=options):
        storage.make_parent(storage.join(workspace.metrics, "x"))
        DeltaTable.create(
            workspace.metrics, schema=METRICS_SCHEMA, mode="ignore", name="metrics", storage_options=options
        )
    table = DeltaTable(workspace.metrics, storage_options=options)
    write_deltalake(
        table,
        pa.Table.from_pylist(rows, schema=METRICS_SCHEMA),
        mode="overwrite",
        predicate=f"ds = '{ds}' AND protocol = '{protocol}'",
    )
    return table.version()


def read_metrics(
    workspace: Workspace, *, since: dt.date | None = None, before: dt.date | None = None
) -> list[dict[str, Any]]:
    """Rows of the days in [since, before), oldest first; none if nothing was measured yet."""
    from deltalake import DeltaTable

    options = storage.delta_options(workspace.metrics)
    if not DeltaTable.is_deltatable(workspace.metrics, storage_options=options):
        return []
    wanted = pc.field(DS) < pa.scalar(before or dt.date.max, pa.date32())
    if since is not None:
        wanted &= pc.field(DS) >= pa.scalar(since, pa.date32())
    table = DeltaTable(workspace.metrics, storage_options=options).to_pyarrow_dataset().to_table(filter=wanted)
    return table.sort_by([(DS, "ascending"), *((name, "ascending") for name in _FIELDS)]).to_pylist()
