"""What one worker of `fuxi train` does: build its part, continue from the newest checkpoint, learn, report.

The same function runs on every rank. Only rank 0 keeps the loss curve and tells the driver how far it is, through a
small file beside the checkpoints, because the driver and rank 0 always share that storage.
"""

import dataclasses
import itertools
import json
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from fuxi_beta.config import Kernels, ModelConfig, TrainConfig
from pipelines import storage
from pipelines.histories.shards import Manifest

T = TypeVar("T")

MAX_CURVE_POINTS = 200
PROGRESS_EVERY_S = 0.5
POSITION_FILE = "position.json"


@dataclass(frozen=True)
class LoopConfig:
    """Everything a worker is told; it is pickled."""

    manifest: Manifest
    model: ModelConfig
    train: TrainConfig
    epochs: int
    data_end: int  # Unix seconds; targets are before it
    request_hour: int  # hour of the day for which lists are learned
    rows: int  # of the item table
    candidates: np.ndarray  # bool [vocabulary + 1]
    parent: str  # export (folder or URI) to start from; empty for a cold start
    resume: str  # checkpoint (folder or URI) to continue from where Ray Train knows of none; mostly empty
    progress: str  # URI of the progress file
    threads: int
    deterministic: bool
    kernels: Kernels = "auto"


@dataclass
class Position:
    """How far a run is. Stored in every checkpoint, so a resumed run reports what an undisturbed one would."""

    epoch: int = 0  # the next step's
    step: int = 0  # the next step within the epoch
    steps: int = 0  # taken so far
    samples: int = 0  # listeners consumed so far, over all workers
    events: int = 0
    positions: int = 0  # target positions learned from
    workers: int = 0  # whose parts a checkpoint has
    kernels: str = ""  # what the operators of the network ran on
    seconds: float = 0.0  # in steps, checkpoints and start-up not counted
    waited: float = 0.0  # of these for the reader
    curve: list[list[float]] = field(default_factory=list)  # [step, loss], thinned to at most MAX_CURVE_POINTS
    stride: int = 1  # of the curve
    seconds_per_epoch: list[float] = field(default_factory=list)
    epoch_losses: list[float] = field(default_factory=list)  # mean over the positions of each finished epoch
    loss_sum: float = 0.0  # of the present epoch
    loss_positions: int = 0
    epoch_seconds: float = 0.0
    resumed_at: list[int] = field(default_factory=list)  # steps of the checkpoints this run was continued from
    first_step_at: float = 0.0  # Unix seconds, of the process that wrote this
    last_step_at: float = 0.0

    def took_step(self, result: Any, seconds: float) -> None:
        """Count one step (a `fuxi_beta.training.trainer.StepResult`)."""
        self.step, self.steps = self.step + 1, self.steps + 1
        self.samples, self.events = self.samples + result.listeners, self.events + result.events
        self.positions, self.seconds = self.positions + result.positions, self.seconds + seconds
        self.loss_sum += result.loss * result.positions
        self.loss_positions += result.positions
        self.epoch_seconds += seconds
        self.last_step_at = time.time()
        if self.steps % self.stride == 0:
            self.curve.append([self.steps, result.loss])
        if len(self.curve) > MAX_CURVE_POINTS:
            self.stride *= 2
            self.curve = [point for point in self.curve if point[0] % self.stride == 0]

    def finished_epoch(self) -> None:
        """Move to the start of the next epoch."""
        self.epoch, self.step = self.epoch + 1, 0
        self.seconds_per_epoch.append(round(self.epoch_seconds, 3))
        self.epoch_losses.append(self.loss_sum / max(self.loss_positions, 1))
        self.loss_sum, self.loss_positions, self.epoch_seconds = 0.0, 0, 0.0

    @classmethod
    def read(cls, folder: str) -> "Position":
        """The position stored in a checkpoint folder."""
        return cls(**json.loads(Path(folder, POSITION_FILE).read_text()))

    def write(self, folder: str) -> None:
        """Store it in a checkpoint folder."""
        Path(folder, POSITION_FILE).write_text(json.dumps(dataclasses.asdict(self)))


def train_worker(settings: dict[str, Any]) -> str:
    """Run by Ray Train on every worker. Returns why training stopped early, empty when it did not.

    A loss that is not finite is returned, not raised: raising would only make Ray Train repeat the same steps.
    """
    import ray.train
    import ray.train.torch

    from fuxi_beta import ops
    from fuxi_beta.data.reader import TrainingBatches
    from fuxi_beta.training.trainer import DivergedError

    loop: LoopConfig = settings["loop"]
    context = ray.train.get_context()
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
    )
    trainer, position = _start(loop, ray.train.torch.get_device(), world_size)
    position.kernels, position.workers = ops.describe(trainer.device), world_size
    progress = _Progress(loop, batches.steps_per_epoch) if rank == 0 else None
    try:
        while position.epoch < loop.epochs:
            _run_epoch(trainer, batches, position, every=loop.train.checkpoint_every_steps, progress=progress)
    except DivergedError as error:
        return f"{error} at step {position.steps + 1} (epoch {position.epoch + 1})"
    return ""


def _run_epoch(trainer: Any, batches: Any, position: Position, *, every: int, progress: "_Progress | None") -> None:
    """The rest of an epoch, in pieces that end where a checkpoint is due: there no step may be under way."""
    from fuxi_beta.data.reader import prefetched
    from fuxi_beta.data.transfer import pinned

    epoch = position.epoch
    read = prefetched(pinned(batches.epoch(epoch, start_step=position.step), trainer.device))
    source = _waited_for(read, position)
    while position.step < batches.steps_per_epoch:
        started = time.monotonic()
        for result in trainer.learn(itertools.islice(source, every - position.steps % every), epoch=epoch):
            now = time.monotonic()
            position.took_step(result, now - started)
            started = now
            if progress:
                progress.show(position)
        if position.step < batches.steps_per_epoch:
            _checkpoint(trainer, position, progress)
    position.finished_epoch()
    _checkpoint(trainer, position, progress)


def _waited_for(batches: Iterator[T], position: Position) -> Iterator[T]:
    """The same batches; the position learns when the first was there, and how long all were waited for."""
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
        # Our kernels write what they read, so that nothing is gained by filling memory before they do.
        torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
    torch.manual_seed(loop.train.seed)
    ops.use(loop.kernels)


def _start(loop: LoopConfig, device: Any, world_size: int) -> tuple[Any, Position]:
    """The trainer at the newest checkpoint of this run, else at the parent's weights, else at the beginning."""
    import ray.train
    import torch

    from fuxi_beta import models
    from fuxi_beta.training.item_table import item_table
    from fuxi_beta.training.trainer import Trainer

    trainer = Trainer(
        models.build(loop.model),
        item_table(loop.rows, loop.model.dim, train=loop.train, device=device),
        train=loop.train,
        candidates=torch.from_numpy(loop.candidates.nonzero()[0]),
        device=device,
    )
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            return trainer, _continue_from(trainer, folder)
    if loop.resume:
        with tempfile.TemporaryDirectory() as scratch:
            folder = storage.download_folder(loop.resume, scratch) if storage.is_s3(loop.resume) else loop.resume
            return trainer, _continue_from(trainer, folder)
    if loop.parent:
        warm_start(trainer, loop.parent)
    return trainer, Position()


def _continue_from(trainer: Any, folder: str) -> Position:
    trainer.load(folder)
    position = Position.read(folder)
    position.first_step_at = 0.0
    position.resumed_at.append(position.steps)
    return position


def warm_start(trainer: Any, parent: str) -> None:
    """Give a trainer the weights, item rows and optimizer state of an export (folder or URI)."""
    from fuxi_beta.training.checkpoint import load_export, load_train_state
    from fuxi_beta.training.trainer import ITEM_WEIGHT, MODEL

    with tempfile.TemporaryDirectory() as scratch:
        folder = storage.download_folder(parent, scratch) if storage.is_s3(parent) else parent
        trained = load_export(folder)
        tensors = {MODEL + name: tensor for name, tensor in trained.model.state_dict().items()}
        tensors |= {ITEM_WEIGHT: trained.item_vectors, **load_train_state(folder)}
        trainer.warm_start(tensors, known_rows=trained.vocabulary_size + 1)


def _checkpoint(trainer: Any, position: Position, progress: "_Progress | None") -> None:
    """Publish a checkpoint; every rank writes its part, rank 0 the position too."""
    import ray.train

    with tempfile.TemporaryDirectory() as folder:
        trainer.save(folder)
        if progress:
            position.write(folder)
            progress.show(position, now=True)
        ray.train.report({"steps": position.steps}, checkpoint=ray.train.Checkpoint.from_directory(folder))


class _Progress:
    """Rank 0's word to the driver: steps done and in all, written at most twice a second."""

    def __init__(self, loop: LoopConfig, steps_per_epoch: int) -> None:
        self.uri, self.total, self.written = loop.progress, loop.epochs * steps_per_epoch, 0.0

    def show(self, position: Position, *, now: bool = False) -> None:
        """Write the position, unless that was done just now."""
        if now or time.monotonic() - self.written >= PROGRESS_EVERY_S:
            self.written = time.monotonic()
            storage.write_json(self.uri, {"steps": position.steps, "total": self.total, "epoch": position.epoch})
