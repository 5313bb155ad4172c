"""Checks of a day's input: statistics of its logs, each against a bound.

Nothing is read or written here. Some bounds are fixed (the share of rejected rows), others are relative to the median
of the last published days (the number of plays). Plays are counted per landing day, because a first build and the day
after an outage hold many landing days.
"""

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from pipelines.delta_tables import Row
from pipelines.schema import ACCEPTED_OVERRIDE, DS, LISTENERS, METRIC, OPTIONAL_COLUMNS, PASSED, REQUIRED_COLUMNS, VALUE

MIN_DAYS = 3
"""Fewest published days that have a median."""

ACCEPTED = "accepted"
REJECTED_SHARE = "rejected_share"
PLAYS_PER_LANDING_DAY = "plays_per_landing_day"
UNKNOWN_SONG_SHARE = "unknown_song_share"
NEWEST_PLAY_AGE_S = "newest_play_age_s"
NULL_SHARE = "null_share_"  # followed by the name of a column
DUPLICATE_SHARE = "duplicate_share"

PastDays = Sequence[Mapping[str, float]]
"""`DayStats.values` of earlier published days, oldest first."""


@dataclass(frozen=True)
class Bounds:
    """The bounds of a day. Shares are of 1; defaults and meaning are in the configuration's section `quality`."""

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
class DayStats:
    """Statistics of the logs of one day. None: unknown, or not known yet."""

    day_start: int  # Unix second of ds 00:00 in the workspace's zone
    rows_read: int
    accepted: int  # valid plays, duplicates among them
    ignored: int = 0  # events of other types than plays
    rejected: Mapping[str, int] = field(default_factory=dict)  # rows by reason
    examples: Mapping[str, str] = field(default_factory=dict)  # reason -> a line on a row; not stored
    landing_days: int = 1  # without those of which an earlier day had taken a file
    songs: int = 0  # distinct, of valid plays
    unknown_plays: int | None = None  # valid plays of songs without an index before this day; None on a first build
    newest: int | None = None  # Unix second of the newest valid play
    nulls: Mapping[str, int] = field(default_factory=dict)  # rows without a value, of every column the logs have
    duplicates: int | None = None  # valid plays that the shards or the same logs already have; known after the build
    listeners: int | None = None  # in all shards; known after the build

    def values(self) -> dict[str, float]:
        """Every statistic by its metric name in the table `quality`, without the unknown ones."""
        total = sum(self.rejected.values())
        values: dict[str, float | None] = {
            "rows_read": self.rows_read,
            ACCEPTED: self.accepted,
            "ignored": self.ignored,
            "rejected": total,
            **{f"rejected_{reason}": count for reason, count in sorted(self.rejected.items())},
            "landing_days": self.landing_days,
            "songs": self.songs,
            "newest_play": self.newest,
            "duplicates": self.duplicates,
            LISTENERS: self.listeners,
            REJECTED_SHARE: _share(total, self.rows_read),
            PLAYS_PER_LANDING_DAY: self.accepted / self.landing_days,
            UNKNOWN_SONG_SHARE: _share(self.unknown_plays, self.accepted),
            NEWEST_PLAY_AGE_S: None if self.newest is None else self.day_start - self.newest,
            **{f"{NULL_SHARE}{column}": _share(count, self.rows_read) for column, count in sorted(self.nulls.items())},
            DUPLICATE_SHARE: _share(self.duplicates, self.accepted),
        }
        return {name: float(value) for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class BoundCheck:
    """One statistic against its bounds. Without a bound it is not judged: the detail says why."""

    name: str
    value: float | None  # None: unknown on this day
    detail: str  # one line: the value, what is allowed and the setting that allows it
    lower: float | None = None
    upper: float | None = None
    overridable: bool = True

    @property
    def judged(self) -> bool:
        """Whether there is a bound."""
        return self.lower is not None or self.upper is not None

    @property
    def passed(self) -> bool:
        """Whether the value is within its bounds, which are themselves allowed."""
        if self.value is None:
            return True
        too_low = self.lower is not None and self.value < self.lower
        return not too_low and not (self.upper is not None and self.value > self.upper)


def check_day(stats: DayStats, past: PastDays, bounds: Bounds) -> list[BoundCheck]:
    """Every check of a day; the one of duplicates only if their number is known.

    A day may be published if every check passed. If a service has fewer than `bounds.min_plays` plays a landing day
    (the median of the past days, or this day's number without a median), only plays and rejected rows are judged.
    """
    values = stats.values()
    past = past[-bounds.trailing_days :]
    checks = [_plays(stats), _rejected(stats, bounds)]
    if not stats.accepted:
        return checks
    median_plays = _trailing_median(past, PLAYS_PER_LANDING_DAY)
    scale = values[PLAYS_PER_LANDING_DAY] if median_plays is None else median_plays
    others = [
        _volume(stats, past, bounds),
        _unknown_songs(stats, bounds),
        _freshness(stats, bounds),
        *(_nulls(column, stats, past, bounds) for column in _columns(stats, past)),
        *([] if stats.duplicates is None else [_duplicates(stats, bounds)]),
    ]
    if scale < bounds.min_plays:
        why = f"quality.min_plays asks for {bounds.min_plays:,} a landing day"
        others = [_unjudged(check.name, check.value, check.detail.partition(" (")[0], why) for check in others]
    return checks + others


def refusal(ds: dt.date, checks: Iterable[BoundCheck]) -> str:
    """The error line for a day: every statistic that is out of bounds, and the remedy. Empty if none is."""
    broken = [check for check in checks if not check.passed]
    if not broken:
        return ""
    accept = ", or --accept-quality to take the day as it is" if all(check.overridable for check in broken) else ""
    details = "; ".join(check.detail for check in broken)
    return f"ds {ds}: {details}: correct the logs and run with --refresh-inputs{accept}"


def accepted_days(rows: Iterable[Row]) -> list[dict[str, float]]:
    """The days that were not refused, oldest first, from rows of `schema.QUALITY_TABLE`."""
    days: dict[dt.date, dict[str, float]] = {}
    refused = set()
    for row in rows:
        days.setdefault(row[DS], {})[row[METRIC]] = row[VALUE]
        if row[PASSED] is False and not row[ACCEPTED_OVERRIDE]:
            refused.add(row[DS])
    return [days[ds] for ds in sorted(days.keys() - refused)]


def _plays(stats: DayStats) -> BoundCheck:
    detail = f"the new log files hold no plays ({stats.rows_read} rows, {stats.ignored} other events)"
    if stats.accepted:
        detail = f"{stats.accepted:,} plays"
    return BoundCheck(ACCEPTED, float(stats.accepted), detail, lower=1.0, overridable=False)


def _rejected(stats: DayStats, bounds: Bounds) -> BoundCheck:
    total, limit = sum(stats.rejected.values()), bounds.max_rejected_share
    share = _share(total, stats.rows_read) or 0.0
    allowed = f"{_percent(share, limit)}, logs.max_rejected_share allows {_bound(limit)}"
    ordered = sorted(stats.rejected.items(), key=lambda item: (-item[1], item[0]))
    reasons = ", ".join(f"{reason} {count}" for reason, count in ordered)
    detail = f"{total} of {stats.rows_read} rows were rejected ({allowed}){': ' if reasons else ''}{reasons}"
    if share > limit and (example := stats.examples.get(ordered[0][0])):
        detail += f"; {ordered[0][0]}: {example}"
    return BoundCheck(REJECTED_SHARE, share, detail, upper=limit)


def _volume(stats: DayStats, past: PastDays, bounds: Bounds) -> BoundCheck:
    name, value = PLAYS_PER_LANDING_DAY, stats.accepted / stats.landing_days
    finding = f"{value:,.0f} plays a landing day"
    median_plays = _trailing_median(past, name)
    if not median_plays:
        return _unjudged(name, value, finding, _too_few_days(past))
    ratio, least, most = value / median_plays, bounds.min_volume_ratio, bounds.max_volume_ratio
    broken = ("min", least) if ratio < least else ("max", most)
    allowed = f"quality.{broken[0]}_volume_ratio allows {broken[1]:g}"
    if least <= ratio <= most:
        allowed = f"quality.min_volume_ratio and max_volume_ratio allow {least:g} to {most:g}"
    days = f"the median of the last {len(past)} published days"
    detail = f"{finding}, {_ratio(ratio, broken[1])} of {median_plays:,.0f}, {days} ({allowed})"
    return BoundCheck(name, value, detail, lower=least * median_plays, upper=most * median_plays)


def _unknown_songs(stats: DayStats, bounds: Bounds) -> BoundCheck:
    name, limit = UNKNOWN_SONG_SHARE, bounds.max_unknown_song_share
    share = _share(stats.unknown_plays, stats.accepted)
    if share is None:
        return _unjudged(name, None, "all songs are new", "a first build")
    setting = f"quality.max_unknown_song_share allows {_bound(limit)}"
    return _share_check(name, share, "of plays are of songs unknown before this day", setting, limit)


def _freshness(stats: DayStats, bounds: Bounds) -> BoundCheck:
    age = stats.day_start - (stats.newest or 0)
    finding = f"the newest play is {age / 3600:.1f} h older than ds 00:00"
    detail = f"{finding} ({age:,} s, quality.max_age_s allows {bounds.max_age_s:,})"
    return BoundCheck(NEWEST_PLAY_AGE_S, float(age), detail, upper=float(bounds.max_age_s))


def _nulls(column: str, stats: DayStats, past: PastDays, bounds: Bounds) -> BoundCheck:
    """A column that the logs no longer have counts as one without any value."""
    name = f"{NULL_SHARE}{column}"
    share = stats.nulls.get(column, stats.rows_read) / stats.rows_read
    median_share = _trailing_median(past, name)
    if column in bounds.max_null_shares:
        limit = bounds.max_null_shares[column]
        setting = f"quality.max_null_shares.{column} allows {_bound(limit)}"
    elif column in REQUIRED_COLUMNS:
        limit = bounds.max_null_share
        setting = f"quality.max_null_share allows {_bound(limit)}"
    elif median_share is None:
        return _unjudged(name, share, f"{_percent(share)} of rows have no {column}", _too_few_days(past))
    else:
        limit = median_share + bounds.max_null_rise
        rise = f"quality.max_null_rise allows {_bound(bounds.max_null_rise)}"
        setting = f"{rise} more than the median {_percent(median_share)} of the last {len(past)} published days"
    return _share_check(name, share, f"of rows have no {column}", setting, limit)


def _duplicates(stats: DayStats, bounds: Bounds) -> BoundCheck:
    limit, share = bounds.max_duplicate_share, _share(stats.duplicates, stats.accepted) or 0.0
    setting = f"quality.max_duplicate_share allows {_bound(limit)}"
    return _share_check(DUPLICATE_SHARE, share, "of plays are duplicates", setting, limit)


def _share_check(name: str, share: float, finding: str, setting: str, limit: float) -> BoundCheck:
    return BoundCheck(name, share, f"{_percent(share, limit)} {finding} ({setting})", upper=limit)


def _unjudged(name: str, value: float | None, finding: str, why: str) -> BoundCheck:
    return BoundCheck(name, value, f"{finding} (not judged: {why})")


def _too_few_days(past: PastDays) -> str:
    return f"{len(past)} published days before, {MIN_DAYS} needed"


def _columns(stats: DayStats, past: PastDays) -> list[str]:
    """The columns of the logs, and those of the past days' logs."""
    earlier = {name.removeprefix(NULL_SHARE) for day in past for name in day if name.startswith(NULL_SHARE)}
    return [column for column in (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS) if column in stats.nulls or column in earlier]


def _trailing_median(past: PastDays, name: str) -> float | None:
    """The median of a statistic over the days that have it; None if they are fewer than `MIN_DAYS`."""
    values = [day[name] for day in past if name in day]
    return median(values) if len(values) >= MIN_DAYS else None


def _share(part: int | None, whole: int) -> float | None:
    return part / whole if part is not None and whole else None


def _percent(value: float, bound: float | None = None) -> str:
    """A share as per cent, with the fewest decimals that distinguish it from 0 and from its bound.

    >>> _percent(0.7, 0.25), _percent(0.2504, 0.25), _percent(0.0004), _percent(0.0)
    ('70%', '25.04%', '0.04%', '0%')
    """
    texts = [f"{value:.{places}%}" for places in range(6)]
    others = [f"{other:.{places}%}" for places in range(6) for other in (0.0, bound) if other not in (None, value)]
    return next((text for text in texts if text not in others), texts[0])


def _ratio(value: float, bound: float) -> str:
    """A ratio with the fewest decimals, two at least, that distinguish it from its bound."""
    texts = [f"{value:.{places}f}" for places in range(2, 7)]
    return next((text for text in texts if value == bound or float(text) != bound), texts[0])


def _bound(share: float) -> str:
    return f"{100 * share:g}%"
