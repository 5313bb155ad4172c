"""Where a training in one process goes on after it was stopped: the newest finished epoch, in a local folder.

A checkpoint is written into a folder of its own, which gets its name when it is complete. Everything random is a
function of the seed and the position, so a training that goes on gives the bits of one that was never stopped.
"""

import hashlib
import json
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pyarrow as pa

from fuxi_beta.config import ModelConfig, TrainConfig
from fuxi_beta.training.trainer import Trainer
from pipelines import digests, storage
from pipelines.histories.shards import Manifest

_PROGRESS = "progress.json"


@dataclass
class FitProgress:
    """What is known of the finished epochs."""

    epoch_losses: list[float] = field(default_factory=list)
    epoch_seconds: list[float] = field(default_factory=list)


class EpochCheckpoints:
    """Checkpoints of one training at ends of epochs. folder: local, made when the first is written.

    every_s: seconds of training after which one is due, so that short trainings write none.
    """

    def __init__(self, folder: str | Path, *, every_s: float = 60.0) -> None:
        self.folder, self.every_s = Path(folder).absolute(), every_s
        self._newest: Path | None = None
        self._due_from = time.monotonic()

    def restore(self, trainer: Trainer, key: str) -> FitProgress:
        """Load the newest checkpoint of the training `key` into a new trainer; nothing where there is none.

        Raises InputError that names a file that is not as it was written.
        """
        self._due_from = time.monotonic()
        found = sorted(self.folder.glob(f"{key}-e*"), key=lambda path: int(path.name.rpartition("-e")[2]))
        if not found:
            return FitProgress()
        self._newest = found[-1]
        digests.check_folder(str(self._newest), remedy=f"remove {self._newest} and run again")
        trainer.load(str(self._newest))
        return FitProgress(**storage.read_json(str(self._newest / _PROGRESS)))

    def save(self, trainer: Trainer, key: str, progress: FitProgress) -> None:
        """Write a checkpoint after an epoch if one is due, and remove the one before."""
        if time.monotonic() - self._due_from < self.every_s:
            return
        done = self.folder / f"{key}-e{len(progress.epoch_losses)}"
        scratch = self.folder / f".{done.name}"
        shutil.rmtree(scratch, ignore_errors=True)  # of a training that was stopped while it wrote
        scratch.mkdir(parents=True)
        trainer.save(str(scratch))
        storage.write_json(str(scratch / _PROGRESS), asdict(progress))
        digests.write_digests(str(scratch))
        scratch.rename(done)
        if self._newest is not None:
            shutil.rmtree(self._newest)
        self._newest, self._due_from = done, time.monotonic()

    def remove(self) -> None:
        """Remove them all, once the training has ended."""
        shutil.rmtree(self.folder, ignore_errors=True)


def training_key(
    manifest: Manifest, catalogue: pa.Table | None, *, model: ModelConfig, train: TrainConfig, data_end: int
) -> str:
    """A name for what a training is made from: another training's checkpoints are not gone on from. As of `fit`."""
    sha256 = hashlib.sha256()
    made_from = [manifest.run_id, str(manifest.ds), manifest.events, data_end, asdict(model), asdict(train)]
    sha256.update(json.dumps(made_from).encode())
    if catalogue is not None:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, catalogue.schema) as stream:
            stream.write_table(catalogue)
        sha256.update(sink.getvalue())
    return sha256.hexdigest()[:16]
