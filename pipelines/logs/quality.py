"""Is a day's input what a day's input should be? A day's numbers, the bounds they must keep, and the judgement.

Nothing is read or written here. `judge` compares a day with bounds that are fixed (a share of rejected rows) and with
what is usual, the median of the last published days (the number of plays). Plays are counted a landing day, because
a first build and a day after an outage hold many.
"""

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from pipelines.schema import DS, OPTIONAL_COLUMNS, REQUIRED_COLUMNS

MIN_DAYS = 3
"""Published days without which nothing is called usual."""

ACCEPTED = "accepted"
REJECTED_SHARE = "rejected_share"
PLAYS_PER_LANDING_DAY = "plays_per_landing_day"
UNKNOWN_SONG_SHARE = "unknown_song_share"
NEWEST_PLAY_AGE_S = "newest_play_age_s"
NULL_SHARE = "null_share_"  # and the name of a column
DUPLICATE_SHARE = "duplicate_share"

History = Sequence[Mapping[str, float]]
"""Numbers of earlier published days (`Numbers.values`), oldest first."""


@dataclass(frozen=True)
class Bounds:
    """What is allowed. Shares are of 1; their defaults and meaning are in the configuration's section `quality`."""

    max_rejected_share: float
    min_volume_ratio: float
    max_volume_ratio: float
    trailing_days: int
    max_unknown_song_share: float
    max_age_s: int
    max_null_share: float
    max_null_shares: Mapping[str, float]
    max_null_rise: float
    max_duplicate_share: float
    min_plays: int


@dataclass(frozen=True)
class Numbers:
    """What the logs of one day held. None: not known, or not yet."""

    day_start: int  # Unix second of ds 00:00 in the workspace's zone
    rows_read: int
    accepted: int  # valid plays, duplicates among them
    ignored: int = 0  # events that are no plays
    rejected: Mapping[str, int] = field(default_factory=dict)  # rows by reason
    landing_days: int = 1  # of which no earlier day had taken anything
    songs: int = 0  # distinct, of valid plays
    unknown_plays: int | None = None  # valid plays of songs without an index before this day; None on a first build
    newest: int | None = None  # Unix second of the newest valid play
    nulls: Mapping[str, int] = field(default_factory=dict)  # rows without a value, of every column the logs have
    duplicates: int | None = None  # valid plays that were there already; known after the build
    listeners: int | None = None  # in all shards; known after the build

    def values(self) -> dict[str, float]:
        """Every number by the name under which it is kept; what is not known is left out."""
        total = sum(self.rejected.values())
        found: dict[str, float | None] = {
            "rows_read": self.rows_read,
            ACCEPTED: self.accepted,
            "ignored": self.ignored,
            "rejected": total,
            **{f"rejected_{reason}": count for reason, count in sorted(self.rejected.items())},
            "landing_days": self.landing_days,
            "songs": self.songs,
            "newest_play": self.newest,
            "duplicates": self.duplicates,
            "listeners": self.listeners,
            REJECTED_SHARE: _share(total, self.rows_read),
            PLAYS_PER_LANDING_DAY: self.accepted / self.landing_days,
            UNKNOWN_SONG_SHARE: _share(self.unknown_plays, self.accepted),
            NEWEST_PLAY_AGE_S: None if self.newest is None else self.day_start - self.newest,
            **{f"{NULL_SHARE}{column}": _share(count, self.rows_read) for column, count in sorted(self.nulls.items())},
            DUPLICATE_SHARE: _share(self.duplicates, self.accepted),
        }
        return {name: float(value) for name, value in found.items() if value is not None}


@dataclass(frozen=True)
class Check:
    """One expectation. Without a bound it is not judged: the detail says why."""

    name: str
    value: float | None  # None: there is no such number on this day
    detail: str  # one line: what was found, what is allowed and which setting says so
    lower: float | None = None
    upper: float | None = None
    overridable: bool = True

    @property
    def judged(self) -> bool:
        """Whether there is a bound."""
        return self.lower is not None or self.upper is not None

    @property
    def passed(self) -> bool:
        """Whether the value keeps its bounds; a bound itself is allowed."""
        if self.value is None:
            return True
        too_low = self.lower is not None and self.value < self.lower
        return not too_low and not (self.upper is not None and self.value > self.upper)


def judge(numbers: Numbers, history: History, bounds: Bounds) -> list[Check]:
    """Every expectation of a day; duplicates once they are known.

    A day on which every check passed may be published. Nothing but rejected rows is judged of a service with fewer
    than `bounds.min_plays` plays a landing day: the median of the history, where there is one.
    """
    values = numbers.values()
    history = history[-bounds.trailing_days :]
    checks = [_plays(numbers), _rejected(numbers, bounds)]
    if not numbers.accepted:
        return checks
    usual = _usual(history, PLAYS_PER_LANDING_DAY)
    scale = values[PLAYS_PER_LANDING_DAY] if usual is None else usual
    others = [
        _volume(numbers, history, bounds),
        _unknown_songs(numbers, bounds),
        _freshness(numbers, bounds),
        *(_nulls(column, numbers, history, bounds) for column in _columns(numbers, history)),
        *([] if numbers.duplicates is None else [_duplicates(numbers, bounds)]),
    ]
    if scale < bounds.min_plays:
        why = f"quality.min_plays asks for {bounds.min_plays:,} a landing day"
        others = [_not_judged(check.name, check.value, check.detail.partition(" (")[0], why) for check in others]
    return checks + others


def refusal(ds: dt.date, checks: Iterable[Check]) -> str:
    """The line that refuses a day: every number that broke its bound, and what to do. Empty if none did."""
    broken = [check for check in checks if not check.passed]
    if not broken:
        return ""
    accept = ", or --accept-quality to take the day as it is" if all(check.overridable for check in broken) else ""
    details = "; ".join(check.detail for check in broken)
    return f"ds {ds}: {details}; correct the logs and run with --refresh-inputs{accept}"


def history_of(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, float]]:
    """The days that were taken, oldest first, from rows of `schema.QUALITY_SCHEMA`; refused ones are left out."""
    days: dict[dt.date, dict[str, float]] = {}
    refused = set()
    for row in rows:
        days.setdefault(row[DS], {})[row["metric"]] = row["value"]
        if row["passed"] is False and not row["accepted_override"]:
            refused.add(row[DS])
    return [days[ds] for ds in sorted(days.keys() - refused)]


def _plays(numbers: Numbers) -> Check:
    detail = f"the new log files hold no plays ({numbers.rows_read} rows, {numbers.ignored} other events)"
    if numbers.accepted:
        detail = f"{numbers.accepted:,} plays"
    return Check(ACCEPTED, float(numbers.accepted), detail, lower=1.0, overridable=False)


def _rejected(numbers: Numbers, bounds: Bounds) -> Check:
    total, limit = sum(numbers.rejected.values()), bounds.max_rejected_share
    share = _share(total, numbers.rows_read) or 0.0
    allowed = f"{_percent(share, limit)}, logs.max_rejected_share allows {_bound(limit)}"
    ordered = sorted(numbers.rejected.items(), key=lambda item: (-item[1], item[0]))
    reasons = ", ".join(f"{reason} {count}" for reason, count in ordered)
    detail = f"{total} of {numbers.rows_read} rows were rejected ({allowed}){': ' if reasons else ''}{reasons}"
    return Check(REJECTED_SHARE, share, detail, upper=limit)


def _volume(numbers: Numbers, history: History, bounds: Bounds) -> Check:
    name, value = PLAYS_PER_LANDING_DAY, numbers.accepted / numbers.landing_days
    found = f"{value:,.0f} plays a landing day"
    usual = _usual(history, name)
    if not usual:
        return _not_judged(name, value, found, _too_few_days(history))
    ratio, least, most = value / usual, bounds.min_volume_ratio, bounds.max_volume_ratio
    broken = ("min", least) if ratio < least else ("max", most)
    allowed = f"quality.{broken[0]}_volume_ratio allows {broken[1]:g}"
    if least <= ratio <= most:
        allowed = f"quality.min_volume_ratio and max_volume_ratio allow {least:g} to {most:g}"
    days = f"the median of the last {len(history)} published days"
    detail = f"{found}, {_ratio(ratio, broken[1])} of {usual:,.0f}, {days} ({allowed})"
    return Check(name, value, detail, lower=least * usual, upper=most * usual)


def _unknown_songs(numbers: Numbers, bounds: Bounds) -> Check:
    name, limit = UNKNOWN_SONG_SHARE, bounds.max_unknown_song_share
    share = _share(numbers.unknown_plays, numbers.accepted)
    if share is None:
        return _not_judged(name, None, "all songs are new", "a first build")
    found = f"{_percent(share, limit)} of plays are of songs unknown before this day"
    return Check(name, share, f"{found} (quality.max_unknown_song_share allows {_bound(limit)})", upper=limit)


def _freshness(numbers: Numbers, bounds: Bounds) -> Check:
    age = numbers.day_start - (numbers.newest or 0)
    found = f"the newest play is {age / 3600:.1f} h older than ds 00:00"
    detail = f"{found} ({age:,} s, quality.max_age_s allows {bounds.max_age_s:,})"
    return Check(NEWEST_PLAY_AGE_S, float(age), detail, upper=float(bounds.max_age_s))


def _nulls(column: str, numbers: Numbers, history: History, bounds: Bounds) -> Check:
    """A column that the logs have no more is one without any value."""
    name = f"{NULL_SHARE}{column}"
    share = numbers.nulls.get(column, numbers.rows_read) / numbers.rows_read
    usual = _usual(history, name)
    if column in bounds.max_null_shares:
        limit = bounds.max_null_shares[column]
        setting = f"quality.max_null_shares.{column} allows {_bound(limit)}"
    elif column in REQUIRED_COLUMNS:
        limit = bounds.max_null_share
        setting = f"quality.max_null_share allows {_bound(limit)}"
    elif usual is None:
        return _not_judged(name, share, f"{_percent(share)} of rows have no {column}", _too_few_days(history))
    else:
        limit = usual + bounds.max_null_rise
        rise = f"quality.max_null_rise allows {_bound(bounds.max_null_rise)}"
        setting = f"{rise} more than the median {_percent(usual)} of the last {len(history)} published days"
    return Check(name, share, f"{_percent(share, limit)} of rows have no {column} ({setting})", upper=limit)


def _duplicates(numbers: Numbers, bounds: Bounds) -> Check:
    limit, share = bounds.max_duplicate_share, _share(numbers.duplicates, numbers.accepted) or 0.0
    found = f"{_percent(share, limit)} of plays are duplicates"
    return Check(DUPLICATE_SHARE, share, f"{found} (quality.max_duplicate_share allows {_bound(limit)})", upper=limit)


def _not_judged(name: str, value: float | None, found: str, why: str) -> Check:
    return Check(name, value, f"{found} (not judged: {why})")


def _too_few_days(history: History) -> str:
    return f"{len(history)} published days before, {MIN_DAYS} needed"


def _columns(numbers: Numbers, history: History) -> list[str]:
    """Columns of the logs, and optional ones that logs used to have."""
    earlier = {name.removeprefix(NULL_SHARE) for day in history for name in day if name.startswith(NULL_SHARE)}
    return [column for column in (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS) if column in numbers.nulls or column in earlier]


def _usual(history: History, name: str) -> float | None:
    """The median of a number over the days that have it; None if they are too few."""
    values = [day[name] for day in history if name in day]
    return median(values) if len(values) >= MIN_DAYS else None


def _share(part: int | None, whole: int) -> float | None:
    return part / whole if part is not None and whole else None


def _percent(value: float, bound: float | None = None) -> str:
    """With as few decimals as tell the value from 0 and from its bound.

    >>> _percent(0.7, 0.25), _percent(0.2504, 0.25), _percent(0.0004), _percent(0.0)
    ('70%', '25.04%', '0.04%', '0%')
    """
    texts = [f"{value:.{places}%}" for places in range(6)]
    others = [f"{other:.{places}%}" for places in range(6) for other in (0.0, bound) if other not in (None, value)]
    return next((text for text in texts if text not in others), texts[0])


def _ratio(value: float, bound: float) -> str:
    """With as few decimals, two at least, as tell the value from its bound."""
    texts = [f"{value:.{places}f}" for places in range(2, 7)]
    return next((text for text in texts if value == bound or float(text) != bound), texts[0])


def _bound(share: float) -> str:
    return f"{100 * share:g}%"
