"""What holds listeners beside the shards and the quarantine: lists, reports, ranks of experiments, failure notes."""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions when it is imported)

import datetime as dt
import html
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.config import Config
from jobs.daily import STAGES
from jobs.day import Day
from jobs.tables import recommendations as lists
from pipelines import delta_tables, storage
from pipelines.errors import InputError
from pipelines.forget.blocklist import without_names
from pipelines.forget.shards import Held, Hold, Listeners
from pipelines.histories.buckets import user_bucket
from pipelines.schema import BUCKET, DS, USER_ID
from pipelines.workspace import Workspace

_THREADS = 8
_SHOWN = re.compile(r"<h3>Listener (.*?)</h3>")
_RANKS = ".ranks.parquet"


@dataclass(frozen=True)
class Job:
    """What every store is given. dry_run: only count."""

    config: Config
    workspace: Workspace
    listeners: Listeners
    hold: Hold
    dry_run: bool = False


# ---- the table of lists ----------------------------------------------------------------------------------------------


def erase_from_lists(job: Job, advance: Callable[[int], None]) -> Held:
    """Commit the parts that hold a list of the listeners again without it, a transaction for each ds."""
    table, held = delta_tables.open_table(job.workspace.recommendations), Held()
    if table is None:
        return held
    parts = pa.table(table.get_add_actions(flatten=True))
    days = parts[f"partition.{DS}"].to_pylist()
    files = list(zip(parts["path"].to_pylist(), parts["size_bytes"].to_pylist(), strict=True))
    buckets = np.unique(user_bucket(job.listeners.ids, job.workspace.spec.buckets))

    def rows(path: str) -> int:
        return _theirs(storage.join(job.workspace.recommendations, path), job.listeners, buckets)

    for ds in sorted(set(days)):
        own = [file for file, day in zip(files, days, strict=True) if day == ds]
        with ThreadPoolExecutor(_THREADS) as pool:
            counts = list(pool.map(rows, [path for path, _ in own]))
        affected = [file for file, count in zip(own, counts, strict=True) if count]
        held += Held(len(affected), sum(counts))
        if affected and not job.dry_run:
            with job.hold(ds):
                _commit_without(job, table, ds, affected)
        advance(len(own))
    return held


def _theirs(uri: str, listeners: Listeners, buckets: np.ndarray) -> int:
    """Rows of the listeners in a part; only row groups that may hold one of their buckets are read."""
    fs, path = storage.filesystem(uri)
    with fs.open_input_file(path) as source:
        file, rows = pq.ParquetFile(source), 0
        for group in range(file.num_row_groups):
            if _may_hold(file.metadata.row_group(group), buckets):
                rows += int(listeners.mask(file.read_row_group(group, [USER_ID])[USER_ID]).sum())
    return rows


def _may_hold(group: Any, buckets: np.ndarray) -> bool:
    for number in range(group.num_columns):
        column = group.column(number)
        if column.path_in_schema == BUCKET and column.statistics is not None:
            if not column.statistics.has_min_max:  # nothing but nulls: the list for unknown listeners
                return False
            return bool(((buckets >= column.statistics.min) & (buckets <= column.statistics.max)).any())
    return True


def _commit_without(job: Job, table: Any, ds: dt.date, affected: list[tuple[str, int]]) -> None:
    uri, made = job.workspace.recommendations, []
    try:
        for path, _ in affected:
            rows = storage.read_table(storage.join(uri, path))
            kept = rows.filter(pa.array(~job.listeners.mask(rows[USER_ID])))
            if kept.num_rows:
                made.append(lists.write_part(uri, ds, kept))
        lists.check_parts(uri, made)
        lists.replace_parts(table, ds, affected, made)
    except BaseException:
        lists.discard(uri, made)
        raise


def unnamed_parts(workspace: Workspace, there: list[str]) -> list[str]:
    """Those of some files below recommendations/ that today's version of the table does not name."""
    table = delta_tables.open_table(workspace.recommendations)
    paths = pa.table(table.get_add_actions())["path"].to_pylist() if table is not None else []
    named = {storage.join(workspace.recommendations, path) for path in paths}
    missing = sorted(uri for uri in named.difference(there) if not storage.exists(uri))
    if missing:
        raise InputError(f"{missing[0]} is named by the table of lists but not there: restore it")
    return [uri for uri in there if uri not in named]


# ---- reports ---------------------------------------------------------------------------------------------------------


def erase_from_reports(job: Job, advance: Callable[[int], None]) -> Held:
    """Write pages that show one of the listeners anew, with others in their place; where that fails, remove them."""
    held = Held()
    for ds in job.workspace.days("reports"):
        uri = job.workspace.report(ds)
        shown = _shown(uri, job.listeners) if storage.exists(uri) else 0
        if shown:
            held += Held(1, shown)
            if not job.dry_run:
                with job.hold(ds):
                    _write_anew(job, ds, uri)
        advance(1)
    return held


def _shown(uri: str, listeners: Listeners) -> int:
    """In how many places a page names the listeners: as an example, or in a message of a stage that failed."""
    page = re.sub(r"<(style|svg).*?</\1>", "", storage.read_bytes(uri).decode(errors="replace"), flags=re.DOTALL)
    names = [html.unescape(text) for text in _SHOWN.findall(page)]
    examples = sum(listeners.any_of(_as_ids(name, listeners)) for name in names)
    text = html.unescape(re.sub(r"<[^>]*>", " ", _SHOWN.sub(" ", page)))
    return examples + int(without_names(text, lambda token: listeners.any_of(_as_ids(token, listeners))) != text)


def _as_ids(token: str, listeners: Listeners) -> list[int | str]:
    if listeners.user_id_type == "string":
        return [token]
    return [int(token)] if re.fullmatch(r"[+-]?[0-9]{1,19}", token) else []


def _write_anew(job: Job, ds: dt.date, uri: str) -> None:
    from jobs.stages import report

    try:
        report.run(Day(job.config, ds, job.workspace))
    except Exception:  # a page that cannot be made again, for whatever reason, must not stay
        storage.delete_files([uri])
        return
    if _shown(uri, job.listeners):
        storage.delete_files([uri])


# ---- experiments -----------------------------------------------------------------------------------------------------


def erase_from_ranks(job: Job, advance: Callable[[int], None]) -> Held:
    """Take the listeners out of the ranks that `fuxi reproduce` keeps of its runs; the runs' figures stay."""
    held, folder = Held(), storage.join(job.workspace.uri, "reproduce")
    for file in storage.list_files(folder):
        if not file.uri.endswith(_RANKS):
            continue
        table = storage.read_table(file.uri)
        kind = job.listeners.ids.type
        theirs = job.listeners.mask(table[USER_ID].cast(kind)) if table[USER_ID].type == kind else np.zeros(0, bool)
        if theirs.any():
            held += Held(1, int(theirs.sum()))
            if not job.dry_run:
                _rewrite_ranks(file.uri, table.filter(pa.array(~theirs)))
        advance(1)
    return held


def _rewrite_ranks(uri: str, kept: pa.Table) -> None:
    """First the number that the run says it has ranks of: killed in between, the file is found again."""
    run = uri.removesuffix(_RANKS) + ".json"
    if storage.exists(run):
        content = storage.read_json(run)
        content["listeners"]["all"] = kept.num_rows
        storage.write_json(run, content)
    storage.write_table(uri, kept)


# ---- notes -----------------------------------------------------------------------------------------------------------


def erase_from_notes(job: Job, advance: Callable[[int], None]) -> Held:
    """Blot the listeners' ids out of the notes of why stages failed."""
    held = Held()
    for ds in job.workspace.days("runs"):
        for stage in STAGES:
            uri = storage.join(job.workspace.run(ds), f"{stage}.failure.json")
            if not storage.exists(uri):
                continue
            note = storage.read_json(uri)
            message = without_names(
                str(note.get("message", "")), lambda token: job.listeners.any_of(_as_ids(token, job.listeners))
            )
            if message != note.get("message", ""):
                held += Held(1, 1)
                if not job.dry_run:
                    storage.write_json(uri, {**note, "message": message})
        advance(1)
    return held
