"""No kernel reads what nobody has written: results are the same bits where fresh memory is full of NaN and of numbers
that are no index. In the interpreter `as_hardware` checks besides that nothing outside of the tensors is touched."""

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.utils.deterministic
from torch import Tensor

from fuxi_beta.data.batches import Batch
from fuxi_beta.data.stateless_random import Mask
from fuxi_beta.ops.triton import content, damped_waves, loss, token_mixer, tokenwise, top_k, tuning

DEVICE = "cpu" if tuning.INTERPRETED else "cuda"


@pytest.fixture(autouse=True)
def _deterministic(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Under deterministic algorithms torch fills what it has not been told to, if asked; and tiles are fixed."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    torch.use_deterministic_algorithms(True)
    tuning._chosen.clear()
    yield
    torch.use_deterministic_algorithms(False)


def same_in_fresh_memory(compute: Callable[[], list[Tensor]]) -> None:
    expected = compute()
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    assert torch.empty(2, device=DEVICE).isnan().all()
    for found, right in zip(compute(), expected, strict=True):
        assert torch.equal(found, right)
        assert not found.is_floating_point() or not found.isnan().any()


def mixed(batch: Batch, dim: int, dtype: torch.dtype, temporal: bool) -> Callable[[], list[Tensor]]:
    """Everything that the mixer computes, also without gradients and without a mask."""
    torch.manual_seed(dim)
    tokens = len(batch.timestamp)
    projected = torch.randn(tokens, 3 * dim).to(DEVICE, dtype).requires_grad_()
    by_lag = torch.randn(batch.longest + 2).to(DEVICE).requires_grad_()
    scale, decay = (torch.tensor(x, device=DEVICE).requires_grad_() for x in (0.5, 0.3))
    power = (scale, decay) if temporal else None
    mask = Mask(torch.arange(tokens, device=DEVICE), 0.25)
    there = batch.to(DEVICE)
    inputs = [projected, by_lag, *(power or ())]

    def compute() -> list[Tensor]:
        times = token_mixer.PackedTimes(there)
        with torch.no_grad():
            inferred = times.token_mixer(projected, by_lag, power, None)
        found = times.token_mixer(projected, by_lag, power, mask)
        bare = times.apply_maps(projected, by_lag, power)
        return [
            inferred,
            *(found.detach(), bare.detach()),
            *torch.autograd.grad(found, inputs, torch.ones_like(found)),
            *torch.autograd.grad(bare, inputs, torch.ones_like(bare)),
        ]

    return compute


@pytest.mark.parametrize(("temporal", "dtype"), [(True, torch.float32), (True, torch.bfloat16), (False, torch.float32)])
@pytest.mark.parametrize("lengths", [[0, 20, 1, 0, 16, 2, 0], [1]])
def test_the_mixer(make_batch, lengths, temporal, dtype):
    same_in_fresh_memory(mixed(make_batch(lengths), 18, dtype, temporal))


@pytest.mark.parametrize("name", ["_WHOLE", "_LONG"])
def test_the_mixer_of_wide_models_and_of_long_histories(make_batch, monkeypatch, name):
    monkeypatch.setattr(token_mixer, name, 16)
    same_in_fresh_memory(mixed(make_batch([0, 18, 1]), 32, torch.float32, True))


@pytest.mark.parametrize("choice", range(2))
def test_the_mixer_in_large_tiles(make_batch, take_choice, choice):
    take_choice(choice)
    same_in_fresh_memory(mixed(make_batch([20, 0, 70]), 16, torch.bfloat16, True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_channels(make_batch, dtype):
    batch = make_batch([0, 20, 1, 0, 16, 0]).to(DEVICE)
    torch.manual_seed(0)
    wide, narrow = (torch.randn(37, parts * 18).to(DEVICE, dtype).requires_grad_() for parts in (4, 2))
    decay, rate = (torch.tensor(x, device=DEVICE).requires_grad_() for x in ([0.5, 0.01], [1e-4, 1e-6]))
    mask = Mask(torch.arange(37, device=DEVICE), 0.25)

    def compute() -> list[Tensor]:
        kept = content.retention(wide, decay, batch, mask)
        waves = damped_waves.periodic(narrow, rate, (3600, 86_400), batch, mask)
        with torch.no_grad():
            inferred = content.retention(wide, decay, batch, None), damped_waves.waves(narrow, rate, (60, 90), batch)
        return [
            *(kept.detach(), waves.detach(), *inferred),
            *torch.autograd.grad(kept, [wide, decay], torch.ones_like(kept)),
            *torch.autograd.grad(waves, [narrow, rate], torch.ones_like(waves)),
        ]

    same_in_fresh_memory(compute)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_happens_to_each_token(dtype):
    torch.manual_seed(0)
    x = torch.randn(33, 70).to(DEVICE, dtype).requires_grad_()
    keys = torch.arange(33, device=DEVICE)
    mask = Mask(keys, 0.3)

    def compute() -> list[Tensor]:
        found = [tokenwise.rms_norm(x, mask), tokenwise.swiglu(x), tokenwise.dropout(x, mask)]
        gradients = [torch.autograd.grad(one, x, torch.ones_like(one))[0] for one in found]
        return [*(one.detach() for one in found), *gradients, tokenwise.integers(keys, 7, 90)]

    same_in_fresh_memory(compute)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("positions", "rows", "negatives"), [(7, 60, 37), (1, 3, 1), (0, 6, 9), (4, 9, 0)])
def test_the_loss(positions, rows, negatives, dtype):
    torch.manual_seed(0)
    states, table = (torch.randn(count, 48).to(DEVICE, dtype).requires_grad_() for count in (positions, rows))
    target, drawn = (torch.randint(rows, shape, device=DEVICE) for shape in ((positions,), (positions, negatives)))

    def compute() -> list[Tensor]:
        value = loss.sampled_softmax(states, table, target, drawn, drawn % 3 == 0, 20.0)
        return [value.detach(), *torch.autograd.grad(value, [states, table])]

    same_in_fresh_memory(compute)


@pytest.mark.parametrize(("listeners", "songs", "k"), [(9, 130, 5), (1, 1, 3), (3, 40, 30)])
def test_lists(listeners, songs, k):
    torch.manual_seed(0)
    queries, table = torch.randn(listeners, 80, device=DEVICE), torch.randn(songs, 80, device=DEVICE)
    candidates = torch.rand(songs, device=DEVICE) < 0.9
    seen = (torch.arange(60, device=DEVICE) % listeners, torch.arange(60, device=DEVICE) % songs)

    def compute() -> list[Tensor]:
        catalogue = top_k.prepare(table, candidates)
        both = (top_k.search(queries, catalogue, k=k, seen=heard, splits=2) for heard in (None, seen))
        return [tensor for found in both for tensor in found[:2]]

    same_in_fresh_memory(compute)
