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
        gates = apply_gates(measured["metrics"], config=day.config.gates, recent=recent_bests(day))
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


def apply_gates(metrics: "Metrics", *, config: GatesConfig, recent: Mapping[dt.date, float]) -> list[Gate]:
    """The gates on `config.metric` over all listeners. recent: the chosen model's value on each recent day."""
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
    if recent:
        best_day = max(recent, key=lambda ds: (recent[ds], ds))
        what = f"best of {len(recent)} days, {best_day}"
        gates.append(_within("near_recent_best", value, recent[best_day], 2 * config.margin, what))
    return gates


def _within(gate: str, value: float, reference: float, margin: float, what: str) -> Gate:
    """At most the margin, a share, below a reference."""
    least = reference * (1 - margin)
    return Gate(gate, value >= least, f"{value:.4f}, at least {least:.4f} ({what} {reference:.4f} less {margin:.0%})")


def recent_bests(day: Day) -> dict[dt.date, float]:
    """The gate's metric of the model chosen on each of the last `best_of_days` days, where it was measured."""
    gates = day.config.gates
    since, protocol = day.ds - dt.timedelta(days=gates.best_of_days), day.config.train.protocol
    rows = delta_tables.read_days(day.workspace.metrics, since=since, before=day.ds)
    values = {
        (row[DS], row[MODEL_VERSION]): row[VALUE]
        for row in rows
        if row[METRIC] == gates.metric and row[SLICE] == "all" and row[PROTOCOL] == protocol
    }
    bests = {}
    for ds in sorted({ds for ds, _ in values}):
        earlier = day.at(ds)
        chosen = earlier.record.chosen_model if earlier.has_record else None
        value = values.get((ds, chosen)) if chosen else None
        if value is not None and math.isfinite(value):
            bests[ds] = value
    return bests
