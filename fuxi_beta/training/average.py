"""The running average (EMA) of all weights of a training, those of songs included, for evaluation and export.

After step t: average = d average + (1 - d) weights, with d = min(decay, (t - 1) / (t + 9)), so that the first step's
weights are the first average and a short training is not held back by weights from before it. (TensorFlow's
ExponentialMovingAverage with `num_updates` n takes min(decay, (1 + n) / (10 + n)), which begins at 1/10 and not at 0.)
It takes a copy of all weights, and a pass over them in every step: over the whole item table too, whose rows change
without being looked up under AdamW.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from fuxi_beta.training.item_table import ItemTable

MODEL, ITEMS, AVERAGE = "model.", "items.", "average."
"""Prefixes of the names in a checkpoint: weights of the network, the item table, and before either its average."""
STEPS = "steps"


class WeightAverage:
    """The average of the weights of a network and of this rank's part of its item table."""

    def __init__(self, model: nn.Module, table: ItemTable, *, decay: float) -> None:
        self.table, self.decay = table, decay
        self.live = {MODEL + name: tensor for name, tensor in model.state_dict().items()}
        self.live |= {ITEMS + name: tensor for name, tensor in table.weights().items()}
        self.average = {name: tensor.clone() for name, tensor in self.live.items()}
        self.steps = torch.zeros((), dtype=torch.int64)  # a tensor, because a checkpoint holds it

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after a step."""
        steps = int(self.steps.add_(1))
        new = 1 - min(self.decay, (steps - 1) / (steps + 9))
        for name, average in self.average.items():
            if average.is_floating_point():
                average.lerp_(self.live[name], new)
            else:
                average.copy_(self.live[name])

    def state(self) -> dict[str, Any]:
        """Live tensors by name, for a checkpoint."""
        tensors: dict[str, Any] = {STEPS: self.steps}
        for name, average in self.average.items():
            of_table = name.startswith(ITEMS)
            tensors[name] = self.table.in_state(name.removeprefix(ITEMS), average) if of_table else average
        return tensors

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Exchange the weights with their average, and back."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, average in self.average.items():
            held = self.live[name].clone()
            self.live[name].copy_(average)
            average.copy_(held)
