"""A training step at the ML-1M shape: `python -m benchmarks.train_step`.

128 listeners, N 200, D 50, 128 negatives, 3,706 songs, 55 % padding, fp32. Ours is
`fuxi_beta.training.trainer.Trainer` as `fuxi train` runs it; the baseline is the padded model of `benchmarks/naive.py`
on the same batch.
"""

import argparse

import torch

from benchmarks.naive import NaiveTrainer
from benchmarks.timing import Row, interleaved, report
from fuxi_beta import ops
from fuxi_beta.config import ModelConfig, TrainConfig
from fuxi_beta.data.batches import Batch
from fuxi_beta.data.stateless_random import DropoutKey
from fuxi_beta.models.fuxi_beta import FuXiBeta
from fuxi_beta.training.item_table import PlainItemTable, capacity_rows
from fuxi_beta.training.trainer import Trainer

SONGS, LISTENERS = 3706, 128
TRAIN = TrainConfig(protocol="leave_one_out", mode="all", item_optimizer="adamw", batch_size=LISTENERS)


def movielens_like_batch(listeners: int = LISTENERS, longest: int = 200, filled: float = 0.45) -> Batch:
    """Histories of log-normal length cut at `longest`, together `filled` of the padded square; bursts of events."""
    generator = torch.Generator().manual_seed(7)
    lengths = torch.empty(listeners).log_normal_(4.6, 0.9, generator=generator).clamp(max=longest)
    for _ in range(20):
        lengths = (lengths * (filled * listeners * longest / lengths.sum())).clamp(16, longest)
    lengths = lengths.long()
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    tokens = int(offsets[-1])
    popularity = 1 / torch.arange(1, SONGS + 1).double()
    items = torch.multinomial(popularity, tokens, replacement=True, generator=generator) + 1
    steps = torch.empty(tokens).log_normal_(3.0, 2.5, generator=generator).long()
    timestamp = 978_000_000 + steps.cumsum(0)
    last = offsets[1:] - 1
    following, target = timestamp.roll(-1), items.roll(-1)
    following[last], target[last] = timestamp[last] + 60, 0
    return Batch(
        offsets=offsets,
        item_index=items,
        timestamp=timestamp,
        next_timestamp=following,
        target=target,
        sample=torch.arange(listeners),
        seen_offsets=offsets,
        seen_items=items,
    )


def our_trainer(config: ModelConfig) -> Trainer:
    """As a worker of `fuxi train` makes it, without the sharding."""
    table = PlainItemTable(capacity_rows(SONGS, TRAIN.capacity_margin), config.dim, train=TRAIN)
    return Trainer(FuXiBeta(config), table, train=TRAIN, candidates=torch.arange(1, SONGS + 1))


def encode_and_backward(trainer: Trainer, batch: Batch) -> None:
    """The encoder alone, on packed tokens."""
    trainer.optimizer.zero_grad()
    trainer.table.zero_grad()
    states = trainer.model(trainer.table(batch.item_index), batch, key=DropoutKey(1, 0))
    states.sum().backward()


def serving(config: ModelConfig, rounds: int) -> Row:
    """What a list needs of the network: its last position alone, against all positions."""
    batch, trainer = movielens_like_batch(), our_trainer(config)
    with torch.inference_mode():
        vectors = trainer.table(batch.item_index)
        found = interleaved(
            {
                "ours": lambda: trainer.model.encode_last(vectors, batch),
                "baseline": lambda: trainer.model(vectors, batch),
            },
            rounds=3 * rounds,
        )
    return Row(f"{config.layers} layers, serving", found["ours"], found["baseline"], note="against our own full pass")


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
