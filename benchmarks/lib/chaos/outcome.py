"""What a day has published, in a form that two runs of it can be compared by: without times, run ids and file names."""

import datetime as dt
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines import delta_tables, storage
from pipelines.histories import shards
from pipelines.schema import DS, MEASURED_DS, SOURCE_FILE

Outcome = dict[str, Any]
"""By name: something that compares by ==."""


def outcome(day: Any) -> Outcome:
    """Lists, metrics, histories, quarantine, run record and models, once a `jobs.day.Day` is done."""
    ds: dt.date = day.ds
    manifest, record = shards.read_manifest(day.workspace.sequences(ds)), day.record
    found: Outcome = {}
    for uri, spec in day.workspace.tables():
        found[spec.name] = _rows(uri, ds)
    found["histories"] = shards.content_digest(manifest)
    found["parent"] = [str(manifest.parent), record.parent_sequences, record.parent_model]
    found["inputs"] = sorted((file.landing_day, file.size) for file in record.files)
    found["chosen model"] = record.chosen_model
    found["quarantine"] = _quarantined(day.workspace.quarantine(ds))
    found["models"] = _models(day)
    return found


def differences(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """A line for each thing that differs, with how much of it."""
    lines = []
    for name, value in wanted.items():
        other = found.get(name)
        if value == other:
            continue
        if isinstance(value, list) and isinstance(other, list):
            missing, surplus = [row for row in value if row not in other], [row for row in other if row not in value]
            lines.append(
                f"{name}: {len(value)} rows wanted, {len(other)} found: {len(missing)} missing, {len(surplus)} too "
                f"many, for example {str((missing or surplus or ['another order'])[0])[:160]}"
            )
        else:
            lines.append(f"{name}: {value!r} wanted, {other!r} found")
    return lines


def _rows(uri: str, ds: dt.date) -> list[str]:
    """The rows of a Delta table that belong to a ds, or all where it has no such column; sorted."""
    table = delta_tables.open_table(uri)
    if table is None:
        return []
    rows = table.to_pyarrow_table()
    column = MEASURED_DS if MEASURED_DS in rows.column_names else DS
    return sorted(str(row) for row in rows.to_pylist() if row.get(column, ds) == ds)


def _quarantined(folder: str) -> list[str]:
    tables = (storage.read_table(file.uri) for file in storage.list_files(folder))
    rows = (row for table in tables for row in table.to_pylist())
    return sorted(str(sorted((name, value) for name, value in row.items() if name != SOURCE_FILE)) for row in rows)


def _models(day: Any) -> list[Any]:
    """Of every version: its tags, without run ids, its aliases, and digests of its tensors."""
    from jobs.registry import versions

    aliases = {name: versions.alias_version(day, name) for name in (versions.CHALLENGER, versions.CHAMPION)}
    found = []
    for info in versions.versions(day):
        folder = Path(versions.download_model(day, info.version))
        tensors = {
            file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in sorted(folder.rglob("*.safetensors"))
        }
        named = sorted(name for name, version in aliases.items() if version == info.version)
        found.append([info.version, str(info.ds), info.data_end, info.protocol, str(info.promoted_ds), named, tensors])
    return found
