"""The workspace: the folder of everything that one deployment stores, and the file with its fixed settings."""

import datetime as dt
import errno
from dataclasses import asdict, dataclass, fields

from pipelines import storage
from pipelines.calendar import Calendar
from pipelines.errors import InputError
from pipelines.schema import WORKSPACE_SCHEMA_VERSION, TableSpec, all_tables, id_type


@dataclass(frozen=True)
class WorkspaceSpec:
    """The settings that a workspace never changes once something is built in it; stored in `_workspace.json`."""

    schema_version: int = WORKSPACE_SCHEMA_VERSION
    timezone: str = "UTC"
    buckets: int = 256  # a power of two; a listener's bucket never changes
    user_id_type: str = "int64"
    item_id_type: str = "int64"

    def __post_init__(self) -> None:
        if self.buckets < 1 or self.buckets & (self.buckets - 1):
            raise InputError(f"buckets is {self.buckets}: it must be a power of two, for example 8 or 256")
        id_type(self.user_id_type)
        id_type(self.item_id_type)
        Calendar(self.timezone)


@dataclass
class Workspace:
    """Where everything of an opened workspace is (`open_workspace`). A table's folder has the name of its spec."""

    uri: str
    spec: WorkspaceSpec

    def __post_init__(self) -> None:
        self.vocabulary = storage.join(self.uri, "vocabulary")  # Delta table: `schema.vocabulary_table`
        self.recommendations = storage.join(self.uri, "recommendations")  # Delta table: `schema.recommendations_table`
        self.metrics = storage.join(self.uri, "metrics")  # Delta table: `schema.METRICS_TABLE`
        self.list_hits = storage.join(self.uri, "list_hits")  # Delta table: `schema.LIST_HITS_TABLE`
        self.list_quality = storage.join(self.uri, "list_quality")  # Delta table: `schema.LIST_QUALITY_TABLE`
        self.quality = storage.join(self.uri, "quality")  # Delta table: `schema.QUALITY_TABLE`
        self.registry = storage.join(self.uri, "mlflow.db")  # MLflow's database, where there is no server
        self.forgotten = storage.join(self.uri, "forgotten")  # folder of the hashes of forgotten listeners
        self.forget_lock = storage.join(self.forgotten, "forget.lock")  # lease of who deletes what was published

    def tables(self) -> list[tuple[str, TableSpec]]:
        """Every Delta table, whether it is there yet or not: its URI and its specification."""
        specs = all_tables(self.spec.user_id_type, self.spec.item_id_type)
        return [(storage.join(self.uri, spec.name), spec) for spec in specs]

    def sequences(self, ds: dt.date) -> str:
        """Folder of the shards of one ds."""
        return storage.join(self.uri, "sequences", f"ds={ds}")

    def quarantine(self, ds: dt.date) -> str:
        """Folder of the rows rejected on one ds."""
        return storage.join(self.uri, "quarantine", f"ds={ds}")

    def run(self, ds: dt.date) -> str:
        """Folder of the run record, stage markers and checkpoints of one ds."""
        return storage.join(self.uri, "runs", f"ds={ds}")

    def report(self, ds: dt.date) -> str:
        """The HTML page of one ds."""
        return storage.join(self.uri, "reports", f"ds={ds}", "report.html")

    def days(self, *kinds: str) -> list[dt.date]:
        """Every ds that has a folder below one of these ("runs", "quarantine", "sequences"), oldest first."""
        names = {name for kind in kinds for name in storage.list_folders(storage.join(self.uri, kind))}
        return sorted(dt.date.fromisoformat(name.removeprefix("ds=")) for name in names if name.startswith("ds="))

    @property
    def is_built(self) -> bool:
        """Whether anything is stored that depends on the workspace's settings."""
        return bool(self.days_with_sequences()) or any(map(storage.exists, (self.vocabulary, self.forgotten)))

    def days_with_sequences(self) -> list[dt.date]:
        """Every ds whose shards are published, that is, have a manifest; oldest first."""
        return [ds for ds in self.days("sequences") if self.has_sequences(ds)]

    def has_sequences(self, ds: dt.date) -> bool:
        """Whether the shards of a ds are published."""
        return storage.exists(storage.join(self.sequences(ds), "_manifest.json"))


def open_workspace(uri: str, wanted: WorkspaceSpec | None = None, *, create: bool = True) -> Workspace:
    """Open a workspace; if there is none, create it from `wanted` (or write nothing, if `create` is False).

    While nothing is built in it, it takes the values of `wanted`. Raises InputError if it was made by another schema
    version, or, once something is built, with other values than `wanted`'s.
    """
    uri = storage.absolute(uri)
    storage.check_for_delta(uri)
    marker = storage.join(uri, "_workspace.json")
    storage.check_reachable(uri)
    try:
        if not storage.exists(marker):
            if wanted is None:
                raise InputError(f"{uri} is not a workspace (no _workspace.json): run `fuxi daily` in it first")
            if not create or storage.create_json(marker, asdict(wanted)):
                return Workspace(uri, wanted)
        content = storage.read_json(marker)
    except OSError as error:
        if storage.is_s3(uri) or error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        reason = error.strerror or str(error)
        raise InputError(
            f"{uri} cannot be a workspace ({reason}): correct its rights, or choose another place with --workspace"
        ) from None
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != WORKSPACE_SCHEMA_VERSION:
        raise InputError(
            f"{marker}: schema_version is {version}, this release reads {WORKSPACE_SCHEMA_VERSION}: "
            "use the release that made this workspace, or another --workspace"
        )
    known = {field.name for field in fields(WorkspaceSpec)}
    workspace = Workspace(uri, WorkspaceSpec(**{key: value for key, value in content.items() if key in known}))
    if wanted is None or workspace.spec == wanted:
        return workspace
    if not workspace.is_built:
        if create:
            storage.write_json(marker, asdict(wanted))
        return Workspace(uri, wanted)
    then, now = asdict(workspace.spec), asdict(wanted)
    name = next(name for name in then if then[name] != now[name])
    raise InputError(
        f"{marker}: {name} is {then[name]!r} but the configuration says {now[name]!r}: it cannot change any more, "
        "something is built with it; use the first, or another --workspace"
    )
