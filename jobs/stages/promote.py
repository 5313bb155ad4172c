"""`fuxi promote`: the gates decide which model version is the day's, and whether a baseline serves in its place.

recommend reads both from the run record, never from an alias, so running a day again serves the same lists.
"""

import datetime as dt
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from jobs.config import GatesConfig
from jobs.day import Day, StageResult
from jobs.registry import steering, versions
from jobs.serving.baselines import BASELINES, POPULARITY
from jobs.serving.serving_baseline import baseline_values, best_baseline, finite, lists_of, serves_instead
from jobs.tables.metrics import CHALLENGER, CHAMPION
from pipelines import delta_tables
from pipelines.errors import InputError
from pipelines.schema import DS, METRIC, MODEL_VERSION, PROTOCOL, SLICE, VALUE

if TYPE_CHECKING:
    from fuxi_beta.evaluation.protocol import Metrics

ABOVE_FLOOR = "above_floor"
"""The gate against the last full retrain."""


@dataclass(frozen=True)
class Gate:
    """One condition on the challenger, and whether it was met."""

    gate: str
    passed: bool
    detail: str


def run(day: Day) -> StageResult:
    """Apply the gates and write what serves into the run record.

    Returns chosen (the day's model version; None: no model may serve), chosen_ds, baseline (that serves in its place;
    None: the model does, or popular songs where there is none), alias_moved, reason, the gates, and full_retrain (why
    the next training shall start from nothing, "" if it need not).
    """
    champion = versions.champion(day)
    trained, measured = day.result("train"), day.result("evaluate")
    gates: list[Gate] = []
    if trained is not None and measured is not None:
        gates = apply_gates(measured, config=day.config.gates, recent=recent_days(day))
        gates += _not_withdrawn(day, str(trained["model_version"]))
    fixed = steering.pinned(day)
    passed = bool(gates) and all(gate.passed for gate in gates) and not fixed
    if fixed:
        chosen, chosen_ds, moved, reason = fixed.version, fixed.ds, False, f"version {fixed.version} is pinned"
    elif passed and trained is not None:
        version = str(trained["model_version"])
        reason = "the challenger passed every gate"
        moved = versions.promote(day, version)
        chosen, chosen_ds = version, versions.version_info(day, version).ds
    else:
        reason, moved = _refusal(trained, measured, gates), False
        chosen, chosen_ds = (champion.version, champion.ds) if champion else (None, None)
        reason += f"; version {chosen} of {chosen_ds} serves" if champion else "; there is no champion to serve instead"
    versions.withdraw_promotions(day, but=chosen)
    serving = (None, "") if fixed else _serving_baseline(day, measured, CHALLENGER if passed else CHAMPION, chosen)
    baseline, why = serving
    reason += f"; {why}" if why else ""
    day.update_record(chosen_model=chosen, chosen_baseline=baseline, chosen_reason=reason)
    return {
        "chosen": chosen,
        "chosen_ds": str(chosen_ds) if chosen_ds else None,
        "baseline": baseline,
        "alias_moved": moved,
        "reason": reason,
        "gates": [asdict(gate) for gate in gates],
        "full_retrain": _asks_for_full_retrain(day, trained, gates),
    }


def _not_withdrawn(day: Day, version: str) -> list[Gate]:
    """A gate that fails, of a version that an operator took out of service; no gate of any other."""
    withdrawn = versions.version_info(day, version).withdrawn
    return [Gate("not_withdrawn", False, f"version {version} was rolled back on {withdrawn}")] if withdrawn else []


def _serving_baseline(day: Day, measured: StageResult | None, model: str, chosen: str | None) -> tuple[str | None, str]:
    """The baseline that serves in place of a model, and why; None and "" if the model serves.

    model: challenger or champion, whichever was chosen. chosen: its version. Without one the best baseline serves.
    """
    config = day.config.gates
    if not config.serve_baseline:
        return None, ""
    before = _served_before(day)
    if chosen is None:
        best = best_baseline(measured["metrics"], config.metric) if measured else before or POPULARITY
        return (None, "") if best == POPULARITY else (best, f"{lists_of(best)} serve")
    lead = (measured or {}).get("comparisons", {}).get(model)
    baseline = serves_instead(lead, before=before)
    if baseline is None:
        return None, ""
    if lead is None:
        return baseline, f"{lists_of(baseline)} serve as on the day before, nothing was measured since"
    return baseline, (
        f"{lists_of(baseline)} serve until the model is better: {config.metric} {lead['mean']:.4f} above version "
        f"{chosen}, 95 % interval {lead['low']:.4f} to {lead['high']:.4f}"
    )


def _served_before(day: Day) -> str | None:
    """The baseline that served the last day before this one; None if a model did, or nothing."""
    before = [ds for ds in day.workspace.days("runs") if ds < day.ds]
    decided = (day.at(ds).result("promote") for ds in reversed(before))
    last = next((result for result in decided if result), None)
    return last.get("baseline") if last else None


def _asks_for_full_retrain(day: Day, trained: StageResult | None, gates: list[Gate]) -> str:
    """Why the next training shall start from nothing. What was asked for stands until a training has done it."""
    below = next((gate for gate in gates if gate.gate == ABOVE_FLOOR and not gate.passed), None)
    if below:
        return f"the challenger of {day.ds} was below gates.floor: {below.detail}"
    return "" if trained else day.record.full_retrain or ""


def _refusal(trained: StageResult | None, measured: StageResult | None, gates: list[Gate]) -> str:
    if trained is None:
        return "training did not finish"
    if measured is None:
        return "evaluation did not finish"
    return "the challenger failed: " + ", ".join(gate.gate for gate in gates if not gate.passed)


@dataclass(frozen=True)
class RecentDay:
    """The gates' metric over all listeners of an earlier day: the model that served it, and its baselines."""

    served: float
    baselines: Mapping[str, float]


def apply_gates(measured: StageResult, *, config: GatesConfig, recent: Mapping[dt.date, RecentDay]) -> list[Gate]:
    """The gates on `config.metric` over all listeners.

    measured: what evaluate returned. recent: what was measured on earlier days.
    """
    metrics: Metrics = measured["metrics"]
    challenger = metrics[CHALLENGER]["all"]
    if config.metric not in challenger:
        raise InputError(f"gates.metric {config.metric!r} was not measured: use one of {', '.join(sorted(challenger))}")
    value = challenger[config.metric]
    bad = sorted(name for name, number in challenger.items() if number is None or not math.isfinite(number))
    gates = [Gate("finite", not bad, f"not finite: {', '.join(bad)}" if bad else f"{len(challenger)} metrics")]
    if bad:
        return gates
    popularity = metrics[POPULARITY]["all"][config.metric]
    gates.append(
        Gate("beats_popularity", value > popularity, f"{config.metric} {value:.4f}, popularity {popularity:.4f}")
    )
    if CHAMPION in metrics:
        champion = metrics[CHAMPION]["all"][config.metric]
        gates.append(_within("near_champion", value, champion, config.margin, "champion"))
    today = RecentDay(value, baseline_values(metrics, config.metric))
    gates += _near_recent_best(today, recent, 2 * config.margin)
    share = measured.get("of_reference", {}).get(CHALLENGER)
    if share is not None:
        version = measured["versions"][measured["reference"]]
        detail = f"{share:.1%} of the last full retrain, version {version}, at least {config.floor:.0%}"
        gates.append(Gate(ABOVE_FLOOR, share >= config.floor, detail))
    return gates


def _near_recent_best(today: RecentDay, recent: Mapping[dt.date, RecentDay], margin: float) -> list[Gate]:
    """The gate against the best earlier day; none where no day can be compared.

    A value says how good a model is and how hard its day. Baselines are measured on the same listeners, so a model's
    value as a multiple of their mean says the former: an easy day does not lock out the models of the days after it.
    """
    shares = {}
    for ds, then in recent.items():
        common = [name for name in then.baselines if name in today.baselines]
        before, now = (sum(day.baselines[name] for name in common) for day in (then, today))
        if before > 0 and now > 0 and then.served > 0:
            shares[ds] = (today.served / now) / (then.served / before)
    if not shares:
        return []
    best = min(shares, key=lambda ds: (shares[ds], -ds.toordinal()))
    detail = (
        f"relative to each day's baselines {shares[best]:.1%} of what served {best}, the best of {len(shares)} days, "
        f"at least {1 - margin:.0%}"
    )
    return [Gate("near_recent_best", shares[best] >= 1 - margin, detail)]


def _within(gate: str, value: float, reference: float, margin: float, what: str) -> Gate:
    """At most the margin, a share, below a reference."""
    least = reference * (1 - margin)
    return Gate(gate, value >= least, f"{value:.4f}, at least {least:.4f} ({what} {reference:.4f} less {margin:.0%})")


def recent_days(day: Day) -> dict[dt.date, RecentDay]:
    """Each of the last `best_of_days` days on which the model that served was measured."""
    gates = day.config.gates
    since, protocol = day.ds - dt.timedelta(days=gates.best_of_days), day.config.train.protocol
    rows = delta_tables.read_days(day.workspace.metrics, since=since, before=day.ds)
    values: dict[dt.date, dict[str, float]] = {}
    for row in rows:
        if row[METRIC] == gates.metric and row[SLICE] == "all" and row[PROTOCOL] == protocol:
            values.setdefault(row[DS], {})[row[MODEL_VERSION]] = row[VALUE]
    found = {}
    for ds, measured in sorted(values.items()):
        earlier, numbers = day.at(ds), finite(measured)
        chosen = earlier.record.chosen_model if earlier.has_record else None
        if chosen in numbers:
            found[ds] = RecentDay(numbers[chosen], {name: numbers[name] for name in BASELINES if name in numbers})
    return found
