"""The token mixer against loops written straight from the formulas, in float64."""

# (torch types the members of a module as Tensor | Module)

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fuxi_beta.layers.aftm import AFTM
from fuxi_beta.layers.frab import FRAB
from fuxi_beta.ops.reference import PaddedTimes

DIM, REACH = 6, 21


def loop_mixer(mixer: AFTM, normed: Tensor, batch, heads: int) -> Tensor:
    """U * RMSNorm(concat(B V, B^t V)) one token at a time."""
    rows = []
    for start, end in zip(batch.offsets[:-1].tolist(), batch.offsets[1:].tolist(), strict=True):
        for i in range(start, end):
            projected = normed[i] @ mixer.project
            gate = projected[: 2 * DIM] * torch.sigmoid(projected[: 2 * DIM])
            by_position = torch.zeros(DIM, dtype=normed.dtype)
            by_time = torch.zeros(DIM, dtype=normed.dtype)
            for j in range(start, i + 1):
                raw = (normed[j] @ mixer.project)[2 * DIM :]
                value = raw * torch.sigmoid(raw)
                by_position = by_position + mixer.positional.weight[REACH - 1 + (j - i)] * value
                if mixer.temporal is not None:
                    gap = max(int(batch.next_timestamp[i]) - int(batch.timestamp[j]), 0)
                    power = torch.tensor(1.0 + gap, dtype=normed.dtype) ** -mixer.temporal.decay
                    by_time = by_time + mixer.temporal.scale * power * value
            size = DIM // heads
            channels = []
            for head in range(heads):
                part = slice(head * size, (head + 1) * size)
                channels += [by_position[part], by_time[part]]
            mixed = torch.cat(channels)
            rows.append(gate * mixed / torch.sqrt((mixed**2).mean() + 1e-6))
    return torch.stack(rows) if rows else normed.new_zeros(0, 2 * DIM)


@pytest.mark.parametrize(
    ("lengths", "decay", "heads", "temporal"),
    [
        ([5, 0, 1, 12], 0.6, 1, True),
        ([5, 0, 1, 12], 0.0, 2, True),
        ([3, 20, 7], -0.4, 3, True),
        ([3, 20, 7], 3.0, 1, True),
        ([1], 0.6, 1, True),
        ([9, 4], 0.6, 2, False),
        ([index % 9 for index in range(40)], 0.5, 2, True),  # enough listeners for several groups
    ],
)
def test_mixer_equals_the_loop_in_value_and_every_gradient(make_batch, lengths, decay, heads, temporal):
    torch.manual_seed(0)
    batch = make_batch(lengths)
    mixer = AFTM(DIM, heads, REACH, temporal=FRAB if temporal else None).double()
    with torch.no_grad():
        mixer.project.mul_(20)
        if mixer.temporal is not None:
            mixer.temporal.scale.fill_(-0.7)
            mixer.temporal.decay.fill_(decay)
    normed = torch.randn(sum(lengths), DIM, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(sum(lengths), 2 * DIM, dtype=torch.float64)
    wanted = [normed, *mixer.parameters()]

    expected = loop_mixer(mixer, normed, batch, heads)
    found = mixer(normed, PaddedTimes(batch, torch.float64), None)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    for ours, theirs in zip(
        torch.autograd.grad((found * upstream).sum(), wanted),
        torch.autograd.grad((expected * upstream).sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-10)


def test_last_token_alone_equals_the_full_mixer_at_the_last_token(make_batch):
    torch.manual_seed(1)
    batch = make_batch([4, 0, 11, 1])
    mixer = AFTM(DIM, 2, REACH, temporal=FRAB).double()
    normed = torch.randn(16, DIM, dtype=torch.float64)
    full, last = mixer(normed, PaddedTimes(batch, torch.float64), None), mixer.last(normed, batch).output
    torch.testing.assert_close(last[[0, 2, 3]], full[[3, 14, 15]])
    assert not last[1].any()


def test_a_huge_negative_decay_gives_finite_values_and_gradients_for_short_gaps(make_batch):
    """Cut-off cells hold gaps of decades; they must not reach infinity on their way to zero."""
    batch = make_batch([3, 9])
    second = batch.timestamp.new_tensor([0, 1, 2, 0, 1, 2, 3, 4, 5, 6, 7, 8]) + 1_700_000_000
    batch = replace(batch, timestamp=second, next_timestamp=second + 1)
    mixer = AFTM(DIM, 1, REACH, temporal=FRAB)
    assert mixer.temporal is not None
    torch.nn.init.constant_(mixer.temporal.decay, -8.0)
    normed = torch.randn(12, DIM)
    out = mixer(normed, PaddedTimes(batch, torch.float32), None)
    out.sum().backward()
    assert torch.isfinite(out).all()
    assert all(torch.isfinite(p.grad).all() for p in mixer.parameters() if p.grad is not None)
