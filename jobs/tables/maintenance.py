"""Maintenance of the Delta tables of a workspace: fewer files, a checkpoint, and no files that nobody can need.

Files are deleted without a commit (delta-rs's vacuum makes two), so that no run's commit can conflict with it.
"""

import contextlib
import datetime as dt
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from jobs.config import MaintainConfig
from jobs.day import running
from pipelines import delta_tables, digests, leases, progress, storage
from pipelines.schema import USER_ID, TableSpec
from pipelines.workspace import Workspace

PURPOSE = "fuxi maintain"
SURPLUS_FILES = 16
"""Compaction waits until it saves so many files: it writes the table again, and the old files stay for a while."""
CHECKPOINT_COMMITS = 10
"""Commits after which the next checkpoint is written; readers read the log from the newest one on."""


@dataclass(frozen=True)
class TableMaintenance:
    """What was done to a table, or with dry_run would be."""

    name: str
    files_before: int  # of the newest version
    files_after: int
    checkpoint: bool
    removed_files: int  # of no version that is kept
    removed_bytes: int
    kept_versions: int
    note: str = ""


def maintain(
    workspace: Workspace, config: MaintainConfig, *, held: str = "", dry_run: bool = False
) -> list[TableMaintenance]:
    """Compact every table that is there, write its checkpoint, and delete the files that no kept version names.

    held: the lease of a day that the caller holds. With dry_run nothing is written. BusyError while `fuxi forget` or
    another maintenance works.
    """
    with contextlib.nullcontext() if dry_run else leases.lease(workspace.forget_lock, purpose=PURPOSE):
        run = running(workspace, besides=[held])
        busy = f"not compacted while a day runs ({run[0]})" if run else ""
        named = {workspace.vocabulary: _recorded_versions(workspace)}
        steps = [_Steps(uri, spec, config.retention_hours, dry_run) for uri, spec in workspace.tables()]
        done = []
        for step in steps:
            done.append(step.take(busy=busy, named=named.get(step.uri, set())))
            progress.amount("tables", len(done), len(steps), step.spec.name)
        return [table for table in done if table is not None]


@dataclass(frozen=True)
class _Steps:
    """The maintenance of one table."""

    uri: str
    spec: TableSpec
    hours: int  # retention
    dry_run: bool

    def take(self, *, busy: str, named: set[int]) -> TableMaintenance | None:
        """All steps; None without a table. busy: why it is not compacted now. named: versions to keep in any case."""
        table, note = delta_tables.open_table(self.uri), ""
        if table is None:
            return None
        before, saved = len(table.file_uris()), self._compactable(delta_tables.surplus_files(table))
        if saved and busy:
            saved, note = 0, busy
        if saved and not self.dry_run and not delta_tables.compact(table):
            saved, note = 0, "not compacted: another run committed meanwhile"
        checkpoint = delta_tables.commits_since_checkpoint(self.uri, table) >= CHECKPOINT_COMMITS
        if checkpoint and not self.dry_run:
            table.create_checkpoint()
        since = dt.datetime.now(dt.UTC) - dt.timedelta(hours=self.hours)
        kept = delta_tables.versions_to_keep(table, since=since, named=named)
        dead = delta_tables.files_of_no_version(self.uri, table, kept, min_age_hours=self.hours)
        if not self.dry_run:
            storage.delete_files(file.uri for file in dead)
            digests.note_digests(self.uri)
        return TableMaintenance(
            name=self.spec.name,
            files_before=before,
            files_after=before - saved if self.dry_run else len(table.file_uris()),
            checkpoint=checkpoint,
            removed_files=len(dead),
            removed_bytes=sum(file.size for file in dead),
            kept_versions=len(kept),
            note=note,
        )

    def _compactable(self, surplus: int) -> int:
        """How many of the surplus files compaction would save; 0 if the table is not compacted.

        Delta-rs notes the least and the greatest value of every column of a file it writes in the log, where no ids of
        listeners may be (docs/decisions/0005). So tables of listeners are not compacted; they have one file a bucket.
        """
        return surplus if surplus >= SURPLUS_FILES and USER_ID not in self.spec.schema.names else 0


def _recorded_versions(workspace: Workspace) -> set[int]:
    """The versions of the vocabulary that run records name."""
    uris = [storage.join(workspace.run(ds), "run_record.json") for ds in workspace.days("runs")]
    with ThreadPoolExecutor(16) as pool:
        records = list(pool.map(storage.read_json, filter(storage.exists, uris)))
    return {version for record in records if (version := record.get("vocabulary_version")) is not None}
