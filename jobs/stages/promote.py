"""`fuxi promote`: the gates decide which model version serves a day, and the run record keeps the decision.

recommend reads the version from the run record, never from an alias, so running a day again serves the same model.
"""

import datetime as dt
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from jobs.config import GatesConfig
from jobs.day import Day, StageResult
from jobs.registry import versions
from jobs.stages.evaluate import BASELINES
from pipelines import delta_tables
from pipelines.errors import InputError
from pipelines.schema import DS, METRIC, MODEL_VERSION, PROTOCOL, SLICE, VALUE

if TYPE_CHECKING:
    from fuxi_beta.evaluation.protocol import Metrics


@dataclass(frozen=True)
class Gate:
    """One condition on the challenger, and whether it was met."""

    gate: str
    passed: bool
    detail: str


def run(day: Day) -> StageResult:
    """Apply the gates and write the chosen version into the run record; deterministic for a run record.

    Returns chosen (None: no model may serve), chosen_ds, alias_moved, reason and the gates.
    """
    champion = versions.champion(day)
    trained, measured = day.result("train"), day.result("evaluate")
    gates: list[Gate] = []
    if trained is not None and measured is not None:
        gates = apply_gates(measured["metrics"], config=day.config.gates, recent=recent_days(day))
    passed = bool(gates) and all(gate.passed for gate in gates)
    if passed and trained is not None:
        version = str(trained["model_version"])
        reason = "the challenger passed every gate"
        moved = versions.promote(day, version)
        chosen, chosen_ds = version, versions.version_info(day, version).ds
    else:
        reason, moved = _refusal(trained, measured, gates), False
        chosen, chosen_ds = (champion.version, champion.ds) if champion else (None, None)
        reason += f"; version {chosen} of {chosen_ds} serves" if champion else "; there is no champion to serve instead"
    versions.withdraw_promotions(day, but=chosen)
    day.update_record(chosen_model=chosen, chosen_reason=reason)
    return {
        "chosen": chosen,
        "chosen_ds": str(chosen_ds) if chosen_ds else None,
        "alias_moved": moved,
        "reason": reason,
        "gates": [asdict(gate) for gate in gates],
    }


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


def apply_gates(metrics: "Metrics", *, config: GatesConfig, recent: Mapping[dt.date, RecentDay]) -> list[Gate]:
    """The gates on `config.metric` over all listeners. recent: what was measured on earlier days."""
    challenger = metrics["challenger"]["all"]
    if config.metric not in challenger:
        raise InputError(f"gates.metric {config.metric!r} was not measured: use one of {', '.join(sorted(challenger))}")
    value = challenger[config.metric]
    bad = sorted(name for name, number in challenger.items() if number is None or not math.isfinite(number))
    gates = [Gate("finite", not bad, f"not finite: {', '.join(bad)}" if bad else f"{len(challenger)} metrics")]
    if bad:
        return gates
    popularity = metrics["popularity"]["all"][config.metric]
    gates.append(
        Gate("beats_popularity", value > popularity, f"{config.metric} {value:.4f}, popularity {popularity:.4f}")
    )
    if "champion" in metrics:
        champion = metrics["champion"]["all"][config.metric]
        gates.append(_within("near_champion", value, champion, config.margin, "champion"))
    baselines = {name: metrics[name]["all"].get(config.metric, math.nan) for name in BASELINES if name in metrics}
    gates += _near_recent_best(RecentDay(value, _finite(baselines)), recent, 2 * config.margin)
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


def _finite(values: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if value is not None and math.isfinite(value)}


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
        earlier, finite = day.at(ds), _finite(measured)
        chosen = earlier.record.chosen_model if earlier.has_record else None
        if chosen in finite:
            found[ds] = RecentDay(finite[chosen], {name: finite[name] for name in BASELINES if name in finite})
    return found
