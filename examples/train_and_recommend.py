"""Train FuXi-beta on a Parquet file of (user_id, item_id, timestamp) and print one listener's list.

    python examples/train_and_recommend.py plays.parquet [USER]

timestamp is in Unix seconds, or an Arrow timestamp. Shards are written into a temporary folder, without Spark.
"""

import sys
import tempfile

import numpy as np
import pyarrow.parquet as pq

from fuxi_beta import ModelConfig, TrainConfig, fit, write_histories

TRAIN = TrainConfig(epochs=10, batch_size=32, lr=3e-3, item_optimizer="adamw", min_listeners=2)


def main(file: str, user: str | None = None, k: int = 30) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        manifest, songs = write_histories(pq.read_table(file), f"{folder}/shards")
        fitted = fit(manifest, model=ModelConfig(dim=32), train=TRAIN)
        histories = manifest.histories(manifest.files[0], 0)  # of the first row group
    print(f"{manifest.rows:,} listeners, {len(songs):,} songs; mean loss {fitted.epoch_losses[-1]:.3f}")
    row = histories.user_id.cast("string").to_pylist().index(user) if user else 0
    batch = fitted.model.batch(histories.take(np.array([row])), request_time=manifest.data_end)
    items, scores = fitted.model.recommend(batch, k)  # songs the listener has heard are left out
    listed = [str(songs["item_id"][item - 1]) for item in items[0].tolist() if item]
    for rank, (song, score) in enumerate(zip(listed, scores[0].tolist(), strict=False), start=1):
        print(f"{rank:3d}  {song}  {score:.3f}")
    return listed


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None)
