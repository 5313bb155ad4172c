"""What a workspace keeps, and for how many days: shards, trainings' scratch, models, runs, reports, lists, quarantine.

Days count back from the newest one with a run. Whatever a kept day names stays: shards that its manifest lists, the
day it was built on or is served from, the model that it started from or serves. A retention that would cut what a
later day reads is refused before anything is deleted.
"""

import contextlib
import datetime as dt
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from jobs.config import Config
from jobs.day import Day, RunRecord, running
from jobs.registry import steering, versions
from pipelines import delta_tables, leases, storage
from pipelines.errors import BusyError, InputError
from pipelines.histories.shards import listed_uris, read_manifest
from pipelines.schema import DS
from pipelines.storage import FileInfo
from pipelines.workspace import Workspace

PURPOSE = "fuxi retain"
_SCRATCH = ("checkpoints", "staging")
_SCRATCH_PREFIXES = ("export-", "parent-")
_HITS_DAYS = 8
"""Lists are measured again for a week (`stages.hits`)."""


@dataclass(frozen=True)
class Removed:
    """What was deleted of one kind, or with dry_run would be."""

    kind: str
    days: tuple[dt.date, ...]
    files: int
    bytes: int
    note: str = ""


def retain(day: Day, *, held: str = "", dry_run: bool = False) -> list[Removed]:
    """Delete what `retain` does not keep; every kind that has a bound, in the order of its deletion.

    day: the newest one. held: the lease of a day that the caller holds. With dry_run nothing is written. BusyError
    while a day runs, or `fuxi forget` or `fuxi maintain` works; InputError if a bound cuts what a later day needs.
    """
    check(day.config)
    workspace = day.workspace
    with contextlib.nullcontext() if dry_run else leases.lease(workspace.forget_lock, purpose=PURPOSE):
        if not dry_run and (run := running(workspace, besides=[held])):
            raise BusyError(f"{run[0]} is held by another run ({run[1]}): run `fuxi retain` again when it has ended")
        kinds: dict[str, Callable[[_Kept], Removed]] = {
            "scratch_days": _scratch,
            "sequences_days": _sequences,
            "lists_days": _lists,
            "quarantine_days": lambda kept: _folders(kept, "quarantine"),
            "reports_days": lambda kept: _folders(kept, "reports"),
            "models_days": _models,
            "runs_days": lambda kept: _folders(kept, "runs"),
        }
        bounds = {name: getattr(day.config.retain, name) for name in kinds}
        return [kinds[name](_Kept(day, days, dry_run)) for name, days in bounds.items() if days]


def check(config: Config) -> None:
    """InputError if a bound cuts what a later day reads: the setting, its value, and the least that it may be."""
    lists = max(_HITS_DAYS, config.rules.listed_days + 1)
    least = {
        "lists_days": (lists, "lists are measured for a week, and rules.listed_days reads them"),
        "runs_days": (config.gates.best_of_days + 1, "gates.best_of_days compares with the models of these days"),
    }
    for name, (days, why) in least.items():
        if 0 < (asked := getattr(config.retain, name)) < days:
            raise InputError(f"retain.{name} is {asked}, but {why}: give {days} or more, or 0 to keep all")


@dataclass(frozen=True)
class _Kept:
    """The days that one bound keeps."""

    day: Day  # the newest
    days: int
    dry_run: bool

    @property
    def workspace(self) -> Workspace:
        return self.day.workspace

    @property
    def records(self) -> list[RunRecord]:
        """The run records of all days that have one, oldest first."""
        days = (self.day.at(ds) for ds in self.workspace.days("runs"))
        return [day.record for day in days if day.has_record]

    def old(self, folder: str) -> list[dt.date]:
        """The days of a folder that the bound does not keep, oldest first."""
        return [ds for ds in self.workspace.days(folder) if self.is_old(ds)]

    def is_old(self, ds: dt.date) -> bool:
        return ds <= self.day.ds - dt.timedelta(days=self.days)

    def delete(self, kind: str, found: Iterable[tuple[dt.date, FileInfo]], folders: Iterable[str] = ()) -> Removed:
        """Delete files, each of a day, and folders that end with them."""
        named = list(found)
        if not self.dry_run:
            storage.delete_files(file.uri for _, file in named)
            for folder in folders:
                storage.delete_folder(folder)
        days = tuple(sorted({ds for ds, _ in named}))
        return Removed(kind, days, len(named), sum(file.size for _, file in named))


def _scratch(kept: _Kept) -> Removed:
    """What a training leaves beside the model, which is in MLflow once the stage has finished."""
    found, folders = [], []
    for ds in kept.old("runs"):
        run = kept.workspace.run(ds)
        if kept.day.at(ds).marker("train") is None:
            continue
        for name in storage.list_folders(run):
            if name in _SCRATCH or name.startswith(_SCRATCH_PREFIXES):
                folders.append(storage.join(run, name))
                found += [(ds, file) for file in storage.list_files(folders[-1])]
    return kept.delete("checkpoints and exports", found, folders)


def _sequences(kept: _Kept) -> Removed:
    """Shards that no kept manifest lists. A manifest goes first, so that none ever lists a file that is gone."""
    workspace = kept.workspace
    named = _named_sequences(kept)
    published = workspace.days_with_sequences()
    stay = {ds for ds in published if not kept.is_old(ds)} | (named & set(published)) | set(published[-1:])
    needed = set().union(*(listed_uris(read_manifest(workspace.sequences(ds))) for ds in stay))
    found, manifests = [], []
    for ds in (ds for ds in kept.old("sequences") if ds not in stay):
        folder = workspace.sequences(ds)
        found += [(ds, file) for file in storage.list_files(folder) if file.uri not in needed]
        manifests.append(storage.join(folder, "_manifest.json"))
    if not kept.dry_run:
        storage.delete_files(file.uri for file in storage.file_infos(manifests) if file)
    return kept.delete("sequences", found)


def _named_sequences(kept: _Kept) -> set[dt.date]:
    """The days that the run records of kept days are built on, or served from."""
    recent = (record for record in kept.records if not kept.is_old(dt.date.fromisoformat(record.ds)))
    return {dt.date.fromisoformat(ds) for r in recent for ds in (r.parent_sequences, r.sequences_ds) if ds}


def _lists(kept: _Kept) -> Removed:
    """Rows of old days; `fuxi maintain` deletes their files when no reader can have them open."""
    table = delta_tables.open_table(kept.workspace.recommendations)
    if table is None:
        return Removed("lists", (), 0, 0)
    days = sorted({dt.date.fromisoformat(str(partition[DS])) for partition in table.partitions()})
    old = [ds for ds in days if kept.is_old(ds)]
    files = [(ds, file) for ds in old for file in storage.file_infos(table.file_uris([(DS, "=", str(ds))])) if file]
    if old and not kept.dry_run:
        with leases.publishing():
            table.delete(f"{DS} <= '{old[-1]}'")
    named = sum(file.size for _, file in files)
    return Removed("lists", tuple(old), len(files), named, "their files go with the next `fuxi maintain` after a week")


def _folders(kept: _Kept, name: str) -> Removed:
    """Whole folders of old days. Without their run records and markers, days cannot be run again as they were."""
    found = [(ds, storage.join(kept.workspace.uri, name, f"ds={ds}")) for ds in kept.old(name)]
    files = [(ds, file) for ds, folder in found for file in storage.list_files(folder)]
    return kept.delete(name, files, [folder for _, folder in found])


def _models(kept: _Kept) -> Removed:
    """Versions that are no alias, neither pinned nor the last full retrain, of no kept day, and in no run record."""
    day, removed = kept.day, []
    aliased = {versions.alias_version(day, alias) for alias in (versions.CHALLENGER, versions.CHAMPION)}
    days = [day.at(ds) for ds in kept.workspace.days("runs")]
    named = {version for record in kept.records for version in (record.chosen_model, record.parent_model) if version}
    named |= {version for other in days for version in (other.result("evaluate") or {}).get("versions", {}).values()}
    tomorrow = day.at(day.ds + dt.timedelta(days=1))
    needed = {info.version for info in (versions.champion(tomorrow), versions.reference(tomorrow)) if info}
    needed |= {version for version in (versions.model_tag(day, steering.PINNED),) if version}
    for info in versions.versions(day):
        since = max(info.ds, info.promoted_ds or info.ds)
        if kept.is_old(since) and info.version not in aliased | named | needed:
            files = versions.artifact_files(day, info.version)
            removed.append((info.ds, info.version, files))
            if not kept.dry_run:
                versions.delete_version(day, info.version)
    listed = [file for *_, files in removed for file in files]
    names = ", ".join(version for _, version, _ in removed)
    note = f"versions {names}" if names else ""
    return Removed("models", tuple(sorted({ds for ds, *_ in removed})), len(listed), sum(f.size for f in listed), note)
