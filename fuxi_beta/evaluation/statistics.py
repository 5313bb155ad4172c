"""Is one system better than another? Intervals over listeners and over seeds, and agreement of two orders.

A metric differs between seeds of one system by as much as between systems, and between listeners by far more: on 3,000
listeners a difference of NDCG@10 below about .010 is commonly none. Which differences are significant depends on the
listeners, the seeds and how alike two systems are, so the interval decides here and no constant does.

Shapes: `S` seeds of one system, `U` listeners.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np

_BLOCK = 2**24  # resampled weights held at a time: 128 MB


@dataclass(frozen=True)
class Difference:
    """mean(a) - mean(b), its 95 % interval [low, high] and the two-sided p-value of no difference."""

    mean: float
    low: float
    high: float
    p: float
    seeds: tuple[int, int]

    @property
    def detectable(self) -> bool:
        """Whether the interval leaves out zero: if not, the two systems are not to be ranked."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Discordant:
    """A pair that we order otherwise than the paper: there `above` is the better one.

    ours: our difference above - below; paper: theirs.
    """

    above: str
    below: str
    ours: Difference
    paper: float


@dataclass(frozen=True)
class Agreement:
    """tau: Kendall's tau-b (nan below two systems or if all are equal), over `pairs` pairs."""

    tau: float
    pairs: int
    discordant: tuple[Discordant, ...]


def paired_difference(
    a: np.ndarray, b: np.ndarray, *, seed: int, draws: int = 2000, cases: np.ndarray | None = None
) -> Difference:
    """Compare two systems on the same listeners by a bootstrap over listeners and over seeds.

    a, b: a metric of each listener, [S, U] (the numbers of seeds may differ, column u is the same listener). Each draw
    takes listeners with replacement, the same ones for both systems, and seeds with replacement, each system's for
    itself. Deviations by seeds are widened by sqrt(S / (S - 1)), without which few seeds look too much alike. A system
    with one seed adds no uncertainty by seeds: then the interval speaks of that one training.

    cases: [U], where a listener's value is the mean of so many cases (days, say): means are then over cases, and a
    listener's cases are drawn together. Raises ValueError.
    """
    sides = [np.asarray(side, dtype=float) for side in (a, b)]
    if any(side.ndim != 2 or 0 in side.shape for side in sides) or sides[0].shape[1] != sides[1].shape[1]:
        raise ValueError(f"expected two arrays [seeds, the same listeners], got {sides[0].shape} and {sides[1].shape}")
    generator = np.random.default_rng(seed)
    seed_weights = [_seed_weights(generator, len(side), draws) for side in sides]
    listeners = sides[0].shape[1]
    counts = np.ones(listeners) if cases is None else np.asarray(cases, dtype=float)
    if counts.shape != (listeners,) or not (counts > 0).all():
        raise ValueError(f"expected a number of cases above 0 for each of {listeners} listeners, got {counts.shape}")
    differences = np.empty(draws)
    block = max(_BLOCK // listeners, 1)
    for start in range(0, draws, block):
        rows = slice(start, min(start + block, draws))
        weights = _listener_weights(generator, counts, rows.stop - start)
        means = [
            (weights @ side.T * by_seed[rows]).sum(axis=1) for side, by_seed in zip(sides, seed_weights, strict=True)
        ]
        differences[rows] = means[0] - means[1]
    low, high = np.quantile(differences, [0.025, 0.975])
    tail = min((differences <= 0).sum(), (differences >= 0).sum())
    return Difference(
        mean=float(np.average(sides[0].mean(axis=0) - sides[1].mean(axis=0), weights=counts)),
        low=float(low),
        high=float(high),
        p=float(min(1.0, 2 * (tail + 1) / (draws + 1))),
        seeds=(len(sides[0]), len(sides[1])),
    )


def interval_of_each_pair(
    values: Mapping[str, np.ndarray], members: np.ndarray, *, seed: int, draws: int = 1000
) -> dict[tuple[str, str], tuple[float, float, float]]:
    """(a, b) -> mean(a) - mean(b) and its 95 % interval, of each pair of systems, a before b; one training of each.

    values: system -> a metric of each listener, [U], the same listeners in the same order. members: bool [U], the
    listeners of a slice, who are drawn with replacement, the same ones for all systems. Empty without a listener or a
    system.
    """
    names, listeners = list(values), int(members.sum())
    if not listeners or not names:
        return {}
    metric = np.stack([np.asarray(values[name], dtype=float)[members] for name in names], axis=1)
    generator, means, block = np.random.default_rng(seed), [], max(_BLOCK // listeners, 1)
    for start in range(0, draws, block):
        means.append(_listener_weights(generator, np.ones(listeners), min(block, draws - start)) @ metric)
    drawn, mean = np.concatenate(means), metric.mean(axis=0)
    found = {}
    for a, b in combinations(range(len(names)), 2):
        low, high = np.quantile(drawn[:, a] - drawn[:, b], [0.025, 0.975])
        found[names[a], names[b]] = float(mean[a] - mean[b]), float(low), float(high)
    return found


def mean_interval(a: np.ndarray, *, seed: int, draws: int = 2000, cases: np.ndarray | None = None) -> Difference:
    """The mean of one system and its 95 % interval; arguments as of `paired_difference`."""
    return paired_difference(a, np.zeros((1, np.shape(a)[-1])), seed=seed, draws=draws, cases=cases)


def order_agreement(ours: Mapping[str, np.ndarray], paper: Mapping[str, float], *, seed: int) -> Agreement:
    """How far our order of systems is the paper's.

    ours: system -> a metric of each listener, [S, U], as for `paired_difference`; paper: system -> the printed value.
    Systems that only one of the two has are left out. Pairs that one side holds equal count for neither.
    """
    systems = [name for name in ours if name in paper]
    mean = {name: float(np.mean(ours[name])) for name in systems}
    concordant, untied, untied_paper = 0, 0, 0
    discordant = []
    for one, other in combinations(systems, 2):
        above, below = (one, other) if paper[one] >= paper[other] else (other, one)
        mine, theirs = np.sign(mean[above] - mean[below]), np.sign(paper[above] - paper[below])
        untied += mine != 0
        untied_paper += theirs != 0
        concordant += mine * theirs > 0
        if mine * theirs < 0:
            found = paired_difference(ours[above], ours[below], seed=seed)
            discordant.append(Discordant(above, below, found, paper[above] - paper[below]))
    possible = float(np.sqrt(float(untied) * float(untied_paper)))
    tau = (concordant - len(discordant)) / possible if possible else float("nan")
    return Agreement(float(tau), len(systems) * (len(systems) - 1) // 2, tuple(discordant))


def _seed_weights(generator: np.random.Generator, seeds: int, draws: int) -> np.ndarray:
    """The weight of every seed in every draw; rows add up to 1. [draws, S]."""
    if seeds == 1:
        return np.ones((draws, 1))
    drawn = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=draws) / seeds
    return 1 / seeds + np.sqrt(seeds / (seeds - 1)) * (drawn - 1 / seeds)


def _listener_weights(generator: np.random.Generator, cases: np.ndarray, draws: int) -> np.ndarray:
    """How often each listener is drawn times their cases, as shares: rows add up to 1. [draws, U]."""
    listeners = len(cases)
    counts = [np.bincount(generator.integers(listeners, size=listeners), minlength=listeners) for _ in range(draws)]
    weights = np.stack(counts) * cases
    weights /= weights.sum(axis=1, keepdims=True)
    return weights
