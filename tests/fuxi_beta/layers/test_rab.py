"""Positional weights by lag, and those that are left out after training."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from fuxi_beta import models
from fuxi_beta.config import ModelConfig
from fuxi_beta.data.stateless_random import DropoutKey
from fuxi_beta.layers.rab import LAG_GROUP, RAB
from fuxi_beta.ops import cpu, reference, why_no_cpu_kernels

needs_kernels = pytest.mark.skipif(bool(why_no_cpu_kernels()), reason=f"no C++ kernels: {why_no_cpu_kernels()}")


def test_the_groups_of_least_weight_are_left_out():
    rab = RAB(36, sparse=0.5)
    weights = torch.arange(1.0, 37) * (-1) ** torch.arange(36)
    weights[8:16] = 0.1
    with torch.no_grad():
        rab.weight[:36] = weights.flip(0)
    assert torch.equal(rab.by_lag(36), weights)
    expected = weights.clone()
    expected[:16] = 0  # of five groups two; the last one, of four distances, sums to 138
    assert torch.equal(rab.by_lag(36, sparse=True), expected)
    assert torch.equal(rab.by_lag(20, sparse=True), expected[:20])  # whatever the longest history of a batch
    assert torch.equal(RAB(36, sparse=0.0).by_lag(7, sparse=True).bool(), torch.ones(7, dtype=torch.bool))


@needs_kernels
@pytest.mark.parametrize("temporal", [True, False])
@pytest.mark.parametrize("kept", [[0], [1, 3], [0, 2, 5], [7], []])
def test_the_kernel_leaves_lags_out_and_computes_the_same(make_batch, kept, temporal):
    torch.manual_seed(len(kept))
    batch = make_batch([64, 0, 1, 9, 23])
    by_lag = torch.zeros(8, LAG_GROUP)
    by_lag[kept] = torch.randn(len(kept), LAG_GROUP)
    power = (torch.tensor(0.7), torch.tensor(0.4)) if temporal else None
    value = torch.randn(97, 37)
    found = cpu.PackedTimes(batch).apply_maps(value, by_lag.flatten(), power)
    expected = reference.PaddedTimes(batch, torch.float64).apply_maps(
        value.double(), by_lag.flatten().double(), None if power is None else tuple(n.double() for n in power)
    )
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


def test_training_keeps_all_weights_and_lists_are_made_without_some(make_batch):
    torch.manual_seed(0)
    config = ModelConfig(dim=12, max_history=40, dropout=0.0)
    whole: Any = models.build(config)
    sparse: Any = models.build(replace(config, sparse_positions=0.6))
    sparse.load_state_dict(whole.state_dict())
    batch, vectors = make_batch([40, 7]), torch.randn(47, 12)
    key = DropoutKey(1, 1)
    assert torch.equal(sparse(vectors, batch, key=key), whole(vectors, batch, key=key))
    assert not torch.equal(sparse(vectors, batch), whole(vectors, batch))
    last = sparse(vectors, batch)[batch.offsets[1:] - 1]
    torch.testing.assert_close(sparse.encode_last(vectors, batch), last)  # which serving, reasons and evaluation call
    assert sparse.config.contains(whole.config) and whole.config.contains(sparse.config)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"sparse_positions": 1.0}, r"model\.sparse_positions is 1\.0: it must be at least 0 and below 1"),
        ({"sparse_positions": 0.5, "name": "hstu"}, r"alone has it, not hstu with pow"),
        ({"sparse_positions": 0.5, "temporal": "sin"}, r"alone has it, not fuxi-beta with sin"),
    ],
)
def test_a_share_that_cannot_be_left_out_is_refused(changes, problem):
    with pytest.raises(ValueError, match=problem):
        ModelConfig(**changes)
