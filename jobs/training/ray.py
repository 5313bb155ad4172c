"""Ray Train as `fuxi train` uses it: workers, storage, failures, and a progress bar."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, TypeVar

import psutil

from jobs.config import ClusterConfig
from jobs.runtime.console import log, polled_progress
from jobs.runtime.deaths import StageDiedError
from jobs.runtime.engines import end, need, ray_session
from jobs.training.worker import LoopConfig, progress_every_s, train_worker
from pipelines import progress, storage
from pipelines.errors import InputError

if TYPE_CHECKING:
    import ray.train
    from ray.train.torch import TorchTrainer

T = TypeVar("T")

RESIZE_EVERY_S = 60.0
"""Between looks at whether an elastic training (`cluster.train_workers: [min, max]`) has room for more workers."""
SAVED_WITHIN_S = 5.0
"""For the workers to save their step when the command is told to stop; schedulers kill it after ten seconds or more."""
WORKER_ENVIRONMENT = {
    # Where cores are shared, threads that spin while they wait make a step several times slower.
    "OMP_WAIT_POLICY": "PASSIVE",
    # Else glibc returns the memory of a step's tensors to the kernel after each step: a tenth of its time.
    "MALLOC_MMAP_THRESHOLD_": str(1 << 32),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 32),
}


def fit(cluster: ClusterConfig, loop: LoopConfig, *, storage_uri: str, name: str) -> "ray.train.Checkpoint":
    """Run `train_worker` on every worker and return the last checkpoint.

    Raises InputError for broken input and for a loss that is not finite.
    """
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # polls decide how soon a checkpoint counts
    if cluster.ray_address == "local":
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # one process less to start
    ray_session(cluster)
    fewest, _ = cluster.worker_bounds
    need(cluster, fewest * cluster.train_gpus_per_worker, setting="train_gpus_per_worker")
    need(cluster, fewest * cluster.train_cpus_per_worker, setting="train_cpus_per_worker", kind="CPU")
    from ray.exceptions import RayActorError
    from ray.train import TrainingFailedError

    trainer = _trainer(cluster, loop, storage_uri, name)
    storage.write_json(loop.progress, {"steps": 0, "total": 0})  # rank 0 goes on with it
    follower = _Follower(loop.progress)
    progress.note("Ray is there")
    try:
        first, every_s = "starting the training workers", progress_every_s(loop.progress)
        with polled_progress("train", follower.steps, unit="steps", remaining=True, first=first, every_s=every_s):
            result = _interruptible(trainer.fit)
    except TrainingFailedError as error:
        raise _worker_error(error) from None
    except RayActorError as error:
        raise StageDiedError("Ray Train's controller died") from error
    except KeyboardInterrupt as stop:
        saved = cluster.ray_address == "local" and _saved_by_workers(follower)
        end()  # also the workers, which know nothing of the signal
        steps, total = follower.steps()
        place = "there" if saved else "its last checkpoint"
        stop.add_note(f"training had taken {steps:,} of {total:,} steps and goes on from {place}")
        raise
    if result.return_value:
        remedy = "lower train.lr or train.item_lr, or raise train.temperature"
        raise InputError(f"training stopped: {result.return_value}: {remedy}")
    assert result.checkpoint is not None  # every epoch ends with one
    return result.checkpoint


def _trainer(cluster: ClusterConfig, loop: LoopConfig, storage_uri: str, name: str) -> "TorchTrainer":
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from jobs.training.loopback import LoopbackTorchConfig
    from jobs.training.notice import SigtermIsANotice

    fs, path = storage.filesystem(storage_uri)
    if not storage.is_s3(storage_uri):
        fs.create_dir(path)
    gpus = cluster.train_gpus_per_worker
    torch_config = LoopbackTorchConfig if cluster.ray_address == "local" else TorchConfig
    resources = {"CPU": cluster.train_cpus_per_worker} | ({"GPU": gpus} if gpus else {})
    return TorchTrainer(
        train_worker,
        train_loop_config={"loop": loop},
        torch_config=torch_config(backend="nccl" if gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=cluster.train_workers,
            use_gpu=gpus > 0,
            resources_per_worker=resources,
            elastic_resize_monitor_interval_s=RESIZE_EVERY_S,
        ),
        run_config=RunConfig(
            name=name,
            storage_path=path,
            storage_filesystem=fs,
            failure_config=FailureConfig(max_failures=cluster.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            worker_runtime_env={"env_vars": WORKER_ENVIRONMENT},
            callbacks=[SigtermIsANotice()],  # pyright: ignore[reportArgumentType]
        ),
    )


class _Follower:
    """What rank 0 has told: the steps are polled, and workers that leave are one line each time."""

    def __init__(self, progress_file: str) -> None:
        self.uri, self.left, self.stopping = progress_file, False, False

    def steps(self) -> tuple[int, int]:
        """Steps done and in all."""
        content = storage.read_json(self.uri)
        before, self.left = self.left, content.get("left", False)  # saved their step and left
        if self.left and not before and not self.stopping:
            what = "a training worker was told to leave: training is saved and goes on with new workers"
            log(what, step=content["steps"])
        return content["steps"], content["total"]


def _saved_by_workers(follower: _Follower) -> bool:
    """Tell the workers on this machine to leave; returns whether they have saved their step soon after."""
    if follower.steps()[1] == 0:  # there are none yet
        return False
    follower.stopping = True
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has ended
            if any("RayTrainWorker" in part for part in process.cmdline()):
                process.send_signal(signal.SIGTERM)
    until = time.monotonic() + SAVED_WITHIN_S
    while time.monotonic() < until and not follower.left:
        time.sleep(0.1)
        follower.steps()
    return follower.left


def _worker_error(error: "ray.train.TrainingFailedError") -> Exception:
    """The InputError that stopped a worker (for a broken shard, say), else Ray Train's own error."""
    for failure in getattr(error, "worker_failures", {}).values():
        cause = getattr(failure, "_base_exc", failure)
        if isinstance(cause, InputError):
            return cause
    return error


def _interruptible(work: Callable[[], T]) -> T:
    """Do it in a thread, so that a signal ends the wait: in the main thread Ray Train sets a handler of its own."""
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.2)
    return done.result()
