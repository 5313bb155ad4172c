"""What every worker of `fuxi train` runs: build the trainer, continue from the newest checkpoint, learn, report.

Rank 0 alone keeps the loss curve and writes progress for the driver, to a small file beside the checkpoints, because
the driver and rank 0 always share that storage.
"""

import contextlib
import itertools
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from fuxi_beta.config import Kernels, ModelConfig, TrainConfig
from fuxi_beta.data.side import SongSide
from jobs.runtime.remote import redacting
from jobs.training.position import CheckpointPosition, check_checkpoint
from pipelines import storage
from pipelines.digests import write_digests
from pipelines.histories.shards import Manifest

if TYPE_CHECKING:
    import torch

    from fuxi_beta.data.batches import Batch
    from fuxi_beta.data.reader import TrainingBatches
    from fuxi_beta.training.trainer import Trainer

T = TypeVar("T")

PROGRESS_EVERY_S, PROGRESS_EVERY_S_ON_S3 = 0.5, 5.0
"""Between writes of the progress file, and the driver's looks at it: on an object store each is a paid request."""


@dataclass(frozen=True)
class LoopConfig:
    """The settings of a training, pickled for every worker."""

    manifest: Manifest
    model: ModelConfig
    train: TrainConfig
    data_end: int  # Unix seconds; targets are before it
    data_start: int  # and not before this; 0: wherever they are
    request_hour: int  # hour of the day for which lists are learned
    rows: int  # of the item table
    candidates: np.ndarray  # bool [vocabulary + 1]
    plays: np.ndarray  # int64 [vocabulary + 1], before `data_end`
    parent: str  # export (folder or URI) to start from; empty for a cold start
    resume: str  # checkpoint (folder or URI) to continue from where Ray Train has none; mostly empty
    progress: str  # URI of the progress file
    threads: int
    deterministic: bool
    kernels: Kernels = "auto"
    side: str = ""  # URI of side information, as `SongSide.write` wrote it; empty without any

    def epochs(self, steps_per_epoch: int) -> int:
        """How many epochs this training has."""
        return self.train.epochs_of(steps_per_epoch, warm=bool(self.parent), incremental=bool(self.data_start))


class ProgressFile:
    """What the driver's progress bar shows: steps done and in all, written by rank 0 (`progress_every_s`)."""

    def __init__(self, loop: LoopConfig, steps_per_epoch: int) -> None:
        self.uri, self.total, self.written = loop.progress, loop.epochs(steps_per_epoch) * steps_per_epoch, 0.0
        self.every_s = progress_every_s(self.uri)

    def show(self, position: CheckpointPosition, *, now: bool = False, left: bool = False) -> None:
        """Write the position. now: even if that was done just before. left: workers leave it, and it is saved."""
        if now or time.monotonic() - self.written >= self.every_s:
            self.written = time.monotonic()
            done = {"steps": position.steps, "total": self.total, "epoch": position.epoch}
            storage.write_json(self.uri, {**done, "left": left})


def progress_every_s(uri: str) -> float:
    """Seconds between two looks at a progress file."""
    return PROGRESS_EVERY_S_ON_S3 if storage.is_s3(uri) else PROGRESS_EVERY_S


@redacting
def train_worker(settings: dict[str, LoopConfig]) -> str:
    """Run by Ray Train on every worker. Returns why training stopped early, empty when it did not.

    A loss that is not finite is returned, not raised: raising would only make Ray Train repeat the same steps.
    """
    import ray.train
    import ray.train.torch

    from fuxi_beta import ops
    from fuxi_beta.data.reader import TrainingBatches
    from fuxi_beta.training.trainer import DivergedError
    from jobs.training import notice

    loop, context = settings["loop"], ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    _set_up_torch(loop)
    batches = TrainingBatches(
        loop.manifest,
        model=loop.model,
        train=loop.train,
        data_end=loop.data_end,
        rank=rank,
        world_size=world_size,
        vocabulary_size=loop.manifest.vocabulary_size,
        request_hour=loop.request_hour,
        data_start=loop.data_start,
    )
    trainer = _new_trainer(loop, ray.train.torch.get_device())
    position = _start(trainer, loop)
    position.kernels, position.workers = ops.describe(trainer.device), world_size
    progress = ProgressFile(loop, batches.steps_per_epoch) if rank == 0 else None
    notice.heed()
    while position.epoch < loop.epochs(batches.steps_per_epoch):
        try:
            if _run_epoch(trainer, batches, position, progress):
                notice.wait_for_commit()
                if progress:
                    progress.show(position, now=True, left=True)
                _meet()  # the first rank that leaves ends the others
                notice.leave()
        except DivergedError as error:
            reason = f"{error} at step {position.steps + 1} (epoch {position.epoch + 1})"
            _meet()  # a rank may still be uploading its part of the newest checkpoint
            with _newest_checkpoint(loop) as folder:
                if not folder or len(position.rollbacks) >= loop.train.max_rollbacks:
                    return reason + _times(position)
                behind = min(position.step + 1, batches.steps_per_epoch)
                position = _rolled_back(trainer, folder, position, behind, reason)
    return ""


def _rolled_back(
    trainer: "Trainer", folder: str, failed: CheckpointPosition, behind: int, reason: str
) -> CheckpointPosition:
    """Load a checkpoint into the trainer; the position that skips from there to the step `behind` of the epoch.

    As PaLM was trained (arXiv 2204.02311, section 5.1): a spike comes of a state of the weights together with the
    batches that follow it, so other batches follow the same state. Every rank is at the same step with the same loss,
    so all of them do this. Collective.
    """
    check_checkpoint(folder)
    trainer.load(folder)
    position = CheckpointPosition.read(folder)
    position.go_on_at(behind, failed, reason)
    return position


def _meet() -> None:
    """Wait until every rank is here."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.barrier()


def _times(position: CheckpointPosition) -> str:
    """How often a training had gone back, for the line that says that it gave up."""
    return f", after going back to a checkpoint {len(position.rollbacks)} times" if position.rollbacks else ""


def _run_epoch(
    trainer: "Trainer", batches: "TrainingBatches", position: CheckpointPosition, progress: ProgressFile | None
) -> bool:
    """The rest of an epoch, in pieces that end where a checkpoint is due, so that no step is under way there.

    Returns whether it ended with a checkpoint early, because a worker was told to leave.
    """
    from fuxi_beta.data.reader import prefetched
    from fuxi_beta.data.transfer import pinned

    epoch, every = position.epoch, trainer.train.checkpoint_every_steps
    read = prefetched(pinned(batches.epoch(epoch, start_step=position.step), trainer.device))
    source = _with_waiting_time(read, position)
    leaving = False
    while position.step < batches.steps_per_epoch and not leaving:
        piece = itertools.islice(source, every - position.steps % every)
        leaving = _take_steps(trainer, piece, position, progress)
        trainer.check_finite()
        if position.step < batches.steps_per_epoch:
            _checkpoint(trainer, position, progress)
    if position.step < batches.steps_per_epoch:
        return True
    position.finished_epoch()
    _checkpoint(trainer, position, progress)
    return False


def _take_steps(
    trainer: "Trainer", batches: Iterator["Batch"], position: CheckpointPosition, progress: ProgressFile | None
) -> bool:
    """A step for each batch, or until a worker was told to leave; returns whether one was. Collective."""
    from fuxi_beta.training.trainer import DivergedError
    from jobs.training import notice

    leaving = False

    def until_told() -> Iterator["Batch"]:
        while not leaving and (batch := next(batches, None)) is not None:
            yield batch

    started = time.monotonic()
    for result in trainer.learn(until_told(), epoch=position.epoch, leaving=notice.told):
        if spike := position.spike(result.loss, trainer.train.spike_factor):
            raise DivergedError(spike)
        now = time.monotonic()
        position.took_step(result, now - started)
        started, leaving = now, leaving or result.leaving
        if progress:
            progress.show(position)
    return leaving


def _with_waiting_time(batches: Iterator[T], position: CheckpointPosition) -> Iterator[T]:
    """The same batches. The position counts the seconds waited for them, and when the first was there."""
    while True:
        started = time.monotonic()
        batch = next(batches, None)
        position.waited += time.monotonic() - started
        if batch is None:
            return
        position.first_step_at = position.first_step_at or time.time()
        yield batch


def _set_up_torch(loop: LoopConfig) -> None:
    import torch

    from fuxi_beta import ops

    torch.set_num_threads(loop.threads)
    if loop.deterministic and torch.cuda.is_available():
        # On CPU every operator used here is deterministic anyway, and some are slower under the flag.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        # The kernels write all memory that they read, so filling it before gains nothing.
        torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
    torch.manual_seed(loop.train.seed)
    ops.use(loop.kernels)


def _new_trainer(loop: LoopConfig, device: "torch.device") -> "Trainer":
    import torch

    from fuxi_beta import models
    from fuxi_beta.training.song_table import song_table
    from fuxi_beta.training.trainer import Trainer

    side = SongSide.read(loop.side) if loop.side else None
    return Trainer(
        models.build(loop.model),
        song_table(loop.rows, loop.model.dim, train=loop.train, side=side, device=device),
        train=loop.train,
        candidates=torch.from_numpy(loop.candidates.nonzero()[0]),
        plays=torch.from_numpy(loop.plays[loop.candidates]),
        device=device,
    )


def _start(trainer: "Trainer", loop: LoopConfig) -> CheckpointPosition:
    """Load the newest checkpoint of this run, else the parent's weights, else nothing. Returns the position."""
    with _newest_checkpoint(loop) as folder:
        if not folder:
            if loop.parent:
                warm_start(trainer, loop.parent)
            return CheckpointPosition()
        check_checkpoint(folder)
        trainer.load(folder)
        position = CheckpointPosition.read(folder)
    position.first_step_at = 0.0
    position.resumed_at.append(position.steps)
    return position


@contextlib.contextmanager
def _newest_checkpoint(loop: LoopConfig) -> Iterator[str]:
    """The newest checkpoint of this run as a local folder, "" before the first."""
    import ray.train

    checkpoint = ray.train.get_checkpoint()
    if checkpoint:
        with checkpoint.as_directory() as folder:
            yield folder
    elif loop.resume:
        with _local_folder(loop.resume) as folder:
            yield folder
    else:
        yield ""


def warm_start(trainer: "Trainer", parent: str) -> None:
    """Load the weights, item rows and optimizer state of an export (folder or URI) into a trainer."""
    from fuxi_beta.training.checkpoint import load_export, load_train_state

    with _local_folder(parent) as folder:
        trainer.warm_start_from(load_export(folder), load_train_state(folder))


@contextlib.contextmanager
def _local_folder(uri: str) -> Iterator[str]:
    """A folder or URI as a local folder; a download is removed afterwards."""
    with tempfile.TemporaryDirectory() as scratch:
        yield storage.download_folder(uri, scratch) if storage.is_s3(uri) else uri


def _checkpoint(trainer: "Trainer", position: CheckpointPosition, progress: ProgressFile | None) -> None:
    """Publish a checkpoint: every rank writes its part, rank 0 the position as well."""
    import ray.train

    with tempfile.TemporaryDirectory() as folder:
        trainer.save(folder)
        if progress:
            position.write(folder)
            progress.show(position, now=True)
        write_digests(folder, name=f"digests-{ray.train.get_context().get_world_rank():05d}.json")
        ray.train.report({"steps": position.steps}, checkpoint=ray.train.Checkpoint.from_directory(folder))
