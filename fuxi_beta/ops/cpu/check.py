"""A quick comparison of freshly built kernels with plain torch, which every build must pass before it is used."""

from collections.abc import Callable

import torch
from torch import Tensor

from fuxi_beta.data import stateless_random
from fuxi_beta.data.batches import Batch
from fuxi_beta.data.padding import Padding
from fuxi_beta.data.stateless_random import Mask
from fuxi_beta.ops import contributions, cpu, reference
from fuxi_beta.ops.block import BlockWeights, compose, rows_of_value
from fuxi_beta.ops.contributions import Term
from fuxi_beta.ops.cpu import top_k
from fuxi_beta.ops.damped_waves import waves_dense, waves_of
from fuxi_beta.ops.token_mixer import PreparedTimes
from fuxi_beta.ops.top_k import blocked_top_k


def run() -> None:
    """Raises AssertionError if a kernel disagrees with its reference, forward or backward."""
    generator = torch.Generator().manual_seed(0)
    _check_token_mixer(generator)
    _check_block(generator)
    _check_retention(generator)
    _check_periodic(generator)
    _check_loss(generator)
    _check_top_k(generator)
    _check_strongest_plays(generator)
    keys = torch.randint(1 << 62, (33,), generator=generator)
    x = torch.randn(33, 70, generator=generator)
    mask = Mask(keys, 0.2)
    torch.testing.assert_close(cpu.dropout(x, mask), stateless_random.dropout(x, mask))
    _compare(lambda x: cpu.rms_norm(x, mask), lambda x: reference.rms_norm(x, mask), [x])
    _compare(cpu.swiglu, reference.swiglu, [x])
    torch.testing.assert_close(cpu.integers(keys, 7, 1000), stateless_random.integers(keys, 7, 1000), rtol=0, atol=0)


def _ragged_batch(generator: torch.Generator) -> Batch:
    lengths = torch.tensor([0, 1, 77, 12])
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    timestamp = torch.randint(1 << 27, (90,), generator=generator).sort().values + 1_700_000_000
    zeros = torch.zeros(90, dtype=torch.int64)
    return Batch(
        offsets=offsets,
        item_index=zeros,
        timestamp=timestamp,
        next_timestamp=timestamp + 9,
        target=zeros,
        sample=zeros[:4],
        seen_offsets=zeros[:5],
        seen_items=zeros[:0],
    )


def _check_token_mixer(generator: torch.Generator) -> None:
    batch = _ragged_batch(generator)
    projected, by_lag = torch.randn(90, 99, generator=generator), torch.randn(77, generator=generator)
    mask = Mask(torch.arange(90), 0.1)

    def mixer(times: PreparedTimes) -> Callable[..., Tensor]:
        return lambda projected, by_lag, *power: times.token_mixer(projected, by_lag, power, mask)

    inputs = [projected, by_lag, torch.tensor(0.3), torch.tensor(0.2)]
    _compare(mixer(cpu.PackedTimes(batch)), mixer(reference.PaddedTimes(batch, torch.float32)), inputs)


@torch.no_grad()
def _check_block(generator: torch.Generator) -> None:
    batch, power = _ragged_batch(generator), (torch.tensor(0.3), torch.tensor(0.2))
    x, by_lag = torch.randn(90, 33, generator=generator), torch.randn(77, generator=generator)
    shapes = (33, 99), (66, 33), (33,), (33, 40), (20, 33)
    weights = BlockWeights(*(torch.randn(shape, generator=generator) / 6 for shape in shapes))
    times, last = cpu.PackedTimes(batch), weights.project[:, 66:]
    torch.testing.assert_close(
        times.block(x, by_lag, power, weights),
        compose(x, reference.PaddedTimes(batch, torch.float32), by_lag, power, weights, operators=reference),
        rtol=1e-3,
        atol=1e-3,
    )
    plain = rows_of_value(torch.nn.functional.silu(x @ last), batch, by_lag, power)
    torch.testing.assert_close(times.last_rows(x, by_lag, power, last), tuple(plain), rtol=1e-3, atol=1e-3)


def _check_retention(generator: torch.Generator) -> None:
    batch, mask = _ragged_batch(generator), Mask(torch.arange(90), 0.1)
    inputs = [torch.randn(90, 4 * 60, generator=generator), torch.tensor([0.7, 0.01, 0.1])]

    def plain(projected: Tensor, decay: Tensor) -> Tensor:
        gate, packed = torch.nn.functional.silu(projected).split([60, 180], dim=1)
        retained = Padding(batch).each(packed, lambda padded, _: reference.retention(padded, decay))
        return reference.gated(gate, retained, mask)

    _compare(lambda projected, decay: cpu.retention(projected, decay, batch, mask), plain, inputs)


def _check_periodic(generator: torch.Generator) -> None:
    batch, mask = _ragged_batch(generator), Mask(torch.arange(90), 0.1)
    periods, padding = (3600, 86_400), Padding(batch)
    projected, scale = torch.randn(90, 2 * 50, generator=generator), torch.tensor([1e-4, 1e-6])
    where = batch.offsets, *waves_of(batch, periods, projected)

    def plain(projected: Tensor, rate: Tensor) -> Tensor:
        gate, value = torch.nn.functional.silu(projected).chunk(2, dim=1)
        (group,) = padding.groups
        times = group.by_listener(batch.next_timestamp), group.by_listener(batch.timestamp)
        mixed = padding.each(value, lambda rows, _: waves_dense(rows, rate, periods, *times))
        return reference.gated(gate, mixed, mask)

    # In rates of about 1, as `_compare` allows errors of a hundredth.
    inputs = [projected, torch.ones(2)]
    _compare(lambda x, r: cpu.periodic(x, r * scale, where, mask), lambda x, r: plain(x, r * scale), inputs)


def _check_loss(generator: torch.Generator) -> None:
    states, table = torch.randn(40, 70, generator=generator), torch.randn(300, 70, generator=generator)
    target, negatives = (torch.randint(300, shape, generator=generator) for shape in ((40,), (40, 19)))
    drawn = (target, negatives, negatives == target[:, None], 5.0)
    _compare(
        lambda states, table: cpu.sampled_softmax(states, table, *drawn),
        lambda states, table: reference.sampled_softmax_gathered(states, table, *drawn),
        [states, table],
    )


def _check_top_k(generator: torch.Generator) -> None:
    """Integers, whose scores every implementation gets exactly."""
    queries, table = (torch.randint(-2, 3, (rows, 33), generator=generator).float() for rows in (70, 5000))
    candidates = torch.rand(5000, generator=generator) < 0.8
    seen = torch.arange(70).repeat_interleave(9), torch.randint(5000, (630,), generator=generator)
    expected = blocked_top_k(queries, table, candidates=candidates, k=20, seen=seen)
    of_scores = cpu.top_k_of_scores(queries @ table.t(), candidates=candidates, k=20, seen=seen)
    searches = [
        top_k.search(queries, top_k.prepare(table, candidates, scan=scan), k=20, seen=seen) for scan in top_k.scans()
    ]
    for items, scores in (of_scores, *(found[:2] for found in searches)):
        torch.testing.assert_close(items, expected[0], rtol=0, atol=0)
        torch.testing.assert_close(scores, expected[1], rtol=0, atol=0)


def _check_strongest_plays(generator: torch.Generator) -> None:
    """Integers, whose sums every implementation gets exactly."""
    batch, rows = _ragged_batch(generator), torch.tensor([3, 1, 2])
    songs = torch.randint(20, (90,), generator=generator)

    def integers(*shape: int) -> Tensor:
        return torch.randint(-3, 4, shape, generator=generator).float()

    terms = [Term(integers(90, dim), integers(3, 35, dim), integers(90)) for dim in (33, 5)]
    ours = cpu.strongest_plays(terms, batch.offsets, songs, rows, 4)
    expected = contributions.strongest_plays(terms, batch.offsets, songs, rows, 4)
    for mine, theirs in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


def _compare(ours, reference, inputs: list[Tensor]) -> None:
    inputs = [tensor.requires_grad_() for tensor in inputs]
    actual, expected = ours(*inputs), reference(*inputs)
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)
    weight = torch.linspace(-1, 1, actual.numel()).view_as(actual)
    gradients = (torch.autograd.grad(result, inputs, weight) for result in (actual, expected))
    for actual_gradient, expected_gradient in zip(*gradients, strict=True):
        torch.testing.assert_close(actual_gradient, expected_gradient, rtol=1e-3, atol=1e-2)
