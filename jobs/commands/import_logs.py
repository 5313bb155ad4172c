"""`fuxi import`: a data set that somebody has downloaded becomes play logs, a catalogue, and a configuration."""

import datetime as dt
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from jobs.runtime.console import log, progress
from pipelines import storage
from pipelines.errors import InputError
from pipelines.imports import landing, sources
from pipelines.imports.dataset import Dataset
from pipelines.imports.landing import CATALOGUE, PLAYS, Landing

CONFIG_FILE, FORGET_FILE = "daily.yaml", "forget.txt"


def run(
    dataset: Dataset, paths: Sequence[str], out: str, *, max_rejected_share: float, previous: str | None = None
) -> dict[str, Any]:
    """Import files and folders into the folder `out`, or go on with it. Returns the counts.

    previous: a folder that an earlier full dump was imported into: whoever is there and not in `out` any more is
    written to FORGET_FILE. Raises InputError, in one line.
    """
    downloads = sources.downloads(list(paths), dataset.wanted, expected=dataset.expected)
    if previous and not Path(storage.absolute(previous), PLAYS).is_dir():
        raise InputError(f"--previous {previous}: no data set was imported there: give such a folder, or leave it out")
    land = Landing(out, dataset, max_rejected_share=max_rejected_share)
    with progress(f"Importing {dataset.name}", None, unit="rows") as advance:
        result = land.run(downloads, on_rows=advance)
    if result.get("imported") == "already":
        return result
    for line in _compared(dataset, downloads, result, land):
        log("counts", of=line)
    config = _write_config(dataset, land.folder)
    result["config"] = str(config)
    if previous:
        result["forget"] = _gone(previous, land)
    following = dt.date.fromisoformat(result["last_day"]) + dt.timedelta(days=1)
    log("next", command=f"fuxi daily --ds {following} --config {config}")
    return result


def _compared(
    dataset: Dataset, downloads: Sequence[sources.Download], result: dict[str, Any], land: Landing
) -> list[str]:
    published = dataset.published(downloads)
    counts = dict(result)
    if any(number.what == "listeners" for number in published):
        counts["listeners"] = len(land.listeners())
    return landing.against_published(counts, published)


def _write_config(dataset: Dataset, folder: Path) -> Path:
    """The configuration that reads the folder, unless it is there: it may have been edited."""
    target = folder / CONFIG_FILE
    logs: dict[str, object] = {"path": str(folder / PLAYS)}
    if (folder / CATALOGUE).exists():
        logs["catalogue"] = str(folder / CATALOGUE)
    if dataset.unchosen_sources:
        logs["unchosen_sources"] = list(dataset.unchosen_sources)
    types = {"user_id_type": dataset.user_id_type, "item_id_type": dataset.item_id_type}
    settings = {"workspace": str(folder / "workspace"), "logs": logs}
    if text := {name: kind for name, kind in types.items() if kind != "int64"}:
        settings["sequences"] = text
    if not target.exists():
        content = f"# Made by `fuxi import {dataset.name}`.\n" + yaml.safe_dump(settings, sort_keys=False, width=1000)
        storage.write_bytes(str(target), content.encode())
    return target


def _gone(previous: str, land: Landing) -> int:
    """How many listeners of an earlier import are not in this one; their ids are written to a file if there is one."""
    gone = sorted(landing.listeners_of(storage.absolute(previous)) - land.listeners())
    if gone:
        file = land.folder / FORGET_FILE
        storage.write_bytes(str(file), "".join(f"{one}\n" for one in gone).encode())
        log(
            "gone",
            listeners=len(gone),
            command=f"fuxi forget --file {file} --config {Path(previous) / CONFIG_FILE} --yes",
        )
    return len(gone)
