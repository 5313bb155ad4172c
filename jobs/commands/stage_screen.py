"""What a stage that is run alone says of its result, for people; `--json` has all of it."""

from collections.abc import Callable, Mapping
from typing import Any

from fuxi_beta.evaluation.metrics import METRICS, metric_title
from jobs.day import Day, StageResult
from jobs.report.metrics import RECOMMENDERS
from jobs.runtime.screen import Screen, screen

FACTS: dict[str, dict[str, str]] = {
    "sessionize": {
        "rows_read": "rows read",
        "accepted": "plays accepted",
        "duplicates": "repeated plays",
        "ignored": "other events",
        "forgotten": "rows of forgotten listeners",
        "listeners": "listeners",
        "events": "plays kept",
        "songs": "songs",
        "new_songs": "new songs",
    },
    "train": {
        "model_version": "model version",
        "warm_started_from": "started from version",
        "epochs": "epochs",
        "steps": "steps",
        "final_loss": "loss of the last epoch",
        "events_per_s": "events per second",
        "candidates": "songs it can list",
        "kernels": "kernels",
    },
    "evaluate": {"protocol": "protocol", "listeners": "listeners measured", "excluded": "listeners left out"},
    "promote": {"chosen": "model version that serves", "baseline": "baseline that serves", "reason": "reason"},
    "recommend": {
        "listeners": "lists",
        "model_lists": "from the model",
        "baseline_lists": "from the baseline",
        "popular_lists": "popular songs",
        "model_version": "model version",
        "coverage": "share of songs in any list",
        "top_share": "share of lists with the top song",
        "delta_version": "version of the table",
    },
    "report": {"uri": "page"},
}
"""The figures that are shown of each stage, and what they are called; of any other stage all plain ones are."""


def render(day: Day, name: str, result: StageResult, shown: Screen | None = None) -> None:
    """Print the summary of a stage of a day."""
    shown = shown or screen()
    done = "was done before (--force runs it again)" if result.get("skipped") else f"took {day.timings[name]:,.1f} s"
    shown.say(f"{name} of {day.ds} {done}", style="bold", indent=2)
    labels = FACTS.get(name) or {key: key.replace("_", " ") for key, value in result.items() if _plain(value)}
    for key, label in labels.items():
        if result.get(key) not in (None, "", []) and key != "skipped":
            shown.say(f"  {label}: {_text(result[key])}", indent=4)
    if table := _TABLES.get(name):
        table(shown, result)


def render_facts(title: str, result: Mapping[str, Any], shown: Screen | None = None) -> None:
    """Print what a command that is no stage has done: plain figures by their keys, counts within one as a table."""
    shown = shown or screen()
    shown.say(title, style="bold", indent=2)
    for key, value in result.items():
        name = key.replace("_", " ")
        if isinstance(value, Mapping):
            if rows := [(str(what), f"{count:,}") for what, count in value.items()]:
                shown.table((name.capitalize(), "Rows"), rows, right=("Rows",), wrapped=(name.capitalize(),))
        elif value not in (None, "", []):
            shown.say(f"  {name}: {_text(value)}", indent=4)


def _plain(value: object) -> bool:
    return isinstance(value, str | int | float)


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.4f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _rejected(shown: Screen, result: StageResult) -> None:
    rows = [(reason, f"{count:,}") for reason, count in result.get("rejected", {}).items() if count]
    if rows:
        shown.table(("Rejected as", "Rows"), rows, right=("Rows",), wrapped=("Rejected as",))


def _hits(shown: Screen, result: StageResult) -> None:
    days = result.get("days", ())
    if not days:
        shown.say("  no lists of earlier days have new plays to be measured by", indent=4)
        return
    ranking = [name for name in days[0] if name.partition("_")[0] in METRICS]
    names = ["ds", "lists", "played", "hits", "skips", *ranking]
    titles = ["Lists of", "Lists", "Listeners who played", "Hits", "Skips", *map(metric_title, ranking)]
    rows = [[_text(day.get(name, "")) for name in names] for day in days]
    shown.table(titles, rows, right=titles[1:], wrapped=titles[2:3])


def _metrics(shown: Screen, result: StageResult) -> None:
    metrics: dict[str, Any] = result.get("metrics", {})
    names = [name for name in next(iter(metrics.values()), {}).get("all", {}) if name in _SHOWN]
    versions = result.get("versions", {})
    rows = []
    for recommender in sorted(metrics, key=lambda name: [*RECOMMENDERS, name].index(name)):
        version = f", version {versions[recommender]}" if recommender in versions else ""
        values = metrics[recommender].get("all", {})
        label = f"{RECOMMENDERS.get(recommender, recommender)}{version}"
        rows.append((label, *(_text(values[name]) if values.get(name) is not None else "" for name in names)))
    titles = [metric_title(name) for name in names]
    if rows:
        shown.table(("Recommender", *titles), rows, right=titles, wrapped=("Recommender",))


def _checks(key: str, what: str) -> Callable[[Screen, StageResult], None]:
    def table(shown: Screen, result: StageResult) -> None:
        rows = [
            (str(check[what]).replace("_", " "), "pass" if check["passed"] else "FAIL", check["detail"])
            for check in result.get(key, ())
        ]
        if rows:
            shown.table((what.capitalize(), "Result", "Found"), rows, wrapped=(what.capitalize(), "Found"))

    return table


_SHOWN = ("ndcg_30", "ndcg_10", "hr_30", "hr_10", "recall_30", "mrr", "coverage_30")
_TABLES: dict[str, Callable[[Screen, StageResult], None]] = {
    "sessionize": _rejected,
    "hits": _hits,
    "evaluate": _metrics,
    "promote": _checks("gates", "gate"),
    "recommend": _checks("audit", "check"),
}
