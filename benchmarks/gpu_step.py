"""A training step on a GPU at the industrial shape: `python -m benchmarks.gpu_step [--quick]`.

FuXi-beta with D 256, 4 layers, 4 heads, ffn_multiply 4, N 200, dropout 0.2, 128 negatives, 234,488 songs, row-wise
Adagrad on them, bf16; listeners whose histories average 53 events with a long tail; batches of about 65,536 events of
histories of similar length, and of 512 listeners. Batches are read from shards that are written first.

Three contestants take turns in one process. All are `fuxi_beta.training.trainer.Trainer` on packed events, begin with
the same weights and drop out the same channels, so that their first losses must agree: *ours* with the Triton kernels;
*eager* in plain torch (`ops.use("reference")`, products in bf16 by autocast); *compiled*, the same plain torch with
every layer and the loss under `torch.compile`. That is the strongest compiled baseline we know: a model on padded
squares does 3.8 times the work, and its loss gathers 128 songs for each cell, 13 GB a tensor for 512 listeners. The
keys of dropout are computed outside of the graphs, because inductor cannot compile them where the number of a site is
symbolic. TF32 is allowed for what the baselines leave in float32.

A round is several steps on different batches in page-locked memory; its time is taken by CUDA events. An epoch is all
1,023,711,774 interactions at that rate. Then the training loop is measured: the reader's thread, transfer and steps.
Last come a profile of some steps, and CUDA's sync debug mode, which finds a host that waits.
"""

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx.experimental import _config as symbolic_sizes

from benchmarks.lib import gpu, gpu_trace
from benchmarks.lib.industrial_shards import INTERACTIONS, Scale, write_shards
from benchmarks.lib.timing import spread
from fuxi_beta import ops
from fuxi_beta.config import Kernels, ModelConfig, TrainConfig
from fuxi_beta.data.batches import Batch
from fuxi_beta.data.reader import TrainingBatches, prefetched
from fuxi_beta.data.stateless_random import Mask
from fuxi_beta.data.transfer import pinned
from fuxi_beta.models.base import ForwardContext
from fuxi_beta.models.fuxi_beta import Block, FuXiBeta
from fuxi_beta.ops import PreparedTimes, reference, triton
from fuxi_beta.presets import preset
from fuxi_beta.training.fit import all_batches, new_trainer
from fuxi_beta.training.trainer import StepResult, Trainer
from jobs.runtime import machine
from pipelines.histories.shards import Manifest

TRAIN = TrainConfig(mode="all", precision="bf16")
TOP = 10  # kernels that are listed
TOLERANCE = 0.01  # of the first loss; bf16 changes the fourth digit


@dataclass(frozen=True)
class Case:
    """A model, its training, and the device."""

    name: str
    train: TrainConfig
    model: ModelConfig = preset("Industrial").model
    device: str = "cuda"
    kernels: Kernels = "triton"  # ours
    backend: str = "inductor"  # of torch.compile
    steps: int = 8  # of a round
    rounds: int = 10


CASES = (
    Case("65,536 events", replace(TRAIN, batch_tokens=65_536)),
    Case("512 listeners", replace(TRAIN, batch_size=512)),
)


class StepRow(NamedTuple):
    """A contestant; times are of one step."""

    case: str
    contestant: str
    ms: float
    spread: float
    events_per_s: float
    epoch_min: float
    ours_is_faster: float  # times
    peak_gb: float  # beyond the memory held between steps
    first_loss: float  # with equal weights


class KernelRow(NamedTuple):
    """A kernel of ours; launches and time are of one step."""

    case: str
    kernel: str
    launches: float
    ms: float
    share: float  # of the time of all kernels


class LoopRow(NamedTuple):
    """The training loop; events a second."""

    case: str
    reader_alone: float
    steps_alone: float
    fed_by_reader: float
    epoch_min: float
    limit: str


class WatchRow(NamedTuple):
    """The GPU's activity and the host's waits in some steps."""

    case: str
    computing: float  # share of the time in which a kernel runs
    busy_ms: float  # a step
    wall_ms: float  # a step, under the profiler
    waits: str  # synchronizing calls of the host, a step
    found_in: str  # the line at which sync debug mode saw the host wait


@dataclass(frozen=True)
class Contestant:
    """A trainer and the implementation of its operators."""

    trainer: Trainer
    kernels: Kernels
    instead: Mapping[str, Callable[..., Tensor]] = field(default_factory=dict)  # of functions of `ops.reference`

    def learn(self, batches: Iterable[Batch], *, epoch: int = 0) -> Iterator[StepResult]:
        """The results of the steps. Exhaust it before another contestant's turn: the kernels are a global setting."""
        with self._operators():
            yield from self.trainer.learn(batches, epoch=epoch)

    @contextmanager
    def _operators(self) -> Iterator[None]:
        ops.use(self.kernels)
        try:
            with ExitStack() as replaced:
                for name, function in self.instead.items():
                    replaced.enter_context(patch.object(reference, name, function))
                yield
        finally:
            ops.use("auto")


def contestants(case: Case, manifest: Manifest) -> dict[str, Contestant]:
    """The contestants by name, with equal initial weights."""

    def trainer() -> Trainer:
        songs = np.arange(manifest.vocabulary_size + 1) > 0
        return new_trainer(manifest, songs, model=case.model, train=case.train, device=case.device)

    torch._dynamo.reset()  # graphs compiled for another case count against the limit on recompilation
    symbolic_sizes.use_duck_shape = False  # sizes of groups of listeners are equal by chance only
    compiler = partial(torch.compile, backend=case.backend)
    fused = {"sampled_softmax": compiler(softmax_to_fuse), "toeplitz": toeplitz_to_fuse}
    return {
        "ours": Contestant(trainer(), case.kernels),
        "eager": Contestant(through(trainer(), layer_in_torch), "reference"),
        "compiled": Contestant(through(trainer(), compiler(layer_in_torch, dynamic=True)), "reference", fused),
    }


def through(trainer: Trainer, layer: Callable[..., Tensor]) -> Trainer:
    """Replace a trainer's layers, which have no further channels, by a function of block, input, times and masks."""

    def forward(block: nn.Module, x: Tensor, ctx: ForwardContext) -> Tensor:
        return layer(block, x, ctx.times, ctx.dropout.mask(), ctx.dropout.mask())

    assert isinstance(trainer.model, FuXiBeta)
    for block in trainer.model.blocks:
        block.forward = partial(forward, block)
    return trainer


def layer_in_torch(block: Block, x: Tensor, times: PreparedTimes, first: Mask | None, second: Mask | None) -> Tensor:
    """`Block.forward` with given masks. In bf16 every product is, those with the maps too."""
    bf16 = block.mixer.bf16
    with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
        normed = ops.rms_norm(x, None, torch.bfloat16 if bf16 else x.dtype)
        return block.ffn(block.mixer(normed, times, first), x, second)


def softmax_to_fuse(
    states: Tensor, table: Tensor, target: Tensor, negatives: Tensor, masked: Tensor, temperature: float
) -> Tensor:
    """`reference.sampled_softmax_gathered` as a product and a sum: compiled, it has no [P, K, D] tensor."""
    positive = (states * table[target]).sum(1, keepdim=True)
    negative = (states[:, None, :] * table[negatives]).sum(2).masked_fill(masked, -torch.inf)
    logits = torch.cat([positive, negative], dim=1) / temperature
    return (logits.logsumexp(1) - logits[:, 0]).sum()


def toeplitz_to_fuse(by_lag: Tensor) -> Tensor:
    """`reference.toeplitz` by an index: with a strided window, every size is compiled anew."""
    place = torch.arange(len(by_lag), device=by_lag.device)
    lag = place[:, None] - place
    return by_lag[lag.clamp(min=0)].masked_fill(lag < 0, 0)


def reader_of(case: Case, manifest: Manifest) -> TrainingBatches:
    """The reader of a training on one GPU."""
    return all_batches(manifest, model=case.model, train=case.train, data_end=manifest.data_end)


def some_batches(case: Case, reader: TrainingBatches) -> list[Batch]:
    """The batches of a round, in page-locked memory."""
    return list(islice(pinned(reader.epoch(0), case.device), case.steps))


def epoch_minutes(events_per_s: float) -> float:
    """Minutes of an epoch over all interactions. Each history's last one counts too, though it is a target only."""
    return INTERACTIONS / events_per_s / 60


def step_rows(case: Case, entered: dict[str, Contestant], batches: list[Batch]) -> list[StepRow]:
    """Every contestant's steps on the same batches, ours first. Baselines that fail or differ in loss are left out."""
    calls = {name: lambda one=one: list(one.learn(batches)) for name, one in entered.items()}
    losses = agreeing({name: found[0].loss for name, found in gpu.first_results(calls, needed="ours").items()})
    calls = {name: calls[name] for name in losses}
    peaks = {name: gpu.peak_bytes(call, device=case.device) for name, call in calls.items()}
    found = gpu.interleaved(calls, rounds=case.rounds, warm_up=1, device=case.device)
    events = sum(len(batch.item_index) for batch in batches)
    medians = {name: statistics.median(times) for name, times in found.items()}
    return [
        StepRow(
            case=case.name,
            contestant=name,
            ms=medians[name] / len(batches),
            spread=spread(found[name]) / len(batches),
            events_per_s=1e3 * events / medians[name],
            epoch_min=epoch_minutes(1e3 * events / medians[name]),
            ours_is_faster=medians[name] / medians["ours"],
            peak_gb=peaks[name] / 1e9,
            first_loss=losses[name],
        )
        for name in calls
    ]


def agreeing(losses: Mapping[str, float]) -> dict[str, float]:
    """The first losses that equal that of ours up to the rounding of bf16. Others are printed and left out."""
    equal = {name: loss for name, loss in losses.items() if math.isclose(loss, losses["ours"], rel_tol=TOLERANCE)}
    for name in losses.keys() - equal.keys():
        print(f"{name} is left out: its first loss is {losses[name]}, that of ours {losses['ours']}")
    return equal


def reader_rate(reader: TrainingBatches, rounds: int = 3) -> float:
    """Events a second of whole epochs, read without training."""
    rates = []
    for number in range(rounds):
        started = time.perf_counter()
        events = sum(len(batch.item_index) for batch in reader.epoch(number))
        rates.append(events / (time.perf_counter() - started))
    return statistics.median(rates)


def fed_rate(case: Case, ours: Contestant, reader: TrainingBatches) -> float:
    """Events a second of an epoch as in `fuxi_beta.training.fit`, after the first result."""
    results = ours.learn(prefetched(pinned(reader.epoch(1), case.device)), epoch=1)
    next(results)
    started = time.perf_counter()
    events = sum(result.events for result in results)
    gpu.synchronize(case.device)
    return events / (time.perf_counter() - started)


def loop_row(case: Case, ours: Contestant, reader: TrainingBatches, steps_alone: float) -> LoopRow:
    """Rates of the reader, of the steps, and of both together."""
    reader_alone, fed = reader_rate(reader), fed_rate(case, ours, reader)
    limit = "the reader" if reader_alone < steps_alone else "the steps"
    return LoopRow(case.name, reader_alone, steps_alone, fed, epoch_minutes(fed), limit)


def watched(case: Case, ours: Contestant, batches: list[Batch]) -> tuple[WatchRow, list[KernelRow]]:
    """A profile of ours, and the line at which the host waits for the GPU."""

    def call() -> list[StepResult]:
        return list(ours.learn(batches))

    on_gpu = case.device == "cuda"
    category = gpu_trace.KERNELS if on_gpu else gpu_trace.OPERATORS
    trace = gpu_trace.summary(gpu_trace.traced(call, device=case.device), steps=len(batches), category=category)
    row = WatchRow(
        case=case.name,
        computing=trace.computing,
        busy_ms=trace.busy_ms,
        wall_ms=trace.wall_ms,
        waits=", ".join(f"{count:.3g} {name}" for name, count in trace.waits.items()) or "none",
        found_in=(gpu_trace.wait_in(call) or "nowhere") if on_gpu else "nobody looked",
    )
    return row, [KernelRow(case.name, *kernel) for kernel in trace.kernels[:TOP]]


def measured(case: Case, manifest: Manifest) -> dict[str, list[Any]]:
    """All tables of a case, by name; each is printed as soon as it is measured."""
    reader, entered = reader_of(case, manifest), contestants(case, manifest)
    batches = some_batches(case, reader)
    steps = step_rows(case, entered, batches)
    gpu.show(f"a step, {case.name}", StepRow._fields, steps)
    loop = [loop_row(case, entered["ours"], reader, steps[0].events_per_s)]
    gpu.show("the loop, events a second", LoopRow._fields, loop)
    watch, kernels = watched(case, entered["ours"], batches[:4])
    gpu.show("the GPU and its host, ours", WatchRow._fields, [watch])
    gpu.show("kernels, ours", KernelRow._fields, kernels)
    return {"rows": steps, "loop": loop, "watch": [watch], "kernels": kernels}


def run(cases: Sequence[Case], scale: Scale) -> None:
    """Measure the cases, print the tables and the JSON line."""
    with tempfile.TemporaryDirectory() as folder:
        manifest = write_shards(Path(folder), scale)
        of_cases = [measured(case, manifest) for case in cases]
    tables = {name: [row for tables in of_cases for row in tables[name]] for name in of_cases[0]}
    print(gpu.json_line("gpu_step", machine.describe(), **tables))


def main() -> None:
    """Print the tables and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three rounds of the first case, a fifth of the listeners")
    options = parser.parse_args()
    if gpu.nothing_to_measure("gpu_step"):
        return
    if failure := triton.why_not():
        parser.error(f"the Triton kernels cannot be used: {failure}")
    torch.set_float32_matmul_precision("high")
    if options.quick:
        run([replace(CASES[0], rounds=3)], Scale(listeners=160_000))
    else:
        run(CASES, Scale(listeners=800_000))


if __name__ == "__main__":
    main()
