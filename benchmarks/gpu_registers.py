"""The resources of each kernel: `python -m benchmarks.gpu_registers [--capability 90] [--quick]`.

Registers, shared memory and spilled bytes, without a GPU: the kernels' own entry points run on tensors in host memory,
and where they would launch, Triton compiles for the given capability, with every choice of tiles.
"""

import argparse
from collections.abc import Callable

import torch
import triton

from benchmarks.gpu_mixer import batch_of
from benchmarks.lib import gpu
from benchmarks.lib.registers import Resources, compiled
from fuxi_beta.data.stateless_random import Mask
from fuxi_beta.ops.triton import content, damped_waves, loss, optimizer, tokenwise, top_k

DIM = 256


def softmax(dtype: torch.dtype, dim: int = DIM) -> None:
    """Both kernels of the loss."""
    states, table = (torch.ones(2, dim, dtype=dtype, requires_grad=True) for _ in range(2))
    drawn = torch.zeros(2, 128, dtype=torch.int64)
    value = loss.sampled_softmax(states, table, drawn[:, 0].contiguous(), drawn, drawn > 0, 0.05)
    torch.autograd.grad(value, [states, table])


def search(k: int, scoring: torch.dtype) -> None:
    """The four kernels of a search."""
    table, none = torch.zeros(300, DIM), torch.zeros(1, dtype=torch.int64)
    catalogue = top_k.prepare(table, torch.ones(300, dtype=torch.bool), scoring=scoring)
    rounded, _, _ = top_k._round(table, None, scoring)
    top_k._shortlists(rounded, catalogue, top_k._heard_bits((none, none), catalogue, 0, 300, 10), k, None)
    top_k._exact_scores(table, table, torch.zeros(300, 16, dtype=torch.int64))


def norm(dtype: torch.dtype) -> None:
    """RMSNorm of a float32 residual stream for products in another dtype, with dropout."""
    x, keys = torch.ones(2, DIM, requires_grad=True), torch.zeros(2, dtype=torch.int64)
    out = tokenwise.rms_norm(x, Mask(keys, 0.2), dtype)
    torch.autograd.grad(out, x, torch.ones_like(out))


def keys() -> None:
    """Every combination of key parts that training uses."""
    part = torch.zeros(100, dtype=torch.int64)
    for parts in ((1234, 5, part), (part, part), (part, 7), (part, part, 7)):
        tokenwise.combine(*parts)


def adagrad(dim: int) -> None:
    """An update of the item table that may be skipped."""
    weight, rows = torch.zeros(5, dim), torch.arange(3)
    optimizer.rowwise_adagrad(weight, torch.zeros(5), rows, torch.ones(3, dim), lr=0.1, eps=1e-8, skip=torch.zeros(()))


def retention(dtype: torch.dtype, dim: int = DIM, heads: int = 4) -> None:
    """The scans of the content channel and its gate."""
    batch = batch_of(2, 70)
    projected, decay = torch.ones(140, 4 * dim, dtype=dtype, requires_grad=True), torch.ones(heads, requires_grad=True)
    out = content.retention(projected, decay, batch, Mask(torch.arange(140), 0.2))
    torch.autograd.grad(out, [projected, decay], torch.ones_like(out))


def waves(dtype: torch.dtype, dim: int = DIM) -> None:
    """The scans of the periodic channel and its gate."""
    batch = batch_of(2, 70)
    projected, rate = torch.ones(140, 2 * dim, dtype=dtype, requires_grad=True), torch.ones(3, requires_grad=True)
    out = damped_waves.periodic(projected, rate, (3600, 86_400, 604_800), batch, Mask(torch.arange(140), 0.2))
    torch.autograd.grad(out, [projected, rate], torch.ones_like(out))


CASES: dict[str, Callable[[], None]] = {
    "loss, bf16": lambda: softmax(torch.bfloat16),
    "loss, fp32, D 48": lambda: softmax(torch.float32, 48),
    "top 30, fp16": lambda: search(30, torch.float16),
    "norm, fp32 to bf16": lambda: norm(torch.bfloat16),
    "keys": keys,
    "Adagrad, fp32": lambda: adagrad(DIM),
    "retention, bf16": lambda: retention(torch.bfloat16),
    "waves, bf16": lambda: waves(torch.bfloat16),
}
MORE_CASES: dict[str, Callable[[], None]] = {
    "loss, fp32": lambda: softmax(torch.float32),
    "top 30, bf16": lambda: search(30, torch.bfloat16),
    "top 10, fp16": lambda: search(10, torch.float16),
    "top 128, fp16": lambda: search(128, torch.float16),
    "norm, fp32": lambda: norm(torch.float32),
    "retention, fp32": lambda: retention(torch.float32),
    "retention, bf16, D 64": lambda: retention(torch.bfloat16, 64),
    "retention, bf16, one head": lambda: retention(torch.bfloat16, heads=1),
    "retention, fp32, one head": lambda: retention(torch.float32, heads=1),
    "retention, fp16": lambda: retention(torch.float16),
    "waves, fp32": lambda: waves(torch.float32),
    "waves, bf16, D 64": lambda: waves(torch.bfloat16, 64),
    "waves, fp16": lambda: waves(torch.float16),
    "Adagrad, fp32, D 48": lambda: adagrad(48),
    "Adagrad, fp32, D 5,000": lambda: adagrad(5000),
}


def main() -> None:
    """Print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--capability", type=int, default=90, help="compute capability, 90 for H100 and H200")
    parser.add_argument("--quick", action="store_true", help="fewer cases, the first choice of tiles of each")
    options = parser.parse_args()
    cases = CASES if options.quick else CASES | MORE_CASES
    rows = compiled(cases, options.capability, every_choice=not options.quick)
    about = f"sm_{options.capability}, Triton {triton.__version__}"
    gpu.show(f"compiled for {about}", Resources._fields, rows)
    print(gpu.json_line("gpu_registers", about, rows=rows))


if __name__ == "__main__":
    main()
