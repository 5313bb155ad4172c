"""What the mixer's options and other systems cost a training step: `python -m benchmarks.mixer_options`.

Batches as in `train_step` (N 200, 128 negatives, 3,706 songs, 55 % padding, fp32) of 128 and of 32 listeners, D 64 as
in `fuxi demo`, 2 layers. The baseline is the step of FuXi-beta without options on the same batch. The note compares the
fastest rounds, which other load on the machine moves least.
"""

import argparse
from dataclasses import replace

import torch

from benchmarks.lib.movielens_batch import movielens_like_batch, our_trainer
from benchmarks.lib.timing import Row, interleaved, report
from fuxi_beta import ops
from fuxi_beta.config import ModelConfig

PLAIN = ModelConfig(dim=64)
CASES = {
    "content": replace(PLAIN, content_channel=True),
    "periodic": replace(PLAIN, periodic_channel=True),
    "intervals": replace(PLAIN, interval_channel=True),
    "exppow": replace(PLAIN, temporal="exppow"),
    "all three": replace(PLAIN, content_channel=True, periodic_channel=True, temporal="exppow"),
    "fuxi-alpha": replace(PLAIN, name="fuxi-alpha"),
    "fuxi-linear": replace(PLAIN, name="fuxi-linear"),
    "esasrec": replace(PLAIN, name="esasrec"),
}


def measure(listeners: int, rounds: int) -> list[Row]:
    """A row a case: its step against that of plain FuXi-beta."""
    torch.manual_seed(0)
    batch = movielens_like_batch(listeners)
    trainers = {name: our_trainer(config) for name, config in {"plain": PLAIN, **CASES}.items()}
    times = interleaved(
        {name: lambda trainer=trainer: trainer.step(batch, epoch=0) for name, trainer in trainers.items()},
        rounds=rounds,
    )
    return [
        Row(f"{name}, {listeners} listeners", times[name], times["plain"], note=f"{_ratio(times, name):.2f} x the step")
        for name in CASES
    ]


def _ratio(times: dict[str, list[float]], name: str) -> float:
    return min(times[name]) / min(times["plain"])


def main() -> None:
    """Print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three rounds, within a minute")
    options = parser.parse_args()
    print(f"kernels: {ops.describe()}")
    rows = [row for listeners in (128, 32) for row in measure(listeners, 3 if options.quick else 15)]
    report("mixer_options", rows, ours="with", baseline="plain FuXi-beta")


if __name__ == "__main__":
    main()
