"""The shards of a manifest as training batches: keyed order, disjoint ranks, resumable at any step.

Row groups are dealt to a fixed number of lanes; an epoch walks each lane in an order keyed by (seed, epoch) and
shuffles the rows of each row group by a key of their own. A global batch takes a share from every lane, and rank r
owns the lanes l with l % world_size == r: global batch k is the same set of samples for every world size.

A row group is read, cleaned and shuffled as a whole, so that a batch is little more than slices of it. Threads do so
ahead of the batches, in the order in which the batches need row groups: what comes out does not depend on them.
"""

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import TypeVar

import numpy as np
import torch

from fuxi_beta.config import ModelConfig, TrainConfig
from fuxi_beta.data import stateless_random
from fuxi_beta.data.batches import Batch, Samples, collate, read_histories, training_samples
from pipelines.calendar import REQUEST_HOUR, Calendar
from pipelines.histories.shards import Manifest, ShardFile

S = TypeVar("S")
T = TypeVar("T")

MAX_THREADS = 4
"""Threads that make row groups; no more than torch has. One delivers millions of events a second."""


class TrainingBatches:
    """Batches of one rank.

    A lane that has run dry gives nothing, so a rank's batch may be empty; every rank takes `steps_per_epoch` steps.
    With `train.batch_tokens` a lane's share is a number of tokens instead of listeners, and its listeners have
    histories of like length.

    Row groups are made by `threads`. In memory are one for each lane and at most two more for each thread, 24 bytes a
    token and 4 a song seen, and what the threads work on.
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
        request_hour: int = REQUEST_HOUR,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} is not in a world of {world_size}")
        self.manifest, self.model, self.train = manifest, model, train
        self.data_end, self.vocabulary_size = data_end, vocabulary_size
        self.calendar = Calendar(manifest.timezone, request_hour)
        self.threads = min(MAX_THREADS, torch.get_num_threads())
        lanes = _deal(manifest, model, train)
        self._lanes = {number: lane for number, lane in enumerate(lanes) if number % world_size == rank}
        self.steps_per_epoch = max((lane.steps for lane in lanes), default=0)

    def epoch(self, epoch: int, *, start_step: int = 0) -> Iterator[Batch]:
        """Batches of steps start_step, start_step + 1, ... of an epoch; exactly what a run from step 0 sees there."""
        plans = {number: self._plan(number, lane, epoch, start_step) for number, lane in self._lanes.items()}
        loads = sorted((load for plan in plans.values() for load in plan), key=lambda load: (load.step, load.lane))
        walk = self._walk_by_tokens if self.train.batch_tokens else self._walk
        with closing(ahead(self._load, loads, threads=self.threads)) as ready:
            lanes = [walk(lane, islice(ready, len(plans[number]))) for number, lane in self._lanes.items()]
            for _ in range(start_step, self.steps_per_epoch):
                yield collate([part for lane in lanes for part in next(lane, ())])

    def _plan(self, number: int, lane: "_Lane", epoch: int, start_step: int) -> list["_Load"]:
        """The row groups that a lane needs from a step on, and from which step it needs each."""
        plan, done = [], 0
        unit = 1 if self.train.batch_tokens else lane.quota
        skip = start_step * unit
        for place in stateless_random.permutation(
            len(lane.groups), self.train.seed, epoch, stateless_random.SHUFFLE_LANE, number
        ).tolist():
            group = lane.groups[place]
            size = group.shares or group.rows
            if done + size > skip:
                plan.append(_Load(max(done // unit, start_step), number, epoch, group, max(skip - done, 0)))
            done += size
        return plan

    def _walk(self, lane: "_Lane", ready: Iterator["_Loaded"]) -> Iterator[list[Samples]]:
        """A lane's shares of the global batches."""
        parts, missing = [], lane.quota
        for loaded in ready:
            samples, start = loaded.samples, 0
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

    def _walk_by_tokens(self, lane: "_Lane", ready: Iterator["_Loaded"]) -> Iterator[list[Samples]]:
        """The same with a budget of tokens: every row group is cut into shares of listeners of like length."""
        for loaded in ready:
            for start, stop in pairwise(loaded.ends):
                yield [loaded.samples.part(start, stop)]

    def _load(self, load: "_Load") -> "_Loaded":
        """A row group as training samples, in the order of an epoch."""
        group = load.group
        order, ends = self._order(load)
        samples = training_samples(
            read_histories(self.manifest, group.file, group.group),
            sample=group.first_sample + np.arange(group.rows),
            model=self.model,
            train=self.train,
            calendar=self.calendar,
            data_end=self.data_end,
            vocabulary_size=self.vocabulary_size,
            rows=order,
        )
        return _Loaded(samples, ends)

    def _order(self, load: "_Load") -> tuple[np.ndarray, list[int]]:
        """The rows that are used of a row group, as they come, and with a budget of tokens the ends of its shares."""
        group, seed = load.group, self.train.seed
        order = stateless_random.permutation(
            group.rows, seed, load.epoch, stateless_random.SHUFFLE_ROWS, group.first_sample
        ).numpy()
        if group.tokens is None:
            return order[load.skip :], []
        doublings = np.frexp(group.tokens[order].astype(np.float64))[1]
        order = order[np.argsort(doublings, kind="stable")]
        tokens = np.cumsum(group.tokens[order])
        # Exactly `shares` cuts whatever the order, so that every epoch has as many steps.
        cuts = np.searchsorted(tokens, np.linspace(0, tokens[-1], group.shares + 1)[1:-1], side="left")
        shares = np.split(order, cuts)
        chosen = stateless_random.permutation(
            group.shares, seed, load.epoch, stateless_random.SHUFFLE_SHARES, group.first_sample
        )
        shares = [shares[share] for share in chosen[load.skip :].tolist()]
        return np.concatenate(shares), np.cumsum([0, *map(len, shares)]).tolist()


@dataclass(frozen=True)
class _Load:
    """One row group in an epoch."""

    step: int  # the first step that needs it
    lane: int
    epoch: int
    group: "_RowGroup"
    skip: int  # rows, or shares, that steps before the first one took


@dataclass(frozen=True)
class _Loaded:
    samples: Samples
    ends: list[int]  # of its shares, after a 0; nothing where listeners are counted


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


def ahead(function: Callable[[S], T], arguments: Iterable[S], *, threads: int) -> Generator[T, None, None]:
    """function(argument) of each argument, in their order, by threads that begin at most two each ahead of the caller.

    An error comes out in the place of its result. Whoever stops early closes the generator, which ends the threads.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="reader")
    pending: deque[Future[T]] = deque()
    try:
        for argument in arguments:
            pending.append(pool.submit(function, argument))
            if len(pending) > 2 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


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
        finally:
            if isinstance(batches, Generator):
                batches.close()

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
