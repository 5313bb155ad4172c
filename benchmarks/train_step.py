"""A training step at the ML-1M shape: `python -m benchmarks.train_step`.

128 listeners, N 200, D 50, 128 negatives, 3,706 songs, 55 % padding, fp32. Ours is
`fuxi_beta.training.trainer.Trainer` as `fuxi train` runs it; the baseline is the padded model of
`benchmarks/lib/naive.py` on the same batch.
"""

import argparse

import torch

from benchmarks.lib.movielens_batch import SONGS, TRAIN, movielens_like_batch, our_trainer
from benchmarks.lib.naive import NaiveTrainer
from benchmarks.lib.timing import Row, interleaved, report
from fuxi_beta import ops
from fuxi_beta.config import ModelConfig
from fuxi_beta.data.batches import Batch
from fuxi_beta.data.stateless_random import DropoutKey
from fuxi_beta.training.trainer import Trainer


def encode_and_backward(trainer: Trainer, batch: Batch) -> None:
    """Forward and backward of the encoder alone, on packed tokens."""
    trainer.optimizer.zero_grad()
    trainer.table.zero_grad()
    states = trainer.model(trainer.table(batch.item_index), batch, key=DropoutKey(1, 0))
    states.sum().backward()


def serving(config: ModelConfig, rounds: int) -> Row:
    """Encoding the last position, which is all that a list needs, against encoding every position."""
    batch, trainer = movielens_like_batch(), our_trainer(config)
    with torch.inference_mode():
        vectors = trainer.table(batch.item_index)
        times = interleaved(
            {
                "ours": lambda: trainer.model.encode_last(vectors, batch),
                "baseline": lambda: trainer.model(vectors, batch),
            },
            rounds=3 * rounds,
        )
    return Row(f"{config.layers} layers, serving", times["ours"], times["baseline"], note="against our own full pass")


def measure(layers: int, rounds: int) -> list[Row]:
    """The whole step, the encoder alone, and serving, at one depth."""
    torch.manual_seed(0)
    batch, config = movielens_like_batch(), ModelConfig(layers=layers)
    ours, naive = our_trainer(config), NaiveTrainer(config, TRAIN, SONGS)
    step = interleaved(
        {"ours": lambda: ours.step(batch, epoch=0), "baseline": lambda: naive.step(batch)}, rounds=rounds
    )
    encoder = interleaved(
        {"ours": lambda: encode_and_backward(ours, batch), "baseline": lambda: naive.encode_and_backward(batch)},
        rounds=rounds,
    )
    return [
        Row(f"{layers} layers", step["ours"], step["baseline"]),
        Row(f"{layers} layers, encoder alone", encoder["ours"], encoder["baseline"]),
        serving(config, rounds),
    ]


def main() -> None:
    """Print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two rounds, within a minute")
    parser.add_argument("--kernels", choices=ops.CHOICES, default="auto", help="implementation of our operators")
    options = parser.parse_args()
    ops.use(options.kernels)
    print(f"kernels: {ops.describe()}")
    rows = [row for layers in (2, 8) for row in measure(layers, 2 if options.quick else 9)]
    report("train_step", rows, ours="ours", baseline="naive padded")


if __name__ == "__main__":
    main()
