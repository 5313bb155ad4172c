"""The Delta table of a day's input figures: one row a (ds, metric), for refused days too."""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions when it is imported)

import datetime as dt
from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines import storage
from pipelines.logs.quality import Check, Numbers
from pipelines.schema import DS, QUALITY_SCHEMA
from pipelines.workspace import Workspace

HISTORY_DAYS = 2 * 366
"""How far back published days are looked for; `quality.trailing_days` of them are used."""


def write_quality(workspace: Workspace, ds: dt.date, found: Numbers, checks: Iterable[Check], *, accepted: bool) -> int:
    """Replace what is noted of `ds`; returns the table's Delta version. accepted: in spite of checks that failed."""
    from deltalake import DeltaTable, write_deltalake

    values: dict[str, float] = found.values()
    judged = {check.name: check for check in checks if check.judged}
    values |= {name: check.value for name, check in judged.items() if check.value is not None}
    rows = [_row(ds, name, value, judged.get(name), accepted) for name, value in values.items()]
    options = storage.delta_options(workspace.quality)
    if not DeltaTable.is_deltatable(workspace.quality, storage_options=options):
        storage.make_parent(storage.join(workspace.quality, "x"))
        DeltaTable.create(
            workspace.quality, schema=QUALITY_SCHEMA, mode="ignore", name="quality", storage_options=options
        )
    table = DeltaTable(workspace.quality, storage_options=options)
    content = pa.Table.from_pylist(rows, schema=QUALITY_SCHEMA)
    write_deltalake(table, content, mode="overwrite", predicate=f"ds = '{ds}'")
    return table.version()


def read_quality(
    workspace: Workspace, *, since: dt.date | None = None, before: dt.date | None = None
) -> list[dict[str, Any]]:
    """Rows of the days in [since, before), oldest first; none if no day was judged yet."""
    from deltalake import DeltaTable

    options = storage.delta_options(workspace.quality)
    if not DeltaTable.is_deltatable(workspace.quality, storage_options=options):
        return []
    wanted = pc.field(DS) < pa.scalar(before or dt.date.max, pa.date32())
    if since is not None:
        wanted &= pc.field(DS) >= pa.scalar(since, pa.date32())
    table = DeltaTable(workspace.quality, storage_options=options).to_pyarrow_dataset().to_table(filter=wanted)
    return table.sort_by([(DS, "ascending"), ("metric", "ascending")]).to_pylist()


def _row(ds: dt.date, name: str, value: float, check: Check | None, accepted: bool) -> dict[str, Any]:
    return {
        DS: ds,
        "metric": name,
        "value": value,
        "lower": check.lower if check else None,
        "upper": check.upper if check else None,
        "passed": check.passed if check else None,
        "accepted_override": accepted and check is not None and not check.passed,
    }
