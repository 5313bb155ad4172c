"""Training and inference batches: hand-worked examples, disjoint ranks, resumption, and no train/serve skew."""

import datetime as dt
import threading
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from fuxi_beta.config import ModelConfig, TrainConfig
from fuxi_beta.data.batches import Batch, collate, cuts_by_tokens, inference_batch, training_samples
from fuxi_beta.data.reader import TrainingBatches, prefetched
from fuxi_beta.evaluation.next_day import NextDayCases
from fuxi_beta.models.fuxi_beta import FuXiBeta
from pipelines.calendar import Calendar
from pipelines.errors import InputError

HOUR, DAY = 3600, 86_400
MONDAY = Calendar().day_start(dt.date(2026, 3, 2))
MODEL = ModelConfig(dim=8, layers=2, max_history=10)
TRAIN = TrainConfig(batch_size=6, negatives=4, learn_from="first_listens")


def rows_of(batch: Batch, name: str) -> list[list[int]]:
    values, offsets = getattr(batch, name).tolist(), batch.offsets.tolist()
    return [values[start:end] for start, end in pairwise(offsets)]


def seen_of(batch: Batch) -> list[list[int]]:
    offsets = batch.seen_offsets.tolist()
    return [batch.seen_items[start:end].tolist() for start, end in pairwise(offsets)]


def random_users(first: int, count: int, *, songs: int = 40, seed: int = 0, longest: int = 25):
    random = np.random.default_rng([seed, first])
    users = {}
    for user in range(first, first + count):
        times = np.sort(random.integers(MONDAY - 20 * DAY, MONDAY + 2 * DAY, random.integers(0, longest)))
        items, completion = random.integers(1, songs + 1, len(times)), random.choice([5, 60, 100], len(times))
        users[user] = list(zip(items.tolist(), times.tolist(), completion.tolist(), strict=True))
    return users


@pytest.fixture
def example(make_shards):
    """One listener: a skipped song, a repeat, a song heard before the stored events, midnight between plays."""
    events = [
        (4, MONDAY + 9 * HOUR, 100),
        (5, MONDAY + 10 * HOUR, 10),  # skipped: no token, no target, but heard from now on
        (6, MONDAY + 11 * HOUR, 80),
        (5, MONDAY + 12 * HOUR, 100),  # played at last, though not a first listen any more
        (7, MONDAY + DAY + HOUR, 100),  # next day, before 08:00
        (4, MONDAY + DAY + 9 * HOUR, 30),  # a repeat
        (9, MONDAY + DAY + 10 * HOUR, 100),  # heard_before has it
        (8, MONDAY + DAY + 11 * HOUR, 100),
        (3, MONDAY + 2 * DAY, 100),  # at the cut: not there
    ]
    return make_shards([{1: events}], vocabulary_size=20, data_end=MONDAY + 3 * DAY, heard_before={1: [9, 2]})


def batch_of(manifest, train: TrainConfig, model: ModelConfig = MODEL, **values) -> Batch:
    histories = manifest.histories(manifest.files[0])
    options: dict[str, Any] = {"data_end": MONDAY + 2 * DAY, "vocabulary_size": 20, "calendar": Calendar()} | values
    return collate([training_samples(histories, sample=np.arange(len(histories)), model=model, train=train, **options)])


def test_targets_may_be_first_listens_only(example):
    batch = batch_of(example, TRAIN)
    assert rows_of(batch, "item_index") == [[4, 6, 5, 7, 4, 9]]
    assert rows_of(batch, "target") == [[6, 0, 7, 0, 0, 8]]
    assert seen_of(batch) == [[2, 4, 5, 6, 7, 8, 9]]
    assert rows_of(batch, "position") == [[0, 1, 2, 3, 4, 5]]
    assert batch.listener.tolist() == [0] * 6


def test_next_timestamps_end_a_day_at_the_following_request(example):
    batch = batch_of(example, TRAIN)
    assert rows_of(batch, "timestamp")[0][:3] == [MONDAY + 9 * HOUR, MONDAY + 11 * HOUR, MONDAY + 12 * HOUR]
    assert rows_of(batch, "next_timestamp") == [
        [
            MONDAY + 11 * HOUR,
            MONDAY + 12 * HOUR,
            MONDAY + DAY + 8 * HOUR,  # 01:00 in truth; at midnight the list is made for 08:00
            MONDAY + DAY + 9 * HOUR,
            MONDAY + DAY + 10 * HOUR,
            MONDAY + DAY + 11 * HOUR,
        ]
    ]


@pytest.mark.parametrize("mode", ["exclusive", "all"])
def test_every_play_is_a_target_whatever_is_listed(example, mode):
    """Those of the songs heard before, too; what has been heard is not needed then, because it is a negative, too."""
    batch = batch_of(example, replace(TRAIN, mode=mode, learn_from="plays"))
    assert rows_of(batch, "target") == [[6, 5, 7, 4, 9, 8]]
    assert seen_of(batch) == [[]]


@pytest.mark.parametrize("learn_from", ["plays", "first_listens"])
def test_targets_are_drawn_from_the_window_anew_in_each_epoch(make_shards, learn_from):
    manifest = make_shards([random_users(1, 4)], vocabulary_size=20, data_end=MONDAY + 3 * DAY)
    train = replace(TRAIN, learn_from=learn_from)
    plain, window = batch_of(manifest, train), 4
    drawn = [batch_of(manifest, replace(train, target_window=window), epoch=epoch) for epoch in range(60)]
    again = batch_of(manifest, replace(train, target_window=window), epoch=7)
    assert torch.equal(again.target, drawn[7].target) and not torch.equal(again.target, drawn[8].target)
    assert torch.equal(again.next_timestamp, plain.next_timestamp)
    targets = [rows_of(batch, "target") for batch in drawn]
    for row, follows in enumerate(rows_of(plain, "target")):
        for place in range(len(follows)):
            # The last play stands for those that would follow it.
            may = {follows[min(place + step, len(follows) - 1)] for step in range(window)}
            assert {of_epoch[row][place] for of_epoch in targets} == may


def test_skips_among_the_next_plays_are_targets_by_their_weight(example):
    """A play weighs 1: where a skip weighs 1/2 it is drawn half as often, and at weight 0 never."""
    train = replace(TRAIN, learn_from="plays")
    drawn = [batch_of(example, replace(train, skip_weight=0.5), epoch=epoch) for epoch in range(600)]
    firsts = [int(batch.target[0]) for batch in drawn]  # after song 4: song 5, skipped, then song 6
    assert set(firsts) == {5, 6} and abs(firsts.count(5) / 600 - 1 / 3) < 0.08  # four standard deviations
    for batch in drawn:
        assert batch.target[1:].tolist() == [5, 7, 4, 9, 8]
    wide = [batch_of(example, replace(train, skip_weight=1.0, target_window=2), epoch=epoch) for epoch in range(100)]
    assert [{int(batch.target[place]) for batch in wide} for place in (0, 4, 5)] == [{5, 6}, {9, 8}, {8}]
    unknown = [batch_of(example, replace(train, skip_weight=1.0), epoch=e, vocabulary_size=4) for e in range(20)]
    assert {int(song) for batch in unknown for song in batch.target} <= {4}


@pytest.mark.parametrize("objective", ["next_play", "next_day"])
@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_plays_that_nobody_chose_are_context_and_targets_by_their_weight(make_shards, objective, weight):
    """Of the share of epochs that is their weight; nothing else of a batch changes, and at weight 1 nothing at all."""
    users = random_users(1, 30)
    unchosen = {(user, place) for user, events in users.items() for place in range(len(events)) if (user + place) % 3}
    marked = {
        user: [
            (song, time, code + 128 * ((user, place) in unchosen)) for place, (song, time, code) in enumerate(events)
        ]
        for user, events in users.items()
    }
    train = replace(TRAIN, learn_from="plays", objective=objective)
    plain = batch_of(make_shards([users], vocabulary_size=40, data_end=MONDAY + 3 * DAY), train)
    manifest = make_shards([marked], vocabulary_size=40, data_end=MONDAY + 3 * DAY)
    weighed = replace(train, unchosen_weight=weight)
    drawn = [batch_of(manifest, weighed, epoch=epoch) for epoch in range(100)]
    for batch in (*drawn, batch_of(manifest, train)):
        for name in ("offsets", "item_index", "timestamp", "next_timestamp", "sample"):
            assert torch.equal(getattr(batch, name), getattr(plain, name))
    assert torch.equal(batch_of(manifest, train).target, plain.target)
    assert torch.equal(batch_of(manifest, weighed, epoch=7).target, drawn[7].target)
    share = torch.stack([batch.target > 0 for batch in drawn]).double().mean(0)[plain.target > 0]
    always, others = share == 1, share[share < 1]
    if weight == 1:
        assert always.all()
        return
    assert 0.2 < always.double().mean() < 0.5  # about a third was chosen
    assert (others > 0).all() == (weight > 0) and abs(others.mean() - weight) < 0.02


def test_the_songs_of_a_day_are_predicted_from_the_end_of_the_day_before(example):
    """Of the listener's second day: from the last play of the first one, each song once."""
    train = replace(TRAIN, learn_from="plays", objective="next_day")
    batch = batch_of(example, train)
    assert rows_of(batch, "item_index") == [[4, 6, 5, 7, 4, 9]]
    assert rows_of(batch, "target") == [[0, 0, 7, 4, 9, 8]]  # no state is before the first day
    assert batch.states.tolist() == [2, 2, 2, 2]
    assert rows_of(batch, "next_timestamp")[0][2] == MONDAY + DAY + 8 * HOUR  # what serving knows
    assert rows_of(batch_of(example, replace(train, learn_from="first_listens")), "target") == [[0, 0, 7, 0, 0, 8]]


@pytest.mark.parametrize("timezone", ["UTC", "Asia/Tokyo"])
def test_targets_of_a_day_equal_a_loop_over_its_plays_and_see_none_of_them(make_shards, timezone):
    users = random_users(1, 12, songs=6, longest=60)
    manifest = make_shards([users], vocabulary_size=6, data_end=MONDAY + 3 * DAY)
    calendar, end = Calendar(timezone), MONDAY + DAY
    train, model = replace(TRAIN, learn_from="plays", objective="next_day"), replace(MODEL, max_history=100)
    batch = batch_of(manifest, train, model, data_end=end, calendar=calendar, vocabulary_size=6)
    expected = []
    for row, events in enumerate(users.values()):
        plays = [(song, calendar.date_of(time)) for song, time, completion in events if completion > 5 and time < end]
        for day in sorted({day for _, day in plays} - {plays[0][1]} if plays else ()):
            before = sum(other < day for _, other in plays)
            songs = dict.fromkeys(song for song, other in plays if other == day)
            expected += [(row, before - 1, song) for song in songs]
    found = zip(
        batch.listener[batch.states].tolist(),
        batch.position[batch.states].tolist(),
        batch.target[batch.positions].tolist(),
        strict=True,
    )
    assert list(found) == expected and len(expected) > 40
    read, predicted = (calendar.day_number(t.numpy()) for t in (batch.timestamp[batch.states], batch.next_timestamp))
    assert (read < predicted[batch.positions.numpy()]).all()


def test_a_window_of_a_long_history_is_anywhere_and_every_play_is_learned_from(make_shards):
    users = {user: [(1 + n, MONDAY - DAY + 60 * n, 100) for n in range(user)] for user in (5, 9, 17)}
    manifest = make_shards([users], vocabulary_size=20, data_end=MONDAY + 3 * DAY)
    train, model = replace(TRAIN, learn_from="plays", random_windows=1.0), replace(MODEL, max_history=4)
    epochs = [batch_of(manifest, train, model, epoch=epoch) for epoch in range(120)]
    assert torch.equal(batch_of(manifest, train, model, epoch=3).item_index, epochs[3].item_index)
    for row, plays in enumerate(users):
        windows = [rows_of(batch, "item_index")[row] for batch in epochs]
        assert {tuple(window) for window in windows} == {tuple(range(s, s + 4)) for s in range(1, plays - 3)}
        targets = {song for batch in epochs for song in rows_of(batch, "target")[row]}
        assert targets == set(range(2, plays + 1))
    half = [batch_of(manifest, replace(train, random_windows=0.5), model, epoch=epoch) for epoch in range(200)]
    newest = sum(rows_of(batch, "item_index")[2] == [13, 14, 15, 16] for batch in half) / 200
    assert abs(newest - (0.5 + 0.5 / 13)) < 0.15  # four standard deviations


def test_first_listens_are_the_targets_where_repeats_may_be_listed(example):
    assert rows_of(batch_of(example, replace(TRAIN, mode="all")), "target") == [[6, 0, 7, 0, 0, 8]]


def test_context_is_the_newest_plays_that_have_a_target(example):
    batch = batch_of(example, TRAIN, replace(MODEL, max_history=3))
    assert rows_of(batch, "item_index") == [[7, 4, 9]]
    assert rows_of(batch, "target") == [[0, 0, 8]]


def test_songs_outside_the_vocabulary_are_dropped_but_stay_seen(example):
    batch = batch_of(example, TRAIN, vocabulary_size=6)
    assert rows_of(batch, "item_index") == [[4, 6, 5]]
    assert seen_of(batch) == [[2, 4, 5, 6, 7, 8, 9]]


def test_leave_one_out_hides_the_newest_play_and_keeps_true_times(example):
    train = replace(TRAIN, protocol="leave_one_out", mode="all", learn_from="plays")
    batch = batch_of(example, train, data_end=MONDAY + 3 * DAY)
    assert rows_of(batch, "item_index") == [[4, 6, 5, 7, 4, 9]]
    assert rows_of(batch, "target") == [[6, 5, 7, 4, 9, 8]]
    assert rows_of(batch, "next_timestamp")[0][2] == MONDAY + DAY + HOUR
    assert 3 not in seen_of(batch)[0]


def test_inference_batch_drops_skips_and_takes_the_request_time(example):
    histories = example.histories(example.files[0]).before(MONDAY + DAY)
    batch = inference_batch(
        histories,
        request_time=MONDAY + DAY + 8 * HOUR,
        model=MODEL,
        train=TRAIN,
        calendar=Calendar(),
        vocabulary_size=20,
    )
    assert rows_of(batch, "item_index") == [[4, 6, 5]]
    assert rows_of(batch, "next_timestamp") == [[MONDAY + 11 * HOUR, MONDAY + 12 * HOUR, MONDAY + DAY + 8 * HOUR]]
    assert not batch.target.any()
    assert seen_of(batch) == [[2, 4, 5, 6, 9]]


@pytest.mark.parametrize("row_group_events", [50, 1_000_000])
def test_reading_by_row_group_equals_reading_whole_files(make_shards, row_group_events):
    manifest = make_shards(
        [random_users(0, 10)],
        vocabulary_size=40,
        data_end=MONDAY,
        row_group_events=row_group_events,
        heard_before={6: [3]},
    )
    whole = manifest.histories(manifest.files[0])
    parts = [manifest.histories(file, group) for file, group, _ in manifest.row_groups()]
    np.testing.assert_array_equal(whole.item_index, np.concatenate([part.item_index for part in parts]))
    np.testing.assert_array_equal(whole.heard_items, np.concatenate([part.heard_items for part in parts]))
    assert whole.user_id.to_pylist() == [user for part in parts for user in part.user_id.to_pylist()]


# ---- the reader


@pytest.fixture
def reader(make_shards):
    """Readers over shards of uneven size: 3 buckets, row groups of about 5, 53 listeners."""
    buckets = [random_users(0, 23), random_users(100, 9), random_users(200, 21)]
    manifest = make_shards(buckets, vocabulary_size=40, data_end=MONDAY + 3 * DAY, row_group_events=60)

    def make(rank: int = 0, world_size: int = 1, **train) -> TrainingBatches:
        return TrainingBatches(
            manifest,
            model=MODEL,
            train=replace(TRAIN, **train),
            data_end=MONDAY,
            rank=rank,
            world_size=world_size,
            vocabulary_size=40,
        )

    return make


def listeners(batch: Batch) -> dict[int, tuple]:
    """What a batch holds for each sample, whatever its order."""
    columns = [rows_of(batch, name) for name in ("item_index", "timestamp", "next_timestamp", "target")]
    rows = zip(*columns, seen_of(batch), strict=True)
    return {sample: tuple(map(tuple, row)) for sample, row in zip(batch.sample.tolist(), rows, strict=True)}


@pytest.mark.parametrize("tokens", [0, 7, 60, 10_000])
@pytest.mark.parametrize("lanes", [1, 4, 16])
def test_every_listener_comes_exactly_once_an_epoch(reader, lanes, tokens):
    for epoch in (0, 1):
        batches = list(reader(lanes=lanes, batch_tokens=tokens).epoch(epoch))
        assert sorted(sample for batch in batches for sample in batch.sample.tolist()) == list(range(53))
        assert len(batches) == reader(lanes=lanes, batch_tokens=tokens).steps_per_epoch


@pytest.mark.parametrize("tokens", [0, 60])
@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_global_batches_do_not_depend_on_the_number_of_ranks(reader, world_size, tokens):
    alone = list(reader(batch_tokens=tokens).epoch(1))
    ranks = [reader(rank, world_size, batch_tokens=tokens) for rank in range(world_size)]
    assert {rank.steps_per_epoch for rank in ranks} == {len(alone)}
    for step, parts in enumerate(zip(*(rank.epoch(1) for rank in ranks), strict=True)):
        merged: dict[int, tuple] = {}
        for part in parts:
            found = listeners(part)
            assert not merged.keys() & found.keys()
            merged |= found
        assert merged == listeners(alone[step])


def test_a_rank_without_lanes_still_takes_every_step(reader):
    spare = reader(rank=6, world_size=7)
    batches = list(spare.epoch(0))
    assert len(batches) == spare.steps_per_epoch
    assert all(batch.num_listeners == 0 and len(batch.item_index) == 0 for batch in batches)


EVERY_DRAW = {"random_windows": 0.5, "objective": "next_day", "learn_from": "plays"}


@pytest.mark.parametrize("options", [{}, EVERY_DRAW])
@pytest.mark.parametrize("tokens", [0, 20])
@pytest.mark.parametrize("start", [1, 4, 8])
def test_resuming_at_a_step_gives_the_rest_of_the_undisturbed_epoch(reader, start, tokens, options):
    again = reader(1, 2, batch_tokens=tokens, **options)
    whole = list(again.epoch(3))
    start = min(start, len(whole) - 1)
    rest = list(again.epoch(3, start_step=start))
    assert len(rest) == len(whole) - start
    assert ("back" in whole[0].tensors) == ("objective" in options)
    for ours, theirs in zip(rest, whole[start:], strict=True):
        assert ours.tensors.keys() == theirs.tensors.keys()
        for name, tensor in ours.tensors.items():
            assert torch.equal(tensor, theirs.tensors[name])


def test_epochs_and_seeds_shuffle_differently(reader):
    def order(reader: TrainingBatches, epoch: int) -> list[int]:
        return [sample for batch in reader.epoch(epoch) for sample in batch.sample.tolist()]

    base = order(reader(), 0)
    assert order(reader(), 0) == base
    assert order(reader(), 1) != base
    assert order(reader(seed=2), 0) != base


def test_lanes_are_of_about_equal_length(reader):
    assert reader().steps_per_epoch <= 12  # 53 listeners in batches of 6: 9 if no lane ever ran dry


def test_a_budget_of_tokens_gives_steps_of_like_cost_and_listeners_of_like_length(make_shards):
    users = {user: [(1 + n % 9, MONDAY - DAY + n, 100) for n in range(1 + user % 10)] for user in range(400)}
    manifest = make_shards([users], vocabulary_size=40, data_end=MONDAY)
    reader = TrainingBatches(
        manifest,
        model=MODEL,
        train=replace(TRAIN, batch_tokens=100, mode="all"),
        data_end=MONDAY,
        rank=0,
        world_size=1,
        vocabulary_size=40,
    )
    batches = list(reader.epoch(0))
    assert all(60 <= int((batch.lengths + 1).sum()) <= 120 for batch in batches)
    assert sum(int(batch.lengths.max() - batch.lengths.min()) <= 4 for batch in batches) >= 0.8 * len(batches)


def test_prefetching_changes_nothing_and_passes_errors_on(reader):
    plain, ahead = list(reader().epoch(0)), list(prefetched(reader().epoch(0)))
    assert [batch.sample.tolist() for batch in ahead] == [batch.sample.tolist() for batch in plain]

    def breaks():
        yield 1
        raise InputError("bucket=00003 is gone")

    found = prefetched(breaks())
    assert next(found) == 1
    with pytest.raises(InputError, match="bucket=00003"):
        next(found)


def test_a_reader_left_early_ends_its_thread():
    def left_early() -> None:
        for _ in prefetched(iter(int, 1)):
            break

    left_early()
    for thread in threading.enumerate():
        if thread.name == "reader":
            thread.join(timeout=5)
            assert not thread.is_alive()


def test_a_damaged_shard_is_named(make_shards):
    manifest = make_shards([random_users(0, 3)], vocabulary_size=40, data_end=MONDAY)
    with open(manifest.uri(manifest.files[0].path), "wb") as file:
        file.write(b"not parquet")
    with pytest.raises(InputError, match=r"bucket=00000/part-0\.parquet cannot be read as Parquet"):
        manifest.histories(manifest.files[0])


# ---- no skew


@pytest.mark.parametrize("timezone", ["UTC", "Europe/Berlin"])
def test_the_last_event_before_a_cut_is_the_same_in_training_evaluation_and_serving(make_shards, timezone):
    """The cut is D-1 00:00 in evaluation, D 00:00 in serving; training meets both as midnights inside histories."""
    calendar = Calendar(timezone)
    served = dt.date(2026, 3, 30)  # the day after Berlin's clocks go forward
    day_before = served - dt.timedelta(days=1)
    cut, request = calendar.day_start(served), calendar.request_time(served)
    users = {}
    for user, hours in ((1, (-30, -20, -2, 1, 9)), (2, (-1, 7)), (3, (-50, -26, -3, 8, 9, 10))):
        events = [(user + number, cut + hour * HOUR, 100) for number, hour in enumerate(hours)]
        users[user] = [(90, cut - 90 * HOUR, 10), *events]
    manifest = make_shards(
        [users], ds=served + dt.timedelta(days=1), vocabulary_size=99, data_end=cut + DAY, timezone=timezone
    )
    train = replace(TRAIN, mode="all")
    histories = manifest.histories(manifest.files[0])
    options = {"model": MODEL, "train": train, "calendar": calendar, "vocabulary_size": 99}
    training = collate([training_samples(histories, sample=np.arange(3), data_end=cut + DAY, **options)])
    serving = inference_batch(histories.before(cut), request_time=request, **options)
    cases = NextDayCases(manifest, served + dt.timedelta(days=1), calendar, train, np.ones(100, bool), 10)
    assert (cases.cut, cases.request_time) == (cut, request)
    evaluation = inference_batch(histories.before(cases.cut), request_time=cases.request_time, **options)
    assert calendar.day_start(day_before) < cut

    torch.manual_seed(0)
    network, table = FuXiBeta(MODEL).double(), torch.randn(100, 8, dtype=torch.float64)
    outputs = [network(table[batch.item_index], batch) for batch in (training, serving, evaluation)]
    last = network.encode_last(table[serving.item_index], serving)
    for row in range(3):
        length = int(serving.lengths[row])
        for name in ("item_index", "timestamp", "next_timestamp"):
            context = rows_of(serving, name)[row]
            assert rows_of(training, name)[row][:length] == context
            assert rows_of(evaluation, name)[row] == context
        assert rows_of(training, "next_timestamp")[row][length - 1] == request
        places = [int(batch.offsets[row]) + length - 1 for batch in (training, serving, evaluation)]
        for output, place in zip(outputs, places, strict=True):
            torch.testing.assert_close(output[place], last[row])


def test_string_user_ids_are_read(tmp_path, make_shards):
    manifest = make_shards([random_users(0, 3)], vocabulary_size=40, data_end=MONDAY)
    histories = manifest.histories(manifest.files[0])
    named = replace(histories, user_id=pa.array(["a", "b", "c"]))
    assert named.take(np.array([2, 0])).user_id.to_pylist() == ["c", "a"]


def cut_one_by_one(tokens: list[int], most: int) -> list[tuple[int, int]]:
    """A new cut where the next listener does not fit."""
    cuts: list[tuple[int, int]] = []
    together = 0
    for listener, count in enumerate(tokens):
        if cuts and together + count <= most:
            cuts[-1], together = (cuts[-1][0], listener + 1), together + count
        else:
            cuts.append((listener, listener + 1))
            together = count
    return cuts


@pytest.mark.parametrize("most", [1, 7, 30, 10_000])
@pytest.mark.parametrize("longest", [1, 2, 12, 60])  # 1: nobody has a token
def test_listeners_are_cut_where_the_next_one_does_not_fit(longest: int, most: int) -> None:
    generator = np.random.default_rng(most)
    for listeners in (0, 1, 2, 40):
        tokens = generator.integers(longest, size=listeners)
        assert list(cuts_by_tokens(tokens, most)) == cut_one_by_one(tokens.tolist(), most)
