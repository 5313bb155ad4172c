"""The page that names every day with a page, `reports/index.html`, and the rows that it is made of.

A row is kept in `reports/index.json`, so that a day writes its own and reads one file for all others. Rows of days that
were written at the same moment, or by an earlier release, are made from their markers by the next day.
"""

from typing import Any

from fuxi_beta.evaluation.metrics import metric_title
from jobs.day import Day
from jobs.status import day_figures, published_as
from pipelines import digests, leases, storage
from pipelines.errors import InputError

_LEVELS = {"published": "yes", "published stale": "held"}


def index_content(day: Day) -> dict[str, Any]:
    """The values of the page; also stores the rows."""
    uri = storage.join(day.workspace.uri, "reports", "index.json")
    stored = _stored(uri)
    days = [ds for ds in day.workspace.days("reports") if storage.exists(day.workspace.report(ds))]
    rows = {str(ds): _row(day.at(ds)) if ds == day.ds else stored.get(str(ds)) or _row(day.at(ds)) for ds in days}
    leases.publish_json(uri, {"rows": rows})
    newest_first = [rows[name] for name in sorted(rows, reverse=True)]
    return {"rows": newest_first, "metric": metric_title(day.config.gates.metric)}


def write_index(day: Day, page: str) -> None:
    """Write the page, and its digest beside it."""
    folder = storage.join(day.workspace.uri, "reports")
    uri = storage.join(folder, "index.html")
    storage.write_bytes(uri, page.encode())
    digests.write_listing(storage.join(folder, digests.NOTED_FILE), {"index.html": digests.digests_of([uri])[uri]})


def _stored(uri: str) -> dict[str, Any]:
    """The rows of earlier days; none if the file is damaged: they are made again."""
    try:
        with storage.reading(uri):
            return storage.read_json(uri)["rows"] if storage.exists(uri) else {}
    except (InputError, KeyError):
        return {}


def _row(day: Day) -> dict[str, Any]:
    state, figures = published_as(day) or "not published", day_figures(day)
    best = figures.best_baseline
    return {
        "ds": str(day.ds),
        "state": state,
        "level": _LEVELS.get(state, "no"),
        "accepted": figures.accepted,
        "rejected_share": figures.rejected_share,
        "listeners": figures.listeners,
        "served_by": figures.served_by,
        "value": figures.value,
        "baseline": best[0] if best else None,
        "baseline_value": best[1] if best else None,
        "seconds": sum(figures.seconds.values()),
    }
