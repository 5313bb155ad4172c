"""The protocol next_day on several days, against loops over single listeners; and that no day knows its future."""

import datetime as dt
import math
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pyarrow.compute as pc
import pytest
import torch

from fuxi_beta.baselines.item_knn import fit_item_knn
from fuxi_beta.baselines.popularity import fit_popularity
from fuxi_beta.config import EvaluateConfig, ModelConfig, TrainConfig
from fuxi_beta.evaluation.next_day import evaluate_next_day
from fuxi_beta.evaluation.next_days import RECENT, UNTRAINED, evaluate_next_days, first_events, newest_days
from fuxi_beta.evaluation.protocol import raw_lists
from fuxi_beta.recommender import Queries, Recommender
from fuxi_beta.training.fit import fit
from pipelines.calendar import Calendar
from pipelines.errors import InputError

HOUR, DAY = 3600, 86_400
DS, DAYS, SONGS, CALENDAR = dt.date(2026, 3, 6), 3, 30, Calendar()
END = CALENDAR.day_start(DS)
TRAINED_BEFORE = END - DAYS * DAY
MODEL = ModelConfig(dim=8, layers=1, max_history=20, dropout=0.0)
TRAIN = TrainConfig(min_listeners=1, epochs=2, batch_size=8, item_optimizer="adamw", lr=1e-2, capacity_margin=0.0)
CONFIG = EvaluateConfig(light_events=12, new_days=2, batch_size=7)


class Following(Recommender):
    """Lists the songs whose numbers follow that of the newest play."""

    vocabulary_size, mode = SONGS, "exclusive"

    def queries(self, batch):
        return FollowingQueries(batch)


class FollowingQueries(Queries):
    def __init__(self, batch):
        self.batch = batch

    def rank(self, k, *, excluded=None, candidates=None, rows=None):
        barred = set(zip(*(side.tolist() for side in excluded or ()), strict=True))
        lists = []
        for row, (start, end) in enumerate(zip(self.batch.offsets[:-1], self.batch.offsets[1:], strict=True)):
            last = int(self.batch.item_index[end - 1]) if end > start else 0
            following = [(last + step) % SONGS + 1 for step in range(SONGS)]
            lists.append(([song for song in following if (row, song) not in barred] + [0] * k)[:k])
        return torch.tensor(lists), torch.zeros(len(lists), k)


def random_events(seed, *, listeners=24):
    """{listener: events over ten days}; songs above 24 are released within the last days."""
    random, users = np.random.default_rng(seed), {}
    for user in range(listeners):
        start = END - int(random.choice([1, 4, 10])) * DAY
        times = np.sort(random.integers(start, END, random.integers(2, 26)))
        events = []
        for time in times.tolist():
            newest = 24 + max(0, (time - (END - 6 * DAY)) // DAY)
            events.append((int(random.integers(1, newest + 1)), time, int(random.choice([100, 100, 100, 5]))))
        users[user] = events
    return users


def shards_of(make_shards, users, ds=DS):
    halves = [{u: e for u, e in users.items() if u % 2 == part} for part in (0, 1)]
    return make_shards(halves, ds=ds, vocabulary_size=SONGS, data_end=END, heard_before={3: [7, 8]})


def measure(manifest, recommenders, **options):
    days = newest_days(manifest, DAYS)
    given = {"calendar": CALENDAR, "model": MODEL, "train": TRAIN, "config": CONFIG} | options
    return evaluate_next_days(manifest, recommenders, days=days, **given)


def slow_cases(users):
    """Every case in loops: (listener, ds) -> what the columns of the cases should be."""
    first = defaultdict(lambda: math.inf)
    for events in users.values():
        for song, time, _ in events:
            first[song] = min(first[song], time)
    first[7] = first[8] = -math.inf  # of plays that listener 3 made before those kept
    found = {}
    for back in range(DAYS):
        end = END - back * DAY
        cut, request = end - DAY, end - DAY + 8 * HOUR
        for user, events in users.items():
            heard = {song for song, time, _ in events if time < request} | ({7, 8} if user == 3 else set())
            known = {song for song in range(1, SONGS + 1) if first[song] < cut}
            truth = {s for s, time, done in events if request <= time < end and done >= 30 and s in known} - heard
            if not truth:
                continue
            context = [event for event in events if event[1] < cut]
            plays = [event for event in context if event[2] >= 30]
            seen = {song for song, *_ in context} | ({7, 8} if user == 3 else set())
            last = plays[-1][0] if plays else 0
            listed = [s for s in ((last + step) % SONGS + 1 for step in range(SONGS)) if s not in seen]
            gap = (request - plays[-1][1]) / DAY if plays else None
            older = 2 if user == 3 else 0
            new = not older and (not context or context[0][1] >= cut - CONFIG.new_days * DAY)
            row = {
                "kind": "new" if new else "light" if len(context) + older <= CONFIG.light_events else "heavy",
                "gap": "no_play" if gap is None else "gap_day" if gap < 1 else "gap_week" if gap <= 7 else "gap_longer",
                **slow_metrics(listed, truth),
            }
            for part, since in ((RECENT, cut - 3 * DAY), (UNTRAINED, TRAINED_BEFORE)):
                cold = {song for song in truth if first[song] >= since}
                of_cold = slow_metrics(listed, cold) if cold else dict.fromkeys(slow_metrics([], {1}), math.nan)
                row |= {f"{part}.{name}": value for name, value in of_cold.items()}
            found[user, CALENDAR.date_of(end)] = row
    return found


def slow_metrics(listed, truth):
    values = {}
    for k in (10, 30):
        hits = [place for place, song in enumerate(listed[:k]) if song in truth]
        best = sum(1 / math.log2(place + 2) for place in range(min(len(truth), k)))
        values[f"ndcg_{k}"] = sum(1 / math.log2(place + 2) for place in hits) / best
        values[f"hr_{k}"] = float(bool(hits))
        values[f"recall_{k}"] = len(hits) / len(truth)
    return values


def test_every_case_is_that_of_a_loop_over_listeners_and_days(make_shards):
    users = random_events(1)
    result = measure(shards_of(make_shards, users), {"following": Following()})
    expected = slow_cases(users)
    rows = {(row.pop("user_id"), row.pop("ds")): row for row in result.cases["following"].to_pylist()}
    assert set(rows) == set(expected) and len({ds for _, ds in rows}) == DAYS
    for case, row in rows.items():
        numbers = {name: value for name, value in row.items() if not isinstance(value, str)}
        assert {name: row[name] for name in ("kind", "gap")} == {name: expected[case][name] for name in ("kind", "gap")}
        assert numbers == pytest.approx({name: expected[case][name] for name in numbers}, abs=1e-6, nan_ok=True), case
    assert {row["kind"] for row in rows.values()} == {"new", "light", "heavy"}
    assert {row["gap"] for row in rows.values()} >= {"gap_day", "gap_week", "no_play"}


def test_means_and_counts_are_those_of_the_cases(make_shards):
    result = measure(shards_of(make_shards, random_events(2)), {"following": Following()})
    cases, means = result.cases["following"], result.metrics["following"]
    assert result.listeners == cases.num_rows and result.excluded == 24 * DAYS - cases.num_rows
    for part, column in (("heavy", "kind"), ("gap_week", "gap")):
        of_part = cases.filter(pc.equal(cases[column], part))
        assert result.slices[part] == of_part.num_rows > 0
        assert means[part]["ndcg_30"] == pytest.approx(pc.mean(of_part["ndcg_30"]).as_py(), abs=1e-6)
    for part in (RECENT, UNTRAINED):
        values = cases[f"{part}.hr_10"].to_numpy()
        assert result.slices[part] == (~np.isnan(values)).sum() > 0
        assert means[part]["hr_10"] == pytest.approx(np.nanmean(values), abs=1e-6)


def test_one_day_is_what_evaluate_next_day_measures_and_coverage_is_the_mean_of_the_days(make_shards):
    manifest = shards_of(make_shards, random_events(3))
    first, coverages = first_events(manifest), []
    for ds in newest_days(manifest, DAYS):
        known = first < CALENDAR.day_start(ds) - DAY
        options = {"calendar": CALENDAR, "model": MODEL, "train": TRAIN, "config": CONFIG}
        one = evaluate_next_day(manifest, {"f": Following()}, ds=ds, known_items=known, **options)
        same = evaluate_next_days(manifest, {"f": Following()}, days=[ds], **options)
        for part in ("all", "new", "light", "heavy"):
            assert same.metrics["f"][part] == pytest.approx(one.metrics["f"][part])
        assert (same.listeners, same.excluded) == (one.listeners, one.excluded)
        coverages.append(one.metrics["f"]["all"]["coverage_10"])
    result = measure(manifest, {"f": Following()})
    assert result.metrics["f"]["all"]["coverage_10"] == pytest.approx(np.mean(coverages))


def test_all_recommenders_have_the_same_cases_and_served_lists_stand_beside_raw_ones(make_shards):
    manifest = shards_of(make_shards, random_events(4))
    popularity = fit_popularity(manifest, end=TRAINED_BEFORE, train=TRAIN, config=CONFIG)

    def shorter(recommender, contexts, k):
        items, scores = raw_lists(recommender, contexts, k)
        return torch.cat([items[:, 1:], torch.zeros_like(items[:, :1])], dim=1), scores

    result = measure(manifest, {"following": Following(), "popularity": popularity}, served=shorter)
    one, other = result.cases["following"], result.cases["popularity"]
    assert one.select(["user_id", "ds", "kind", "gap"]).equals(other.select(["user_id", "ds", "kind", "gap"]))
    assert not one["ndcg_10"].equals(other["ndcg_10"]) and not one["served_ndcg_10"].equals(one["ndcg_10"])
    assert f"{UNTRAINED}.served_hr_30" in one.column_names


def test_events_after_a_days_cut_change_neither_what_is_learned_nor_the_lists_of_that_day(make_shards):
    """Everything from the second day's cut on is other songs: only the third day's lists may differ."""
    users, random = random_events(5), np.random.default_rng(6)
    second_cut = TRAINED_BEFORE + DAY
    other = {
        user: [(song if time < second_cut else int(random.integers(1, SONGS + 1)), time, 100) for song, time, _ in own]
        for user, own in users.items()
    }
    users = {user: [(song, time, 100) for song, time, _ in events] for user, events in users.items()}
    lists, train = [], replace(TRAIN, min_listeners=6)
    for events in (users, other):
        manifest = shards_of(make_shards, events, ds=DS)
        known = torch.from_numpy(first_events(manifest) < TRAINED_BEFORE)
        given = {"end": TRAINED_BEFORE, "train": TRAIN, "candidates": known}
        recommenders = {
            "fuxi-beta": fit(manifest, model=MODEL, train=train, data_end=TRAINED_BEFORE).model,
            "item-knn": fit_item_knn(manifest, **given),
            "popularity": fit_popularity(manifest, config=CONFIG, **given),
        }
        made = {}

        def record(recommender, contexts, k, made=made, recommenders=recommenders):
            items, scores = raw_lists(recommender, contexts, k)
            name = next(name for name, one in recommenders.items() if one is recommender)
            for user, row in zip(contexts.histories.users.tolist(), items.tolist(), strict=True):
                made[name, int(contexts.request_time), user] = row
            return items, scores

        measure(manifest, recommenders, served=record)
        lists.append(made)
        pairs = {(song, user) for user, own in events.items() for song, time, _ in own if time < TRAINED_BEFORE}
        pairs |= {(7, 3), (8, 3)}
        listeners = np.bincount([song for song, _ in pairs], minlength=SONGS + 1)
        assert recommenders["fuxi-beta"].candidates[: SONGS + 1].tolist() == (listeners >= train.min_listeners).tolist()
    before, after = lists
    shared = [key for key in before if key in after]
    early = [key for key in shared if key[1] < second_cut + DAY]
    assert len(early) > 30 and {name for name, *_ in early} == {"fuxi-beta", "item-knn", "popularity"}
    assert all(before[key] == after[key] for key in early)
    assert any(before[key] != after[key] for key in shared if key not in early)


def test_days_without_a_case_and_days_that_are_not_there_are_refused(make_shards):
    manifest = shards_of(make_shards, {user: [(1, END - 20 * DAY, 100)] for user in range(4)})
    with pytest.raises(InputError, match="nobody played a new song on 2026-03-04 to 2026-03-06"):
        measure(manifest, {"following": Following()})
    options = {"calendar": CALENDAR, "model": MODEL, "train": TRAIN, "config": CONFIG}
    with pytest.raises(InputError, match="sequences end before 2026-03-07"):
        evaluate_next_days(manifest, {"f": Following()}, days=[DS + dt.timedelta(1)], **options)
    with pytest.raises(InputError, match="no day to evaluate"):
        evaluate_next_days(manifest, {"f": Following()}, days=[], **options)
