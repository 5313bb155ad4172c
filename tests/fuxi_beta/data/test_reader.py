"""What threads and vectorised passes of the reader must not change: the stream of batches, as plain loops make it."""

import datetime as dt
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice, pairwise

import numpy as np
import pytest
import torch

from fuxi_beta.config import ModelConfig, TrainConfig
from fuxi_beta.data import batches as jagged
from fuxi_beta.data import stateless_random
from fuxi_beta.data.batches import Batch, collate, training_samples
from fuxi_beta.data.reader import TrainingBatches, ahead, prefetched
from pipelines.calendar import Calendar
from pipelines.errors import InputError
from pipelines.histories.shards import Manifest

DAY, N, VOCABULARY, TIMEZONE = 86_400, 12, 30, "Europe/Berlin"
END = Calendar(TIMEZONE).day_start(dt.date(2026, 3, 30))  # the clocks go forward the day before
TRAIN = TrainConfig(batch_size=10, lanes=4, negatives=4)
BUDGETS = [{"batch_size": 10}, {"batch_size": 64}, {"batch_tokens": 25}, {"batch_tokens": 300}]
MODES = [
    {"learn_from": "first_listens"},
    {"learn_from": "plays"},
    {"mode": "all", "protocol": "leave_one_out", "held_out": 2},
]


@pytest.fixture
def shards(make_shards) -> Manifest:
    """Histories of 0 to 40 events with skips, repeats, unknown songs, songs heard before, and days to come."""
    random, heard, buckets = np.random.default_rng(5), {}, []
    for bucket, count in enumerate((31, 5, 22, 40)):
        users = {}
        for user in range(100 * bucket, 100 * bucket + count):
            events = random.choice([0, 1, 2, 5, 15, 40])
            times = np.sort(random.integers(END - 6 * DAY, END + DAY // 2, events))
            songs, completion = random.integers(1, VOCABULARY + 4, events), random.choice([5, 30, 100], events)
            users[user] = list(zip(songs.tolist(), times.tolist(), completion.tolist(), strict=True))
            if user % 3 == 0:
                heard[user] = np.unique(random.integers(1, VOCABULARY + 4, 6)).tolist()
        buckets.append(users)
    return make_shards(
        buckets,
        vocabulary_size=VOCABULARY,
        data_end=END + 3 * DAY,
        row_group_events=95,
        heard_before=heard,
        timezone=TIMEZONE,
    )


def reader_of(
    shards: Manifest, *, rank: int = 0, world_size: int = 1, request_hour: int = 8, data_start: int = 0, **train
) -> TrainingBatches:
    return TrainingBatches(
        shards,
        model=ModelConfig(dim=8, max_history=N),
        train=replace(TRAIN, **train),
        data_end=END,
        rank=rank,
        world_size=world_size,
        vocabulary_size=VOCABULARY,
        request_hour=request_hour,
        data_start=data_start,
    )


# ---- the reference: one listener, and one row group, at a time

Sample = tuple[list[int], list[int], list[int], list[int], int, list[int]]
"""Songs, times, next times, targets, sample number, songs seen."""


def plain_sample(row: dict, sample: int, train: TrainConfig, data_start: int) -> Sample:
    calendar = Calendar(TIMEZONE)
    events = list(zip(row["item_index"], row["timestamp"], row["completion"], strict=True))
    if train.protocol == "leave_one_out":
        for _ in range(train.held_out):
            newest = max((n for n, event in enumerate(events) if plays(event, train)), default=len(events))
            events = events[:newest]
    events = [event for event in events if event[1] < END]
    heard, firsts = set(row["heard_before"]), []
    for song, _, _ in events:
        firsts.append(song not in heard)
        heard.add(song)
    kept = [n for n, event in enumerate(events) if plays(event, train)]
    tokens = []
    for here, following in pairwise(kept):
        (song, at, _), (target, then, _) = events[here], events[following]
        learned = then >= data_start and (train.learn_from == "plays" or firsts[following])
        if train.protocol == "next_day" and calendar.date_of(then) != calendar.date_of(at):
            then = calendar.request_time(calendar.date_of(then))
        tokens.append((song, at, then, target if learned else 0))
    columns = [list(column) for column in zip(*tokens[-N:], strict=True)] or [[], [], [], []]
    return (*columns, sample, sorted(heard) if train.learn_from == "first_listens" else [])  # type: ignore[return-value]


def plays(event: tuple[int, int, int], train: TrainConfig) -> bool:
    return event[2] >= train.min_completion and event[0] <= VOCABULARY


def is_active(row: dict, data_start: int, train: TrainConfig) -> bool:
    """Whether there is a play between the training before and this one's end."""
    events = zip(row["item_index"], row["timestamp"], row["completion"], strict=True)
    return any(data_start <= event[1] < END and plays(event, train) for event in events)


def plain_lane(reader: TrainingBatches, number: int, epoch: int) -> Iterator[list[Sample]]:
    """What a lane gives to each global batch."""
    lane, train, waiting = reader._lanes[number], reader.train, []
    for place in stateless_random.permutation(
        len(lane.groups), train.seed, epoch, stateless_random.SHUFFLE_LANE, number
    ).tolist():
        group = lane.groups[place]
        rows = reader.manifest.read(group.file, group.group).to_pylist()
        samples = [plain_sample(row, group.first_sample + n, train, reader.data_start) for n, row in enumerate(rows)]
        read = [n for n, row in enumerate(rows) if not reader.data_start or is_active(row, reader.data_start, train)]
        assert group.read == len(read)
        order = stateless_random.permutation(
            group.read, train.seed, epoch, stateless_random.SHUFFLE_ROWS, group.first_sample
        ).tolist()
        order = [read[n] for n in order]
        if train.batch_tokens:
            shares = plain_shares([min(max(row["num_events"], 1), N) for row in rows], order, group.shares)
            key = (train.seed, epoch, stateless_random.SHUFFLE_SHARES, group.first_sample)
            for share in stateless_random.permutation(group.shares, *key).tolist():
                yield [samples[row] for row in shares[share]]
        else:
            waiting += [samples[row] for row in order]
    for start in range(0, len(waiting), lane.quota):
        yield waiting[start : start + lane.quota]


def plain_shares(tokens: list[int], order: list[int], count: int) -> list[list[int]]:
    """Rows by the doublings of their lengths, cut where the tokens so far reach each share of all."""
    shares, done, every = [[] for _ in range(count)], 0, sum(tokens[row] for row in order)
    for row in sorted(order, key=lambda row: tokens[row].bit_length()):
        done += tokens[row]
        shares[sum(done >= cut for cut in np.linspace(0, every, count + 1)[1:-1])].append(row)
    return shares


def assert_same(found: Batch, expected: list[Sample]) -> None:
    """Every field of a batch, to the bit."""
    names = ("item_index", "timestamp", "next_timestamp", "target")
    tokens = [list(zip(*sample[:4], strict=True)) for sample in expected]
    columns = {name: [token[n] for sample in tokens for token in sample] for n, name in enumerate(names)}
    columns["sample"] = [sample[4] for sample in expected]
    columns["seen_items"] = [song for sample in expected for song in sample[5]]
    columns["offsets"] = np.cumsum([0, *(len(sample[0]) for sample in expected)]).tolist()
    columns["seen_offsets"] = np.cumsum([0, *(len(sample[5]) for sample in expected)]).tolist()
    assert columns.keys() == found.tensors.keys()
    for name, values in columns.items():
        assert getattr(found, name).dtype == torch.int64, name
        assert getattr(found, name).tolist() == values, name


@pytest.mark.parametrize("budget", BUDGETS, ids=str)
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_the_stream_of_batches_is_that_of_plain_loops(shards, mode, budget):
    assert_plain(shards, 0, **mode, **budget)


@pytest.mark.parametrize("budget", BUDGETS, ids=str)
@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("since", [END - 2 * DAY + 7, END - DAY // 3])
def test_incremental_batches_have_the_listeners_and_targets_that_are_new(shards, mode, budget, since):
    late = replace(shards, ds=dt.date(2026, 4, 2))
    assert_plain(late, since, **mode, **budget)
    assert 0 < reader_of(late, data_start=since).steps_per_epoch < reader_of(late).steps_per_epoch


def test_incremental_batches_are_none_where_no_later_day_wrote_anything(shards):
    assert reader_of(shards, data_start=END - DAY).steps_per_epoch == 0
    assert list(reader_of(shards, data_start=END - DAY).epoch(0)) == []


def assert_plain(shards: Manifest, data_start: int, **train) -> None:
    for rank, world_size, epoch in ((0, 1, 0), (1, 3, 2)):
        reader = reader_of(shards, rank=rank, world_size=world_size, data_start=data_start, **train)
        lanes = [plain_lane(reader, number, epoch) for number in reader._lanes]
        steps = 0
        for batch in reader.epoch(epoch):
            assert_same(batch, [sample for lane in lanes for sample in next(lane, [])])
            steps += 1
        assert steps == reader.steps_per_epoch
        assert not any(list(lane) for lane in lanes)


@pytest.mark.parametrize("at_once", [1, 7, 50])
def test_songs_seen_do_not_depend_on_how_many_events_are_sorted_together(shards, monkeypatch, at_once):
    def batch() -> Batch:
        histories = shards.histories(shards.files[0])
        calendar, rows = Calendar(TIMEZONE), np.arange(len(histories))
        model = ModelConfig(max_history=N)
        options = {"model": model, "calendar": calendar, "data_end": END, "vocabulary_size": VOCABULARY}
        train = replace(TRAIN, learn_from="first_listens")
        return collate([training_samples(histories, sample=rows, train=train, **options)])

    whole = batch()
    assert len(whole.seen_items)
    assert whole.target.any()
    monkeypatch.setattr(jagged, "_SORTED_AT_ONCE", at_once)
    for name, tensor in batch().tensors.items():
        assert torch.equal(tensor, whole.tensors[name])


# ---- threads


def streams(shards: Manifest, threads: int, budget: dict) -> list[Batch]:
    reader = reader_of(shards, **budget)
    reader.threads = threads
    return list(reader.epoch(1))


@pytest.mark.parametrize("budget", BUDGETS, ids=str)
def test_batches_do_not_depend_on_the_number_of_threads_nor_on_which_is_first(shards, monkeypatch, budget):
    alone, load = streams(shards, 1, budget), TrainingBatches._load

    def slow(reader: TrainingBatches, what):
        time.sleep(0.01 * (what.group.first_sample % 3))
        return load(reader, what)

    monkeypatch.setattr(TrainingBatches, "_load", slow)
    for ours, theirs in zip(streams(shards, 4, budget), alone, strict=True):
        for name, tensor in ours.tensors.items():
            assert torch.equal(tensor, theirs.tensors[name])


def test_threads_work_a_bounded_way_ahead_and_results_keep_their_order():
    begun, lock = [], threading.Lock()

    def square(number: int) -> int:
        with lock:
            begun.append(number)
        time.sleep(0.002 * (number % 3))
        return number * number

    results = ahead(square, range(40), threads=3)
    for number, result in enumerate(results):
        assert result == number * number
        with lock:
            assert max(begun) <= number + 2 * 3
    assert sorted(begun) == list(range(40))


def test_an_error_comes_out_in_the_place_of_its_result():
    def invert(number: int) -> float:
        time.sleep(0.01 * (number < 2))  # the error is there before the results before it
        return 1 / (2 - number)

    results = ahead(invert, range(9), threads=4)
    assert list(islice(results, 2)) == [0.5, 1.0]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert_no_reader_threads()


def test_batches_before_a_damaged_shard_come_out(shards):
    reader = reader_of(shards, lanes=1, mode="all")
    whole = list(reader.epoch(0))
    broken = reader._plan(0, reader._lanes[0], 0, 0)[4]
    with open(shards.uri_of(broken.group.file), "wb") as file:
        file.write(b"not parquet")
    first = next(what.step for what in reader._plan(0, reader._lanes[0], 0, 0) if what.group.file == broken.group.file)
    batches = prefetched(reader.epoch(0))
    for expected in whole[:first]:
        assert torch.equal(next(batches).item_index, expected.item_index)
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        next(batches)
    assert_no_reader_threads()


@pytest.mark.parametrize("around", [iter, prefetched])
def test_an_epoch_left_early_ends_its_threads(shards, around):
    def left_early() -> int:
        for batch in around(reader_of(shards).epoch(0)):
            return batch.num_listeners
        return 0

    assert left_early()
    assert_no_reader_threads()


def assert_no_reader_threads() -> None:
    for thread in threading.enumerate():
        if thread.name.startswith("reader"):
            thread.join(timeout=5)
            assert not thread.is_alive()


def test_the_request_hour_is_the_next_time_at_the_end_of_a_day(shards):
    calendar, moved = Calendar(TIMEZONE), 0
    epochs = zip(reader_of(shards).epoch(0), reader_of(shards, request_hour=20).epoch(0), strict=True)
    for morning, evening in epochs:
        assert torch.equal(morning.item_index, evening.item_index)
        later = (evening.next_timestamp - morning.next_timestamp).tolist()
        for at, then, seconds in zip(morning.timestamp.tolist(), morning.next_timestamp.tolist(), later, strict=True):
            crosses = calendar.date_of(at) != calendar.date_of(then)
            assert seconds == (12 * 3600 if crosses else 0)
            moved += crosses
    assert moved > 50
