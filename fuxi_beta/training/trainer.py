"""One rank's training state and its step; every number it reports is over the global batch.

Shapes: `V` rows of the item table, `D` width, `C` candidates. The loss of a step is the mean over all positions with a
target of the global batch, so it and its gradients do not depend on how listeners are assigned to ranks: counts are
summed over ranks first, then each rank's sum is scaled by world size / global count and gradients are averaged.
"""

import contextlib
import math
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
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
from fuxi_beta.data.side import NEVER, SideInformation
from fuxi_beta.data.transfer import to_device
from fuxi_beta.models.base import SequenceModel
from fuxi_beta.training.average import AVERAGE, ITEMS, MODEL, STEPS, WeightAverage
from fuxi_beta.training.checkpoint import TrainedModel
from fuxi_beta.training.completion import CompletionHead
from fuxi_beta.training.item_table import ItemTable
from fuxi_beta.training.loss import training_loss
from fuxi_beta.training.negatives import NegativeSampler
from fuxi_beta.training.optimizers import adamw, named_state
from fuxi_beta.training.song_table import CONTENT, SIDE, logical_song_state, song_vectors
from pipelines.errors import InputError

DENSE = "dense."
"""Prefix of the names in a checkpoint of the state of the network's optimizer; the others are in `average`."""
HEAD = "completion_head."
"""Of the head for completion, in a checkpoint and in the names of its optimizer state."""
ITEM_WEIGHT = f"{ITEMS}weight"
_SETTINGS_OF = {
    AVERAGE: "train.ema",
    HEAD: "train.completion_weight",
    ITEMS + SIDE: "model.side",
    ITEMS + CONTENT: "model.content",
    ITEMS: "train.item_optimizer",
}
"""Which setting decides whether tensors with such a name are there; the first that fits."""
STEPS_IN_FLIGHT = 2
"""Steps that the host launches on a GPU beyond the one whose result it waits for."""


class DivergedError(ArithmeticError):
    """The loss is not a finite number."""


@dataclass(frozen=True)
class StepResult:
    """One step over all ranks."""

    loss: float  # mean over the positions with a target; 0 without any
    positions: int  # with a target
    events: int  # tokens of the batch
    listeners: int  # samples of the batch
    leaving: bool = False  # a rank said so when the step began


class Trainer:
    """The network, the item table and their optimizers on one rank.

    Uses the default process group if one is initialised, else trains alone. candidates: int64 [C], sorted item
    indices that negatives are drawn from; plays: int64 [C], of each, which `train.negatives_from` may need.

    On a GPU with a plain table no step waits for the previous one (`runs_ahead`): what the host must know of a batch is
    computed before the batch is copied. The GPU itself checks whether the loss is finite, changes no weight once it is
    not, and the host reads the flag steps later. TorchRec's tables exchange sizes through the host in every step.
    """

    def __init__(
        self,
        model: SequenceModel,
        table: ItemTable,
        *,
        train: TrainConfig,
        candidates: Tensor,
        plays: Tensor | None = None,
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
        plays = None if plays is None else plays.to(device)
        self.negatives = NegativeSampler(candidates.to(device), train=train, rows=table.rows, plays=plays)
        self.head = CompletionHead(model.config.dim, train.temperature).to(device) if train.completion_weight else None
        self.optimizer = adamw([parameter for _, parameter in self._dense()], train)
        self.world_size = dist.get_world_size() if dist.is_initialized() else 1
        self.average = WeightAverage(self.model, table, decay=train.ema) if train.ema else None
        self._diverged = torch.zeros((), device=self.device)  # 1 from the first loss that is not finite

    def learn(
        self, batches: Iterable[Batch], *, epoch: int, leaving: Callable[[], bool] = lambda: False
    ) -> Iterator[StepResult]:
        """One step and its result for each global batch, given this rank's share of the batches. Collective.

        leaving: asked in every step; what one rank answers, the result of the step says on every rank.
        Results may lag behind the steps (`STEPS_IN_FLIGHT`). With the last result every step has been launched, so a
        weight read after it includes all updates. Raises DivergedError on every rank, with the weights as before the
        step whose loss is not finite.
        """
        in_flight: deque[_GlobalSums] = deque()
        for batch in to_device(self._with_checked_items(batches), self.device):
            in_flight.append(self._take_step(batch, epoch, leaving()))
            if len(in_flight) > STEPS_IN_FLIGHT or not self.runs_ahead:
                yield in_flight.popleft().result()
        while in_flight:
            yield in_flight.popleft().result()

    def step(self, batch: Batch, *, epoch: int) -> StepResult:
        """`learn` of one batch (B may be 0)."""
        (result,) = self.learn([batch], epoch=epoch)
        return result

    def _with_checked_items(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The same batches; ValueError for an item outside of the table, checked while the batch is on the host."""
        for batch in batches:
            if self.device.type != "cpu":  # on the CPU the table checks its indices
                self.table.check(batch.item_index)
                self.table.check(batch.target)
            yield batch

    def _take_step(self, batch: Batch, epoch: int, leaving: bool) -> "_GlobalSums":
        self.model.train()
        self.optimizer.zero_grad()
        self.table.zero_grad()
        loss, positions = training_loss(
            self.model,
            self.table,
            batch,
            train=self.train,
            epoch=epoch,
            candidates=self.negatives.candidates,
            frequencies=self.negatives.frequencies(batch),
            head=self.head,
        )
        total = self._sum_over_ranks(loss, positions, batch, leaving)
        if not self.runs_ahead:
            total.result()
        (loss * (self.world_size / total.sums[1].clamp(min=1)).to(loss.dtype)).backward()
        self._average_gradients()
        self._update(total.sums[0])
        if self.average:
            self.average.update()
        return total

    def _sum_over_ranks(self, loss: Tensor, positions: int, batch: Batch, leaving: bool) -> "_GlobalSums":
        counts = (positions, batch.item_index.shape[0], batch.num_listeners, leaving)
        # Counts are filled into tensors of the device, because the host would wait for a copy.
        numbers = [torch.full((), count, dtype=torch.float64, device=self.device) for count in counts]
        sums = torch.stack([loss.detach().double(), *numbers])
        if self.world_size > 1:
            dist.all_reduce(sums)
        return _GlobalSums(sums)

    def _update(self, loss: Tensor) -> None:
        """The optimizers' step, which changes nothing on a GPU if this loss or an earlier one was not finite."""
        diverged = self._diverged.logical_or_(~loss.isfinite()) if self.runs_ahead else None
        self.optimizer.found_inf = diverged  # type: ignore[attr-defined]  (the protocol of PyTorch's fused optimizers)
        self.optimizer.step()
        self.table.step(diverged)

    def _average_gradients(self) -> None:
        """Average over ranks the gradients of all parameters that every rank holds, in one all-reduce."""
        if self.world_size == 1:
            return
        parameters = [*(parameter for _, parameter in self._dense()), *self.table.replicated()]
        flat = torch.cat([_dense_gradient(parameter).reshape(-1) for parameter in parameters])
        dist.all_reduce(flat)
        flat /= self.world_size
        sizes = [parameter.numel() for parameter in parameters]
        for parameter, gradient in zip(parameters, flat.split(sizes), strict=True):
            parameter.grad = gradient.view_as(parameter)

    def _dense(self) -> list[tuple[str, nn.Parameter]]:
        """The parameters of the network and of the head for completion, by name."""
        of_head = () if self.head is None else self.head.named_parameters(prefix=HEAD.removesuffix("."))
        return [*self.model.named_parameters(), *of_head]

    def averaged(self) -> contextlib.AbstractContextManager[None]:
        """Within it the weights are their running average, if there is one (`train.ema`); no step may be taken."""
        return self.average.applied() if self.average else contextlib.nullcontext()

    def state(self) -> dict[str, Any]:
        """Live tensors by name; what a checkpoint holds. Learning rates are not in it: they are configuration."""
        average = self.average.state() if self.average else {}
        dense = named_state(self.optimizer, self._dense())
        head = self.head.state_dict() if self.head else {}
        return {
            **{MODEL + name: tensor for name, tensor in self.model.state_dict().items()},
            **{HEAD + name: tensor for name, tensor in head.items()},
            **{DENSE + name: tensor for name, tensor in dense.items()},
            **{ITEMS + name: tensor for name, tensor in self.table.state().items()},
            **{AVERAGE + name: tensor for name, tensor in average.items()},
        }

    def check_finite(self) -> None:
        """DivergedError on every rank if a value of `state` is not finite on one. Collective; a pass over all of it.

        A step whose loss is finite can leave such weights; the loss of the next one is then not.
        """
        broken = next((name for name, tensor in self.state().items() if not _is_finite(tensor)), "")
        count = torch.full((), float(bool(broken)), device=self.device)
        if self.world_size > 1:
            dist.all_reduce(count)
        if count > 0:
            raise DivergedError(f"{broken or 'a tensor of another worker'} has values that are not finite")

    def save(self, folder: str) -> None:
        """Write this rank's part of a checkpoint to a local folder. Collective; the parts of all ranks are complete."""
        with _no_single_process_warning():
            dcp.save(self.state(), checkpoint_id=folder, no_dist=not dist.is_initialized())

    def load(self, folder: str) -> None:
        """Continue from a checkpoint (a folder with the parts of all ranks) of any world size. Collective.

        Raises InputError, with nothing loaded, if it was written under other settings than this trainer's.
        """
        state = self.state()
        _check_fits(folder, state)
        with _no_single_process_warning():
            dcp.load(state, checkpoint_id=folder, no_dist=not dist.is_initialized())
        self._diverged.zero_()

    def warm_start_from(self, parent: TrainedModel, state: Mapping[str, Tensor]) -> None:
        """`warm_start` from an export and what `trained_model` gave beside it.

        Side information goes on by its rows if all that the parent took is taken still; else from the parent's vectors,
        which are then the songs' own rows, with side information that begins at zero.
        """
        tensors = {MODEL + name: tensor for name, tensor in parent.model.state_dict().items()}
        tensors |= {ITEM_WEIGHT: parent.item_vectors, **state}
        if not self._takes_over(parent.model_config, state):
            known = parent.item_vectors.any(dim=1, keepdim=True)  # a zero vector would have no direction to learn from
            tensors[ITEM_WEIGHT] = torch.where(known, parent.item_vectors, tensors[ITEM_WEIGHT])
            for name in [name for name in tensors if name.startswith((ITEMS + SIDE, ITEMS + CONTENT))]:
                del tensors[name]
        self.warm_start(tensors, known_rows=parent.vocabulary_size + 1)

    def _takes_over(self, parent: ModelConfig, state: Mapping[str, Tensor]) -> bool:
        """Whether the side information of another training has its place in this one."""
        config, own = self.model.config, self.state()
        content = f"{ITEMS}{CONTENT}weight"
        same_map = content not in state or (content in own and state[content].shape == own[content].shape)
        return set(parent.side) <= set(config.side) and parent.content in (None, config.content) and same_map

    @torch.no_grad()
    def warm_start(self, tensors: Mapping[str, Tensor], *, known_rows: int) -> None:
        """Initialise from another training's tensors, named as in `state`.

        Songs' rows from `known_rows` on stay as initialised; Adagrad's accumulators are decayed; optimizer state that
        the other training lacks (it had another `item_optimizer`, or no side information) starts at zero. Every rank
        passes the same tensors.
        """
        own, items = self.state(), {}
        for name, tensor in tensors.items():
            if name.startswith(ITEMS) and name in own:
                of_songs = tensor.ndim and not name.startswith((ITEMS + SIDE, ITEMS + CONTENT))
                items[name.removeprefix(ITEMS)] = tensor[:known_rows] if of_songs else tensor
            elif name in own:
                own[name].copy_(tensor)
        for name in ("accumulator", f"{SIDE}accumulator"):
            if name in items:
                items[name] = items[name] * self.train.accumulator_decay
        self.table.load_full(items.pop("weight"), items)


class _GlobalSums:
    """The sums of a step over all ranks, copied to the host in the background."""

    def __init__(self, sums: Tensor) -> None:
        self.sums = sums  # float64 [5]: loss, positions, events, listeners, ranks that leave
        self._on_host, self._copied = sums, None
        if sums.device.type == "cuda":
            self._on_host = torch.empty(sums.shape, dtype=sums.dtype, pin_memory=True).copy_(sums, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record(torch.cuda.current_stream(sums.device))

    def result(self) -> StepResult:
        """Waits for the copy. Raises DivergedError if the loss is not finite."""
        if self._copied is not None:
            self._copied.synchronize()
        loss, *counts = self._on_host.tolist()
        positions, events, listeners, leaving = (round(count) for count in counts)
        mean = loss / max(positions, 1)
        if not math.isfinite(mean):
            raise DivergedError(f"the training loss is {mean}")
        return StepResult(mean, positions, events, listeners, leaving > 0)


def _is_finite(tensor: Any) -> bool:
    """Of a tensor, or of this rank's rows of a sharded one. Without a copy: a NaN is both minimum and maximum."""
    parts = [shard.tensor for shard in tensor.local_shards()] if hasattr(tensor, "local_shards") else [tensor]
    return all(bool(torch.stack(part.aminmax()).isfinite().all()) for part in parts if part.numel())


def _dense_gradient(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        return torch.zeros_like(parameter)
    return parameter.grad.to_dense() if parameter.grad.is_sparse else parameter.grad


@contextlib.contextmanager
def _no_single_process_warning() -> Iterator[None]:
    """Silences torch.distributed.checkpoint, which warns that it assumes a single process even with `no_dist`."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized")
        yield


def _check_fits(folder: str, state: Mapping[str, Any]) -> None:
    """InputError unless a checkpoint has the tensors of a state, of the same sizes, and no others.

    torch.distributed.checkpoint leaves out what the state lacks without a word: a running average, say.
    """
    there = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
    for name in sorted(there.keys() ^ state.keys()):
        setting = next((text for part, text in _SETTINGS_OF.items() if part in name), "the settings of the model")
        raise InputError(
            f"{folder}: the checkpoint {'has' if name in there else 'lacks'} {name}, which this training "
            f"{'lacks' if name in there else 'has'}: set {setting} as it was, or start again"
        )
    for name, tensor in state.items():
        size, found = tuple(tensor.size()), tuple(getattr(there[name], "size", ()))
        if size != found:
            raise InputError(
                f"{folder}: {name} of the checkpoint is of size {found}, of this training {size}: "
                "set the section model and train.capacity_margin as they were, or start again"
            )


def read_checkpoint(folder: str, *, dim: int) -> dict[str, Tensor]:
    """Every tensor of a checkpoint by name, whole and on the CPU, without a process group and without TorchRec.

    dim: D, the width of an item vector.
    """
    metadata = dcp.FileSystemReader(folder).read_metadata()
    tensors = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in metadata.state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    with _no_single_process_warning():
        dcp.load(tensors, checkpoint_id=folder, no_dist=True)
    for prefix in (ITEMS, AVERAGE + ITEMS):
        items = {name.removeprefix(prefix): tensors.pop(name) for name in list(tensors) if name.startswith(prefix)}
        if items:
            tensors |= {prefix + name: tensor for name, tensor in logical_song_state(items, dim=dim).items()}
    return tensors


def trained_model(
    folder: str,
    *,
    model: ModelConfig,
    train: TrainConfig,
    candidates: np.ndarray,
    information: SideInformation | None = None,
) -> tuple[TrainedModel, dict[str, Tensor]]:
    """The model of a checkpoint, ready to export, and what else a warm start needs.

    That is the optimizer state, and with side information also the weights that songs' vectors are made of. Weights
    are their running averages, if the training kept any (`train.ema`).
    candidates: bool [vocabulary + 1], songs that negatives were drawn from. information: what the training had.
    The caller fills in `ds`, `data_end` and `metadata`. Raises DivergedError if a weight is not finite.
    """
    tensors = read_checkpoint(folder, dim=model.dim)
    broken = [name for name, tensor in tensors.items() if not _is_finite(tensor)]
    if broken:
        raise DivergedError(f"{broken[0]} has values that are not finite")
    tensors.pop(AVERAGE + STEPS, None)
    for name in [name for name in tensors if name.startswith(AVERAGE)]:
        tensors[name.removeprefix(AVERAGE)] = tensors.pop(name)
    network = models.build(model)
    network.load_state_dict({name: tensors.pop(MODEL + name) for name in network.state_dict()})
    parts = {name.removeprefix(ITEMS): tensor for name, tensor in tensors.items() if name.startswith(ITEMS)}
    if information is None:
        del tensors[ITEM_WEIGHT]  # they are the vectors
    return assembled(network, parts, train=train, candidates=candidates, information=information), tensors


def assembled(
    network: SequenceModel,
    parts: Mapping[str, Tensor],
    *,
    train: TrainConfig,
    candidates: np.ndarray,
    information: SideInformation | None,
) -> TrainedModel:
    """A model from its network and the weights of its table (`ItemTable.full_parts`); arguments as `trained_model`."""
    vectors, listed_from = parts["weight"], None
    mask = torch.zeros(len(vectors), dtype=torch.bool)
    mask[: len(candidates)] = torch.from_numpy(candidates)
    if information is not None:
        vectors = song_vectors(parts, information.side, torch.from_numpy(information.own))
        listed_from = torch.full((len(vectors),), NEVER)
        listed_from[: len(candidates)] = torch.from_numpy(information.listed_from)
        listed_from[~mask & ~vectors.any(dim=1)] = NEVER  # nothing that is known of it was learned from
    return TrainedModel(
        model=network.eval(),
        model_config=network.config,
        train_config=train,
        item_vectors=vectors,
        candidates=mask,
        vocabulary_size=len(candidates) - 1,
        ds="",
        data_end=0,
        listed_from=listed_from,
    )
