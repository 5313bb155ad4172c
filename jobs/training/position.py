"""How far a training is: stored in every checkpoint, so that a resumed run reports what an undisturbed one would."""

import dataclasses
import json
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from fuxi_beta.training.trainer import StepResult

from pipelines.digests import check_folder

MAX_CURVE_POINTS = 200
SPIKE_STEPS = 64
"""The median of so many steps is what a spike is measured against, once there are as many."""
POSITION_FILE = "position.json"


def check_checkpoint(folder: str) -> None:
    """InputError that names a file of a checkpoint, which every rank wrote a part of, that is not as it was written."""
    check_folder(folder, remedy="remove this checkpoint or all of the ds, and run `fuxi train` again")


class Rollback(TypedDict):
    """What a training went back for."""

    step: int  # whose loss was not finite, or a spike; counted from 1
    to: int  # the step of the checkpoint that it went back to; those from there to `step` are skipped
    reason: str


@dataclass
class CheckpointPosition:
    """Where the next step is, and sums over the steps taken."""

    epoch: int = 0  # the next step's
    step: int = 0  # the next step within the epoch
    steps: int = 0  # taken so far, and skipped
    samples: int = 0  # listeners consumed so far, over all workers
    events: int = 0
    positions: int = 0  # target positions learned from
    workers: int = 0  # each wrote its part of the checkpoint
    kernels: str = ""  # what the operators of the network ran on
    seconds: float = 0.0  # in steps, checkpoints and start-up not counted
    waited: float = 0.0  # seconds of these in which a step waited for the reader
    curve: list[list[float]] = field(default_factory=list)  # [step, loss], thinned to at most MAX_CURVE_POINTS
    stride: int = 1  # of the curve
    seconds_per_epoch: list[float] = field(default_factory=list)
    epoch_losses: list[float] = field(default_factory=list)  # mean over the positions of each finished epoch
    loss_sum: float = 0.0  # of the present epoch
    loss_positions: int = 0
    epoch_seconds: float = 0.0
    resumed_at: list[int] = field(default_factory=list)  # steps of the checkpoints this run was continued from
    recent: list[float] = field(default_factory=list)  # losses of the last SPIKE_STEPS steps
    rollbacks: list[Rollback] = field(default_factory=list)
    first_step_at: float = 0.0  # Unix seconds, of the process that wrote this
    last_step_at: float = 0.0

    def took_step(self, result: "StepResult", seconds: float) -> None:
        """Count one step."""
        self.step, self.steps = self.step + 1, self.steps + 1
        self.samples, self.events = self.samples + result.listeners, self.events + result.events
        self.positions, self.seconds = self.positions + result.positions, self.seconds + seconds
        self.loss_sum += result.loss * result.positions
        self.loss_positions += result.positions
        self.epoch_seconds += seconds
        self.last_step_at = time.time()
        self.recent = [*self.recent, result.loss][-SPIKE_STEPS:]
        if self.steps % self.stride == 0:
            self.curve.append([self.steps, result.loss])
        if len(self.curve) > MAX_CURVE_POINTS:
            self.stride *= 2
            self.curve = [point for point in self.curve if point[0] % self.stride == 0]

    def spike(self, loss: float, factor: float) -> str:
        """How the loss of the next step is a spike, "" if it is none. factor: `train.spike_factor`."""
        if not factor or len(self.recent) < SPIKE_STEPS or loss <= factor * (median := statistics.median(self.recent)):
            return ""
        return f"the training loss is {loss:.4g}, more than {factor:g} times the {median:.4g} of the steps before it"

    def go_on_at(self, step: int, failed: "CheckpointPosition", reason: str) -> None:
        """From this position, of a checkpoint of the same epoch, skip to a step behind where `failed` stood."""
        skipped = step - self.step
        self.rollbacks.append(Rollback(step=self.steps + skipped, to=self.steps, reason=reason))
        self.step, self.steps = self.step + skipped, self.steps + skipped
        self.first_step_at, self.last_step_at = failed.first_step_at, failed.last_step_at
        self.workers, self.kernels, self.resumed_at = failed.workers, failed.kernels, failed.resumed_at

    def finished_epoch(self) -> None:
        """Move to the start of the next epoch."""
        self.epoch, self.step = self.epoch + 1, 0
        self.seconds_per_epoch.append(round(self.epoch_seconds, 3))
        skipped = not self.loss_positions and self.rollbacks and self.epoch_losses
        self.epoch_losses.append(self.epoch_losses[-1] if skipped else self.loss_sum / max(self.loss_positions, 1))
        self.loss_sum, self.loss_positions, self.epoch_seconds = 0.0, 0, 0.0

    @classmethod
    def read(cls, folder: str) -> "CheckpointPosition":
        """The position stored in a checkpoint folder."""
        return cls(**json.loads(Path(folder, POSITION_FILE).read_text()))

    def write(self, folder: str) -> None:
        """Store it in a checkpoint folder."""
        Path(folder, POSITION_FILE).write_text(json.dumps(dataclasses.asdict(self)))
