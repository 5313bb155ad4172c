"""`fuxi forget`: removes listeners from everything a workspace keeps, and from every later day.

First their hashes go on the list that every later day reads (`pipelines.forget.blocklist`), then store after store is
looked through and rewritten, last the files that nothing names any more are deleted. Every step finds its work by
looking, so a run that was killed is simply run again. Neither logs nor files of this command contain an id.
"""

import contextlib
import datetime as dt
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import pyarrow as pa

from jobs.commands import forget_stores
from jobs.commands.forget_stores import Job
from jobs.config import Config
from jobs.daily import STAGES
from jobs.runtime.console import log, progress
from pipelines import leases, storage
from pipelines.errors import BusyError, InputError
from pipelines.forget import blocklist
from pipelines.forget import shards as files
from pipelines.forget.shards import Held, Listeners
from pipelines.schema import USER_ID, id_type
from pipelines.workspace import Workspace, open_workspace

LOCKS = ("daily", *STAGES)
"""Leases of a ds, any of which a run that reads or writes it holds."""
PURPOSE = "fuxi forget"
_PASSES = 3


@dataclass
class Forgetting:
    """What was removed, or with dry_run would be. `stores`: name -> files and rows."""

    listeners: int
    dry_run: bool
    recorded: int = 0  # hashes that were not on the list
    found: int = 0  # listeners that anything held
    stores: dict[str, Held] = field(default_factory=dict)

    def add(self, name: str, held: Held) -> None:
        """Count what a store held."""
        self.stores[name] = self.stores.get(name, Held()) + held


def read_ids(workspace: Workspace, users: Sequence[str], file: str | None) -> pa.Array:
    """The distinct ids of a command line and of a file with one a line. An id of the wrong type is an InputError."""
    kind = workspace.spec.user_id_type
    found = [_parse(user, kind, f"listener {user!r}") for user in users]
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
        found += [_parse(line, kind, f"{file}, line {n}: {line[:80]!r}") for n, line in enumerate(lines, 1) if line]
    if not found:
        raise InputError("nobody to forget: give user ids, or --file FILE with one a line")
    return pa.array(found, id_type(kind)).unique()


def _parse(text: str, kind: str, named: str) -> int | str:
    if kind == "string":
        return text
    if re.fullmatch(r"\s*[+-]?[0-9]{1,19}\s*", text) and -(2**63) <= int(text) < 2**63:
        return int(text)
    raise InputError(f"{named} is not an int64 id: this workspace's listeners have numbers")


def forget(config: Config, ids: pa.Array, *, dry_run: bool = False) -> Forgetting:
    """Remove listeners from the workspace of a configuration. ids: of `read_ids`.

    Raises BusyError while a day is running: before anything is changed, or, if the day began meanwhile, before the
    files are deleted that nothing names any more; run again then. With dry_run nothing is written at all.
    """
    workspace = open_workspace(config.workspace)
    listeners = Listeners(ids, workspace.spec.buckets)
    result = Forgetting(len(listeners), dry_run)
    job = Job(config, workspace, listeners, lambda ds: hold(workspace, ds), dry_run)
    if dry_run:
        _survey(job, result)
        result.found = int(listeners.found.sum())
        return result
    with leases.lease(storage.join(workspace.forgotten, "forget.lock"), purpose=PURPOSE):
        require_idle(workspace)
        result.recorded = blocklist.add(workspace.forgotten, ids)
        _survey_unnamed(job, result)
        _erase(job, result)
    result.found = int(listeners.found.sum())
    log("forgotten", listeners=result.listeners, found=result.found, recorded=result.recorded)
    return result


@contextlib.contextmanager
def hold(workspace: Workspace, ds: dt.date) -> Iterator[None]:
    """Every lease of a ds. BusyError if a run holds one of them."""
    with contextlib.ExitStack() as stack:
        for name in LOCKS:
            stack.enter_context(leases.lease(storage.join(workspace.run(ds), f"{name}.lock"), purpose=PURPOSE))
        yield


def require_idle(workspace: Workspace) -> None:
    """BusyError if any day is being worked on at this moment.

    A run takes its lease before it reads what earlier days published. So whoever starts after this found nobody sees
    what was published before it, and misses none of the files that are deleted.
    """
    locks = [storage.join(workspace.run(ds), f"{name}.lock") for ds in workspace.days("runs") for name in LOCKS]
    with ThreadPoolExecutor(16) as pool:
        for uri, holder in zip(locks, pool.map(leases.lease_holder, locks), strict=True):
            if holder:
                raise BusyError(f"{uri} is held by another run ({holder}): run `fuxi forget` again when it has ended")


def _survey(job: Job, result: Forgetting) -> None:
    _survey_unnamed(job, result)
    _look(job, result)


def _survey_unnamed(job: Job, result: Forgetting) -> None:
    """What killed runs left, before this run has left anything itself."""
    shards = files.unnamed_shards(job.workspace, files.files_below(job.workspace, "sequences"))
    parts = forget_stores.unnamed_parts(job.workspace, files.files_below(job.workspace, "recommendations"))
    result.add("files that nothing names", files.survey_unnamed([*shards, *parts], job.listeners))


def _erase(job: Job, result: Forgetting) -> None:
    """Rewrite store after store until nobody is running and a look finds nothing, then delete what nothing names.

    A day that began after the first look at the leases may have read the old files and published what it made of them.
    """
    for _ in range(_PASSES):
        for name, erase in _stores().items():
            buckets = len(job.listeners.in_buckets()) if name == "sequences" else None
            with progress(name, buckets, unit="buckets" if buckets else "", remaining=buckets is not None) as advance:
                result.add(name, erase(job, advance))
        there = files.files_below(job.workspace, "sequences", "recommendations", "quarantine", "reports", "reproduce")
        require_idle(job.workspace)
        seen = Forgetting(len(job.listeners), dry_run=True)
        _look(replace(job, dry_run=True), seen)
        if not any(held.files for held in seen.stores.values()):
            _delete_unnamed(job, there)
            return
    raise BusyError(f"{job.workspace.uri}: days are published while listeners are removed: run `fuxi forget` again")


def _look(job: Job, result: Forgetting) -> None:
    for name, look in _stores().items():
        result.add(name, look(job, lambda _: None))


def _stores() -> dict[str, Callable[[Job, Callable[[int], None]], Held]]:
    """Everything that holds listeners, by the name the operator reads; the reports are made of what is above them."""
    return {
        "sequences": _erase_shards,
        "recommendations": forget_stores.erase_from_lists,
        "quarantine": _erase_quarantine,
        "staging of killed runs": _erase_staging,
        "failure notes": forget_stores.erase_from_notes,
        "reports": forget_stores.erase_from_reports,
        "ranks of experiments": forget_stores.erase_from_ranks,
    }


def _erase_shards(job: Job, advance: Callable[[int], None]) -> Held:
    if job.dry_run:
        return files.survey_shards(job.workspace, job.listeners)
    return files.erase_from_shards(
        job.workspace,
        job.listeners,
        hold=job.hold,
        row_group_events=job.config.sequences.row_group_events,
        advance=advance,
    )


def _erase_quarantine(job: Job, advance: Callable[[int], None]) -> Held:
    held, column = Held(), job.config.logs.columns.get(USER_ID, USER_ID)
    for ds in job.workspace.days("quarantine"):
        there = [f.uri for f in storage.list_files(job.workspace.quarantine(ds)) if f.uri.endswith(".parquet")]
        found = files.erase_from_quarantine(there, job.listeners, column=column, dry_run=True)
        held += found
        if found.files and not job.dry_run:
            with job.hold(ds):
                files.erase_from_quarantine(there, job.listeners, column=column)
        advance(len(there))
    return held


def _erase_staging(job: Job, advance: Callable[[int], None]) -> Held:
    """Plays on their way to their buckets when a run was killed: the next run begins anew, so nobody needs them."""
    held = Held(0, None)
    for ds in job.workspace.days("runs"):
        folder = storage.join(job.workspace.run(ds), "staging")
        there = storage.list_files(folder)
        held += Held(len(there), None)
        if there and not job.dry_run:
            with job.hold(ds):
                storage.delete_folder(folder)
        advance(1)
    return held


def _delete_unnamed(job: Job, there: list[str]) -> None:
    """Delete what neither a manifest nor today's version of the table names.

    there: files listed before nobody was found running, so that none is of a day that has begun since.
    """
    shards, parts = (
        [uri for uri in there if uri.startswith(f"{storage.join(job.workspace.uri, folder)}/")]
        for folder in ("sequences", "recommendations")
    )
    halves = [uri for uri in set(there).difference(shards, parts) if _is_half(uri)]
    unnamed = [*files.unnamed_shards(job.workspace, shards), *forget_stores.unnamed_parts(job.workspace, parts)]
    storage.delete_files([*unnamed, *halves])


def _is_half(uri: str) -> bool:
    """Whether a file was being written when its run was killed."""
    return re.search(r"\.[0-9a-f]{32}\.tmp$", uri) is not None


def render(result: Forgetting, console: object = None) -> None:
    """Print what was removed where, as a table."""
    from rich.console import Console
    from rich.table import Table

    shown = console if isinstance(console, Console) else Console()
    table = Table()
    for name, justify in (("Where", "left"), ("Files", "right"), ("Rows", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for name, held in result.stores.items():
        if held.files:
            table.add_row(name, f"{held.files:,}", "" if held.rows is None else f"{held.rows:,}")
    if table.row_count:
        shown.print("Would be removed" if result.dry_run else "Removed", style="bold")
        shown.print(table)
    unknown = result.listeners - result.found
    nobody = f"; nothing holds {'it' if result.listeners == 1 else f'{unknown:,} of them'}" if unknown else ""
    noted = "" if result.dry_run else f"; {result.recorded:,} newly on the list that later days read"
    plural = "" if result.listeners == 1 else "s"
    shown.print(f"{result.listeners:,} listener{plural}{nobody}{noted}", highlight=False)
