"""Which implementation runs, and that no broken compiler, cache or kernel stops a run."""

import importlib.util
import os
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fuxi_beta import ops
from fuxi_beta.config import ModelConfig
from fuxi_beta.data.stateless_random import DropoutKey
from fuxi_beta.models.fuxi_beta import FuXiBeta
from fuxi_beta.ops import cpu, dispatch, linear, reference, triton
from fuxi_beta.ops.cpu import build

needs_kernels = pytest.mark.skipif(bool(ops.why_no_cpu_kernels()), reason=f"no kernels: {ops.why_no_cpu_kernels()}")


@pytest.fixture(autouse=True)
def _automatic_again():
    yield
    ops.use("auto")


@needs_kernels
def test_float32_on_the_cpu_has_kernels_and_float64_has_not(make_batch):
    batch = make_batch([4, 9])
    assert isinstance(ops.prepare_times(batch, torch.ones(13, 8)), cpu.PackedTimes)
    assert isinstance(ops.prepare_times(batch, torch.ones(13, 8).double()), reference.PaddedTimes)
    assert ops.describe().startswith("C++")


def test_the_reference_can_be_forced(make_batch):
    ops.use("reference")
    assert isinstance(ops.prepare_times(make_batch([4, 9]), torch.ones(13, 8)), reference.PaddedTimes)
    assert "forced" in ops.describe()


def test_an_unknown_choice_is_refused():
    with pytest.raises(ValueError, match="'fast' kernels: choose one of auto, reference, cpu, triton"):
        ops.use("fast")  # type: ignore[arg-type]


def test_long_histories_take_linear_time_and_fall_back_where_it_does_not_apply(make_batch, monkeypatch):
    monkeypatch.setattr(dispatch, "LONG_FROM", 50)
    monkeypatch.setattr(dispatch, "LONG_FROM_WITHOUT_KERNELS", 50)
    batch = make_batch([120, 60])
    timestamp = 1_700_000_000 + torch.cat([torch.arange(120), torch.arange(60)]) * 977
    batch = replace(batch, timestamp=timestamp, next_timestamp=timestamp + 30)
    unsorted = replace(batch, timestamp=timestamp.flip(0), next_timestamp=timestamp)
    projected, by_lag = torch.randn(180, 24), torch.randn(120)
    for tried, decays in ((batch, (0.5, 4.0, -1.0)), (unsorted, (0.5,))):
        times = ops.prepare_times(tried, torch.ones(180, 8))
        assert isinstance(times, linear.LongHistoryTimes)
        for decay in decays:
            power = (torch.tensor(0.7), torch.tensor(decay))
            doubles = (power[0].double(), power[1].double())
            exact_times = reference.PaddedTimes(tried, torch.float64)
            exact = ops.token_mixer(projected.double(), exact_times, by_lag.double(), doubles)
            mixed = ops.token_mixer(projected, times, by_lag, power)
            torch.testing.assert_close(mixed.double(), exact, rtol=1e-3, atol=1e-4)
    times = ops.prepare_times(batch, torch.ones(180, 8))
    exact = ops.token_mixer(projected, reference.PaddedTimes(batch, torch.float32), by_lag, None)
    torch.testing.assert_close(ops.token_mixer(projected, times, by_lag, None), exact, rtol=1e-3, atol=1e-4)


@needs_kernels
@pytest.mark.parametrize("heads", [1, 4])
def test_the_network_is_the_same_on_kernels_and_in_plain_torch(make_batch, heads):
    torch.manual_seed(0)
    batch = make_batch([33, 0, 1, 120, 7])
    model = FuXiBeta(ModelConfig(dim=20, heads=heads, max_history=120))
    vectors = torch.randn(161, 20, requires_grad=True)

    def loss_and_gradients():
        states = model(vectors, batch, key=DropoutKey(3, 1))
        return [states, *torch.autograd.grad(states[:, 0].sum(), [vectors, *model.parameters()])]

    ours = loss_and_gradients()
    ops.use("reference")
    for mine, theirs in zip(ours, loss_and_gradients(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


SCRIPT = """
import warnings, torch
from fuxi_beta import ops
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(2):
        ops.integers(torch.ones(2, dtype=torch.int64), 3, 9)  # what a training asks for first
        ops.rms_norm(torch.ones(2, 3))
print(len(caught), caught[0].message if caught else "", "|", ops.describe())
"""


def run(cache: Path, **environment: str) -> str:
    return run_script(SCRIPT, XDG_CACHE_HOME=str(cache), **environment)


def run_script(script: str, **environment: str) -> str:
    found = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[3],
    )
    assert found.returncode == 0, found.stderr
    return found.stdout.strip()


def test_without_a_compiler_everything_works_after_one_warning(tmp_path):
    found = run(tmp_path, CXX="no-such-compiler")
    assert found.startswith("1 training and scoring run several times slower without C++ kernels: there is no C++")
    assert "install g++" in found


def test_a_compiler_that_fails_is_reported_by_its_own_words(tmp_path):
    broken = tmp_path / "broken-c++"
    broken.write_text('#!/bin/sh\necho "kernels.cpp:1: error: out of ideas" >&2\nexit 1\n')
    broken.chmod(0o755)
    found = run(tmp_path / "cache", CXX=str(broken))
    assert found.startswith("1 ")
    assert "plain torch" in found
    assert not list((tmp_path / "cache").rglob("*.so"))


@needs_kernels
def test_a_damaged_library_in_the_cache_is_built_anew(tmp_path):
    library = tmp_path / build.cached_library().relative_to(build.cached_library().parents[2])
    library.parent.mkdir(parents=True)
    library.write_bytes(build.cached_library().read_bytes()[:5000])
    library.with_name(build.CHECKSUM).write_text(build.cached_library().with_name(build.CHECKSUM).read_text())
    assert run(tmp_path).endswith(ops.describe())
    assert build.is_built(library)
    assert [file.name for file in library.parent.parent.iterdir() if file.is_dir()] == [library.parent.name]


def test_another_cpu_or_compiler_means_another_build(monkeypatch):
    before = build.cached_library()
    build._fingerprint.cache_clear()
    monkeypatch.setattr(build, "_cpu_flags", lambda: "flags: fewer")
    try:
        assert build.cached_library() != before
    finally:
        build._fingerprint.cache_clear()


@pytest.fixture
def _interpreter(monkeypatch):
    """Triton can be used on the CPU, as it can where its interpreter is switched on."""
    monkeypatch.setattr(triton, "why_not", lambda: "")
    monkeypatch.setattr(triton, "interpreted", lambda: True)


def test_triton_that_cannot_be_had_is_refused(monkeypatch):
    monkeypatch.setattr(triton, "why_not", lambda: "there is no CUDA device")
    with pytest.raises(ValueError, match="Triton kernels cannot be used: there is no CUDA device"):
        ops.use("triton")


@pytest.mark.usefixtures("_interpreter")
def test_triton_can_be_forced_and_takes_the_dtypes_it_knows():
    assert dispatch.kernels_for(torch.ones(2)) is not triton
    ops.use("triton")
    assert all(dispatch.kernels_for(torch.ones(2, dtype=dtype)) is triton for dtype in triton.DTYPES)
    assert dispatch.kernels_for(torch.ones(2, dtype=torch.float64)) is None
    assert dispatch.kernels_for(torch.ones(2, dtype=torch.int64), dtype=torch.int64) is triton
    assert "Triton" in ops.describe()


def test_a_gpu_takes_triton_and_without_it_plain_torch_after_one_warning(monkeypatch):
    gpu = SimpleNamespace(device=torch.device("cuda:0"), dtype=torch.bfloat16)
    monkeypatch.setattr(triton, "why_not", lambda: "")
    assert dispatch.kernels_for(gpu, gpu) is triton  # type: ignore[arg-type]
    assert "Triton" in ops.describe("cuda")
    ops.use("reference")
    assert dispatch.kernels_for(gpu) is None  # type: ignore[arg-type]
    ops.use("auto")
    monkeypatch.setattr(triton, "why_not", lambda: "Triton does not import")
    dispatch._warn_of_triton.cache_clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert [dispatch.kernels_for(gpu) for _ in range(3)] == [None] * 3  # type: ignore[arg-type]
    assert [str(w.message) for w in caught] == [
        "the GPU runs plain torch, several times slower than kernels: Triton does not import"
    ]
    assert ops.describe("cuda") == "plain torch on cuda: Triton does not import"


INTERPRETED = """
import sys
import torch
from fuxi_beta import ops
from fuxi_beta.data.batches import Batch
from fuxi_beta.config import ModelConfig
from fuxi_beta.data.stateless_random import DropoutKey
from fuxi_beta.models.fuxi_beta import FuXiBeta
from fuxi_beta.ops import triton

torch.manual_seed(0)
times, zeros = torch.arange(25) * 977 + 1_700_000_000, torch.zeros(25, dtype=torch.int64)
batch = Batch(torch.tensor([0, 20, 20, 25]), zeros + 1, times, times + 5, zeros + 1, zeros[:3], zeros[:4], zeros[:0])
model = FuXiBeta(ModelConfig(dim=16, layers=1, max_history=20, content_channel=True, periodic_channel=True))
for channel in model.blocks[0].further_channels():
    torch.nn.init.normal_(channel.out, std=0.1)
vectors = torch.randn(25, 16, requires_grad=True)

def everything(kernels):
    ops.use(kernels)
    states = model(vectors, batch, key=DropoutKey(3, 1))
    return [states, *torch.autograd.grad(states[:, 0].sum(), [vectors, *model.parameters()])]

for mine, theirs in zip(everything("triton"), everything("reference"), strict=True):
    torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)
ops.use("triton")
assert isinstance(ops.prepare_times(batch, vectors), triton.PackedTimes)
assert {"fuxi_beta.ops.triton.content", "fuxi_beta.ops.triton.damped_waves"} <= set(sys.modules)
print(ops.describe())
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_the_network_is_the_same_in_tritons_interpreter():
    assert run_script(INTERPRETED, TRITON_INTERPRET="1").endswith("'s interpreter on cpu")


def test_importing_the_package_needs_no_triton():
    script = "import sys; sys.modules['triton'] = None; from fuxi_beta import ops; print(ops.triton.why_not())"
    assert run_script(script).startswith("Triton does not import")
