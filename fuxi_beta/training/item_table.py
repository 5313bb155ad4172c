"""Item tables behind one interface: in one process, or row-wise sharded over ranks by TorchRec.

Shapes: `V` rows of the table (capacity, row 0 is padding), `D` width, `U` unique items of a batch, `R` rows of a
slice. A table returns `table(item_index [U]) -> [U, D]`, is updated by `step()` after a backward pass, and exposes its
state as live tensors by name, so that a checkpoint written at one world size loads at another.

A row's initial value depends on (seed, row) alone, never on the table's capacity or the number of ranks.
"""

import copy
import importlib.util
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from fuxi_beta.config import TrainConfig
from fuxi_beta.data.stateless_random import combine, words
from fuxi_beta.training.optimizers import RowwiseAdagrad, adamw

ROW_MULTIPLE = 64
WIDTH_MULTIPLE = 4  # the width of FBGEMM's tables is a multiple of this
INITIAL_STD = 0.02  # truncated at two standard deviations
_CHUNK_ROWS = 1 << 14
_SITE = -1  # of the initial values; see the sites in `stateless_random`
_TABLE = "item_table"  # TorchRec's name of the one table
_FEATURE = "item"


class ItemTable(ABC):
    """What training needs of an item table."""

    rows: int
    host_waits = False
    """Whether every lookup makes the host wait for a device; then the table is updated in the backward pass, too."""

    @abstractmethod
    def __call__(self, item_index: Tensor) -> Tensor:
        """Distinct int64 [U], ascending -> raw vectors [U, D], differentiable. ValueError if one is outside [0, rows).

        On a device row 0 may follow the others any number of times, if it gets no gradient, unless `host_waits`.
        """

    def check(self, item_index: Tensor) -> None:
        """ValueError if an index in host memory is outside [0, rows), where FBGEMM would silently read a wrong row.

        Indices on a device are not read, because that would wait for it: check them before they are copied there.
        """
        if item_index.device.type != "cpu" or item_index.numel() == 0:
            return
        low, high = (int(bound) for bound in item_index.aminmax())
        if low < 0 or high >= self.rows:
            raise ValueError(f"item indices {low}..{high} are outside the table's rows 0..{self.rows - 1}")

    def replicated(self) -> list[nn.Parameter]:
        """Parameters that every rank holds whole: the caller averages their gradients over ranks before `step`."""
        return []

    @abstractmethod
    def zero_grad(self) -> None:
        """Clear the gradients; to be called before a backward pass."""

    @abstractmethod
    def step(self, diverged: Tensor | None = None) -> None:
        """Apply the gradients of the last backward pass, unless they are applied in that pass.

        diverged: float32 0-d on the table's device; if it is 1 nothing changes. Not for a table that `host_waits`.
        """

    @abstractmethod
    def weights(self) -> dict[str, Tensor]:
        """The weights of `full_parts` by name, live, of which a sharded table has this rank's rows."""

    def in_state(self, name: str, tensor: Tensor) -> Any:
        """A tensor of the size of `weights()[name]` as a checkpoint holds it."""
        return tensor

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Live tensors for torch.distributed.checkpoint: "weight" [V, D] and the optimizer's by name."""

    @abstractmethod
    def full_weight(self) -> Tensor:
        """A copy of the whole table [V, D] on every rank, on the CPU. Collective."""

    def full_parts(self) -> dict[str, Tensor]:
        """A copy of every weight that a song's vector is made of, on every rank, on the CPU. Collective."""
        return {"weight": self.full_weight()}

    @abstractmethod
    def full_optimizer_state(self) -> dict[str, Tensor]:
        """A copy of the whole optimizer state on every rank, on the CPU. Collective."""

    @abstractmethod
    def load_full(self, weight: Tensor, state: Mapping[str, Tensor] | None = None) -> None:
        """Overwrite the first R rows with `weight` [R, D], and their optimizer state with tensors of R rows.

        Rows from R on do not change, nor does state that is missing in `state`. Scalars (step counts) are copied.
        """


def capacity_rows(vocabulary_size: int, margin: float) -> int:
    """Rows of the table for songs 1..vocabulary_size: padding and spare rows added, up to a multiple of 64.

    >>> capacity_rows(1000, 0.10)
    1152
    """
    return -(-(1 + math.ceil(vocabulary_size * (1 + margin))) // ROW_MULTIPLE) * ROW_MULTIPLE


def initial_rows(start: int, stop: int, *, dim: int, seed: int, std: float = INITIAL_STD) -> Tensor:
    """Initial values of rows [start, stop), float32 [stop - start, dim]: normal(0, std) cut at two sigma; row 0 is 0.

    A pure function of (seed, row, column): counter-based uniform numbers through the inverse normal distribution.
    """
    return fill_initial_rows(torch.empty(stop - start, dim), start, seed=seed, std=std)


def fill_initial_rows(rows: Tensor, start: int, *, seed: int, std: float = INITIAL_STD) -> Tensor:
    """Give float32 [R, dim] the values of `initial_rows` from `start` on, where it is: some megabytes at a time."""
    if not std:
        return rows.zero_()
    bound, stop = math.erf(2 / math.sqrt(2)), start + len(rows)
    for first in range(start, stop, _CHUNK_ROWS):
        last = min(first + _CHUNK_ROWS, stop)
        bits = words(combine(seed, _SITE, torch.arange(first, last)), rows.shape[1])  # [rows, dim]
        uniform = (((bits >> 11) & (1 << 53) - 1).double() + 0.5) * 2.0**-53  # in (0, 1)
        values = torch.erfinv((2 * uniform - 1) * bound) * (math.sqrt(2) * std)
        rows[first - start : last - start] = values.float()
    if start == 0:
        rows[:1] = 0
    return rows


class PlainItemTable(ItemTable):
    """The whole table in one process. With several ranks each holds a replica and gradients are averaged densely.

    AdamW updates every row (moments decay, as the paper's code does); row-wise Adagrad only those a batch touched.
    """

    def __init__(
        self,
        rows: int,
        dim: int,
        *,
        train: TrainConfig,
        device: torch.device | str = "cpu",
        initial_std: float = INITIAL_STD,
    ) -> None:
        self.rows = rows
        self.weight = nn.Parameter(initial_rows(0, rows, dim=dim, seed=train.seed, std=initial_std).to(device))
        self.sparse = train.item_optimizer == "rowwise_adagrad"
        self._lookups = 0  # since the gradients were cleared
        self.optimizer: torch.optim.Optimizer = (
            RowwiseAdagrad([self.weight], lr=train.item_lr, eps=train.item_eps)
            if self.sparse
            else adamw([self.weight], train)
        )

    @override
    def __call__(self, item_index: Tensor) -> Tensor:
        self.check(item_index)
        self._lookups += 1
        return F.embedding(item_index, self.weight, sparse=self.sparse)

    @override
    def replicated(self) -> list[nn.Parameter]:
        return [self.weight]

    @override
    def zero_grad(self) -> None:
        self._lookups = 0
        self.optimizer.zero_grad()

    @override
    def step(self, diverged: Tensor | None = None) -> None:
        gradient = self.weight.grad
        if gradient is not None and gradient.is_sparse and self._lookups == 1:
            gradient._coalesced_(True)  # the rows of one lookup are distinct, so they need no sort
        self.optimizer.found_inf = diverged  # type: ignore[attr-defined]  (the protocol of PyTorch's fused optimizers)
        self.optimizer.step()

    @override
    def weights(self) -> dict[str, Tensor]:
        return {"weight": self.weight.detach()}

    @override
    def state(self) -> dict[str, Any]:
        return {"weight": self.weight.detach(), **self.optimizer.state[self.weight]}

    @override
    def full_weight(self) -> Tensor:
        return self.weight.detach().cpu().clone()

    @override
    def full_optimizer_state(self) -> dict[str, Tensor]:
        return {name: tensor.cpu().clone() for name, tensor in self.optimizer.state[self.weight].items()}

    @override
    def load_full(self, weight: Tensor, state: Mapping[str, Tensor] | None = None) -> None:
        _check_rows(weight, self.rows)
        own = self.state()
        for name, source in {"weight": weight, **(state or {})}.items():
            target = own[name]
            (target[: source.shape[0]] if source.ndim else target).copy_(source)


class ShardedItemTable(ItemTable):
    """The table cut by rows over the ranks of the default process group: TorchRec, fused row-wise Adagrad.

    The update happens inside the backward pass. Gradients are averaged over ranks, so a rank's share of a global mean
    loss must be multiplied by the world size first. Needs torchrec and an initialised process group.

    If D is not a multiple of 4 the table has W > D columns, the last of them zero. FBGEMM then takes the mean of g^2
    over W instead of D, so its accumulators are D / W of ours; learning rate and eps times sqrt(D / W) correct that
    exactly. `state` has the tensors of the kernel (`logical_state` converts them), all else is in terms of D.
    """

    host_waits = True  # TorchRec exchanges sizes between ranks through the host

    def __init__(
        self,
        rows: int,
        dim: int,
        *,
        train: TrainConfig,
        device: torch.device | str = "cpu",
        initial_std: float = INITIAL_STD,
    ) -> None:
        self.rows, self.dim = rows, dim
        self.width = -(-dim // WIDTH_MULTIPLE) * WIDTH_MULTIPLE
        self.sharded = _shard(rows, self.width, optimizer=self._fused(train), device=torch.device(device))
        self._state = self._make_state(train)
        for start, tensor in self._local("weight"):
            tensor[:, dim:] = 0
            fill_initial_rows(tensor[:, :dim], start, seed=train.seed, std=initial_std)

    def _fused(self, train: TrainConfig) -> tuple[str, dict[str, float]]:
        """The optimizer that updates rows within the backward pass: its name in torchrec.optim and its settings."""
        correction = math.sqrt(self.dim / self.width)
        return "RowWiseAdagrad", {"lr": train.item_lr * correction, "eps": train.item_eps * correction}

    @override
    def __call__(self, item_index: Tensor) -> Tensor:
        from torchrec import KeyedJaggedTensor

        self.check(item_index)
        lengths = torch.full((1,), item_index.numel(), dtype=torch.int64, device=item_index.device)
        vectors = self.sharded(KeyedJaggedTensor(keys=[_FEATURE], values=item_index, lengths=lengths))
        return vectors[_FEATURE].values()[:, : self.dim]

    @override
    def zero_grad(self) -> None:
        pass

    @override
    def step(self, diverged: Tensor | None = None) -> None:
        pass

    @override
    def weights(self) -> dict[str, Tensor]:
        ((_, tensor),) = self._local("weight")  # row-wise sharding: one shard a rank
        return {"weight": tensor}

    @override
    def in_state(self, name: str, tensor: Tensor) -> Any:
        return _like(self._state["weight"], tensor)

    @override
    def state(self) -> dict[str, Any]:
        return dict(self._state)

    @override
    def full_weight(self) -> Tensor:
        return self._gathered()["weight"]

    @override
    def full_optimizer_state(self) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in self._gathered().items() if name != "weight"}

    @override
    def load_full(self, weight: Tensor, state: Mapping[str, Tensor] | None = None) -> None:
        _check_rows(weight, self.rows)
        for name, source in {"weight": weight, **(state or {})}.items():
            if source.ndim == 0:
                self._state[name].copy_(source)
                continue
            rows = source * (self.dim / self.width) if name == "accumulator" else source
            for start, tensor in self._local(name):
                own = rows[start : start + tensor.shape[0]].to(tensor)
                if own.ndim == 1:
                    tensor[: own.shape[0]] = own
                else:
                    tensor[: own.shape[0], : self.dim] = own

    def _make_state(self, train: TrainConfig) -> dict[str, Any]:
        """TorchRec's ShardedTensors; they share memory with the fused kernel. RuntimeError without an optimizer."""
        weights = list(self.sharded.state_dict().values())
        accumulators = [
            tensor
            for state in self.sharded.fused_optimizer.state_dict()["state"].values()
            for name, tensor in state.items()
            if name.endswith("momentum1")
        ]
        if len(weights) != 1 or len(accumulators) != 1 or accumulators[0].size() != torch.Size([self.rows]):
            raise RuntimeError(
                "TorchRec did not attach row-wise Adagrad to the item table (it would train by plain SGD)"
            )
        return {"weight": weights[0], "accumulator": accumulators[0]}

    def _local(self, name: str) -> Iterator[tuple[int, Tensor]]:
        """(first row, live tensor) of this rank's shards."""
        for shard in self._state[name].local_shards():
            yield shard.metadata.shard_offsets[0], shard.tensor.detach()

    def _gathered(self) -> dict[str, Tensor]:
        sharded = [name for name, tensor in self._state.items() if hasattr(tensor, "local_shards")]
        own = {name: [(start, tensor.cpu()) for start, tensor in self._local(name)] for name in sharded}
        of_ranks: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(of_ranks, own)
        whole = {name: tensor.cpu().clone() for name, tensor in self._state.items() if name not in sharded}
        for name in sharded:
            shards = sorted((shard for of_rank in of_ranks for shard in of_rank[name]), key=lambda shard: shard[0])
            whole[name] = torch.cat([tensor for _, tensor in shards])
        return logical_state(whole, dim=self.dim)


class ShardedAdamWTable(ShardedItemTable):
    """The same table under AdamW, which FBGEMM cannot fuse on CPU.

    The fused update is plain SGD with a huge learning rate on a copy of the weights: the difference it makes is the
    gradient, exact to fp32 because the step is much larger than the weight. AdamW then updates the true weights of all
    this rank's rows, as the paper's code does. Takes three more tensors of the shard's size, and a step's time is
    linear in its rows: for tables of up to about a million rows a rank.
    """

    _SCALE = 2.0**20  # a power of two, so that the division by it is exact

    @override
    def _fused(self, train: TrainConfig) -> tuple[str, dict[str, float]]:
        return "SGD", {"lr": self._SCALE}

    @override
    def __call__(self, item_index: Tensor) -> Tensor:
        with torch.no_grad():
            self._kernel.copy_(self._master)
        return super().__call__(item_index)

    @override
    def step(self, diverged: Tensor | None = None) -> None:
        with torch.no_grad():
            self._master.grad = (self._master - self._kernel).div_(self._SCALE)
        self._optimizer.step()

    @override
    def _make_state(self, train: TrainConfig) -> dict[str, Any]:
        (weight,) = self.sharded.state_dict().values()
        (shard,) = weight.local_shards()
        self._kernel = shard.tensor.detach()
        self._master = nn.Parameter(torch.zeros_like(self._kernel))
        self._optimizer = adamw([self._master], train)
        moments = self._optimizer.state[self._master]
        local = {"weight": self._master.detach(), **{name: moments[name] for name in ("exp_avg", "exp_avg_sq")}}
        return {"step": moments["step"], **{name: _like(weight, tensor) for name, tensor in local.items()}}


def _like(sharded: Any, local: Tensor) -> Any:
    """A ShardedTensor with the sharding of another one, on the memory of `local`."""
    from torch.distributed._shard.sharded_tensor import Shard, init_from_local_shards

    (shard,) = sharded.local_shards()
    return init_from_local_shards([Shard(local, copy.deepcopy(shard.metadata))], sharded.size())


def logical_state(state: Mapping[str, Tensor], *, dim: int) -> dict[str, Tensor]:
    """A table's whole state in terms of D = `dim`, for the state of any kind of table (see `ShardedItemTable`)."""
    width = state["weight"].shape[1]
    narrowed = {name: tensor[:, :dim] if tensor.ndim == 2 else tensor for name, tensor in state.items()}
    if "accumulator" in narrowed:
        narrowed["accumulator"] = narrowed["accumulator"] * (width / dim)
    return narrowed


def item_table(
    rows: int, dim: int, *, train: TrainConfig, device: torch.device | str = "cpu", initial_std: float = INITIAL_STD
) -> ItemTable:
    """The table of a training run: sharded, but plain without a process group or without torchrec.

    A single GPU has the plain one too, which does not make its host wait; a checkpoint of either loads into the other
    if both are D columns wide.
    """
    options: dict[str, Any] = {"train": train, "device": device, "initial_std": initial_std}
    if not torch.distributed.is_initialized() or importlib.util.find_spec("torchrec") is None:
        return PlainItemTable(rows, dim, **options)
    alone = torch.distributed.get_world_size() == 1 and torch.device(device).type == "cuda"
    if alone and dim % WIDTH_MULTIPLE == 0:
        return PlainItemTable(rows, dim, **options)
    kind = ShardedAdamWTable if train.item_optimizer == "adamw" else ShardedItemTable
    return kind(rows, dim, **options)


def _check_rows(weight: Tensor, rows: int) -> None:
    if weight.shape[0] > rows:
        raise ValueError(f"{weight.shape[0]} rows do not fit into an item table of {rows}")


def _shard(rows: int, width: int, *, optimizer: tuple[str, dict[str, float]], device: torch.device) -> Any:
    """An EmbeddingCollection of one table, row-wise over all ranks, under DistributedModelParallel.

    optimizer: name in torchrec.optim of the one to fuse, and its settings.
    """
    import torch.distributed as dist
    import torchrec.optim
    from torch.distributed.optim import _apply_optimizer_in_backward
    from torchrec import EmbeddingCollection, EmbeddingConfig
    from torchrec.distributed import DistributedModelParallel
    from torchrec.distributed.embedding import EmbeddingCollectionSharder
    from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
    from torchrec.distributed.planner.types import ParameterConstraints

    table = EmbeddingConfig(name=_TABLE, embedding_dim=width, num_embeddings=rows, feature_names=[_FEATURE])
    collection = EmbeddingCollection(tables=[table], device=torch.device("meta"))
    # TorchRec mutates the keyword arguments, so it gets a copy.
    name, settings = optimizer
    _apply_optimizer_in_backward(getattr(torchrec.optim, name), collection.parameters(), dict(settings))
    world = dist.get_world_size()
    local = min(world, torch.cuda.device_count()) if device.type == "cuda" else world
    constraints = {_TABLE: ParameterConstraints(sharding_types=["row_wise"], compute_kernels=["fused"])}
    planner = EmbeddingShardingPlanner(
        topology=Topology(world_size=world, local_world_size=local, compute_device=device.type),
        constraints=constraints,
    )
    sharders: Any = [EmbeddingCollectionSharder()]
    plan = planner.collective_plan(collection, sharders, dist.group.WORLD)
    return DistributedModelParallel(collection, device=device, plan=plan, sharders=sharders)
