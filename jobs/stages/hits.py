"""`fuxi hits`: the lists of the days before, measured by what listeners played of them, once their plays are there."""

import datetime as dt

from fuxi_beta.evaluation.served import RANKING, HitSums
from jobs.day import Day, StageResult
from jobs.runtime.console import log, progress
from jobs.serving.catalogue import read_vocabulary
from jobs.serving.outcomes import ListOutcomes
from jobs.tables.list_hits import read_list_hits, write_list_hits
from jobs.tables.published_lists import published_lists
from jobs.tables.recommendations import published_days
from pipelines.schema import DS, EVERY, ITEM_ID, MEASURED_DS

MAX_AGE_DAYS = 7
"""Older lists are not measured any more. Days are made up for: those not run, and those whose plays came late."""


def run(day: Day) -> StageResult:
    """Measure the lists that are due and replace their rows of the table of hits, one commit a day.

    Returns days: of each ds measured the lists, the listeners who played, and the main values over all of them.
    """
    manifest = day.manifest(day.ds)
    due = due_days(day)
    if not due:
        return {"days": []}
    item_ids = read_vocabulary(day, of=manifest)[ITEM_ID].combine_chunks()
    results = []
    for ds, lists in zip(due, published_lists(day.workspace, due), strict=True):
        outcomes = ListOutcomes(ds, lists, manifest, item_ids, day.calendar, day.config.train.min_completion)
        sums = HitSums(cut_offs(day))
        with progress(f"hits of {ds}", manifest.rows, unit="listeners") as advance:
            outcomes.measure(sums, on_progress=advance)
        if not sums.active((EVERY, EVERY)):
            log("lists not measured: their day has no plays yet", ds=ds)
            continue
        write_list_hits(day.workspace, ds, sums, measured_ds=day.ds)
        results.append({DS: str(ds), **main_values(sums)})
        log("lists as served", **results[-1])
    return {"days": results}


def due_days(day: Day) -> list[dt.date]:
    """The published days of the last week that no other day has measured, oldest first."""
    since = day.ds - dt.timedelta(days=MAX_AGE_DAYS)
    by = {row[DS]: row[MEASURED_DS] for row in read_list_hits(day.workspace, since=since, before=day.ds)}
    return [ds for ds in published_days(day.workspace) if since <= ds < day.ds and by.get(ds, day.ds) == day.ds]


def cut_offs(day: Day) -> tuple[int, ...]:
    """Those of evaluation that are shorter than a list, and the list's length."""
    k = day.config.recommend.k
    return (*sorted(at for at in day.config.evaluate.at if at < k), k)


def main_values(sums: HitSums) -> dict[str, float]:
    """Lists, listeners who played, and of all of these hits, skips and the metrics at the longest cut-off."""
    values, k = sums.values((EVERY, EVERY)), max(sums.at)
    counts, means = ("lists", "played", "hits", "skips"), (*(f"{name}_{k}" for name in RANKING), "play_share")
    found: dict[str, float] = {name: int(values[name, None][0]) for name in counts}
    return found | {name: round(values[name, None][0], 6) for name in means if (name, None) in values}
