"""A whole training step as a GPU takes it, without one: nothing in it asks the device, and it learns the same.

The first part runs on the meta device, where there is nothing to ask for: launches do nothing there, everything around
them is real. The second runs in Triton's interpreter, or compiled where there is a GPU.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction

from fuxi_beta import ops
from fuxi_beta.config import ModelConfig, Precision, TrainConfig
from fuxi_beta.data.batches import Batch
from fuxi_beta.models.fuxi_beta import FuXiBeta
from fuxi_beta.ops import dispatch
from fuxi_beta.ops.triton import tuning
from fuxi_beta.training import loss as training
from fuxi_beta.training.item_table import PlainItemTable
from fuxi_beta.training.trainer import DivergedError, Trainer

SONGS, ROWS = 90, 128
ASKING = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
INDEXING = {torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default}
DEVICE = "cpu" if tuning.INTERPRETED else "cuda"
MODEL = ModelConfig(dim=16, layers=2, heads=2, ffn_multiply=2, max_history=24, dropout=0.2)
TRAIN = TrainConfig(negatives=16, learn_from="first_listens", seed=5, item_lr=0.02)


@pytest.fixture(autouse=True)
def _automatic_again() -> Iterator[None]:
    yield
    ops.use("auto")


@pytest.fixture
def batches(make_batch) -> list[Batch]:
    drawn = [make_batch([3, 20, 0, 9, 1], songs=SONGS, seed=seed) for seed in range(5)]
    return [replace(batch, target=batch.item_index % SONGS + 1) for batch in drawn]


def make_trainer(train: TrainConfig, device: str, model: ModelConfig = MODEL) -> Trainer:
    torch.manual_seed(train.seed)
    table = PlainItemTable(ROWS, MODEL.dim, train=train, device=device)
    return Trainer(FuXiBeta(model), table, train=train, candidates=torch.arange(1, SONGS + 1), device=device)


def asks(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether an operator has to look at numbers of the device before the host can go on."""
    if func in INDEXING:
        return any(tensor.dtype == torch.bool for tensor in tree_leaves(args[1]))
    if func is torch.ops.aten.repeat_interleave.Tensor and kwargs.get("output_size") is not None:
        return False
    return bool(ASKING & set(func.tags))


class NobodyAsks(TorchDispatchMode):
    """Fails on what makes a host wait for a device: sizes or values that only the device knows, and plain copies."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device, self.called = device, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [tensor for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)]
        if any(tensor.device.type == self.device for tensor in tensors):
            self.called += 1
            assert not asks(func, args, kwargs), f"{func} needs to know what the device has computed"
        out = func(*args, **kwargs)
        crossing = isinstance(out, Tensor) and any(t.ndim and t.device != out.device for t in tensors)
        assert not crossing or kwargs.get("non_blocking"), f"{func} copies and waits"
        return out


class NothingIsSent(TorchFunctionMode):
    """Fails where numbers of the host become a tensor of the device, which copies and waits unseen by the other."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        made = func in {torch.tensor, torch.as_tensor, torch.asarray}
        assert not made or kwargs.get("device") is None, f"{func.__name__} sends its numbers to {kwargs['device']}"
        return func(*args, **kwargs)


@pytest.fixture
def no_launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Launches do nothing but tell their kernel's name."""
    names: list[str] = []

    def launch(self: Any, *_: Any, **__: Any) -> None:
        names.append(self.fn.__name__)

    for kind in (JITFunction, InterpretedFunction):
        monkeypatch.setattr(kind, "run", launch)
        monkeypatch.setattr(kind, "__getitem__", lambda self, grid: lambda *a, **k: launch(self))
    monkeypatch.setattr(dispatch, "takes_triton", lambda device: True)
    return names


@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "adamw"])
@pytest.mark.parametrize("learn_from", ["plays", "first_listens"])
def test_no_step_asks_the_device(no_launches, monkeypatch, batches, learn_from, optimizer) -> None:
    told = []
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: told.append(self.found_inf))
    model = replace(MODEL, content_channel=True, periodic_channel=True, interval_channel=True)
    trainer = make_trainer(replace(TRAIN, learn_from=learn_from, item_optimizer=optimizer), "meta", model)
    trainer.runs_ahead = True
    steps = trainer.learn(batches, epoch=1)
    with NobodyAsks("meta") as watch, NothingIsSent(), pytest.raises(NotImplementedError, match="meta"):
        next(steps)  # the first look at a result, two steps later, has nothing to look at
    assert len(told) == (3 if optimizer == "rowwise_adagrad" else 6)
    assert all(flag is told[0] and flag.device.type == "meta" for flag in told)
    assert watch.called > 500
    kernels = {"_rows_kernel", "_columns_kernel", "_losses_and_states", "_sums_by_row", "_integers_kernel"}
    assert kernels <= set(no_launches)


def test_the_watch_sees_what_waits() -> None:
    there = torch.zeros(3, dtype=torch.int64, device="meta")
    waits = [
        there.nonzero,
        lambda: there.sum().item(),
        lambda: there[there > 0],
        lambda: torch.ones(3).to("meta"),
        lambda: torch.tensor([1, 2], device="meta"),
        lambda: torch.repeat_interleave(there, there),
        there.unique,
    ]
    for wait in waits:
        with pytest.raises((AssertionError, NotImplementedError)), NobodyAsks("meta"), NothingIsSent():
            wait()
    with NobodyAsks("meta"), NothingIsSent():
        torch.ones(3).to("meta", non_blocking=True).add_(torch.tensor(1.0))


@pytest.fixture
def static(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every step fill up its songs with padding, as on a GPU."""
    exact = training._unique_songs
    monkeypatch.setattr(training, "_unique_songs", lambda occurs, at_most: exact(occurs, at_most=at_most or 400))


def running_ahead(train: TrainConfig) -> Trainer:
    """A trainer that does on any device what it does on a GPU."""
    trainer = make_trainer(train, DEVICE)
    trainer.runs_ahead = True
    for optimizer in (trainer.optimizer, trainer.table.optimizer):  # type: ignore[attr-defined]
        for group in optimizer.param_groups if isinstance(optimizer, torch.optim.AdamW) else ():
            group["fused"] = True
    return trainer


def states(trainer: Trainer) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in trainer.state().items()}


@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "adamw"])
def test_running_ahead_learns_the_same(static, batches, optimizer) -> None:
    ops.use("triton")
    train = replace(TRAIN, item_optimizer=optimizer)
    ahead = running_ahead(train)
    found = list(ahead.learn(iter(batches), epoch=1))
    ops.use("reference")
    waiting = make_trainer(train, "cpu")
    expected = [waiting.step(batch, epoch=1) for batch in batches]
    assert len(found) == len(batches)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.positions, ours.events, ours.listeners) == (theirs.positions, theirs.events, theirs.listeners)
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-4)
    for name, tensor in states(ahead).items():
        expected_tensor = states(waiting)[name]
        scale = expected_tensor.abs().max().item()
        torch.testing.assert_close(tensor, expected_tensor, rtol=0, atol=2e-3 * scale, msg=name)


@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "adamw"])
def test_after_a_loss_that_is_not_finite_nothing_is_learned(static, batches, optimizer) -> None:
    ops.use("reference")
    trainer = running_ahead(replace(TRAIN, item_optimizer=optimizer))
    kept: list[dict[str, Tensor]] = []

    def breaking() -> Iterator[Batch]:
        for number, batch in enumerate(batches):
            kept.append(states(trainer))
            if number == 2:
                trainer.model.positions.data[0, 0] = torch.inf
            yield batch

    seen = []
    with pytest.raises(DivergedError, match="the training loss is nan"):
        seen += trainer.learn(breaking(), epoch=1)
    assert len(kept) == 5  # two more steps were launched before the host looked
    kept[2]["model.positions"][0, 0] = torch.inf
    for name, tensor in states(trainer).items():
        assert torch.equal(tensor, kept[2][name]), name
        assert name.startswith("model.") or not torch.equal(tensor, kept[1][name]), name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_model_learns_by_the_kernels(static, batches, precision: Precision) -> None:
    ops.use("triton")
    trainer = running_ahead(replace(TRAIN, precision=precision, mode="all"))
    losses = [result.loss for _ in range(6) for result in trainer.learn(batches[:1], epoch=0)]
    assert losses[-1] < 0.9 * losses[0]
    for name, tensor in trainer.state().items():
        assert tensor.dtype == torch.float32 and torch.isfinite(tensor).all(), name
