"""Plug in a network of one's own and compare it with FuXi-beta: `python examples/own_model.py plays.parquet`.

A network maps embedded plays to states; embedding, loss, training and evaluation are shared (CONTRIBUTING.md).
"""

import sys
import tempfile
from dataclasses import replace

import pyarrow.parquet as pq
from torch import Tensor, nn

import fuxi_beta as fx
from fuxi_beta.models.base import ForwardContext

TRAIN = replace(fx.preset("ML-1M").train, epochs=10, batch_size=32, lr=3e-3)


class LastSong(fx.SequenceModel):
    """The next song follows from the last one alone: h_i = x_i + W x_i."""

    def __init__(self, config: fx.ModelConfig) -> None:
        super().__init__(config)
        self.linear = nn.Linear(config.dim, config.dim)

    def encode(self, x: Tensor, ctx: ForwardContext) -> Tensor:
        return x + ctx.dropout(self.linear(x))


fx.register("last-song", LastSong, takes_time=False)
with tempfile.TemporaryDirectory() as folder:
    manifest, _ = fx.write_histories(pq.read_table(sys.argv[1]), f"{folder}/shards")
    models = {name: fx.ModelConfig(name=name, dim=32) for name in ("fuxi-beta", "last-song")}
    scorers = {name: fx.fit(manifest, model=model, train=TRAIN).model for name, model in models.items()}
    result = fx.evaluate_leave_one_out(
        manifest, scorers, model=models["fuxi-beta"], train=TRAIN, config=fx.EvaluateConfig()
    )
for name, slices in result.metrics.items():
    print(f"{name:10s} NDCG@10 {slices['all']['ndcg_10']:.3f}")
