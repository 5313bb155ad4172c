"""What every protocol shares: who makes lists, what they read of a listener, and means over listeners."""

from collections.abc import Callable
from typing import Protocol

import numpy as np

from fuxi_beta.config import ModelConfig, TrainConfig
from fuxi_beta.data.batches import Batch, inference_batch
from fuxi_beta.training.checkpoint import TrainedModel
from pipelines.calendar import Calendar
from pipelines.histories.histories import Histories

Progress = Callable[[int, int], None]
"""Called with (listeners done, listeners in all)."""


Metrics = dict[str, dict[str, dict[str, float]]]
"""Recommender -> slice -> metric -> mean over the slice's listeners."""


class Known(Protocol):
    """Knows some of the songs."""

    @property
    def vocabulary_size(self) -> int:
        """Highest item index it knows."""
        ...


class Contexts:
    """One chunk of listeners as the batch each recommender reads; recommenders with equal needs share it."""

    def __init__(
        self,
        histories: Histories,
        request_time: int | np.ndarray,
        model: ModelConfig,
        train: TrainConfig,
        calendar: Calendar,
    ) -> None:
        self.histories, self.request_time, self.calendar = histories, request_time, calendar
        self.model, self.train = model, train
        self.made: dict[tuple[int, int, int, str, str], Batch] = {}

    def batch(self, recommender: Known) -> Batch:
        """What a recommender reads."""
        own = isinstance(recommender, TrainedModel)
        model = recommender.model_config if own else self.model
        train = recommender.train_config if own else self.train
        return self.of(recommender.vocabulary_size, model, train)

    def of(self, vocabulary_size: int, model: ModelConfig, train: TrainConfig) -> Batch:
        """What a recommender with these needs reads."""
        key = (vocabulary_size, model.max_history, train.min_completion, train.protocol, train.request_time)
        if key not in self.made:
            self.made[key] = inference_batch(
                self.histories,
                request_time=self.request_time,
                model=model,
                train=train,
                calendar=self.calendar,
                vocabulary_size=vocabulary_size,
            )
        return self.made[key]

    def seen_keys(self, songs: int) -> np.ndarray:
        """Songs that listeners have heard, as keys `listener * songs + song`."""
        batch = next(iter(self.made.values()))
        return (batch.seen_listener * songs + batch.seen_items).numpy()


class Means:
    """Sums by recommender, slice and metric."""

    def __init__(self) -> None:
        self.listeners: dict[str, int] = {"all": 0}
        self.sums: Metrics = {}

    def count(self, slices: dict[str, np.ndarray]) -> None:
        """Count the members (bool [B]) of each slice."""
        for name, members in slices.items():
            self.listeners[name] = self.listeners.get(name, 0) + int(members.sum())

    def add(self, name: str, slices: dict[str, np.ndarray], values: dict[str, np.ndarray]) -> None:
        """Add one recommender's values [B] of each metric."""
        for part, members in slices.items():
            sums = self.sums.setdefault(name, {}).setdefault(part, {})
            for metric, value in values.items():
                sums[metric] = sums.get(metric, 0.0) + float(value[members].sum())

    def means(self) -> Metrics:
        """What was added, divided by the listeners of each slice."""
        return {
            name: {
                part: {metric: total / max(self.listeners[part], 1) for metric, total in sums.items()}
                for part, sums in parts.items()
            }
            for name, parts in self.sums.items()
        }
