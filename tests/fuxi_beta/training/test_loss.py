"""The loss against its plain reference, and the step's loss against loops over positions."""

import math
from dataclasses import replace

import pytest
import torch

from fuxi_beta.config import ModelConfig, TrainConfig
from fuxi_beta.data import stateless_random
from fuxi_beta.data.stateless_random import DropoutKey
from fuxi_beta.models.base import l2_normalise
from fuxi_beta.models.fuxi_beta import FuXiBeta
from fuxi_beta.ops.reference import sampled_softmax, sampled_softmax_gathered
from fuxi_beta.training.loss import _unique_songs, training_loss

SONGS = 20
TRAIN = TrainConfig(negatives=9, seed=3)


@pytest.mark.parametrize(("positions", "rows", "negatives"), [(1, 3, 1), (40, 11, 16), (25, 200, 128)])
def test_fast_loss_equals_the_reference_in_value_and_gradients(positions, rows, negatives):
    torch.manual_seed(positions)
    states = l2_normalise(torch.randn(positions, 6, dtype=torch.float64)).requires_grad_()
    table = l2_normalise(torch.randn(rows, 6, dtype=torch.float64)).requires_grad_()
    target, drawn = torch.randint(rows, (positions,)), torch.randint(rows, (positions, negatives))
    masked = (drawn == target[:, None]) | (torch.rand(positions, negatives) < 0.3)
    masked[0] = True  # a position may lose all its negatives
    inputs = (states, table, target, drawn, masked, 0.05)
    fast, plain = sampled_softmax(*inputs), sampled_softmax_gathered(*inputs)
    torch.testing.assert_close(fast, plain)
    for ours, theirs in zip(
        torch.autograd.grad(fast * 0.7, (states, table)), torch.autograd.grad(plain * 0.7, (states, table)), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


class Table:
    """A lookup in a tensor [V, D], which remembers what was asked for."""

    def __init__(self, vectors: torch.Tensor) -> None:
        self.vectors, self.rows, self.host_waits = vectors, len(vectors), False
        self.asked: list[torch.Tensor] = []

    def __call__(self, item_index: torch.Tensor) -> torch.Tensor:
        self.asked.append(item_index)
        return self.vectors[item_index]


def setting(make_batch, lengths: list[int], **values):
    torch.manual_seed(0)
    model = FuXiBeta(ModelConfig(dim=6, layers=1, max_history=16)).double()
    table = torch.randn(SONGS + 1, 6, dtype=torch.float64, requires_grad=True)
    return model, table, make_batch(lengths, songs=SONGS, target_share=0.6), replace(TRAIN, **values)


@pytest.mark.parametrize("mode", ["all", "exclusive"])
@pytest.mark.parametrize("learn_from", ["plays", "first_listens"])
def test_training_loss_equals_a_loop_over_positions(make_batch, learn_from, mode):
    model, table, batch, train = setting(make_batch, [4, 0, 16, 1], learn_from=learn_from, mode=mode)
    candidates = torch.tensor([2, 3, 5, 7, 11, 13, 17, 19])
    found, count = training_loss(model, Table(table), batch, train=train, epoch=2, candidates=candidates)

    states = model(table[batch.item_index], batch, key=DropoutKey(train.seed, 2))
    expected, targets, masks = torch.zeros((), dtype=torch.float64), 0, 0
    for token in range(len(batch.item_index)):
        if batch.target[token] == 0:
            continue
        targets += 1
        row = int(batch.listener[token])
        heard = set(batch.seen_items[int(batch.seen_offsets[row]) : int(batch.seen_offsets[row + 1])].tolist())
        sample = stateless_random.combine(train.seed, 2, int(batch.sample[row]))
        key = stateless_random.combine(sample, int(batch.position[token]), stateless_random.NEGATIVES)
        drawn = candidates[stateless_random.integers(key.reshape(1), train.negatives, len(candidates))[0]].tolist()
        allowed = [n for n in drawn if n != batch.target[token] and not (learn_from == "first_listens" and n in heard)]
        masks += len(drawn) - len(allowed)
        cosines = [
            torch.dot(states[token], table[song] / table[song].norm()) / train.temperature
            for song in [int(batch.target[token]), *allowed]
        ]
        expected = expected + torch.logsumexp(torch.stack(cosines), 0) - cosines[0]
    assert count == targets > 5
    assert masks > 3
    torch.testing.assert_close(found, expected)
    parameters = [table, *model.parameters()]
    for ours, theirs in zip(
        torch.autograd.grad(found, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_unique_songs_are_looked_up_once(make_batch):
    model, table, batch, train = setting(make_batch, [9, 16])
    lookup = Table(table)
    training_loss(model, lookup, batch, train=train, epoch=0, candidates=torch.arange(1, SONGS + 1))
    (asked,) = lookup.asked
    assert torch.equal(asked, asked.unique())
    assert 0 not in asked


@pytest.mark.parametrize(("songs", "most"), [([3, 4, 9], 5), ([], 2), ([1, 2, 9], 50), ([5], 1)])
def test_songs_filled_up_with_padding_are_the_same_songs(songs, most):
    occurs = torch.zeros(10, dtype=torch.bool)
    occurs[songs] = True
    found, row = _unique_songs(occurs, at_most=most)
    exact, same_row = _unique_songs(occurs, at_most=None)
    assert exact.tolist() == songs and found.tolist() == songs + [0] * (min(most, 10) - len(songs))
    assert torch.equal(row, same_row) and row[songs].tolist() == list(range(len(songs)))
    assert (row >= 0).sum() == len(songs)


@pytest.mark.parametrize("lengths", [[], [0, 0], [5, 3]])
def test_no_positions_give_a_zero_with_a_graph(make_batch, lengths):
    model, table, batch, train = setting(make_batch, lengths)
    batch = replace(batch, target=torch.zeros_like(batch.target))
    loss, count = training_loss(model, Table(table), batch, train=train, epoch=0, candidates=torch.arange(1, 5))
    loss.backward()
    assert count == 0
    assert loss.item() == 0
    assert all(parameter.grad is not None for parameter in (table, *model.parameters()))


def test_two_halves_of_a_batch_sum_to_the_whole(make_batch):
    """What lets ranks split a batch: masks and negatives follow the sample, not its place."""
    model, table, batch, train = setting(make_batch, [6, 16, 3])
    candidates = torch.arange(1, SONGS + 1)

    def loss(part):
        return training_loss(model, Table(table), part, train=train, epoch=1, candidates=candidates)

    def rows(first: int, last: int):
        start, end = int(batch.offsets[first]), int(batch.offsets[last])
        seen_start, seen_end = int(batch.seen_offsets[first]), int(batch.seen_offsets[last])
        return replace(
            batch,
            offsets=batch.offsets[first : last + 1] - start,
            sample=batch.sample[first:last],
            seen_offsets=batch.seen_offsets[first : last + 1] - seen_start,
            seen_items=batch.seen_items[seen_start:seen_end],
            **{
                name: getattr(batch, name)[start:end]
                for name in ("item_index", "timestamp", "next_timestamp", "target")
            },
        )

    whole, parts = loss(batch), [loss(rows(0, 1)), loss(rows(1, 3))]
    torch.testing.assert_close(whole[0], parts[0][0] + parts[1][0])
    assert whole[1] == parts[0][1] + parts[1][1]


def test_loss_at_chance_is_the_logarithm_of_the_choices():
    states = torch.zeros(5, 4)
    table, drawn = torch.eye(4), torch.ones(5, 8, dtype=torch.int64)
    loss = sampled_softmax(states, table, torch.zeros(5, dtype=torch.int64), drawn, torch.zeros(5, 8).bool(), 0.05)
    assert math.isclose(loss.item() / 5, math.log(9), rel_tol=1e-6)
