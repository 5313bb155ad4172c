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
from fuxi_beta.training import loss
from fuxi_beta.training.loss import _unique_songs, training_loss
from fuxi_beta.training.negatives import FULL_SOFTMAX_SONGS, NegativeSampler
from pipelines.errors import InputError

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


CANDIDATES = torch.tensor([2, 3, 5, 7, 11, 13, 17, 19])
PLAYS = torch.tensor([40, 0, 3, 90, 1, 7, 7, 12])


def negatives_of(train: TrainConfig, batch, token: int) -> list[tuple[int, float]]:
    """The negatives of a token's target with how often each is drawn on average, from the definition."""
    if train.negatives_from == "full":
        return [(song, 1.0) for song in CANDIDATES.tolist()]
    row, count = int(batch.listener[token]), len(CANDIDATES)
    sample = stateless_random.combine(train.seed, 2, int(batch.sample[row]))
    key = stateless_random.combine(sample, int(batch.position[token]), stateless_random.NEGATIVES).reshape(1)
    if train.negatives_from == "uniform":
        places = stateless_random.integers(key, train.negatives, count)[0].tolist()
        return [(int(CANDIDATES[place]), train.negatives / count) for place in places]
    weights = PLAYS.tolist()
    if train.negatives_from == "in_batch":
        targets = batch.target[batch.target > 0].tolist()
        weights = [targets.count(song) for song in CANDIDATES.tolist()]
    pool = [place for place, weight in enumerate(weights) for _ in range(weight)]
    uniform, drawn = round(train.uniform_share * train.negatives), []
    for number, bits in enumerate(stateless_random.integers(key, train.negatives, (1 << 31) - 1)[0].tolist()):
        choices = list(range(count)) if number < uniform else pool
        place = choices[bits * len(choices) // ((1 << 31) - 1)]
        expected = uniform / count + (train.negatives - uniform) * PLAYS[place].item() / PLAYS.sum().item()
        drawn.append((int(CANDIDATES[place]), max(expected, 1e-9)))
    return drawn


def loss_of(model, table, batch, train: TrainConfig):
    options = {"train": train, "rows": SONGS + 1, "plays": PLAYS}
    frequencies = NegativeSampler(CANDIDATES, **options).frequencies(batch)
    return training_loss(
        model, Table(table), batch, train=train, epoch=2, candidates=CANDIDATES, frequencies=frequencies
    )


NEGATIVES = [
    {},
    {"logq": True},
    {"negatives_from": "popularity", "logq": True},
    {"negatives_from": "popularity", "uniform_share": 0.0},
    {"negatives_from": "in_batch", "logq": True, "uniform_share": 0.3},
    {"negatives_from": "full"},
]


@pytest.mark.parametrize("objective", ["next_play", "next_day"])
@pytest.mark.parametrize("options", NEGATIVES)
@pytest.mark.parametrize("learn_from", ["plays", "first_listens"])
def test_training_loss_equals_a_loop_over_positions(make_batch, learn_from, options, objective, monkeypatch):
    monkeypatch.setattr(loss, "_LOGITS_AT_ONCE", 30)  # so that the full softmax takes several parts
    model, table, batch, train = setting(make_batch, [4, 0, 16, 1], learn_from=learn_from, **options)
    if objective == "next_day":  # the first tokens of a listener have no earlier state; then days of one to four plays
        batch = replace(batch, back=torch.where(batch.position > 1, batch.position % 4, 0))
    found, count = loss_of(model, table, batch, train)

    states = model(table[batch.item_index], batch, key=DropoutKey(train.seed, 2))
    expected, targets, masks = torch.zeros((), dtype=torch.float64), 0, 0
    for token in range(len(batch.item_index)):
        if batch.target[token] == 0:
            continue
        targets += 1
        row = int(batch.listener[token])
        state = token - (0 if batch.back is None else int(batch.back[token]))
        positives = {
            int(batch.target[other]) for other, of in zip(batch.positions, batch.states, strict=True) if of == state
        }
        heard = set(batch.seen_items[int(batch.seen_offsets[row]) : int(batch.seen_offsets[row + 1])].tolist())
        drawn = negatives_of(train, batch, token)
        hidden = positives | (heard if learn_from == "first_listens" else set())
        allowed = [(song, math.log(times) if train.logq else 0.0) for song, times in drawn if song not in hidden]
        masks += len(drawn) - len(allowed)
        cosines = [
            torch.dot(states[state], table[song] / table[song].norm()) / train.temperature - correction
            for song, correction in [(int(batch.target[token]), 0.0), *allowed]
        ]
        expected = expected + torch.logsumexp(torch.stack(cosines), 0) - cosines[0]
    assert count == targets > 5
    assert masks > 2
    torch.testing.assert_close(found, expected)
    parameters = [table, *model.parameters()]
    for ours, theirs in zip(
        torch.autograd.grad(found, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("options", [{}, {"negatives_from": "popularity"}, {"negatives_from": "in_batch"}])
def test_corrected_negatives_estimate_the_full_softmax(make_batch, options):
    """In value and gradient, as their number grows; without the correction they do not."""
    model, table, batch, train = setting(make_batch, [12, 16, 16], negatives=20_000)
    train = replace(train, temperature=0.5)
    if options == {"negatives_from": "in_batch"}:  # a batch that is as the training is
        batch = replace(batch, target=CANDIDATES.repeat_interleave(torch.tensor([11, 1, 3, 14, 2, 4, 4, 5])))
        assert torch.equal(batch.target.bincount()[CANDIDATES], torch.tensor([11, 1, 3, 14, 2, 4, 4, 5]))
        plays = torch.tensor([11, 1, 3, 14, 2, 4, 4, 5])
    else:
        plays = PLAYS

    def value_and_gradient(**changes):
        of = replace(train, **changes)
        frequencies = NegativeSampler(CANDIDATES, train=of, rows=SONGS + 1, plays=plays).frequencies(batch)
        total, count = training_loss(
            model, Table(table), batch, train=of, epoch=0, candidates=CANDIDATES, frequencies=frequencies
        )
        return total / count, torch.autograd.grad(total / count, table)[0]

    exact, plain = value_and_gradient(negatives_from="full"), value_and_gradient(**options)
    corrected = value_and_gradient(**options, logq=True)
    assert abs(corrected[0] - exact[0]) < 0.01 and plain[0] - exact[0] > 1
    torch.testing.assert_close(corrected[1], exact[1], atol=0.02 * exact[1].abs().max().item(), rtol=0)


def test_a_full_softmax_over_too_many_songs_is_refused():
    with pytest.raises(InputError, match=r"full, but the model has 50,001 candidates, more than 50,000: set it to"):
        NegativeSampler(
            torch.arange(1, FULL_SOFTMAX_SONGS + 2), train=replace(TRAIN, negatives_from="full"), rows=60_000
        )


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
    total = sampled_softmax(states, table, torch.zeros(5, dtype=torch.int64), drawn, torch.zeros(5, 8).bool(), 0.05)
    assert math.isclose(total.item() / 5, math.log(9), rel_tol=1e-6)
