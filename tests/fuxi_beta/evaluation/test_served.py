"""Sums of hits against a walk over every list and play; test_hits.py of the stage has an example worked by hand."""

import math
from collections import defaultdict
from typing import Any

import numpy as np
import pytest

from fuxi_beta.evaluation.served import HitSums, ServedLists

EVERY = ("all", "all")


def random_lists(seed: int, *, listeners: int = 40, k: int = 6, songs: int = 25) -> ServedLists:
    """Lists of any length up to k, some songs explored; some listeners play nothing, some only skip."""
    random = np.random.default_rng(seed)
    items = np.stack([random.permutation(songs)[:k] + 1 for _ in range(listeners)])
    items[np.arange(k) >= random.integers(0, k + 1, listeners)[:, None]] = 0
    explored = (random.random(items.shape) < 0.3) & (items > 0)
    plays = 5 * listeners
    return ServedLists(
        items,
        np.where(explored, random.uniform(0.1, 1, items.shape), np.nan),
        listener=random.integers(0, listeners - 3, plays),
        song=random.integers(1, songs + 1, plays),
        skipped=random.random(plays) < 0.4,
    )


def walked(served: ServedLists, members: np.ndarray, at: tuple[int, ...]) -> dict[Any, float]:
    """The values of `HitSums.values` without numpy's help."""
    sums, means = defaultdict(float), defaultdict(list)
    for row in np.flatnonzero(members).tolist():
        plays = [(s, k) for u, s, k in zip(served.listener, served.song, served.skipped, strict=True) if u == row]
        played = {song for song, skipped in plays if not skipped}
        items = [song for song in served.items[row].tolist() if song]
        sums["played"] += bool(played)
        sums["active"] += bool(plays)
        sums["plays"] += sum(not skipped for _, skipped in plays)
        sums["listed"] += sum(not skipped and song in items for song, skipped in plays)
        for position, song in enumerate(items, start=1):
            hit = song in played
            skip = not hit and song in {song for song, _ in plays}
            for key in (None, position):
                sums["hits", key] += hit
                sums["skips", key] += skip
            propensity = served.propensity[row, position - 1]
            if played and not math.isnan(propensity):
                sums["explored"] += 1
                sums["explored_hits"] += hit
                sums["weights"] += 1 / propensity
                sums["weighted_hits"] += hit / propensity
        for k in at if played else ():
            found = [1 / math.log2(n + 2) for n, song in enumerate(items[:k]) if song in played]
            best = sum(1 / math.log2(n + 2) for n in range(min(k, len(played))))
            means[f"hr_{k}"].append(bool(found))
            means[f"recall_{k}"].append(len(found) / len(played))
            means[f"ndcg_{k}"].append(sum(found) / best)
    values = {name: sum(numbers) / len(numbers) for name, numbers in means.items()}
    values |= {"played": sums["played"], "plays": sums["plays"], "play_share": sums["listed"] / sums["plays"]}
    values |= {"explored": sums["explored"], "explored_hit_share": sums["explored_hits"] / sums["explored"]}
    values["explored_ips"] = sums["weighted_hits"] / sums["weights"]
    for name in ("hits", "skips"):
        values |= {(name, key): sums[name, key] for key in (None, *range(1, served.items.shape[1] + 1))}
    return values


@pytest.mark.parametrize("seed", range(5))
def test_every_value_is_that_of_a_walk_however_the_listeners_are_divided(seed: int) -> None:
    served = random_lists(seed)
    chosen = np.random.default_rng(seed).random(len(served.items)) < 0.5
    sums = HitSums((3, 6))
    for half in (np.arange(40) < 15, np.arange(40) >= 15):
        rows, plays = np.flatnonzero(half), half[served.listener]
        listener = np.searchsorted(rows, served.listener[plays])
        part = ServedLists(
            served.items[rows], served.propensity[rows], listener, served.song[plays], served.skipped[plays]
        )
        sums.add(part, {EVERY: np.ones(len(rows), bool), ("kids", "all"): chosen[rows]})
    for group, members in {EVERY: np.ones(40, bool), ("kids", "all"): chosen}.items():
        found = {
            (name if position is None and name not in ("hits", "skips") else (name, position)): value
            for (name, position), (value, _) in sums.values(group).items()
        }
        expected = walked(served, members, (3, 6)) | {"lists": 0}
        assert found == pytest.approx(expected)
        active = len(set(served.listener.tolist()) & set(np.flatnonzero(members).tolist()))
        assert sums.values(group)["skips", None][1] == sums.active(group) == active


def test_with_one_propensity_for_all_the_estimate_is_the_plain_share() -> None:
    served = random_lists(7)
    equal = np.where(np.isnan(served.propensity), np.nan, 0.2)
    sums = HitSums((6,))
    sums.add(ServedLists(served.items, equal, served.listener, served.song, served.skipped), {EVERY: np.ones(40, bool)})
    values = sums.values(EVERY)
    assert values["explored_ips", None] == pytest.approx(values["explored_hit_share", None])


def test_lists_that_nobody_came_for_are_counted_and_have_no_shares() -> None:
    sums = HitSums((6,))
    sums.add_lists({EVERY: np.array([True, True, False])})
    assert sums.values(EVERY) == {("lists", None): (2, 2), ("played", None): (0, 0)}
    assert sums.active(EVERY) == sums.active(("kids", "all")) == 0
