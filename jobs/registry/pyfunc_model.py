"""The daily model as an MLflow pyfunc: a listener's history in, songs and scores out.

MLflow stores this file as text and runs it when the model is loaded, so it imports only what the version carries.
"""

# pyright: reportAttributeAccessIssue=false
# (pyarrow.compute makes its functions when it is imported)

from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fuxi_beta.data.batches import inference_batch
from fuxi_beta.training.checkpoint import load_export
from jobs.serving.rules import served_lists
from pipelines.calendar import Calendar
from pipelines.histories.histories import Histories

DEFAULT_K = 30


class DailyRecommender(mlflow.pyfunc.PythonModel):
    """`predict` takes a row a listener: `item_ids` and `timestamps` (Unix seconds, UTC, oldest first, the whole
    history), `request_time` and optionally `k`; it returns `items`, best first, and their `scores`.

    Songs the model does not know are dropped from the context. Heard songs are not recommended by a model of
    first listens.
    """

    def load_context(self, context: Any) -> None:
        """Read the export and the vocabulary."""
        self.trained = load_export(context.artifacts["export"])
        self.calendar = Calendar(context.model_config["timezone"])
        table = pq.read_table(context.artifacts["vocabulary"])
        self.item_ids = table["item_id"].combine_chunks()
        self.item_index = table["item_index"].to_numpy()

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """One list a row of `model_input`; shorter than k where fewer songs are left."""
        lists, scores = [], []
        for row in model_input.to_dict("records"):
            k = row.get("k")
            songs, values = self._recommend(row, DEFAULT_K if k is None or pd.isna(k) else int(k))
            lists.append(songs)
            scores.append(values)
        return pd.DataFrame({"items": lists, "scores": scores})

    def _recommend(self, row: dict[str, Any], k: int) -> tuple[list[Any], list[float]]:
        trained = self.trained
        batch = inference_batch(
            self._history(row),
            request_time=int(row["request_time"]),
            model=trained.model_config,
            train=trained.train_config,
            calendar=self.calendar,
            vocabulary_size=trained.vocabulary_size,
        )
        songs, scores = served_lists(trained, batch, k)
        found = songs[0].numpy()
        keep = found > 0
        rows = np.searchsorted(self.item_index, found[keep])
        return self.item_ids.take(pa.array(rows)).to_pylist(), [float(score) for score in scores[0].numpy()[keep]]

    def _history(self, row: dict[str, Any]) -> Histories:
        """The row as one listener's history, known songs only."""
        played = pa.array(list(row["item_ids"]), self.item_ids.type)
        places = pc.index_in(played, value_set=self.item_ids)
        known = np.flatnonzero(np.asarray(places.is_valid()))
        index = self.item_index[places.drop_null().to_numpy(zero_copy_only=False)].astype(np.int32)
        timestamps = np.asarray(row["timestamps"], np.int64)[known]
        return Histories(
            user_id=pa.array([0], pa.int64()),
            offsets=np.array([0, index.size], np.int64),
            item_index=index,
            timestamp=timestamps,
            completion=np.full(index.size, 100, np.uint8),
            heard_offsets=np.zeros(2, np.int64),
            heard_items=np.zeros(0, np.int32),
        )


mlflow.models.set_model(DailyRecommender())
