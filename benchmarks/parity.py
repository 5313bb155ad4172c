"""The same training with every implementation: `python -m benchmarks.parity [--quick] [--plot FILE]`.

One model from one seed learns from the same batches of the ML-1M shape (64 listeners, N 200, D 50, 2 layers, dropout
0.2) with every implementation. They take turns step by step, so that times can be compared too. Differences of the
loss are from plain torch in float32. A difference smaller than that of another seed does not matter.

The next song is one of the same group of sixteen, and after a pause of half an hour one of a new group: the loss falls,
and both order and times can be learned.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.lib.movielens_batch import SONGS, TRAIN, movielens_like_batch
from fuxi_beta import ops
from fuxi_beta.config import Kernels, ModelConfig, TrainConfig
from fuxi_beta.data.batches import Batch
from fuxi_beta.models.fuxi_beta import FuXiBeta
from fuxi_beta.training.item_table import PlainItemTable, capacity_rows
from fuxi_beta.training.trainer import Trainer
from jobs.runtime import machine

STEPS, QUICK_STEPS, LISTENERS = 200, 40, 64
GROUP, PAUSE_S = 16, 1800
REFERENCE = "plain torch fp32"


@dataclass
class Case:
    """One implementation, its losses and times."""

    name: str
    kernels: Kernels
    train: TrainConfig
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def start(self) -> None:
        """Create the model and its table from the seed."""
        torch.manual_seed(self.train.seed)
        config = ModelConfig(layers=2)
        table = PlainItemTable(capacity_rows(SONGS, TRAIN.capacity_margin), config.dim, train=self.train)
        candidates = torch.arange(1, SONGS + 1)
        self.trainer = Trainer(FuXiBeta(config), table, train=self.train, candidates=candidates)

    def step(self, batch: Batch, number: int) -> None:
        """One step of training."""
        ops.use(self.kernels)
        started = time.perf_counter()
        self.losses.append(self.trainer.step(batch, epoch=number).loss)
        self.seconds.append(time.perf_counter() - started)

    def differences(self, reference: "Case") -> list[float]:
        """Absolute difference of each step's loss from the reference's."""
        return [abs(ours - theirs) for ours, theirs in zip(self.losses, reference.losses, strict=True)]

    @property
    def step_ms(self) -> float:
        """Median over steps, without the first two."""
        return statistics.median(self.seconds[2:]) * 1e3


def cases() -> list[Case]:
    """Every implementation, the reference first."""
    train = replace(TRAIN, batch_size=LISTENERS)
    return [
        Case(REFERENCE, "reference", train),
        Case("C++ fp32", "auto", train),
        Case("C++ bf16", "auto", replace(train, precision="bf16")),
        Case("compiled fp32", "reference", replace(train, compile=True)),
        Case("compiled bf16", "reference", replace(train, compile=True, precision="bf16")),
        Case("C++ fp32, another seed", "auto", replace(train, seed=train.seed + 1)),
    ]


def learnable_batches() -> Callable[[int], Batch]:
    """A function that draws the batch of a step."""
    base = movielens_like_batch(LISTENERS)
    new_group = base.timestamp.diff(prepend=base.timestamp[:1]) > PAUSE_S
    new_group[base.offsets[:-1]] = True
    visit = new_group.long().cumsum(0) - 1
    last = base.offsets[1:] - 1

    def draw(step: int) -> Batch:
        generator = torch.Generator().manual_seed(step)
        groups = SONGS // GROUP
        popularity = 1 / torch.arange(1, groups + 1).double()
        group = torch.multinomial(popularity, int(visit[-1]) + 1, replacement=True, generator=generator)
        items = 1 + group[visit] * GROUP + torch.randint(GROUP, visit.shape, generator=generator)
        target = items.roll(-1)
        target[last] = 0
        sample = step * LISTENERS + torch.arange(LISTENERS)
        return replace(base, item_index=items, seen_items=items, target=target, sample=sample)

    return draw


def run(steps: int) -> list[Case]:
    """Train every case, in turns."""
    started = cases()
    for case in started:
        case.start()
    draw = learnable_batches()
    for number in range(steps):
        batch = draw(number)
        for case in started:
            case.step(batch, number)
    ops.use("auto")
    return started


def report(trained: list[Case]) -> None:
    """Print one table, and as the last line one JSON object."""
    reference, others = trained[0], trained[1:]
    table = Table(
        title=f"parity over {len(reference.losses)} steps", caption=machine.describe(), caption_justify="left"
    )
    table.add_column("case")
    for column in ("largest difference", "mean difference", "final loss", "ms a step", "speed-up"):
        table.add_column(column, justify="right")
    rows = []
    for case in trained:
        differences, speedup = case.differences(reference), reference.step_ms / case.step_ms
        table.add_row(
            case.name,
            f"{max(differences):.1e}",
            f"{statistics.mean(differences):.1e}",
            f"{case.losses[-1]:.4f}",
            f"{case.step_ms:.0f}",
            f"{speedup:.2f}x",
        )
        if case in others:
            rows.append(
                {
                    "case": case.name,
                    "ours": float(f"{max(differences):.3g}"),
                    "baseline": round(reference.losses[-1], 4),
                    "unit": "loss",
                    "speedup": round(speedup, 2),
                }
            )
    Console(width=120).print(table)
    print(json.dumps({"benchmark": "parity", "machine": machine.describe(), "rows": rows}))


def plot(trained: list[Case], file: str) -> None:
    """Draw the loss curves and their differences from the reference's."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    reference, others = trained[0], trained[1:]
    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    curves, differences = figure.subplots(1, 2)
    curves.plot(reference.losses, color="black", label=reference.name)
    for case in others:
        distance = case.differences(reference)
        line = ":" if case is others[-1] else "-"
        curves.plot(case.losses, line, linewidth=1, label=case.name)
        differences.plot([value or float("nan") for value in distance], line, linewidth=1, marker=".", markersize=2)
    curves.set(title="Loss", xlabel="step")
    differences.set(title=f"Difference from {reference.name}", xlabel="step", yscale="log")
    for axes in (curves, differences):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    curves.legend(frameon=False)
    figure.savefig(file, dpi=90)


def main() -> None:
    """Print the table and the JSON line, and draw the plot for `--plot`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_STEPS} steps, within a minute")
    parser.add_argument("--plot", metavar="FILE", help="write a PNG")
    options = parser.parse_args()
    print(f"kernels: {ops.describe()}")
    trained = run(QUICK_STEPS if options.quick else STEPS)
    if options.plot:
        plot(trained, options.plot)
    report(trained)


if __name__ == "__main__":
    main()
