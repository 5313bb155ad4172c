"""The shards of a manifest as training batches: keyed order, disjoint ranks, resumable at any step.

Row groups are dealt to a fixed number of lanes; an epoch walks each lane in an order keyed by (seed, epoch) and
shuffles the rows of each row group by a key of their own. A global batch takes a share from every lane, and rank r
owns the lanes l with l % world_size == r: global batch k is the same set of samples for every world size.

A row group is cleaned, cut and shuffled as a whole, so that a batch is little more than slices of it.
"""

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from fuxi_beta import keyed
from fuxi_beta.batches import Batch, Samples, collate, read_histories, training_samples
from fuxi_beta.config import ModelConfig, TrainConfig
from pipelines.calendar import Calendar
from pipelines.shards import Manifest, ShardFile

T = TypeVar("T")


class TrainingBatches:
    """Batches of one rank.

    A lane that has run dry gives nothing, so a rank's batch may be empty; every rank takes `steps_per_epoch` steps.
    With `train.batch_tokens` a lane's share is a number of tokens instead of listeners, and its listeners have
    histories of like length.
    """

    def __init__(
        self,
        manifest: Manifest,
        *,
        model: ModelConfig,
        train: TrainConfig,
        data_end: int,
        rank: int,
        world_size: int,
        vocabulary_size: int,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} is not in a world of {world_size}")
        self.manifest, self.model, self.train = manifest, model, train
        self.data_end, self.vocabulary_size = data_end, vocabulary_size
        self.calendar = Calendar(manifest.timezone)
        lanes = _deal(manifest, model, train)
        self._lanes = {number: lane for number, lane in enumerate(lanes) if number % world_size == rank}
        self.steps_per_epoch = max((lane.steps for lane in lanes), default=0)

    def epoch(self, epoch: int, *, start_step: int = 0) -> Iterator[Batch]:
        """Batches of steps start_step, start_step + 1, ... of an epoch; exactly what a run from step 0 sees there."""
        walk = self._walk_by_tokens if self.train.batch_tokens else self._walk
        lanes = [walk(number, lane, epoch, start_step) for number, lane in self._lanes.items()]
        for _ in range(start_step, self.steps_per_epoch):
            yield collate([part for lane in lanes for part in next(lane, ())])

    def _walk(self, number: int, lane: "_Lane", epoch: int, start_step: int) -> Iterator[list[Samples]]:
        """A lane's shares of the global batches from a step on."""
        skip, parts, missing = start_step * lane.quota, [], lane.quota
        for group in self._groups(number, lane, epoch):
            if skip >= group.rows:
                skip -= group.rows
                continue
            samples, start = self._read(group).take(self._order(group, epoch)[skip:]), 0
            skip = 0
            while start < len(samples):
                stop = min(start + missing, len(samples))
                parts.append(samples.part(start, stop))
                missing -= stop - start
                start = stop
                if missing == 0:
                    yield parts
                    parts, missing = [], lane.quota
        if parts:
            yield parts

    def _walk_by_tokens(self, number: int, lane: "_Lane", epoch: int, start_step: int) -> Iterator[list[Samples]]:
        """The same with a budget of tokens: every row group is cut into shares of listeners of like length."""
        skip = start_step
        for group in self._groups(number, lane, epoch):
            if skip >= group.shares:
                skip -= group.shares
                continue
            assert group.tokens is not None
            order = self._order(group, epoch)
            doublings = np.frexp(group.tokens[order].astype(np.float64))[1]
            order = order[np.argsort(doublings, kind="stable")]
            ends = np.cumsum(group.tokens[order])
            # Exactly `shares` cuts whatever the order, so that every epoch has as many steps.
            cuts = np.searchsorted(ends, np.linspace(0, ends[-1], group.shares + 1)[1:-1], side="left")
            samples = self._read(group)
            shares = np.split(order, cuts)
            for share in keyed.permutation(
                group.shares, self.train.seed, epoch, keyed.SHUFFLE_SHARES, group.first_sample
            ).tolist()[skip:]:
                yield [samples.take(shares[share])]
            skip = 0

    def _groups(self, number: int, lane: "_Lane", epoch: int) -> Iterator["_RowGroup"]:
        order = keyed.permutation(len(lane.groups), self.train.seed, epoch, keyed.SHUFFLE_LANE, number)
        return (lane.groups[place] for place in order.tolist())

    def _order(self, group: "_RowGroup", epoch: int) -> np.ndarray:
        return keyed.permutation(group.rows, self.train.seed, epoch, keyed.SHUFFLE_ROWS, group.first_sample).numpy()

    def _read(self, group: "_RowGroup") -> Samples:
        return training_samples(
            read_histories(self.manifest, group.file, group.group),
            sample=group.first_sample + np.arange(group.rows),
            model=self.model,
            train=self.train,
            calendar=self.calendar,
            data_end=self.data_end,
            vocabulary_size=self.vocabulary_size,
        )


@dataclass(frozen=True)
class _RowGroup:
    file: ShardFile
    group: int
    rows: int
    first_sample: int  # number of its first row among all rows of the manifest
    tokens: np.ndarray | None = None  # about how many each row has; known where batches have a budget of them
    shares: int = 0  # pieces it is cut into by that budget


@dataclass(frozen=True)
class _Lane:
    groups: tuple[_RowGroup, ...]
    quota: int  # rows it gives to each global batch; tokens where they are budgeted

    @property
    def rows(self) -> int:
        return sum(group.rows for group in self.groups)

    @property
    def steps(self) -> int:
        """Global batches it takes part in."""
        if any(group.shares for group in self.groups):
            return sum(group.shares for group in self.groups)
        return -(-self.rows // self.quota)


def _deal(manifest: Manifest, model: ModelConfig, train: TrainConfig) -> list[_Lane]:
    """Row groups to lanes of about equal length, largest first; the same for every epoch and world size."""
    groups, first = [], 0
    for file, group, rows in manifest.row_groups():
        if rows:
            groups.append(_RowGroup(file, group, rows, first))
        first += rows
    budget = train.batch_tokens or train.batch_size
    count = min(train.lanes, len(groups), budget)
    hands: list[list[_RowGroup]] = [[] for _ in range(count)]
    for group in sorted(groups, key=lambda group: (-group.rows, group.first_sample)):
        min(hands, key=lambda hand: sum(held.rows for held in hand)).append(group)
    quotas = [budget * (n + 1) // count - budget * n // count for n in range(count)]
    if not train.batch_tokens:
        return [_Lane(tuple(hand), quota) for hand, quota in zip(hands, quotas, strict=True)]
    return [
        _Lane(tuple(_weighed(manifest, group, model, quota) for group in hand), quota)
        for hand, quota in zip(hands, quotas, strict=True)
    ]


def _weighed(manifest: Manifest, group: _RowGroup, model: ModelConfig, quota: int) -> _RowGroup:
    """The row group with the lengths of its histories, which one narrow column tells."""
    _, events = manifest.sizes(group.file, group.group)
    tokens = np.clip(events, 1, model.max_history)
    shares = min(max(1, round(tokens.sum() / quota)), group.rows)
    return _RowGroup(group.file, group.group, group.rows, group.first_sample, tokens, shares)


def prefetched(batches: Iterator[T], depth: int = 2) -> Iterator[T]:
    """The same batches, the next `depth` of them made by a thread meanwhile; its errors come out here."""
    ready: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(depth)
    stopped = threading.Event()

    def put(item: T | None, error: BaseException | None) -> bool:
        while not stopped.is_set():
            try:
                ready.put((item, error), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def produce() -> None:
        try:
            for batch in batches:
                if not put(batch, None):
                    return
            put(None, None)
        except BaseException as error:
            put(None, error)

    threading.Thread(target=produce, daemon=True, name="reader").start()
    try:
        while True:
            batch, error = ready.get()
            if error is not None:
                raise error
            if batch is None:
                return
            yield batch
    finally:
        stopped.set()
