"""What holds listeners beside the shards and the quarantine: lists, reports, ranks of experiments, failure notes."""

import contextlib
import datetime as dt
import html
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.config import Config
from jobs.day import STAGES, Day
from jobs.runtime.console import Advance
from jobs.tables import recommendations as lists
from jobs.tables.published_lists import open_part
from pipelines import delta_tables, storage
from pipelines.errors import InputError
from pipelines.forget.listeners import DayLock, ListenersToForget, Matches
from pipelines.forget.redact import redacted
from pipelines.histories.buckets import user_bucket
from pipelines.schema import BUCKET, DS, USER_ID
from pipelines.workspace import Workspace

_THREADS = 8
_EXAMPLE = re.compile(r"<h3>Listener (.*?)</h3>")
_SAMPLE = re.compile(r'<pre data-listeners="([^"]*)">')
_RANKS = ".ranks.parquet"


@dataclass(frozen=True)
class Removal:
    """Whom to remove, from what. dry_run: only count."""

    config: Config
    workspace: Workspace
    listeners: ListenersToForget
    lock_day: DayLock
    dry_run: bool = False


Store = Callable[[Removal, Advance], Matches]
"""Removes the listeners from one store, and returns what it held of them."""


def erase_from_lists(removal: Removal, advance: Advance) -> Matches:
    """Replace the parts that hold lists of the listeners by parts without them, in one transaction for each ds."""
    table, matches = delta_tables.open_table(removal.workspace.recommendations), Matches()
    if table is None:
        return matches
    delta_tables.check_data(removal.workspace.recommendations, table)  # damage may hide a listener
    parts = pa.table(table.get_add_actions(flatten=True))
    days = parts[f"partition.{DS}"].to_pylist()
    files = list(zip(parts["path"].to_pylist(), parts["size_bytes"].to_pylist(), strict=True))
    buckets = np.unique(user_bucket(removal.listeners.ids, removal.workspace.spec.buckets))

    def rows(path: str) -> int:
        return _rows_in_part(storage.join(removal.workspace.recommendations, path), removal.listeners, buckets)

    for ds in sorted(set(days)):
        of_day = [file for file, day in zip(files, days, strict=True) if day == ds]
        with ThreadPoolExecutor(_THREADS) as pool:
            counts = list(pool.map(rows, [path for path, _ in of_day]))
        affected = [file for file, count in zip(of_day, counts, strict=True) if count]
        matches += Matches(len(affected), sum(counts))
        if affected and not removal.dry_run:
            with removal.lock_day(ds):
                _replace_parts(removal, table, ds, affected)
        advance(len(of_day))
    return matches


def _rows_in_part(uri: str, listeners: ListenersToForget, buckets: np.ndarray) -> int:
    """Rows of the listeners in a part; row groups whose statistics exclude their buckets are not read."""
    with open_part(uri) as file:
        groups = range(file.num_row_groups)
        return listeners.rows_in(file, (n for n in groups if _may_have_bucket(file.metadata.row_group(n), buckets)))


def _may_have_bucket(group: Any, buckets: np.ndarray) -> bool:
    """Whether the statistics of a row group allow for a row of one of some buckets."""
    for number in range(group.num_columns):
        column = group.column(number)
        if column.path_in_schema == BUCKET and column.statistics is not None:
            if not column.statistics.has_min_max:  # all null: the list for unknown listeners
                return False
            return bool(((buckets >= column.statistics.min) & (buckets <= column.statistics.max)).any())
    return True


def _replace_parts(removal: Removal, table: Any, ds: dt.date, affected: list[tuple[str, int]]) -> None:
    uri, written = removal.workspace.recommendations, []
    try:
        for path, _ in affected:
            rows = storage.read_table(storage.join(uri, path))
            kept = rows.filter(pa.array(~removal.listeners.mask(rows[USER_ID])))
            if kept.num_rows:
                written.append(lists.write_part(uri, ds, kept))
        lists.check_parts(uri, written)
        lists.replace_parts(table, ds, affected, written)
    except BaseException:
        lists.discard(uri, written)
        raise


def unlisted_parts(workspace: Workspace, uris: list[str]) -> list[str]:
    """The files below recommendations/ that the current version of the table does not name."""
    table = delta_tables.open_table(workspace.recommendations)
    paths = pa.table(table.get_add_actions())["path"].to_pylist() if table is not None else []
    named = {storage.join(workspace.recommendations, path) for path in paths}
    missing = sorted(uri for uri in named.difference(uris) if not storage.exists(uri))
    if missing:
        raise InputError(f"{missing[0]} is named by the table of lists but not there: restore it")
    return [uri for uri in uris if uri not in named]


def erase_from_reports(removal: Removal, advance: Advance) -> Matches:
    """Render the pages that show one of the listeners again, with other examples; delete those where that fails."""
    matches = Matches()
    for ds in removal.workspace.days("reports"):
        uri = removal.workspace.report(ds)
        mentions = _mentions(uri, removal.listeners) if storage.exists(uri) else 0
        if mentions:
            matches += Matches(1, mentions)
            if not removal.dry_run:
                with removal.lock_day(ds):
                    _render_again(removal, ds, uri)
        advance(1)
    return matches


def _mentions(uri: str, listeners: ListenersToForget) -> int:
    """How often a page shows the listeners: as examples and in rejected rows, and 1 if a message quotes any of them."""
    page = storage.read_bytes(uri).decode(errors="replace")
    shown = [
        *_EXAMPLE.findall(page),
        *(one for text in _SAMPLE.findall(page) for one in html.unescape(text).split("\n")),
    ]
    examples = sum(listeners.named_by(html.unescape(text)) for text in shown)
    page = re.sub(r"<(style|svg|pre)\b.*?</\1>", "", page, flags=re.DOTALL)
    text = html.unescape(re.sub(r"<[^>]*>", " ", _EXAMPLE.sub(" ", page)))
    return examples + int(redacted(text, listeners.named_by) != text)


def _render_again(removal: Removal, ds: dt.date, uri: str) -> None:
    from jobs.stages import report

    with contextlib.suppress(Exception):  # for whatever reason the page cannot be rendered, the old one must not stay
        report.run(Day(removal.config, ds, removal.workspace))
    if _mentions(uri, removal.listeners):
        storage.delete_folder(storage.parent(uri))


def erase_from_ranks(removal: Removal, advance: Advance) -> Matches:
    """Remove the listeners from the ranks that `fuxi reproduce` keeps of its runs; the runs' figures stay."""
    matches, kind = Matches(), removal.listeners.ids.type
    for file in storage.list_files(storage.join(removal.workspace.uri, "reproduce")):
        if not file.uri.endswith(_RANKS):
            continue
        table = storage.read_table(file.uri)
        theirs = removal.listeners.mask(table[USER_ID]) if table[USER_ID].type == kind else np.zeros(0, bool)
        if theirs.any():
            matches += Matches(1, int(theirs.sum()))
            if not removal.dry_run:
                _rewrite_ranks(file.uri, table.filter(pa.array(~theirs)))
        advance(1)
    return matches


def _rewrite_ranks(uri: str, kept: pa.Table) -> None:
    """Replace a run's ranks, after their number in the run's JSON: killed in between, the file is found again."""
    run = uri.removesuffix(_RANKS) + ".json"
    if storage.exists(run):
        content = storage.read_json(run)
        content["listeners"]["all"] = kept.num_rows
        storage.write_json(run, content)
    storage.write_table(uri, kept)


def erase_from_notes(removal: Removal, advance: Advance) -> Matches:
    """Remove the listeners' ids from the messages of stages that failed."""
    matches = Matches()
    for ds in removal.workspace.days("runs"):
        for stage in STAGES:
            uri = storage.join(removal.workspace.run(ds), f"{stage}.failure.json")
            if not storage.exists(uri):
                continue
            note = storage.read_json(uri)
            message = redacted(str(note.get("message", "")), removal.listeners.named_by)
            if message != note.get("message", ""):
                matches += Matches(1, 1)
                if not removal.dry_run:
                    storage.write_json(uri, {**note, "message": message})
        advance(1)
    return matches
