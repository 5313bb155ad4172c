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
import torch
from mlflow.pyfunc import PythonModelContext
from safetensors.torch import load_file

from fuxi_beta.evaluation.protocol import Contexts
from fuxi_beta.training.checkpoint import load_export
from jobs.config import RulesConfig
from jobs.serving.rules import ListenerFacts, ListRules, SongFacts
from jobs.serving.rules.facts import NO_SEGMENT
from pipelines import storage
from pipelines.calendar import Calendar
from pipelines.digests import check_folder
from pipelines.histories.histories import Histories
from pipelines.schema import ITEM_ID, ITEM_INDEX

DEFAULT_K = 30


class DailyRecommender(mlflow.pyfunc.PythonModel):
    """`predict` takes a row a listener: `item_ids` and `timestamps` (Unix seconds, UTC, oldest first, the whole
    history), and optionally `request_time` and `k`; it returns `items`, best first, and their `scores`.

    `request_time` defaults to the request hour of the day for which the model was trained, so that the list is the one
    published for that day, or to the first request hour after the listener's newest play, if that is later. The hour is
    that of the training; `load_model(uri, model_config={"request_hour": 18})` sets another.

    The list rules of the training's configuration hold, as far as a row can say what they need: `listed_item_ids`
    (recommended in the last days), `disliked_item_ids` and `segment` are optional columns. Songs the model does not
    know are dropped from the context.
    """

    def load_context(self, context: PythonModelContext) -> None:
        """Read the export and the vocabulary."""
        vocabulary, facts_file = context.artifacts["vocabulary"], context.artifacts["song_facts"]
        logged = {f"artifacts/{storage.name(file)}" for file in (vocabulary, facts_file)}
        remedy = "download the model again, or train and register another"
        check_folder(storage.absolute(storage.parent(storage.parent(vocabulary))), only=logged, remedy=remedy)
        self.trained = load_export(context.artifacts["export"])
        self.calendar = Calendar(context.model_config["timezone"], context.model_config["request_hour"])
        table = storage.read_table(storage.absolute(vocabulary))
        self.item_ids = table[ITEM_ID].combine_chunks()
        self.item_index = table[ITEM_INDEX].to_numpy()
        facts = SongFacts.from_tensors(self.trained.vocabulary_size + 1, load_file(facts_file))
        config = RulesConfig(**context.model_config["rules"])
        self.rules = ListRules(config, facts, mode=self.trained.mode, k=DEFAULT_K)

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """One list a row of `model_input`; shorter than k where fewer songs are left."""
        made = [self._recommend(row, int(row.get("k", DEFAULT_K))) for row in model_input.to_dict("records")]
        return pd.DataFrame({"items": [songs for songs, _ in made], "scores": [scores for _, scores in made]})

    def _recommend(self, row: dict[str, Any], k: int) -> tuple[list[Any], list[float]]:
        trained = self.trained
        contexts = Contexts(
            self._history(row), self._request_time(row), trained.model_config, trained.train_config, self.calendar
        )
        made = self.rules.lists(trained, contexts, k, facts=self._facts(row))
        listed = made.items[0] > 0
        rows = np.searchsorted(self.item_index, made.items[0][listed].numpy())
        return self.item_ids.take(pa.array(rows)).to_pylist(), made.scores[0][listed].tolist()

    def _facts(self, row: dict[str, Any]) -> ListenerFacts:
        """What the row says of the listener besides the history."""
        named = [self._indices(row.get(name)) for name in ("listed_item_ids", "disliked_item_ids")]
        listed, disliked = ((torch.zeros(len(songs), dtype=torch.int64), torch.from_numpy(songs)) for songs in named)
        segment = np.array([row.get("segment") or NO_SEGMENT], object)
        return ListenerFacts(segment, listed=listed, disliked_songs=disliked)

    def _indices(self, item_ids: Any) -> np.ndarray:
        """Item indices of the songs that the model knows among these. int64."""
        if item_ids is None:
            return np.zeros(0, np.int64)
        places = pc.index_in(pa.array(list(item_ids), self.item_ids.type), value_set=self.item_ids)
        return self.item_index[places.drop_null().to_numpy(zero_copy_only=False)].astype(np.int64)

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
            play_code=np.full(index.size, 100, np.uint8),
            heard_offsets=np.zeros(2, np.int64),
            heard_items=np.zeros(0, np.int32),
        )


mlflow.models.set_model(DailyRecommender())
