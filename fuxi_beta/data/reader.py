"""The shards of a manifest as training batches: random order, disjoint ranks, resumable at any step.

Row groups are assigned to a fixed number of lanes. An epoch reads the row groups of a lane in random order and shuffles
the rows of each; the random numbers are counter-based, of (seed, epoch, lane) and (seed, epoch, row group), so no state
is kept. A global batch takes a share from every lane, and rank r owns the lanes l with l % world_size == r: global
batch k is the same set of samples for every world size.

A row group is read, cleaned and shuffled as a whole, so that a batch is little more than slices of it. Threads do this
ahead of the batches, in the order in which the batches need row groups; the number of threads does not change them.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice, pairwise, repeat
from typing import TypeVar

import numpy as np
import torch

from fuxi_beta.config import ModelConfig, TrainConfig
from fuxi_beta.data import stateless_random
from fuxi_beta.data.batches import Batch, Samples, collate, is_play, training_samples
from pipelines.calendar import REQUEST_HOUR, Calendar
from pipelines.histories.shards import Manifest, ShardFile

S = TypeVar("S")
T = TypeVar("T")

MAX_THREADS = 4
"""Threads that load row groups; no more than torch has. One delivers millions of events a second."""


class TrainingBatches:
    """Batches of one rank.

    Lanes end at different steps, so a rank's batch may be empty; every rank takes `steps_per_epoch` steps. With
    `train.batch_tokens` a lane's share is a number of tokens instead of listeners, and its listeners have histories of
    similar length.

    Events before `data_start` (Unix seconds) are context and no targets. Listeners without a play from then on are not
    read; which ones have one is looked up in what the days since then wrote.

    `threads` load row groups. In memory are one for each lane and at most two more for each thread, 24 bytes a token
    and 4 a song seen, besides the ones being loaded.
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
        data_start: int = 0,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} is not in a world of {world_size}")
        self.manifest, self.model, self.train = manifest, model, train
        self.data_start, self.data_end, self.vocabulary_size = data_start, data_end, vocabulary_size
        self.calendar = Calendar(manifest.timezone, request_hour)
        self.threads = min(MAX_THREADS, torch.get_num_threads())
        lanes = _assign_lanes(self._row_groups(), manifest, model, train)
        self._lanes = {number: lane for number, lane in enumerate(lanes) if number % world_size == rank}
        self.steps_per_epoch = max((lane.steps for lane in lanes), default=0)

    def _row_groups(self) -> "list[_RowGroup]":
        """The row groups that have rows to read."""
        groups, first = [], 0
        for file, group, rows in self.manifest.row_groups():
            groups.append(_RowGroup(file, group, rows, first))
            first += rows
        if self.data_start:
            with closing(ahead(self._active, groups, threads=self.threads)) as found:
                groups = [replace(group, active=rows) for group, rows in zip(groups, found, strict=True)]
        return [group for group in groups if group.read]

    def _active(self, group: "_RowGroup") -> np.ndarray:
        """The rows of a row group with a play from `data_start` to `data_end`, ascending. int64."""
        since = self.calendar.date_of(self.data_start)
        added = self.manifest.added_after(group.file, group.group, since)
        if added is None:
            return np.zeros(0, np.int64)
        new = is_play(added, self.train, self.vocabulary_size)
        new &= (added.timestamp >= self.data_start) & (added.timestamp < self.data_end)
        users, _ = self.manifest.sizes(group.file, group.group)
        return np.searchsorted(users, added.users[np.unique(added.listener[new])])

    def epoch(self, epoch: int, *, start_step: int = 0) -> Iterator[Batch]:
        """Batches of steps start_step, start_step + 1, ... of an epoch, equal to those of a run from step 0."""
        plans = {number: self._plan(number, lane, epoch, start_step) for number, lane in self._lanes.items()}
        loads = sorted((load for plan in plans.values() for load in plan), key=lambda load: (load.step, load.lane))
        walk = self._walk_by_tokens if self.train.batch_tokens else self._walk
        with closing(ahead(self._load, loads, threads=self.threads)) as ready:
            lanes = [walk(lane, islice(ready, len(plans[number]))) for number, lane in self._lanes.items()]
            for _ in range(start_step, self.steps_per_epoch):
                yield collate([samples for lane in lanes for samples in next(lane, ())])

    def _plan(self, number: int, lane: "_Lane", epoch: int, start_step: int) -> list["_Load"]:
        """The row groups that a lane needs from a step on, and from which step it needs each."""
        plan, done = [], 0
        unit = 1 if self.train.batch_tokens else lane.quota
        skip = start_step * unit
        for place in stateless_random.permutation(
            len(lane.groups), self.train.seed, epoch, stateless_random.SHUFFLE_LANE, number
        ).tolist():
            group = lane.groups[place]
            size = group.shares or group.read
            if done + size > skip:
                plan.append(_Load(max(done // unit, start_step), number, epoch, group, max(skip - done, 0)))
            done += size
        return plan

    def _walk(self, lane: "_Lane", ready: Iterator["_Loaded"]) -> Iterator[list[Samples]]:
        """A lane's shares of the global batches."""
        share, missing = [], lane.quota
        for loaded in ready:
            samples, start = loaded.samples, 0
            while start < len(samples):
                stop = min(start + missing, len(samples))
                share.append(samples.slice(start, stop))
                missing -= stop - start
                start = stop
                if missing == 0:
                    yield share
                    share, missing = [], lane.quota
        if share:
            yield share

    def _walk_by_tokens(self, lane: "_Lane", ready: Iterator["_Loaded"]) -> Iterator[list[Samples]]:
        """The same with a budget of tokens: every row group is cut into shares of listeners of similar length."""
        for loaded in ready:
            for start, stop in pairwise(loaded.ends):
                yield [loaded.samples.slice(start, stop)]

    def _load(self, load: "_Load") -> "_Loaded":
        """A row group as training samples, in the order of an epoch."""
        group = load.group
        order, ends = self._order(load)
        samples = training_samples(
            self.manifest.histories(group.file, group.group),
            sample=group.first_sample + np.arange(group.rows),
            model=self.model,
            train=self.train,
            calendar=self.calendar,
            data_end=self.data_end,
            vocabulary_size=self.vocabulary_size,
            rows=order,
            epoch=load.epoch,
            data_start=self.data_start,
        )
        return _Loaded(samples, ends)

    def _order(self, load: "_Load") -> tuple[np.ndarray, list[int]]:
        """The rows used of a row group, in their order, and the bounds of its shares if there is a budget of tokens."""
        group, seed = load.group, self.train.seed
        order = stateless_random.permutation(
            group.read, seed, load.epoch, stateless_random.SHUFFLE_ROWS, group.first_sample
        ).numpy()
        if group.active is not None:
            order = group.active[order]
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
    skip: int  # rows, or shares, that earlier steps took


@dataclass(frozen=True)
class _Loaded:
    samples: Samples
    ends: list[int]  # of its shares, after a 0; empty unless there is a budget of tokens


@dataclass(frozen=True)
class _RowGroup:
    file: ShardFile
    group: int
    rows: int
    first_sample: int  # number of its first row among all rows of the manifest
    active: np.ndarray | None = None  # the rows that are read; None: all
    tokens: np.ndarray | None = None  # of each row, about; None unless there is a budget of tokens
    shares: int = 0  # that this budget cuts it into

    @property
    def read(self) -> int:
        """How many rows are read."""
        return self.rows if self.active is None else len(self.active)


@dataclass(frozen=True)
class _Lane:
    groups: tuple[_RowGroup, ...]
    quota: int  # rows of it in each global batch; tokens if there is a budget of them

    @property
    def steps(self) -> int:
        """Global batches that have a share of it."""
        return sum(group.shares for group in self.groups) or -(-sum(group.read for group in self.groups) // self.quota)


def _assign_lanes(groups: list[_RowGroup], manifest: Manifest, model: ModelConfig, train: TrainConfig) -> list[_Lane]:
    """Row groups in lanes of about equal length, largest first; the same for every epoch and world size."""
    budget = train.batch_tokens or train.batch_size
    count = min(train.lanes, len(groups), budget)
    lanes: list[list[_RowGroup]] = [[] for _ in range(count)]
    for group in sorted(groups, key=lambda group: (-group.read, group.first_sample)):
        min(lanes, key=lambda lane: sum(other.read for other in lane)).append(group)
    quotas = [budget * (n + 1) // count - budget * n // count for n in range(count)]
    if train.batch_tokens:
        pairs = zip(lanes, quotas, strict=True)
        lanes = [[_with_tokens(manifest, group, model, quota) for group in lane] for lane, quota in pairs]
    return [_Lane(tuple(lane), quota) for lane, quota in zip(lanes, quotas, strict=True)]


def _with_tokens(manifest: Manifest, group: _RowGroup, model: ModelConfig, quota: int) -> _RowGroup:
    """The row group with its rows' tokens, from the one narrow column num_events, and its number of shares."""
    _, events = manifest.sizes(group.file, group.group)
    tokens = np.clip(events, 1, model.max_history)
    read = tokens if group.active is None else tokens[group.active]
    shares = min(max(1, round(read.sum() / quota)), group.read)
    return replace(group, tokens=tokens, shares=shares)


def ahead(function: Callable[[S], T], arguments: Iterable[S], *, threads: int) -> Generator[T, None, None]:
    """function(argument) of each argument, in their order, by threads that are at most two results each ahead.

    An error is raised in the place of its result. A caller that stops early closes the generator, which ends the
    threads.
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


def prefetched(batches: Iterator[T]) -> Iterator[T]:
    """The same batches, the next two of them made ahead by a thread, whose errors are raised here."""
    made = ahead(lambda _: next(batches, None), repeat(None), threads=1)
    try:
        for batch in made:
            if batch is None:
                return
            yield batch
    finally:
        made.close()
        if isinstance(batches, Generator):
            batches.close()
