"""The head that predicts whether the next event is skipped: against loops, beside the softmax, and in no export."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from fuxi_beta import models
from fuxi_beta.config import ModelConfig, TrainConfig
from fuxi_beta.data.batches import collate, training_samples
from fuxi_beta.data.stateless_random import DropoutKey
from fuxi_beta.training.checkpoint import load_export, load_train_state, save_export
from fuxi_beta.training.completion import CompletionHead
from fuxi_beta.training.item_table import PlainItemTable
from fuxi_beta.training.loss import training_loss
from fuxi_beta.training.trainer import HEAD, Trainer, trained_model
from pipelines.calendar import Calendar

from ...small_histories import Event, histories_of

SONGS, DAY = 20, 86_400
MODEL = ModelConfig(dim=6, layers=1, max_history=12, dropout=0.0)
TRAIN = TrainConfig(negatives=9, seed=3, completion_weight=0.7, item_optimizer="adamw", lr=0.01)


def events_of(seed: int, *, skips: Any = None) -> list[Event]:
    """Random plays and skips; skips: of each song whether it is skipped, else by chance."""
    random = np.random.default_rng(seed)
    times = np.sort(random.integers(0, 9 * DAY, random.integers(0, 30)))
    songs = random.integers(1, SONGS + 4, len(times))  # the newest three are not in the vocabulary
    skipped = random.random(len(times)) < 0.4 if skips is None else np.array([skips(song) for song in songs], bool)
    return [(int(song), int(t), 10 if skip else 100) for song, t, skip in zip(songs, times, skipped, strict=True)]


def batch_of(users: dict[int, list[Event]], train: TrainConfig = TRAIN) -> Any:
    histories = histories_of(users)
    samples = training_samples(
        histories,
        sample=np.arange(len(histories)),
        model=MODEL,
        train=train,
        calendar=Calendar(),
        data_end=8 * DAY,
        vocabulary_size=SONGS,
    )
    return collate([samples, samples.slice(0, 0)])


@pytest.mark.parametrize("changed", [{}, {"learn_from": "first_listens"}, {"objective": "next_day"}, {"ema": 0.5}])
def test_the_next_event_of_a_token_is_the_one_after_its_play_skipped_or_not(changed):
    users = {user: events_of(user) for user in range(12)}
    batch = batch_of(users, replace(TRAIN, **changed))
    for row, (start, stop) in enumerate(pairwise(batch.offsets.tolist())):
        events = [event for event in users[row] if event[1] < 8 * DAY]
        plays = [place for place, (song, _, done) in enumerate(events) if done >= 30 and song <= SONGS]
        after = [events[place + 1] for place in plays[:-1]][-MODEL.max_history :]
        assert batch.next_item[start:stop].tolist() == [song if song <= SONGS else 0 for song, *_ in after]
        # A play of a song that the model lacks has no row, and so no part in the loss.
        known = [place for place, (song, *_) in enumerate(after) if song <= SONGS]
        completed = batch.next_completed[start:stop].tolist()
        assert [completed[place] for place in known] == [int(after[place][2] >= 30) for place in known]
    assert 0.2 < batch.next_completed.double().mean() < 0.8 and (batch.next_item == 0).any()


class Table:
    """A lookup in a tensor [V, D]."""

    def __init__(self, vectors: torch.Tensor) -> None:
        self.vectors, self.rows, self.host_waits = vectors, len(vectors), False

    def __call__(self, item_index: torch.Tensor) -> torch.Tensor:
        assert 0 not in item_index
        return self.vectors[item_index]


@pytest.mark.parametrize("changed", [{}, {"learn_from": "first_listens"}, {"negatives_from": "full", "logq": True}])
def test_its_loss_equals_a_loop_in_value_and_every_gradient(changed):
    train = replace(TRAIN, **changed)
    batch = batch_of({user: events_of(user) for user in range(6)}, train)
    torch.manual_seed(0)
    model: Any = models.build(MODEL).double()
    table = torch.randn(SONGS + 1, 6, dtype=torch.float64, requires_grad=True)
    head: Any = CompletionHead(6, train.temperature).double()
    with torch.no_grad():
        head.weight.normal_(std=0.1)
        head.bias.fill_(0.3)
    candidates = torch.arange(1, SONGS + 1)

    def loss(head: Any):
        return training_loss(model, Table(table), batch, train=train, epoch=2, candidates=candidates, head=head)

    (found, count), (without, same_count) = loss(head), loss(None)
    states = model(table[batch.item_index], batch, key=DropoutKey(train.seed, 2))
    expected = torch.zeros((), dtype=torch.float64)
    for token, (song, completed) in enumerate(
        zip(batch.next_item.tolist(), batch.next_completed.tolist(), strict=True)
    ):
        if song:
            vector, (both, of_state, of_song) = table[song] / table[song].norm(), head.weight
            logit = sum(both * states[token] * vector + of_state * states[token] + of_song * vector) / train.temperature
            chance = torch.sigmoid(logit + head.bias)
            expected = expected - torch.log(chance if completed else 1 - chance)
    assert count == same_count > 5
    torch.testing.assert_close(found - without, 0.7 * expected)
    inputs = [table, *model.parameters(), *head.parameters()]
    ours = torch.autograd.grad(found - without, inputs)
    theirs = torch.autograd.grad(0.7 * expected, inputs, allow_unused=True, materialize_grads=True)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def trainer_of(train: TrainConfig) -> Trainer:
    torch.manual_seed(train.seed)
    table = PlainItemTable(SONGS + 4, 6, train=train)
    return Trainer(models.build(MODEL), table, train=train, candidates=torch.arange(1, SONGS + 1))


def test_it_learns_which_songs_are_skipped():
    users = {user: events_of(user, skips=lambda song: song % 2) for user in range(20)}
    train, batch = replace(TRAIN, completion_weight=2.0), batch_of(users)
    trainer: Any = trainer_of(train)
    for epoch in range(60):
        trainer.step(batch, epoch=epoch)
    table = torch.nn.functional.normalize(trainer.table.full_weight(), dim=1)
    states = trainer.model(trainer.table.full_weight()[batch.item_index], batch)
    known = batch.next_item > 0
    said = trainer.head(states, table[batch.next_item])[known] > 0
    assert (said == batch.next_completed[known].bool()).double().mean() > 0.95


def test_a_step_without_it_is_as_before_and_no_export_has_it(tmp_path):
    users = {user: events_of(user) for user in range(6)}
    plain, with_head = (trainer_of(replace(TRAIN, completion_weight=weight)) for weight in (0.0, 0.7))
    assert plain.head is None and not [name for name in plain.state() if "completion" in name]
    before = plain.state()
    assert all(torch.equal(tensor, with_head.state()[name]) for name, tensor in before.items())  # the same start
    batch = batch_of(users, plain.train)
    assert batch.next_item is None and batch.next_completed is None
    plain.step(batch, epoch=0)
    for _ in range(3):
        with_head.step(batch_of(users), epoch=0)
    with_head.save(str(tmp_path / "checkpoint"))
    every = np.arange(SONGS + 1) > 0
    trained, state = trained_model(str(tmp_path / "checkpoint"), model=MODEL, train=with_head.train, candidates=every)
    save_export(str(tmp_path / "export"), replace(trained, ds="2026-03-02"), train_state=state)
    loaded = load_export(str(tmp_path / "export"))
    assert loaded.model.state_dict().keys() == plain.model.state_dict().keys()
    child = trainer_of(with_head.train)
    child.warm_start_from(loaded, load_train_state(str(tmp_path / "export")))
    mine, theirs = child.state(), with_head.state()
    assert mine[f"{HEAD}weight"].any()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items() if "completion" in name)
    without = trainer_of(plain.train)  # a parent with a head serves a child without one, too
    without.warm_start_from(loaded, load_train_state(str(tmp_path / "export")))


def test_a_batch_without_listeners_takes_a_step_and_one_without_next_events_is_refused():
    trainer = trainer_of(TRAIN)
    trainer.step(batch_of({user: events_of(user) for user in range(6)}), epoch=0)
    assert trainer.step(collate([]), epoch=0).events == 0  # a rank that has run dry, of several
    assert all(torch.isfinite(tensor).all() for tensor in trainer.state().values())
    with pytest.raises(ValueError, match="the batch does not know the event after each token"):
        trainer.step(batch_of({1: events_of(1)}, replace(TRAIN, completion_weight=0.0)), epoch=0)


@pytest.mark.parametrize("weight", [-0.1, float("inf"), float("nan")])
def test_a_weight_that_cannot_be_is_refused(weight):
    with pytest.raises(ValueError, match=r"train\.completion_weight is .*: it must be at least 0"):
        replace(TRAIN, completion_weight=weight)
