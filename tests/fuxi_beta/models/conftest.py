"""The comparison of a model with a slow reference."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor


@pytest.fixture
def equal_with_gradients() -> Callable[..., None]:
    """A function that asserts that a model and its slow reference agree, in output and every gradient."""
    return _equal_with_gradients


def _equal_with_gradients(model: Any, batch: Any, slow: Callable[[Any, Tensor], Tensor]) -> None:
    """slow: states [n, D] of one listener, from the model's parameters and the embedded tokens [n, D]."""
    torch.manual_seed(1)
    vectors = torch.randn(len(batch.item_index), model.config.dim, dtype=torch.float64, requires_grad=True)
    weights = torch.randn_like(vectors)
    expected = []
    for start, end in zip(batch.offsets[:-1].tolist(), batch.offsets[1:].tolist(), strict=True):
        if start < end:
            x = vectors[start:end] * math.sqrt(model.config.dim) + model.positions[: end - start]
            states = slow(model, x)
            expected.append(states / states.norm(dim=1, keepdim=True))
    slowly, found = torch.cat(expected), model(vectors, batch)
    torch.testing.assert_close(found, slowly)
    names = ["vectors", *(name for name, _ in model.named_parameters())]
    of_found = torch.autograd.grad((found * weights).sum(), [vectors, *model.parameters()])
    # The loops never touch a distance that no pair has.
    of_slow = torch.autograd.grad((slowly * weights).sum(), [vectors, *model.parameters()], materialize_grads=True)
    for name, one, other in zip(names, of_found, of_slow, strict=True):
        torch.testing.assert_close(one, other, msg=lambda text, name=name: f"gradient of {name}: {text}")
        assert other.abs().max() > 1e-6 or len(batch.item_index) == 1, f"{name} is not tested"
