"""Every value of the day's page, from the stage markers, the Delta tables and the shards."""

import datetime as dt
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from fuxi_beta.evaluation.metrics import metric_title
from jobs.day import STAGES, Day, RunRecord, StageMarker, StageResult
from jobs.report.charts import loss_chart, temporal_chart, trend_chart
from jobs.report.examples import example_lists
from jobs.report.hits import hits_section
from jobs.report.list_quality import list_quality_section
from jobs.report.metrics import RECOMMENDERS, Below, below_baseline, headline_metric, metric_tables
from jobs.report.quality import like_days, quality_lines, trailing_chart
from jobs.report.rejected import judged_counts, rejected_rows
from jobs.serving.baselines import POPULARITY
from jobs.serving.serving_baseline import lists_of
from jobs.status import measured_as, served_by
from jobs.tables.metrics import CHALLENGER, OF_REFERENCE
from pipelines import delta_tables, storage
from pipelines.schema import DS, METRIC, MODEL_VERSION, PROTOCOL, SLICE, VALUE

SHOWN_STAGES = STAGES[: STAGES.index("report")]
ENDING_STAGES = ("sessionize", "promote", "recommend")
"""Stages whose refusal ends a day."""
TREND_DAYS = 28
Stages = dict[str, StageMarker]
"""Markers of finished stages by name."""

Results = Mapping[str, StageResult]
"""What finished stages returned, by name."""


@dataclass(frozen=True)
class Status:
    """How the day went.

    level: good, held (the gates kept the champion, a baseline serves in the model's place, the model is below one, or
    the input broke its bounds and was accepted), degraded, missing (nothing published).
    """

    level: str
    headline: str
    notes: tuple[str, ...]


def content(day: Day) -> dict[str, Any]:
    """Every value of the page. InputError if no stage of the ds was ever run."""
    stages = finished(day)
    results = {name: marker["result"] for name, marker in stages.items()}
    before = day.at(day.ds - dt.timedelta(days=1))
    earlier = finished(before)
    train, measured = results.get("train", {}), results.get("evaluate", {})
    metrics = measured.get("metrics", {})
    headline = headline_metric(day.config.gates.metric, metrics)
    protocol = measured.get("protocol", day.config.train.protocol)
    trend = metric_trend(day, metric=headline, protocol=protocol)
    gap = metric_trend(day, metric=f"{headline}{OF_REFERENCE}", protocol=protocol)
    quality = _last_days(day, day.workspace.quality)
    judged = {row[METRIC]: row[VALUE] for row in quality if row[DS] == day.ds}
    logs, served = results.get("sessionize", {}), measured_as(day, served_by(day, results), results)
    below = below_baseline(measured, headline, "all", served) if "recommend" in results else None
    read = logs.get("rows_read") or judged.get("rows_read") or 0
    examples, no_examples = example_lists(day) if "recommend" in results else ((), "nothing is published for this day")
    return {
        "day": day,
        "record": day.record,
        "results": results,
        "status": day_status(day, results, _flag(below, metric_title(headline))),
        "previous": _page_before(day),
        "earlier": {name: marker["result"] for name, marker in earlier.items()},
        "timing": timing(stages, earlier),
        "headline": metric_title(headline),
        "served": served,
        "headline_values": {n: values.get("all", {}).get(headline) for n, values in metrics.items()},
        "recommenders": RECOMMENDERS,
        "metric_tables": metric_tables(measured, headline, served),
        "rejected": rejected_rows(day, logs.get("rejected") or judged_counts(judged), read),
        "usual": like_days(quality, day.ds),
        "quality": quality_lines(quality, day.ds),
        "quality_values": judged,
        "quality_days": len({row[DS] for row in quality}),
        "quality_chart": trailing_chart(quality),
        "loss": loss_chart(train.get("loss_curve", ()), epochs=train.get("epochs")),
        "temporal": temporal_chart(train.get("temporal", ())),
        "trend": trend_chart(trend, labels=RECOMMENDERS),
        "trend_days": len({ds for values in trend.values() for ds in values}),
        "gap": trend_chart(gap, labels=RECOMMENDERS, name="gap"),
        "floor": day.config.gates.floor,
        "list_quality": list_quality_section(day, _last_days(day, day.workspace.list_quality)),
        "hits": hits_section(day, days=TREND_DAYS),
        "examples": examples,
        "no_examples": no_examples,
    }


def finished(day: Day) -> Stages:
    """The markers of the stages that finished under the run record, without the report's own."""
    return {name: marker for name in SHOWN_STAGES if (marker := day.marker(name))}


def _page_before(day: Day) -> dt.date | None:
    """The newest earlier day with a page."""
    earlier = (ds for ds in reversed(day.workspace.days("reports")) if ds < day.ds)
    return next((ds for ds in earlier if storage.exists(day.workspace.report(ds))), None)


def _flag(below: Below | None, metric: str) -> str:
    """What to say at the top of a day whose model is significantly below a baseline."""
    if below is None or below.lead is None or not below.lead.verdict:
        return ""
    lead = below.lead
    return (
        f"The model that serves is below {RECOMMENDERS[below.baseline]} in {metric} on the same listeners: by "
        f"{lead.mean:.4f}, 95 % interval {lead.low:.4f} to {lead.high:.4f}."
    )


def day_status(day: Day, results: Results, flag: str = "") -> Status:
    """Whether the day is published, by which model. A missing stage makes a day degraded; a failed gate does not.

    flag: what is wrong with the model that serves; its day is not good.
    """
    missing = _missing_stages(day, results)
    if "recommend" not in results:
        return Status("missing", f"Nothing is published for {day.ds}", tuple(missing))
    record = day.record
    own = record.chosen_model is not None and record.chosen_model == results.get("train", {}).get("model_version")
    held = [gate for gate in results.get("promote", {}).get("gates", ()) if not gate["passed"]]
    accepted = results.get("sessionize", {}).get("accepted_quality", ())
    notes = list(missing)
    if accepted:
        notes.append(f"The input broke its bounds and was taken with --accept-quality: {'; '.join(accepted)}.")
    if held or record.chosen_baseline or not (own or missing):
        notes.append(_sentence(record.chosen_reason))
    level, headline = _level(record, missing=bool(missing), own=own, accepted=bool(accepted))
    if flag:
        level = "held" if level == "good" else level
        notes.append(flag)
    return Status(level, headline, () if level == "good" else tuple(notes))


def _level(record: RunRecord, *, missing: bool, own: bool, accepted: bool) -> tuple[str, str]:
    """`Status.level` and `Status.headline` of a published day. own: the day's model is the one trained for it."""
    version = f"version {record.chosen_model}"
    if record.chosen_model is None:
        lists = lists_of(record.chosen_baseline or POPULARITY)
        return "degraded", f"Published, degraded: {lists} for everyone, no model serves"
    if missing:
        serves = f"{lists_of(record.chosen_baseline)} serve" if record.chosen_baseline else f"{version} serves"
        return "degraded", f"Published, degraded: {serves}"
    if record.chosen_baseline:
        return "held", f"Published with {lists_of(record.chosen_baseline)}, in place of {version}"
    if not own:
        return "held", f"Published with {version}: the challenger was held back"
    if accepted:
        return "held", f"Published with {version}, from input that broke its bounds"
    return "good", f"Published with {version}, trained for this day"


def _missing_stages(day: Day, results: Results) -> list[str]:
    """A sentence for each stage that did not finish, and one for refused input."""
    stale, notes = day.stale_days, []
    if stale:
        age = f"{stale} day{'s' if stale > 1 else ''} old"
        why = _sentence(day.failure("sessionize") or "no reason was noted")
        notes.append(f"The input of this day was refused; the sequences of {day.sequences_ds} serve, {age}. {why}")
        notes.append("Training and evaluation were skipped: there is no new sequence to learn from.")
    expected = [name for name in SHOWN_STAGES if not (stale and name in ("sessionize", "hits", "train", "evaluate"))]
    refused = next((name for name in expected if name in ENDING_STAGES and day.failure(name)), expected[-1])
    for name in expected[: expected.index(refused) + 1]:  # those behind it were not begun
        if name in results or (name == "hits" and day.failure(name) is None):  # days of earlier releases lack it
            continue
        if name == "evaluate" and "train" not in results:
            notes.append("Evaluation was skipped: there is no newly trained model.")
            continue
        why = day.failure(name)
        notes.append(f"The stage {name} did not finish. {_sentence(why) if why else ''}".strip())
    return notes


def _sentence(text: str) -> str:
    text = " ".join(text.split())
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"


def metric_trend(day: Day, *, metric: str, protocol: str) -> dict[str, dict[dt.date, float]]:
    """A metric over all listeners on the last days up to this one: recommender -> ds -> value."""
    wanted = {METRIC: metric, SLICE: "all", PROTOCOL: protocol}
    rows = [row for row in _last_days(day, day.workspace.metrics) if wanted.items() <= row.items()]
    days = sorted({row[DS] for row in rows})
    with ThreadPoolExecutor(8) as pool:
        names = dict(zip(days, pool.map(lambda ds: _names_of_versions(day.at(ds)), days), strict=True))
    trend: dict[str, dict[dt.date, float]] = {}
    for row in rows:
        version = row[MODEL_VERSION]
        name = version if version in RECOMMENDERS else names[row[DS]].get(version)
        if name:
            trend.setdefault(name, {})[row[DS]] = row[VALUE]
    return trend


def _names_of_versions(day: Day) -> dict[str, str]:
    """What model versions were on a day: the table of metrics names versions."""
    versions = (day.result("evaluate") or {}).get("versions")
    if versions is None:  # it is measured anew
        trained = day.result("train")
        return {trained["model_version"]: CHALLENGER} if trained else {}
    return {version: name for name, version in versions.items()}


def _last_days(day: Day, table_uri: str) -> list[delta_tables.Row]:
    since, end = day.ds - dt.timedelta(days=TREND_DAYS - 1), day.ds + dt.timedelta(days=1)
    return delta_tables.read_days(table_uri, since=since, before=end)


def timing(stages: Stages, earlier: Stages) -> dict[str, Any]:
    """Seconds of every stage beside those of the day before. share: of the longest stage, the length of the bar."""
    took = {name: marker["seconds"] for name, marker in stages.items()}
    longest = max(took.values(), default=0.0)
    rows = [
        {
            "stage": name,
            "seconds": took.get(name),
            "before": earlier[name]["seconds"] if name in earlier else None,
            "share": took.get(name, 0.0) / longest if longest else 0.0,
            "finished_at": stages[name]["finished_at"] if name in stages else None,
        }
        for name in SHOWN_STAGES
    ]
    return {"rows": rows, "total": sum(took.values()), "slowest": max(took, key=took.__getitem__, default=None)}
