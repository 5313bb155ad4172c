"""Train FuXi-beta on a Parquet file of (user_id, item_id, timestamp) and print one listener's list.

    python examples/train_and_recommend.py plays.parquet            # the first listener of the file
    python examples/train_and_recommend.py plays.parquet 1042       # this one

timestamp is in Unix seconds (or an Arrow timestamp). Shards and nothing else are written, into a temporary folder.
"""

import sys
import tempfile

import numpy as np
import pyarrow.parquet as pq

from fuxi_beta import Histories, ModelConfig, TrainConfig, fit, write_histories


def main(file: str, user: str | None = None, epochs: int = 10, k: int = 10) -> list[tuple[object, float]]:
    with tempfile.TemporaryDirectory() as folder:
        manifest, songs = write_histories(pq.read_table(file), f"{folder}/shards")
        train = TrainConfig(epochs=epochs, batch_size=32, lr=3e-3, item_optimizer="adamw", min_listeners=2)
        fitted = fit(manifest, model=ModelConfig(dim=32), train=train)
        print(f"{manifest.rows:,} listeners, {len(songs):,} songs, loss by epoch: {fitted.epoch_losses}")
        histories: Histories = manifest.histories(manifest.files[0], 0)
    users = histories.user_id.to_pylist()
    row = [str(known) for known in users].index(user) if user else 0
    batch = fitted.model.batch(histories.take(np.array([row])), request_time=manifest.data_end)
    items, scores = fitted.model.recommend(batch, k)
    ids = songs["item_id"].to_pylist()
    listed = [(ids[item - 1], score) for item, score in zip(items[0].tolist(), scores[0].tolist(), strict=True) if item]
    for rank, (item_id, score) in enumerate(listed, start=1):
        print(f"{rank:3d}  {item_id}  {score:.3f}")
    return listed


if __name__ == "__main__":
    main(*sys.argv[1:3])
