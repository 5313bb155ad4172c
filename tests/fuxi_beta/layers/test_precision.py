"""bf16 products and a compiled MFFN train the same network: exact where it counts, repeatable, never in the way."""

import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fuxi_beta import ops
from fuxi_beta.config import Kernels, ModelConfig, TrainConfig
from fuxi_beta.data.batches import Batch
from fuxi_beta.layers.aftm import AFTM
from fuxi_beta.layers.content import ContentChannel
from fuxi_beta.layers.frab import FRAB
from fuxi_beta.layers.intervals import IntervalChannel
from fuxi_beta.layers.periodic import PeriodicChannel
from fuxi_beta.models.base import Dropout, ForwardContext
from fuxi_beta.models.fuxi_beta import FuXiBeta
from fuxi_beta.training.checkpoint import load_export, save_export
from fuxi_beta.training.item_table import PlainItemTable
from fuxi_beta.training.trainer import Trainer, trained_model

SONGS, STEPS, YEAR = 90, 20, 365 * 86_400
MODEL = ModelConfig(dim=16, layers=2, heads=2, max_history=24, dropout=0.2)
CHANNELS = replace(MODEL, temporal="exppow", content_channel=True, periodic_channel=True)
OF_OUTPUT, OF_GRADIENT = 2.0**-6, 2.0**-4  # of a channel in bf16, relative to the largest number
TRAIN = TrainConfig(negatives=32, mode="all", item_optimizer="adamw", seed=5)
BF16 = replace(TRAIN, precision="bf16")


@pytest.fixture
def batches(make_batch) -> list[Batch]:
    """Every song is followed by the next one of the catalogue."""
    drawn = [make_batch([3, 24, 11, 1, 17, 0, 9, 20] * 4, songs=SONGS, seed=seed) for seed in range(STEPS)]
    return [replace(batch, target=batch.item_index % SONGS + 1) for batch in drawn]


@pytest.fixture(autouse=True)
def _automatic_again():
    yield
    ops.use("auto")


def make_trainer(train: TrainConfig, model: ModelConfig = MODEL) -> Trainer:
    torch.manual_seed(train.seed)
    table = PlainItemTable(SONGS + 6, MODEL.dim, train=train)
    return Trainer(FuXiBeta(model), table, train=train, candidates=torch.arange(1, SONGS + 1))


def learn(trainer: Trainer, batches: list[Batch]) -> list[float]:
    return [trainer.step(batch, epoch=step).loss for step, batch in enumerate(batches)]


@pytest.mark.parametrize(("kernels", "model"), [("auto", MODEL), ("reference", MODEL), ("auto", CHANNELS)])
def test_bf16_learns_as_fp32_does_and_keeps_every_number_of_a_checkpoint_in_float32(
    batches: list[Batch], kernels: Kernels, model: ModelConfig
) -> None:
    ops.use(kernels)
    trainer = make_trainer(BF16, model)
    expected, found = learn(make_trainer(TRAIN, model), batches), learn(trainer, batches)
    assert found != expected  # the products were taken in bf16
    assert expected[-1] < 0.7 * expected[0]
    np.testing.assert_allclose(found, expected, rtol=0.005)  # products are within 2^-8 of themselves; found: 0.001
    for name, parameter in trainer.model.named_parameters():
        assert parameter.grad is not None and parameter.grad.dtype == torch.float32, name
        assert torch.isfinite(parameter.grad).all(), name
    for name, tensor in trainer.state().items():
        assert tensor.dtype == torch.float32 and torch.isfinite(tensor).all(), name


@pytest.mark.parametrize("train", [TRAIN, BF16], ids=["fp32", "bf16"])
def test_the_same_seed_gives_the_same_losses_bit_by_bit(batches: list[Batch], train: TrainConfig) -> None:
    assert learn(make_trainer(train), batches) == learn(make_trainer(train), batches)


def exact_mixer() -> tuple[AFTM, Tensor]:
    """A mixer and its input whose product is exact in bf16: small whole numbers, one of them a channel."""
    torch.manual_seed(0)
    mixer = AFTM(8, 2, 24, temporal=FRAB)
    with torch.no_grad():
        mixer.project.copy_(torch.eye(8).repeat(1, 3) * torch.tensor([1.0, -1.0, 0.5]).repeat_interleave(8))
    return mixer, torch.randint(-3, 4, (20, 8)).float()


def mixed(mixer: AFTM, normed: Tensor, batch: Batch) -> dict[str, Any]:
    """What a mixer gives, and the gradients of everything it learns."""
    out = mixer(normed, ops.prepare_times(batch, like=normed), None)
    learned = dict(mixer.named_parameters())
    gradients = torch.autograd.grad(out, list(learned.values()), torch.linspace(-1, 1, out.numel()).view_as(out))
    return {"output": out, **dict(zip(learned, gradients, strict=True))}


@pytest.mark.parametrize("kernels", ["auto", "reference"])
def test_elapsed_time_is_as_exact_under_bf16_as_under_fp32(make_batch, kernels: Kernels) -> None:
    ops.use(kernels)
    mixer, normed = exact_mixer()
    batch = make_batch([20])
    times = torch.arange(20) + 3 * YEAR * (torch.arange(20) >= 10)  # a second apart, and three years
    batch = replace(batch, timestamp=times, next_timestamp=times + 1)
    expected = mixed(mixer, normed, batch)
    mixer.bf16 = True
    for name, tensor in mixed(mixer, normed, batch).items():
        assert tensor.dtype == torch.float32, name
        if name == "project":  # this gradient is a product, of numbers that bf16 rounds
            torch.testing.assert_close(tensor, expected[name], rtol=0.01, atol=0.01 * expected[name].abs().max().item())
        else:
            assert torch.equal(tensor, expected[name]), name
    later = replace(batch, timestamp=times - 5_000_000 * (torch.arange(20) < 10))  # its logarithm: 0.05 more of 18
    assert not torch.equal(mixed(mixer, normed, later)["output"], expected["output"])


@pytest.mark.parametrize("kernels", ["auto", "reference"])
@pytest.mark.parametrize("kind", [ContentChannel, PeriodicChannel, IntervalChannel])
def test_a_channel_in_bf16_is_within_its_bound_in_value_and_every_gradient(make_batch, kind, kernels) -> None:
    """Queries, keys, values and U are rounded; the norm of a small sum magnifies that in gradients."""
    ops.use(kernels)
    torch.manual_seed(0)
    batch, channel = make_batch([40, 0, 1, 17, 3]), kind(16)
    torch.nn.init.normal_(channel.out)
    torch.nn.init.normal_(channel.project, std=0.25)  # so that its inputs are about 1, as after some training
    normed = torch.randn(61, 16, requires_grad=True)
    inputs = [normed, *channel.parameters()]

    def computed() -> list[Tensor]:
        out = channel(normed, ForwardContext(batch, normed, Dropout(None, batch, 0.0)), None)
        return [out, *torch.autograd.grad(out, inputs, torch.linspace(-1, 1, out.numel()).view_as(out))]

    exact = computed()
    channel.bf16 = True
    found = computed()
    bounds = [OF_OUTPUT, *[OF_GRADIENT] * len(inputs)]
    for ours, right, bound in zip(found, exact, bounds, strict=True):
        error = ((ours - right).abs().max() / right.abs().max()).item()
        assert ours.dtype == torch.float32 and 0 < error < bound, error


def test_the_periods_of_a_channel_are_as_exact_under_bf16(make_batch) -> None:
    """A second after 58 years of them, and half of an hour later: phases are integers until they are float32."""
    torch.manual_seed(0)
    channel = PeriodicChannel(6)
    batch = make_batch([2])
    times = torch.tensor([0, 58 * YEAR])
    batch = replace(batch, timestamp=times, next_timestamp=times + 1)
    later = replace(batch, next_timestamp=times + 1801)
    with torch.no_grad():
        channel.project.copy_(torch.eye(6).repeat(1, 2))  # exact in bf16, as is what it multiplies
        channel.out.copy_(torch.eye(6))
    normed = torch.ones(2, 6)

    def output(batch: Batch, *, bf16: bool) -> Tensor:
        channel.bf16 = bf16
        return channel(normed, ForwardContext(batch, normed, Dropout(None, batch, 0.0)), None)

    for asked in (batch, later):
        torch.testing.assert_close(output(asked, bf16=True), output(asked, bf16=False), rtol=2.0**-8, atol=2.0**-8)
    assert (output(batch, bf16=True) - output(later, bf16=True)).abs().max() > 0.1


def test_an_export_of_a_bf16_run_is_a_float32_network(tmp_path: Path, batches: list[Batch]) -> None:
    trainer = make_trainer(BF16)
    learn(trainer, batches[:3])
    trainer.save(str(tmp_path / "last"))
    candidates = np.arange(SONGS + 1) > 0
    trained, state = trained_model(str(tmp_path / "last"), model=MODEL, train=BF16, candidates=candidates)
    save_export(str(tmp_path / "export"), trained, train_state=state)
    loaded = load_export(str(tmp_path / "export"))
    assert loaded.train_config.precision == "bf16"
    for name, tensor in trainer.model.state_dict().items():
        read = loaded.model.state_dict()[name]
        assert read.dtype == torch.float32 and torch.equal(read, tensor), name
    assert loaded.item_vectors.dtype == torch.float32
    as_fp32 = replace(trained, train_config=TRAIN)
    assert torch.equal(loaded.scores(batches[0]), as_fp32.scores(batches[0]))
    with torch.inference_mode():
        vectors = loaded.item_vectors[batches[0].item_index]
        in_bf16, in_fp32 = (network.encode_last(vectors, batches[0]) for network in (trainer.model, loaded.model))
    assert not torch.equal(in_bf16, in_fp32)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_network_learns_as_it_does_uncompiled(batches: list[Batch]) -> None:
    torch.compiler.reset()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "train.compile")
        trainer = make_trainer(replace(TRAIN, compile=True))
    compiled = torch._dynamo.utils.counters["frames"]["ok"]
    assert compiled > 0
    np.testing.assert_allclose(learn(trainer, batches), learn(make_trainer(TRAIN), batches), rtol=1e-4)
    assert torch._dynamo.utils.counters["frames"]["ok"] == compiled  # nothing was left to compile


def test_a_compiler_that_fails_costs_one_warning(batches: list[Batch], monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._inductor.config as inductor

    torch.compiler.reset()
    monkeypatch.setattr(inductor, "force_disable_caches", True)
    monkeypatch.setattr(inductor.cpp, "cxx", (None, "/nowhere/g++"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = make_trainer(replace(TRAIN, compile=True))
        found = learn(trainer, batches[:3])
    ours = [str(warning.message) for warning in caught if "train.compile" in str(warning.message)]
    assert len(ours) == 1 and "/nowhere/g++" in ours[0], ours
    assert found == learn(make_trainer(TRAIN), batches[:3])


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ValueError, match=r"train\.precision is 'fp16': it must be one of fp32, bf16"):
        TrainConfig(precision="fp16")  # type: ignore[arg-type]
