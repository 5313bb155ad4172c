"""One rank's training state and its step; every number it reports is over the global batch.

Shapes: `V` rows of the item table, `D` width, `C` candidates. The loss of a step is the mean over all real target
positions of the global batch, so it and its gradients do not depend on how listeners are dealt to ranks: counts are
summed over ranks first, then each rank's sum is scaled by world size / global count and gradients are averaged.
"""

import contextlib
import math
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from fuxi_beta import models
from fuxi_beta.config import ModelConfig, TrainConfig
from fuxi_beta.data.batches import Batch
from fuxi_beta.data.transfer import to_device
from fuxi_beta.models.base import SequenceModel
from fuxi_beta.training.checkpoint import TrainedModel
from fuxi_beta.training.item_table import ItemTable, logical_state
from fuxi_beta.training.loss import training_loss
from fuxi_beta.training.optimizers import adamw, named_state

MODEL, DENSE, ITEMS = "model.", "dense.", "items."
"""Prefixes of the names in a checkpoint: weights of the network, its optimizer's state, the item table."""
ITEM_WEIGHT = f"{ITEMS}weight"
AHEAD = 2
"""Steps that the host may launch before a GPU has done the one whose result is asked for."""


class DivergedError(ArithmeticError):
    """The loss is not a finite number."""


@dataclass(frozen=True)
class StepResult:
    """One step over all ranks."""

    loss: float  # mean over the real target positions; 0 where there are none
    positions: int  # real target positions
    events: int  # tokens the network read
    listeners: int  # samples consumed


class Trainer:
    """The network, the item table and their optimizers on one rank.

    Uses the default process group if one is initialised, else trains alone. candidates: int64 [C], sorted item
    indices that negatives are drawn from.

    On a GPU with a plain table no step waits for the one before (`runs_ahead`): what the host must know of a batch it
    knows before the batch is sent, and whether the loss was finite is found out by the GPU, which then learns nothing
    any more, and read when it has long been there. TorchRec's own tables exchange sizes through the host every step.
    """

    def __init__(
        self,
        model: SequenceModel,
        table: ItemTable,
        *,
        train: TrainConfig,
        candidates: Tensor,
        device: torch.device | str = "cpu",
    ) -> None:
        self.model, self.table, self.train = model.to(device), table, train
        if train.precision == "bf16":
            self.model.multiply_in_bf16()
        if train.compile:
            self.model.compile_ffn()
        self.device = torch.device(device)
        self.runs_ahead = self.device.type == "cuda" and not table.host_waits
        self.table.check(candidates)
        self.candidates = candidates.to(device)
        self.optimizer = adamw(self.model.parameters(), train)
        self.world_size = dist.get_world_size() if dist.is_initialized() else 1
        self._diverged = torch.zeros((), device=self.device)  # 1 from the first loss on that is not finite

    def learn(self, batches: Iterable[Batch], *, epoch: int) -> Iterator[StepResult]:
        """A step for each global batch, of which this rank has these; its result. Collective.

        When the last result has come every step has been launched, so that whoever reads a weight then sees what all of
        them learned. Results may lag behind the steps (`AHEAD`). Raises DivergedError on every rank alike, with the
        weights as they were before the step whose loss is not finite.
        """
        under_way: deque[_Totals] = deque()
        for batch in to_device(self._checked(batches), self.device):
            under_way.append(self._take_step(batch, epoch))
            if len(under_way) > AHEAD or not self.runs_ahead:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()

    def step(self, batch: Batch, *, epoch: int) -> StepResult:
        """`learn` of one batch (B may be 0)."""
        (result,) = self.learn([batch], epoch=epoch)
        return result

    def _checked(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The same batches, their songs found to be in the table while they are still on the host."""
        for batch in batches:
            if self.device.type != "cpu":  # there the table looks itself
                self.table.check(batch.item_index)
                self.table.check(batch.target)
            yield batch

    def _take_step(self, batch: Batch, epoch: int) -> "_Totals":
        self.model.train()
        self.optimizer.zero_grad()
        self.table.zero_grad()
        loss, positions = training_loss(
            self.model, self.table, batch, train=self.train, epoch=epoch, candidates=self.candidates
        )
        totals = self._over_ranks(loss, positions, batch)
        if not self.runs_ahead:
            totals.result()
        (loss * (self.world_size / totals.sums[1].clamp(min=1)).to(loss.dtype)).backward()
        self._average_gradients()
        self._update(totals.sums[0])
        return totals

    def _over_ranks(self, loss: Tensor, positions: int, batch: Batch) -> "_Totals":
        counts = (positions, batch.item_index.shape[0], batch.num_listeners)
        # A number becomes a tensor of the device by a fill, which nobody waits for, unlike a copy.
        numbers = [torch.full((), count, dtype=torch.float64, device=self.device) for count in counts]
        sums = torch.stack([loss.detach().double(), *numbers])
        if self.world_size > 1:
            dist.all_reduce(sums)
        return _Totals(sums)

    def _update(self, loss: Tensor) -> None:
        """Let the optimizers take their step, on a device unless its loss or one before was not finite."""
        diverged = self._diverged.logical_or_(~loss.isfinite()) if self.runs_ahead else None
        self.optimizer.found_inf = diverged  # type: ignore[attr-defined]  (how PyTorch tells its fused optimizers)
        self.optimizer.step()
        self.table.step(diverged)

    def _average_gradients(self) -> None:
        """Mean over ranks of the gradients of all parameters that every rank holds, in one all-reduce."""
        if self.world_size == 1:
            return
        parameters = [*self.model.parameters(), *self.table.replicated()]
        flat = torch.cat([_gradient(parameter).reshape(-1) for parameter in parameters])
        dist.all_reduce(flat)
        flat /= self.world_size
        sizes = [parameter.numel() for parameter in parameters]
        for parameter, gradient in zip(parameters, flat.split(sizes), strict=True):
            parameter.grad = gradient.view_as(parameter)

    def state(self) -> dict[str, Any]:
        """Live tensors by name; what a checkpoint holds. Learning rates are not in it: they are configuration."""
        dense = named_state(self.optimizer, self.model.named_parameters())
        return {
            **{MODEL + name: tensor for name, tensor in self.model.state_dict().items()},
            **{DENSE + name: tensor for name, tensor in dense.items()},
            **{ITEMS + name: tensor for name, tensor in self.table.state().items()},
        }

    def save(self, folder: str) -> None:
        """Write this rank's part of a checkpoint to a local folder. Collective; the parts laid together are whole."""
        with _single_process_allowed():
            dcp.save(self.state(), checkpoint_id=folder, no_dist=not dist.is_initialized())

    def load(self, folder: str) -> None:
        """Continue from a checkpoint (a folder with the parts of all ranks) of any world size. Collective."""
        with _single_process_allowed():
            dcp.load(self.state(), checkpoint_id=folder, no_dist=not dist.is_initialized())

    @torch.no_grad()
    def warm_start(self, tensors: Mapping[str, Tensor], *, known_rows: int) -> None:
        """Start from another training's tensors, named as in `state`, instead of from nothing.

        Rows from `known_rows` on stay as initialised; Adagrad's accumulators are decayed; optimizer state that the
        other training lacks (it had another `item_optimizer`) starts fresh. Every rank passes the same tensors.
        """
        own = self.state()
        found = {name: tensor for name, tensor in tensors.items() if name in own}
        for name, tensor in found.items():
            if not name.startswith(ITEMS):
                own[name].copy_(tensor)
        items = {
            name.removeprefix(ITEMS): tensor[:known_rows] if tensor.ndim else tensor
            for name, tensor in found.items()
            if name.startswith(ITEMS)
        }
        if "accumulator" in items:
            items["accumulator"] = items["accumulator"] * self.train.accumulator_decay
        self.table.load_full(items.pop("weight"), items)


class _Totals:
    """What a step adds up to over all ranks, on its way to the host."""

    def __init__(self, sums: Tensor) -> None:
        self.sums = sums  # float64 [4]: loss, positions, events, listeners
        self._there, self._arrived = sums, None
        if sums.device.type == "cuda":
            self._there = torch.empty(sums.shape, dtype=sums.dtype, pin_memory=True).copy_(sums, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(sums.device))

    def result(self) -> StepResult:
        """Waits for it. Raises DivergedError."""
        if self._arrived is not None:
            self._arrived.synchronize()
        loss, *counts = self._there.tolist()
        positions, events, listeners = (round(count) for count in counts)
        mean = loss / max(positions, 1)
        if not math.isfinite(mean):
            raise DivergedError(f"the training loss is {mean}")
        return StepResult(mean, positions, events, listeners)


def _gradient(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        return torch.zeros_like(parameter)
    return parameter.grad.to_dense() if parameter.grad.is_sparse else parameter.grad


@contextlib.contextmanager
def _single_process_allowed() -> Iterator[None]:
    """torch.distributed.checkpoint warns that it assumes a single process even where it was told so."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized")
        yield


def read_checkpoint(folder: str, *, dim: int) -> dict[str, Tensor]:
    """Every tensor of a checkpoint by name, whole and on the CPU, with neither a process group nor TorchRec.

    dim: D, the width of an item vector.
    """
    metadata = dcp.FileSystemReader(folder).read_metadata()
    tensors = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in metadata.state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    with _single_process_allowed():
        dcp.load(tensors, checkpoint_id=folder, no_dist=True)
    items = {name.removeprefix(ITEMS): tensors.pop(name) for name in list(tensors) if name.startswith(ITEMS)}
    return tensors | {ITEMS + name: tensor for name, tensor in logical_state(items, dim=dim).items()}


def trained_model(
    folder: str, *, model: ModelConfig, train: TrainConfig, candidates: np.ndarray
) -> tuple[TrainedModel, dict[str, Tensor]]:
    """What a checkpoint learned, ready to export, and the optimizer state a warm start needs.

    candidates: bool [vocabulary + 1]. `ds`, `data_end` and `metadata` are the caller's to fill in.
    Raises DivergedError if a weight is not finite.
    """
    tensors = read_checkpoint(folder, dim=model.dim)
    broken = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise DivergedError(f"{broken[0]} has values that are not finite")
    network = models.build(model)
    network.load_state_dict({name: tensors.pop(MODEL + name) for name in network.state_dict()})
    item_vectors = tensors.pop(ITEM_WEIGHT)
    mask = torch.zeros(item_vectors.shape[0], dtype=torch.bool)
    mask[: len(candidates)] = torch.from_numpy(candidates)
    trained = TrainedModel(
        model=network.eval(),
        model_config=model,
        train_config=train,
        item_vectors=item_vectors,
        candidates=mask,
        vocabulary_size=len(candidates) - 1,
        ds="",
        data_end=0,
    )
    return trained, tensors
