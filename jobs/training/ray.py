"""Ray Train as `fuxi train` uses it: workers, storage, failures, and a progress bar for who waits."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

from jobs.config import ClusterConfig
from jobs.runtime.console import progress
from jobs.runtime.engines import need_gpus, ray_session
from jobs.training.worker import LoopConfig, train_worker
from pipelines import storage
from pipelines.errors import InputError

PROGRESS_POLL_S = 0.5
WORKER_ENVIRONMENT = {
    # Threads that spin while they wait cost a step several times its work when cores are shared.
    "OMP_WAIT_POLICY": "PASSIVE",
    # A step's tensors come and go: without these glibc gives their pages back each time, a tenth of the step.
    "MALLOC_MMAP_THRESHOLD_": str(1 << 32),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 32),
}


def fit(cluster: ClusterConfig, loop: LoopConfig, *, storage_uri: str, name: str) -> Any:
    """Run the loop on every worker; returns Ray Train's Result. InputError with one line when it cannot go on."""
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # polls decide how soon a checkpoint counts
    if cluster.ray_address == "local":
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # one process less to start
    ray_session(cluster)
    need_gpus(cluster, cluster.train_workers * cluster.train_gpus_per_worker, setting="train_gpus_per_worker")
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    from jobs.training.loopback import LoopbackTorchConfig

    fs, path = storage.filesystem(storage_uri)
    if not storage.is_s3(storage_uri):
        fs.create_dir(path)
    resources = {"CPU": cluster.train_cpus_per_worker, "GPU": cluster.train_gpus_per_worker}
    torch_config = LoopbackTorchConfig if cluster.ray_address == "local" else TorchConfig
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"loop": loop},
        torch_config=torch_config(backend="nccl" if cluster.train_gpus_per_worker else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=cluster.train_workers,
            use_gpu=cluster.train_gpus_per_worker > 0,
            resources_per_worker={key: value for key, value in resources.items() if value},
        ),
        run_config=RunConfig(
            name=name,
            storage_path=path,
            storage_filesystem=fs,
            failure_config=FailureConfig(max_failures=cluster.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            worker_runtime_env={"env_vars": WORKER_ENVIRONMENT},
        ),
    )
    with _shown(loop.progress), _interrupt_restored():
        try:
            result = trainer.fit()
        except TrainingFailedError as error:
            raise _cause(error) from None
    if result.return_value:
        remedy = "lower train.lr or train.item_lr, or raise train.temperature"
        raise InputError(f"training stopped: {result.return_value}: {remedy}")
    return result


def _cause(error: Any) -> Exception:
    """What stopped training: an InputError of a worker (a broken shard, say) as it is, else Ray Train's own."""
    for failure in getattr(error, "worker_failures", {}).values():
        cause = getattr(failure, "_base_exc", failure)
        if isinstance(cause, InputError):
            return cause
    return error


@contextlib.contextmanager
def _shown(uri: str) -> Iterator[None]:
    """Show, while the block runs, the steps that rank 0 writes to `uri`."""
    done = threading.Event()
    storage.write_json(uri, {"steps": 0, "total": 0})

    def follow() -> None:
        while (state := storage.read_json(uri))["total"] == 0:
            if done.wait(PROGRESS_POLL_S):
                return
        shown = 0
        with progress("train", state["total"], unit="steps") as advance:
            ended = False
            while not ended:
                ended = done.wait(PROGRESS_POLL_S)
                steps = storage.read_json(uri)["steps"]
                if steps > shown:  # a replaced worker starts again at the last checkpoint: the bar waits for it
                    advance(steps - shown)
                    shown = steps

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=10)


@contextlib.contextmanager
def _interrupt_restored() -> Iterator[None]:
    """Ray Train replaces the SIGINT handler and leaves its own: put the process's back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
