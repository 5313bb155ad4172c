"""`fuxi forget`: removes listeners from everything a workspace keeps, and from every later day.

First their hashes are added to the blocklist that every later day reads (`pipelines.forget.blocklist`), then store
after store is searched and rewritten, and last the files that nothing lists any more are deleted. Every step searches
for its work, so a killed run is repaired by running it again. Neither logs nor files of this command contain an id.
"""

import contextlib
import datetime as dt
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pyarrow as pa

from jobs.commands import forget_stores
from jobs.commands.forget_stores import Removal, Store
from jobs.config import Config
from jobs.day import lease_uri, running
from jobs.runtime.console import Advance, log, progress
from jobs.runtime.screen import screen
from jobs.serving.listener import parse_user
from pipelines import digests, leases, storage
from pipelines.errors import BusyError, InputError
from pipelines.forget import blocklist, shards
from pipelines.forget.listeners import ListenersToForget, Matches
from pipelines.forget.quarantine import erase_from_quarantine
from pipelines.schema import USER_ID, id_type
from pipelines.workspace import Workspace, open_workspace

PURPOSE = "fuxi forget"
_FOLDERS = ("sequences", "recommendations", "quarantine", "reports", "reproduce")
_PASSES = 3
_HALF_WRITTEN = re.compile(r"\.[0-9a-f]{32}\.tmp$")  # the temporary name of a file that a killed run was writing


@dataclass
class ForgetResult:
    """What was removed, or with dry_run would be. `stores`: name -> files and rows."""

    listeners: int
    dry_run: bool
    recorded: int = 0  # listeners new to the blocklist
    found: int = 0  # listeners that were found anywhere
    stores: dict[str, Matches] = field(default_factory=dict)


def read_ids(workspace: Workspace, users: Sequence[str], file: str | None) -> pa.Array:
    """The distinct ids of a command line and of a file with one a line. An id of the wrong type is an InputError."""
    kind = workspace.spec.user_id_type
    ids = [parse_user(user, kind, f"listener {user!r}") for user in users]
    if file:
        try:
            text = storage.read_bytes(storage.absolute(file)).decode("utf-8-sig")
        except FileNotFoundError:
            raise InputError(f"{file} is not there: give a file with one user id a line") from None
        except UnicodeDecodeError as error:
            raise InputError(
                f"{file} is not UTF-8 text ({error.reason}): give a file with one user id a line"
            ) from None
        lines = (line.removesuffix("\r") for line in text.split("\n"))
        ids += [parse_user(line, kind, f"{file}, line {n}: {line[:80]!r}") for n, line in enumerate(lines, 1) if line]
    if not ids:
        raise InputError("nobody to forget: give user ids, or --file FILE with one a line")
    return pa.array(ids, id_type(kind)).unique()


def forget(config: Config, ids: pa.Array, *, dry_run: bool = False) -> ForgetResult:
    """Remove listeners from the workspace of a configuration. ids: of `read_ids`.

    Raises BusyError while a day is running: before anything is changed, or, if the day began later, before the
    unlisted files are deleted; run it again then. With dry_run nothing is written.
    """
    workspace = open_workspace(config.workspace)
    listeners = ListenersToForget(ids)
    result = ForgetResult(len(listeners), dry_run)
    removal = Removal(config, workspace, listeners, lambda ds: lock_day(workspace, ds), dry_run)
    if dry_run:
        result.stores = _count_unlisted(removal) | _count_stores(removal)
        result.found = int(listeners.found.sum())
        return result
    with leases.lease(workspace.forget_lock, purpose=PURPOSE):
        require_idle(workspace)
        result.recorded = blocklist.add(workspace.forgotten, ids)
        result.stores = _count_unlisted(removal)
        _erase(removal, result.stores)
    result.found = int(listeners.found.sum())
    log("forgotten", listeners=result.listeners, found=result.found, recorded=result.recorded)
    return result


def lock_day(workspace: Workspace, ds: dt.date) -> contextlib.AbstractContextManager[leases.Lease]:
    """Hold the lease of a ds. BusyError if a run holds it."""
    return leases.lease(lease_uri(workspace, ds), purpose=PURPOSE)


def require_idle(workspace: Workspace) -> None:
    """BusyError if a run works on any day at this moment.

    A run takes its lease before it reads what earlier days published. So a run that starts after this check reads
    what was published before it, and none of the files that are deleted afterwards.
    """
    if run := running(workspace):
        uri, holder = run
        raise BusyError(f"{uri} is held by another run ({holder}): run `fuxi forget` again when it has ended")


def _count_unlisted(removal: Removal) -> dict[str, Matches]:
    """What killed runs left, counted before this run leaves files of its own."""
    files = {folder: shards.files_below(removal.workspace, folder) for folder in ("sequences", "recommendations")}
    return {"files that nothing names": shards.find_in_unlisted(_unlisted(removal, files), removal.listeners)}


def _unlisted(removal: Removal, files: dict[str, list[str]]) -> list[str]:
    """The files that neither a manifest nor the current version of the table of lists names. files: by folder."""
    in_sequences = shards.unlisted_shards(removal.workspace, files["sequences"])
    return in_sequences + forget_stores.unlisted_parts(removal.workspace, files["recommendations"])


def _count_stores(removal: Removal) -> dict[str, Matches]:
    counting = replace(removal, dry_run=True)
    return {name: store(counting, lambda _: None) for name, store in _stores().items()}


def _erase(removal: Removal, erased: dict[str, Matches]) -> None:
    """Rewrite every store until no day is running and nothing is found any more, then delete the unlisted files.

    A day that began after the first `require_idle` may have read old files and published what it made of them. Files
    are listed before no run is found to be running, so that none of those deleted belongs to a day that began since.
    """
    workspace = removal.workspace
    for _ in range(_PASSES):
        for name, erase in _stores().items():
            buckets = len(removal.listeners.by_bucket(workspace.spec.buckets)) if name == "sequences" else None
            with progress(name, buckets, unit="buckets" if buckets else "", remaining=buckets is not None) as advance:
                erased[name] = erased.get(name, Matches()) + erase(removal, advance)
        files = {folder: shards.files_below(workspace, folder) for folder in _FOLDERS}
        require_idle(workspace)
        if not any(matches.files for matches in _count_stores(removal).values()):
            half_written = [uri for uris in files.values() for uri in uris if _HALF_WRITTEN.search(uri)]
            storage.delete_files({*_unlisted(removal, files), *half_written})
            return
    raise BusyError(f"{workspace.uri}: days are published while listeners are removed: run `fuxi forget` again")


def _stores() -> dict[str, Store]:
    """Everything that holds listeners, by the name that the operator reads. Reports show what the stores above hold."""
    return {
        "sequences": _erase_from_shards,
        "recommendations": forget_stores.erase_from_lists,
        "quarantine": _erase_from_quarantine,
        "staging of killed runs": _delete_staging,
        "failure notes": forget_stores.erase_from_notes,
        "reports": forget_stores.erase_from_reports,
        "ranks of experiments": forget_stores.erase_from_ranks,
    }


def _erase_from_shards(removal: Removal, advance: Advance) -> Matches:
    if removal.dry_run:
        return shards.find_in_shards(removal.workspace, removal.listeners)
    return shards.erase_from_shards(
        removal.workspace,
        removal.listeners,
        lock_day=removal.lock_day,
        row_group_events=removal.config.sequences.row_group_events,
        advance=advance,
    )


def _erase_from_quarantine(removal: Removal, advance: Advance) -> Matches:
    matches, column = Matches(), removal.config.logs.columns.get(USER_ID, USER_ID)
    for ds in removal.workspace.days("quarantine"):
        uris = [f.uri for f in storage.list_files(removal.workspace.quarantine(ds)) if f.uri.endswith(".parquet")]
        of_day = erase_from_quarantine(uris, removal.listeners, column=column, dry_run=True)
        matches += of_day
        if of_day.files and not removal.dry_run:
            with removal.lock_day(ds):
                erase_from_quarantine(uris, removal.listeners, column=column)
                digests.write_digests(removal.workspace.quarantine(ds), name=digests.NOTED_FILE)
        advance(len(uris))
    return matches


def _delete_staging(removal: Removal, advance: Advance) -> Matches:
    """Delete plays that a killed run had staged for the shuffle; the next run reads the logs again."""
    matches = Matches(0, None)
    for ds in removal.workspace.days("runs"):
        folder = storage.join(removal.workspace.run(ds), "staging")
        files = storage.list_files(folder)
        matches += Matches(len(files), None)
        if files and not removal.dry_run:
            with removal.lock_day(ds):
                storage.delete_folder(folder)
        advance(1)
    return matches


def render(result: ForgetResult) -> None:
    """Print what was removed where, as a table."""
    shown = screen()
    rows = [
        (name, f"{matches.files:,}", "" if matches.rows is None else f"{matches.rows:,}")
        for name, matches in result.stores.items()
        if matches.files
    ]
    if rows:
        title = "Would be removed" if result.dry_run else "Removed"
        shown.table(("Where", "Files", "Rows"), rows, right=("Files", "Rows"), wrapped=("Where",), title=title)
    unknown = result.listeners - result.found
    nobody = f"; nothing holds {'it' if result.listeners == 1 else f'{unknown:,} of them'}" if unknown else ""
    noted = "" if result.dry_run else f"; {result.recorded:,} newly on the list that later days read"
    plural = "" if result.listeners == 1 else "s"
    shown.say(f"{result.listeners:,} listener{plural}{nobody}{noted}", indent=2)
