"""`fuxi report`: one self-contained HTML page a day, from the stage markers, the Delta tables and the shards.

The page holds no script, loads nothing and depends only on what the day published, so writing it again gives the
same bytes. A day on which stages failed has a page, too, which says at the top what is missing.
"""

import math
from typing import Any, TypeGuard

import jinja2

from jobs.day import Day, StageResult
from jobs.report.content import content
from jobs.report.index import index_content, write_index
from pipelines import digests, storage
from pipelines.redact import redact

NOTHING = "–"


def run(day: Day) -> StageResult:
    """Write the page of `day.ds` in one write, and the index of all pages. Returns the page's uri."""
    uri = day.workspace.report(day.ds)
    storage.write_bytes(uri, redact(render(content(day))).encode())
    digests.write_digests(storage.parent(uri), name=digests.NOTED_FILE)
    write_index(day, redact(render(index_content(day), "index.html")))
    return {"uri": uri}


def render(values: dict[str, Any], template: str = "report.html") -> str:
    """The page. Every value is escaped; a value that an older marker lacks reads as a dash."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("jobs", "templates"),
        autoescape=True,
        undefined=jinja2.ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = (change, count, decimal, percent, seconds, signed)
    environment.filters |= {function.__name__: function for function in filters}
    return environment.get_template(template).render(values)


def count(value: object) -> str:
    """12345 as "12,345"; a text stays as it is.

    >>> count(12345), count(None), count(float("nan"))
    ('12,345', '–', '–')
    """
    return f"{value:,.0f}" if _number(value) else (value if isinstance(value, str) else NOTHING)


def decimal(value: object, places: int = 3) -> str:
    """A number with three decimals, a dash if there is none."""
    return f"{value:.{places}f}" if _number(value) else NOTHING


def signed(value: object, places: int = 4) -> str:
    """A difference with its sign.

    >>> signed(0.01234), signed(-0.5, 1), signed(None)
    ('+0.0123', '−0.5', '–')
    """
    if not _number(value):
        return NOTHING
    return f"{'−' if value < 0 else '+'}{abs(value):.{places}f}"


def change(now: object, then: object) -> str:
    """How much larger a count is than another one, in per cent of that.

    >>> change(110, 100), change(90, 100), change(5, 0), change(100, 100)
    ('+10 %', '−10 %', '–', '0 %')
    """
    if not _number(now) or not _number(then) or then == 0:
        return NOTHING
    share = 100 * (now - then) / then
    text = f"{abs(share):.0f}" if abs(share) >= 10 or share == 0 else f"{abs(share):.1f}"
    return f"{'+' if share > 0 else '−' if share < 0 else ''}{text} %"


def percent(value: object) -> str:
    """A share in per cent; a share above 0 never reads as 0.0%.

    >>> percent(0.1234), percent(0.0001), percent(0)
    ('12.3%', '<0.1%', '0.0%')
    """
    if not _number(value):
        return NOTHING
    return "<0.1%" if 0 < value < 0.0005 else f"{value:.1%}"


def seconds(value: object) -> str:
    """A duration in its two largest units.

    >>> seconds(4.21), seconds(185), seconds(7320)
    ('4.2 s', '3 min 5 s', '2 h 2 min')
    """
    if not _number(value):
        return NOTHING
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
