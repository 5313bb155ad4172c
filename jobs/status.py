"""How the days of a workspace stand: what is done, what runs at this moment, and what is out of date by now."""

import datetime as dt
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from jobs.day import STAGES, Day, StageResult, running
from jobs.serving.baselines import POPULARITY
from jobs.serving.serving_baseline import baseline_values
from jobs.tables.metrics import CHALLENGER, CHAMPION

RECENT_DAYS = 7
"""A run says what is out of date of so many days before it."""


@dataclass(frozen=True)
class DayStatus:
    """One serving day."""

    ds: dt.date
    state: str  # published, published stale (from an earlier day's histories), unfinished or running
    done: tuple[str, ...]  # stages
    stale: tuple[str, ...]  # stages to run again: what they are made from ran again, or they did and did not finish
    missing: tuple[str, ...]  # stages that have not finished
    out_of_date: tuple[str, ...]  # what has changed on the days before since, in words
    run_by: str = ""  # who works on it at this moment
    figures: "DayFigures | None" = None


@dataclass(frozen=True)
class DayFigures:
    """What a day took, read and published; None of what its stages have not said."""

    seconds: dict[str, float]  # by stage
    rows: int | None  # of the day's logs
    accepted: int | None
    rejected: int | None
    listeners: int | None  # with a list
    served_by: str | None  # a model version, a baseline or popularity; None: nothing is published
    metric: str  # `gates.metric`
    value: float | None  # of what serves, over all listeners that were measured
    baselines: dict[str, float] = field(default_factory=dict)

    @property
    def rejected_share(self) -> float | None:
        """Rejected rows, of all; None where they are not known."""
        return self.rejected / self.rows if self.rows and self.rejected is not None else None

    @property
    def best_baseline(self) -> tuple[str, float] | None:
        """The baseline with the highest value."""
        return max(self.baselines.items(), key=lambda item: item[1], default=None)


def day_status(day: Day) -> DayStatus:
    """How a day stands, apart from settings: with which configuration it will be run again is not known here."""
    states = {name: day.state(name) for name in STAGES}
    stale = [name for name, state in states.items() if state.stages or _begun_again(day, name)]
    done = [name for name, state in states.items() if state.finished and name not in stale]
    held = running(day.workspace, [day.ds])
    state = "running" if held else published_as(day) or "unfinished"
    missing = tuple(name for name in STAGES if name not in (*done, *stale))
    return DayStatus(
        ds=day.ds,
        state=state,
        done=tuple(done),
        stale=tuple(stale),
        missing=missing,
        out_of_date=tuple(out_of_date(day)),
        run_by=held[1] if held else "",
        figures=day_figures(day),
    )


def published_as(day: Day) -> str | None:
    """Of a day with lists: published, or published stale, from an earlier day's histories; None of another."""
    if day.marker("recommend") is None:
        return None
    return "published stale" if day.stale_days else "published"


def day_figures(day: Day) -> DayFigures:
    """What the markers of a day say."""
    markers = {name: marker for name in STAGES if (marker := day.marker(name))}
    results: dict[str, StageResult] = {name: marker["result"] for name, marker in markers.items()}
    logs, lists = results.get("sessionize", {}), results.get("recommend")
    rejected = logs.get("rejected")
    metric = day.config.gates.metric
    metrics = results.get("evaluate", {}).get("metrics", {})
    served = served_by(day, results)
    return DayFigures(
        seconds={name: marker["seconds"] for name, marker in markers.items()},
        rows=logs.get("rows_read"),
        accepted=logs.get("accepted"),
        rejected=sum(rejected.values()) if rejected is not None else None,
        listeners=lists.get("listeners") if lists is not None else None,
        served_by=served,
        metric=metric,
        value=metrics.get(measured_as(day, served, results), {}).get("all", {}).get(metric) if served else None,
        baselines=baseline_values(metrics, metric),
    )


def served_by(day: Day, results: Mapping[str, StageResult]) -> str | None:
    """The model version, or the baseline, that a day's lists are from; None if nothing is published."""
    lists = results.get("recommend")
    if lists is None:
        return None
    chosen = day.record.chosen_baseline if day.has_record else None
    return chosen or lists.get("model_version") or POPULARITY


def measured_as(day: Day, served: str | None, results: Mapping[str, StageResult]) -> str:
    """The name under which evaluate measured what serves; the challenger's where nothing does."""
    if served is None or served == results.get("train", {}).get("model_version"):
        return CHALLENGER
    return CHAMPION if served == day.record.chosen_model else served


def _begun_again(day: Day, stage: str) -> bool:
    return day.has_finished_before(stage) and not day.marker(stage)


def out_of_date(day: Day) -> Iterator[str]:
    """What a day was made from that has changed by now, because an earlier day was run again or later than it.

    Such a day is right for what was known then, and stays as it is; run again with `--refresh-inputs`, it is made from
    what there is now.
    """
    if not day.has_record:
        return
    record, sessionized = day.record, day.result("sessionize") or {}
    if record.parent_sequences and (then := sessionized.get("parent_shards")):
        parent = day.at(dt.date.fromisoformat(record.parent_sequences)).result("sessionize") or {}
        if parent.get("shards", then) != then:
            yield f"built on ds {record.parent_sequences}, which has other histories now"
    serving = _serving_before(day)
    if day.marker("train") and serving and not record.full_retrain and (record.parent_model or None) != serving[1]:
        ds, version = serving
        yield f"trained from {_version(record.parent_model)}; {_version(version)} serves ds {ds}"


def _serving_before(day: Day) -> tuple[dt.date, str | None] | None:
    """The newest earlier day with lists, and its model version, whether or not a baseline serves in its place."""
    for ds in reversed(day.workspace.days("runs")):
        other = day.at(ds)
        if ds < day.ds and (lists := other.result("recommend")) is not None:
            return ds, lists.get("model_version") or other.record.chosen_model
    return None


def _version(version: str | None) -> str:
    return f"model {version}" if version else "no model"


def backfill(day: Day) -> list[str]:
    """What to say before a day is built that is older than a day with shards; nothing of any other."""
    days = [ds for ds in day.workspace.days_with_sequences() if ds != day.ds]
    later, earlier = [ds for ds in days if ds > day.ds], [ds for ds in days if ds < day.ds]
    if not later or (day.has_record and day.is_built):
        return []
    base = f"on ds {earlier[-1]}" if earlier else "from all logs that landed before it"
    names = f"ds {later[0]}" + (f" and {len(later) - 1} later" if len(later) > 1 else "")
    return [
        f"ds {day.ds} is older than {names}: it is built {base}; the days after it have its plays already and stay as "
        "they are, in models and lists, too"
    ]


def out_of_date_before(day: Day) -> list[str]:
    """A line for each day of the last week up to this one, and each day after it, that is out of date."""
    since = day.ds - dt.timedelta(days=RECENT_DAYS)
    days = [day.at(ds) for ds in day.workspace.days("runs") if ds >= since]
    found = [(other.ds, reasons) for other in days if (reasons := list(out_of_date(other)))]
    return [
        f"ds {ds} is out of date: {'; '.join(reasons)} (`fuxi daily --ds {ds} --refresh-inputs` makes it again)"
        for ds, reasons in found
    ]
