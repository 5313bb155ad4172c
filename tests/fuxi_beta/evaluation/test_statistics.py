"""Intervals of differences and agreement of orders: known cases, a slow bootstrap, simulated data."""

import numpy as np
import pytest
from scipy import stats

from fuxi_beta.evaluation.statistics import interval_of_each_pair, mean_interval, order_agreement, paired_difference

SEEDS, LISTENERS = 5, 120


def simulated(generator, *, effect, seed_sd, noise_sd=0.3, seeds=SEEDS, listeners=LISTENERS):
    """Two systems that share listeners: the first is better by `effect` on the whole."""
    taste = generator.normal(0, 1, listeners)
    sides = [
        shift + taste + generator.normal(0, seed_sd, (seeds, 1)) + generator.normal(0, noise_sd, (seeds, listeners))
        for shift in (effect, 0.0)
    ]
    return sides[0], sides[1]


def bootstrap_in_loops(a, b, *, draws):
    """The definition, one draw at a time, with the widening by seeds written as a deviation from the mean."""
    generator = np.random.default_rng(99)
    found = []
    for _ in range(draws):
        chosen = [generator.integers(a.shape[1]) for _ in range(a.shape[1])]
        means = []
        for side in (a, b):
            by_seed = [sum(row[u] for u in chosen) / len(chosen) for row in side]
            every = sum(by_seed) / len(by_seed)
            drawn = sum(by_seed[generator.integers(len(by_seed))] for _ in by_seed) / len(by_seed)
            widen = (len(by_seed) / (len(by_seed) - 1)) ** 0.5 if len(by_seed) > 1 else 0.0
            means.append(every + widen * (drawn - every))
        found.append(means[0] - means[1])
    return np.quantile(found, [0.025, 0.975])


@pytest.mark.parametrize("seeds", [1, 2, 4])
def test_the_interval_is_that_of_the_bootstrap_written_as_loops(seeds):
    a, b = simulated(np.random.default_rng(3), effect=0.1, seed_sd=0.1, seeds=seeds, listeners=30)
    found = paired_difference(a, b, seed=1, draws=6000)
    low, high = bootstrap_in_loops(a, b, draws=2500)
    assert found.mean == pytest.approx(a.mean() - b.mean())
    assert [found.low, found.high] == pytest.approx([low, high], abs=0.08 * (high - low))
    assert found.seeds == (seeds, seeds)


def test_the_days_of_a_listener_are_drawn_together_and_the_mean_is_over_days():
    """Against a loop over draws that repeats every listener's own days, and not against days drawn one by one."""
    generator = np.random.default_rng(4)
    cases = generator.integers(1, 8, 40)
    days = [generator.normal(taste, 0.1, count) for taste, count in zip(generator.normal(0, 1, 40), cases, strict=True)]
    means = np.array([own.mean() for own in days])[None]
    found = mean_interval(means, seed=1, draws=6000, cases=cases)
    drawn = [
        np.concatenate([days[u] for u in generator.integers(40, size=40)]).mean()  # one listener, all of their days
        for _ in range(4000)
    ]
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert found.mean == pytest.approx(np.concatenate(days).mean())
    assert [found.low, found.high] == pytest.approx([low, high], abs=0.08 * (high - low))
    every_day = np.concatenate(days)
    alone = mean_interval(every_day[None], seed=1)  # as if every day were another listener's: far too narrow
    assert alone.high - alone.low < 0.7 * (found.high - found.low)


def test_a_known_difference_of_means_over_days_is_found_and_none_is_not():
    generator = np.random.default_rng(8)
    taste, cases = generator.normal(0, 1, 400), generator.integers(1, 8, 400)
    a, b = (taste + generator.normal(0, 0.3, (3, 400)) for _ in range(2))
    better = paired_difference(a + 0.1, b, seed=1, cases=cases)
    assert better.detectable and better.low < 0.1 < better.high
    assert not paired_difference(a, b, seed=1, cases=cases).detectable
    alike, plain = paired_difference(a, b, seed=1, cases=np.full(400, 3)), paired_difference(a, b, seed=1)
    assert [alike.mean, alike.low, alike.high] == pytest.approx([plain.mean, plain.low, plain.high])
    with pytest.raises(ValueError, match="number of cases above 0"):
        paired_difference(a, b, seed=1, cases=cases - 1)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    generator, effect, trials = np.random.default_rng(5), 0.15, 150
    covered = errors = 0
    for trial in range(trials):
        found = paired_difference(*simulated(generator, effect=effect, seed_sd=0.1), seed=trial, draws=400)
        covered += found.low <= effect <= found.high
        same = paired_difference(*simulated(generator, effect=0.0, seed_sd=0.1), seed=trial, draws=400)
        errors += same.detectable
    assert 0.88 * trials <= covered <= 0.99 * trials
    assert errors <= 0.12 * trials


def test_an_interval_over_listeners_alone_would_be_too_narrow():
    """Seeds that differ much: the interval must be as wide as they make it, whatever the number of listeners."""
    a, b = simulated(np.random.default_rng(7), effect=0.0, seed_sd=0.5, noise_sd=0.01, listeners=2000)
    found = paired_difference(a, b, seed=1)
    expected = 1.96 * np.sqrt(a.mean(axis=1).var(ddof=1) / SEEDS + b.mean(axis=1).var(ddof=1) / SEEDS)
    assert (found.high - found.low) / 2 == pytest.approx(expected, rel=0.1)


def test_what_listeners_share_cancels_because_both_sides_draw_the_same_ones():
    a, b = simulated(np.random.default_rng(8), effect=0.1, seed_sd=0.0, noise_sd=0.01)
    found = paired_difference(a, b, seed=1)
    shuffled = paired_difference(a, b[:, np.random.default_rng(9).permutation(LISTENERS)], seed=1)
    assert found.detectable and found.p < 0.01
    assert not shuffled.detectable and shuffled.p > 0.05
    assert shuffled.high - shuffled.low > 20 * (found.high - found.low)


def test_equal_systems_differ_by_nothing():
    same = np.random.default_rng(1).random((3, 50))
    alone = same[:1]
    found = paired_difference(alone, alone, seed=1, draws=200)
    assert (found.mean, found.low, found.high, found.p, found.detectable) == (0, 0, 0, 1, False)
    turned = paired_difference(same, same + 0.25, seed=1, draws=200)
    assert turned.mean == pytest.approx(-0.25)
    assert turned.high < 0 and turned.detectable


def test_one_listener_and_one_seed_against_several_and_the_same_again():
    a, b = simulated(np.random.default_rng(2), effect=0.3, seed_sd=0.1)
    first = paired_difference(a[:1], b, seed=4, draws=300)
    assert first == paired_difference(a[:1], b, seed=4, draws=300)
    assert first.seeds == (1, SEEDS)
    assert paired_difference(np.ones((2, 1)), np.zeros((3, 1)), seed=1).low == pytest.approx(1)


@pytest.mark.parametrize("shapes", [((2, 3), (2, 4)), ((3,), (3,)), ((0, 3), (1, 3)), ((1, 0), (1, 0))])
def test_arrays_of_other_listeners_are_refused(shapes):
    with pytest.raises(ValueError, match="the same listeners"):
        paired_difference(np.zeros(shapes[0]), np.zeros(shapes[1]), seed=1)


def test_agreement_is_kendalls_tau_with_ties_as_scipy_counts_them():
    generator = np.random.default_rng(4)
    for _ in range(20):
        values = {name: float(generator.integers(4)) for name in "abcde"}
        printed = {name: float(generator.integers(4)) for name in "abcde"}
        found = order_agreement({name: np.full((1, 2), v) for name, v in values.items()}, printed, seed=1)
        expected = stats.kendalltau(list(values.values()), list(printed.values())).statistic  # type: ignore[union-attr]
        assert found.tau == pytest.approx(expected, nan_ok=True)
        assert found.pairs == 10


def test_discordant_pairs_are_named_with_the_papers_better_one_first():
    listeners = np.random.default_rng(6).random((2, 200))
    ours = {
        "best": listeners + 0.5,
        "same": listeners,
        "near": listeners[:, ::-1] - 1e-4,
        "ours alone": listeners,
    }
    found = order_agreement(ours, {"best": 0.1, "same": 0.2, "near": 0.3, "theirs alone": 1.0}, seed=1)
    assert found.tau == -1 and found.pairs == 3
    pairs = {(pair.above, pair.below): pair for pair in found.discordant}
    assert set(pairs) == {("same", "best"), ("near", "best"), ("near", "same")}
    assert pairs["same", "best"].ours.mean == pytest.approx(-0.5)
    assert pairs["same", "best"].paper == pytest.approx(0.1)
    assert pairs["same", "best"].ours.detectable
    assert not pairs["near", "same"].ours.detectable


def test_one_system_has_no_order():
    found = order_agreement({"a": np.ones((1, 3))}, {"a": 1.0}, seed=1)
    assert np.isnan(found.tau) and found.pairs == 0 and not found.discordant


def test_the_interval_of_each_pair_is_that_of_the_two_alone() -> None:
    random = np.random.default_rng(3)
    base = random.random(400)
    values = {"a": base, "b": base + random.normal(0.05, 0.1, 400), "c": base + random.normal(0.0, 0.1, 400)}
    members = random.random(400) < 0.5
    found = interval_of_each_pair(values, members, seed=1, draws=4000)
    assert list(found) == [("a", "b"), ("a", "c"), ("b", "c")]
    for (one, other), (mean, low, high) in found.items():
        alone = paired_difference(values[one][None, members], values[other][None, members], seed=2, draws=4000)
        assert mean == pytest.approx(alone.mean)
        assert (low, high) == pytest.approx((alone.low, alone.high), abs=0.15 * (alone.high - alone.low))
    assert found["a", "b"][2] < 0 and found["a", "c"][1] < 0 < found["a", "c"][2]
    assert interval_of_each_pair(values, np.zeros(400, bool), seed=1) == {}
    assert interval_of_each_pair({}, np.ones(400, bool), seed=1) == {}
