"""What every protocol shares: who makes lists, what they read of a listener, and means over listeners."""

from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from fuxi_beta import ops
from fuxi_beta.config import ModelConfig, TrainConfig
from fuxi_beta.data.batches import Batch, inference_batch
from fuxi_beta.data.reader import ahead
from fuxi_beta.recommender import Queries, Recommender, heard_songs
from fuxi_beta.training.checkpoint import TrainedModel
from pipelines.calendar import Calendar
from pipelines.histories.histories import Histories

S = TypeVar("S")
T = TypeVar("T")

Progress = Callable[[int, int], None]
"""Called with (listeners done, listeners in all)."""

Metrics = dict[str, dict[str, dict[str, float]]]
"""Recommender -> slice -> metric -> mean over the slice's listeners."""


@dataclass(frozen=True)
class Result:
    """What every protocol measures."""

    metrics: Metrics
    excluded: int  # listeners with nothing to predict
    slices: dict[str, int]  # listeners of each slice, `all` among them

    @property
    def listeners(self) -> int:
        """Listeners measured."""
        return self.slices["all"]


class Known(Protocol):
    """Knows some of the songs."""

    @property
    def vocabulary_size(self) -> int:
        """Highest item index it knows."""
        ...


@dataclass(frozen=True)
class Contexts:
    """One chunk of listeners as the batch each recommender reads; recommenders with equal needs share it.

    A TrainedModel reads by its own configuration and request hour, all others by the ones given.
    """

    histories: Histories
    request_time: int | np.ndarray
    model: ModelConfig
    train: TrainConfig
    calendar: Calendar
    _made: dict[Hashable, Batch] = field(default_factory=dict)
    _encoded: dict[Recommender, Queries] = field(default_factory=dict)

    def batch(self, recommender: Known) -> Batch:
        """What a recommender reads."""
        size, model, train, calendar = recommender.vocabulary_size, self.model, self.train, self.calendar
        if isinstance(recommender, TrainedModel):
            model, train = recommender.model_config, recommender.train_config
            calendar = recommender.calendar(calendar.timezone)
        hour = calendar.request_hour
        key = (size, model.max_history, train.min_completion, train.protocol, train.request_time, hour)
        if key not in self._made:
            time = self.request_time
            self._made[key] = inference_batch(
                self.histories, request_time=time, model=model, train=train, calendar=calendar, vocabulary_size=size
            )
        return self._made[key]

    def queries(self, recommender: Recommender) -> Queries:
        """The listeners as a recommender encodes them; those of the latest recommender are kept."""
        if recommender not in self._encoded:
            self._encoded.clear()
            self._encoded[recommender] = recommender.queries(self.batch(recommender))
        return self._encoded[recommender]


ListMaker = Callable[[Recommender, Contexts, int], tuple[Tensor, Tensor]]
"""(recommender, listeners, k) to lists as `fuxi_beta.recommender.Queries.rank` returns them."""


def raw_lists(recommender: Recommender, contexts: Contexts, k: int) -> tuple[Tensor, Tensor]:
    """The list maker without list rules."""
    excluded = heard_songs(contexts.batch(recommender)) if recommender.mode == "exclusive" else None
    return contexts.queries(recommender).rank(k, excluded=excluded)


def on_every_core(function: Callable[[S], T], arguments: Iterable[S]) -> Iterator[T]:
    """function(argument) of each argument, in their order, by as many threads as torch uses.

    Within the function torch uses one thread: operators on a few hundred listeners are too short to share. Where a GPU
    or Triton's interpreter computes, everything runs in the caller's thread.
    """
    if torch.cuda.is_available() or ops.takes_triton(torch.device("cpu")):
        yield from map(function, arguments)
        return
    cores = torch.get_num_threads()

    def alone(argument: S) -> T:
        torch.set_num_threads(1)  # of this thread, and of those that start later
        return function(argument)

    try:
        with closing(ahead(alone, arguments, threads=cores)) as results:
            yield from results
    finally:
        torch.set_num_threads(cores)


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
