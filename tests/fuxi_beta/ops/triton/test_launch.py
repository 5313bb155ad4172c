"""Kernels are launched on the device that holds their tensors, whatever the current one is."""

from types import TracebackType
from typing import Any

import pytest
import torch
from torch import Tensor

from fuxi_beta.data.stateless_random import Mask
from fuxi_beta.ops import triton
from fuxi_beta.ops.triton import content, damped_waves, gate, loss, optimizer, token_mixer, tokenwise, top_k, tuning

DEVICE = "cpu" if tuning.INTERPRETED else "cuda"


class Guard(torch.cuda.device_of):
    """Knows how many of its kind are entered, and for which device the last of them was made."""

    entered: list[torch.device]

    def __init__(self, tensor: Tensor) -> None:
        super().__init__(tensor)
        self.tensor = tensor

    def __enter__(self) -> None:
        self.entered.append(self.tensor.device)
        super().__enter__()

    def __exit__(self, *raised: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.entered.pop()
        super().__exit__(*raised)  # type: ignore[arg-type]


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the kernels launched, each of them under a guard for its device, or the test fails."""
    names: list[str] = []
    monkeypatch.setattr(Guard, "entered", [], raising=False)
    monkeypatch.setattr(torch.cuda, "device_of", Guard)
    kind: Any = type(tokenwise._norm_kernel)
    launch = kind.__getitem__

    def checked(kernel: Any, grid: Any) -> Any:
        assert [device.type for device in Guard.entered[-1:]] == [DEVICE], f"{kernel.fn.__name__} has no guard"
        names.append(kernel.fn.__name__)
        return launch(kernel, grid)

    monkeypatch.setattr(kind, "__getitem__", checked)
    return names


def gradients(out: Tensor, *inputs: Tensor) -> None:
    torch.autograd.grad(out, inputs, torch.ones_like(out))


def test_every_kernel_is_launched_under_a_guard(launched, make_batch):
    batch = make_batch([3, 20]).to(DEVICE)
    keys = torch.arange(23, device=DEVICE)
    mask = Mask(keys, 0.3)
    x = torch.randn(23, 48, device=DEVICE, requires_grad=True)
    for function in (lambda x: tokenwise.rms_norm(x, mask), tokenwise.swiglu, lambda x: tokenwise.dropout(x, mask)):
        gradients(function(x), x)
    tokenwise.integers(tokenwise.combine(keys, 3), 5, 9)

    by_lag = torch.randn(20, device=DEVICE, requires_grad=True)
    scale, decay = (torch.ones((), device=DEVICE, requires_grad=True) for _ in range(2))
    times = token_mixer.PackedTimes(batch)
    gradients(times.token_mixer(x, by_lag, (scale, decay), mask), x, by_lag, scale, decay)
    gradients(times.apply_maps(x, by_lag, (scale, decay)), x, by_lag, scale, decay)

    rates = torch.ones(2, device=DEVICE, requires_grad=True)
    gradients(content.retention(x, rates, batch, mask), x, rates)
    gradients(damped_waves.periodic(x, rates, (60, 3600), batch, mask), x, rates)

    drawn = torch.randint(0, 23, (23, 4), device=DEVICE)
    gradients(loss.sampled_softmax(x, x, keys, drawn, drawn < 3, 0.05), x)

    catalogue = top_k.prepare(x.detach(), torch.ones(23, dtype=torch.bool, device=DEVICE))
    top_k.search(x.detach(), catalogue, k=3, seen=(keys, keys))

    optimizer.rowwise_adagrad(x.detach(), x.detach()[0].abs(), keys, x.detach().clone(), lr=0.1, eps=1e-8)

    launchable = {
        name
        for module in (tokenwise, token_mixer, gate, content, damped_waves, loss, top_k, optimizer)
        for name, kernel in vars(module).items()
        if type(kernel) is type(tokenwise._norm_kernel) and (name.endswith("_kernel") or module in (loss, top_k))
    }
    assert {"_combine_kernel", "_rowwise_adagrad_kernel", "_sums_by_row", "_exact_products"} <= launchable
    assert launchable - set(launched) <= {"_values_kernel"}  # of long histories


def test_the_first_tensor_decides(monkeypatch):
    from fuxi_beta.ops.triton import launch

    monkeypatch.setattr(Guard, "entered", [], raising=False)
    monkeypatch.setattr(torch.cuda, "device_of", Guard)

    @launch.on_device
    def current(*parts: Any, name: str) -> list[torch.device]:
        """What the guard says."""
        return list(Guard.entered)

    first, second = torch.zeros(2, device="meta"), torch.zeros(2)
    assert current(3, "x", first, second, name="any") == [torch.device("meta")]
    assert Guard.entered == []
    assert current.__doc__ == "What the guard says."


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, for which launches must work")
def test_a_host_that_cannot_launch_kernels_is_told_what_is_missing():
    reason = triton._why_no_launches()
    assert reason.startswith("Triton cannot launch kernels (") and "libcuda.so.1" in reason
