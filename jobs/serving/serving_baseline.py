"""When a baseline serves a day in place of the model: where it is significantly better, until the model is ahead.

Shapes: `U` listeners measured.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.serving.baselines import BASELINES, LABELS, POPULARITY

if TYPE_CHECKING:
    from fuxi_beta.evaluation.protocol import Metrics

_SEED, _DRAWS = 1, 1000

Lead = Mapping[str, Any]
"""Of the best baseline over a model, by the gates' metric: baseline, mean, and its 95 % interval low to high."""


def leads_over_models(values: Mapping[str, np.ndarray], *, models: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Model -> the lead of the baseline with the highest mean, by a paired bootstrap over listeners.

    values: recommender -> a metric of each listener, [U], the same listeners in the same order. Without any (under
    leave_one_out) nothing is compared.
    """
    from fuxi_beta.evaluation.statistics import paired_difference

    means = {name: float(values[name].mean()) for name in BASELINES if name in values}
    if not means:
        return {}
    best, found = max(means, key=means.__getitem__), {}
    for name in (name for name in models if name in values):
        lead = paired_difference(values[best][None], values[name][None], seed=_SEED, draws=_DRAWS)
        found[name] = {"baseline": best, "mean": lead.mean, "low": lead.low, "high": lead.high}
    return found


def serves_instead(lead: Lead | None, *, before: str | None) -> str | None:
    """The baseline that serves a day in place of the model that was chosen; None if the model serves.

    lead: over that model; None where nobody was measured, and then it stays as it was. before: the baseline that
    served the last day. A baseline takes over where its whole interval is above 0, and the best one stays as long as
    it is ahead at all, so that lists do not switch back and forth by chance.
    """
    if lead is None:
        return before
    ahead = lead["low"] > 0 or (before is not None and lead["mean"] > 0)
    return str(lead["baseline"]) if ahead else None


def best_baseline(metrics: "Metrics", metric: str) -> str:
    """The baseline with the highest value over all listeners; popularity if none was measured."""
    values = baseline_values(metrics, metric)
    return max(values, key=values.__getitem__, default=POPULARITY)


def baseline_values(metrics: "Metrics", metric: str) -> dict[str, float]:
    """Baseline -> its value over all listeners, of those that have one."""
    return finite({name: metrics[name]["all"].get(metric) for name in BASELINES if name in metrics})


def finite(values: Mapping[str, float | None]) -> dict[str, float]:
    """Those that are numbers."""
    return {name: value for name, value in values.items() if value is not None and math.isfinite(value)}


def lists_of(baseline: str) -> str:
    """What a baseline serves, in words."""
    return "popular songs" if baseline == POPULARITY else f"lists of {LABELS[baseline]}"
