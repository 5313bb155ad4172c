"""The daily model as an MLflow pyfunc: a listener's history in, songs and scores out.

MLflow stores this file as text and runs it when the model is loaded, so it imports only what the version carries.
"""

import datetime as dt
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from mlflow.pyfunc import PythonModelContext

from fuxi_beta.training.checkpoint import load_export
from jobs.serving.rules import served_lists
from pipelines.calendar import Calendar
from pipelines.histories.histories import Histories
from pipelines.schema import ITEM_ID, ITEM_INDEX

DEFAULT_K = 30


class DailyRecommender(mlflow.pyfunc.PythonModel):
    """`predict` takes a row a listener: `item_ids` and `timestamps` (Unix seconds, UTC, oldest first, the whole
    history), and optionally `request_time` and `k`; it returns `items`, best first, and their `scores`.

    `request_time` defaults to the request hour of the day for which the model was trained, so that the list is the one
    published for that day, or to the first request hour after the listener's newest play, if that is later. The hour is
    that of the training; `load_model(uri, model_config={"request_hour": 18})` sets another.

    Songs the model does not know are dropped from the context. Heard songs are not recommended by a model of
    first listens.
    """

    def load_context(self, context: PythonModelContext) -> None:
        """Read the export and the vocabulary."""
        self.trained = load_export(context.artifacts["export"])
        self.calendar = Calendar(context.model_config["timezone"], context.model_config["request_hour"])
        table = pq.read_table(context.artifacts["vocabulary"])
        self.item_ids = table[ITEM_ID].combine_chunks()
        self.item_index = table[ITEM_INDEX].to_numpy()

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """One list a row of `model_input`; shorter than k where fewer songs are left."""
        made = [self._recommend(row, int(row.get("k", DEFAULT_K))) for row in model_input.to_dict("records")]
        return pd.DataFrame({"items": [songs for songs, _ in made], "scores": [scores for _, scores in made]})

    def _recommend(self, row: dict[str, Any], k: int) -> tuple[list[Any], list[float]]:
        time = self._request_time(row)
        batch = self.trained.batch(self._history(row), request_time=time, timezone=self.calendar.timezone)
        songs, scores = served_lists(self.trained, batch, k)
        listed = songs[0] > 0
        rows = np.searchsorted(self.item_index, songs[0][listed].numpy())
        return self.item_ids.take(pa.array(rows)).to_pylist(), scores[0][listed].tolist()

    def _request_time(self, row: dict[str, Any]) -> int:
        """The row's `request_time`, else the default. Unix seconds."""
        if "request_time" in row:
            return int(row["request_time"])
        served = self.calendar.request_time(dt.date.fromisoformat(self.trained.ds))
        newest = max(row["timestamps"], default=0)
        return max(served, self.calendar.next_request_time(np.array([newest])).item())

    def _history(self, row: dict[str, Any]) -> Histories:
        """The row as the history of one listener, without songs that the model does not know."""
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
