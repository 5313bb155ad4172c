"""What a checkpoint costs the steps: `python -m benchmarks.checkpoints [--songs 200000] [--ranks 1 2]`.

Ray Train's workers save a training state of this size again and again, as `fuxi train` does, on a local disk; steps
wait for all of it: for the pass that looks for values that are not finite, for writing this rank's part to a temporary
folder, for its digests, and for the report, in which Ray Train copies the folder to the run's storage. `copy` is what
steps would have to wait for if the rest went on in a thread: a copy of the state in memory.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.lib.processes import available_cores
from benchmarks.lib.timing import say
from fuxi_beta.config import ModelConfig, TrainConfig
from jobs.runtime import machine

PARTS = ("finite", "write", "digests", "report", "copy")
PAUSE_S = 2.0
"""Between checkpoints: Ray Train takes note of one before the next, as in a training."""
POLL_S = "0.5"
"""Between looks of Ray Train at its workers, as `fuxi train` sets it."""


def measure(settings: dict[str, Any]) -> str:
    """Run by every worker: the seconds of each part in every round, as JSON of rank 0."""
    import ray.train
    import torch
    import torch.distributed as dist

    from fuxi_beta import models
    from fuxi_beta.training.song_table import song_table
    from fuxi_beta.training.trainer import Trainer
    from pipelines.digests import write_digests

    torch.set_num_threads(1)
    train = TrainConfig(item_optimizer=settings["optimizer"])
    table = song_table(settings["songs"], settings["dim"], train=train)
    network = models.build(ModelConfig(dim=settings["dim"], layers=settings["layers"]))
    trainer = Trainer(network, table, train=train, candidates=torch.arange(1, settings["songs"]))
    seconds: dict[str, list[float]] = {part: [] for part in PARTS}
    started = time.perf_counter()

    def took(part: str) -> None:
        nonlocal started
        dist.barrier()
        now = time.perf_counter()
        seconds[part].append(now - started)
        started = now

    for number in range(settings["rounds"] + 1):  # the first is left out
        time.sleep(PAUSE_S)
        dist.barrier()
        started = time.perf_counter()
        trainer.check_finite()
        took("finite")
        with tempfile.TemporaryDirectory() as folder:
            trainer.save(folder)
            took("write")
            write_digests(folder, name=f"digests-{ray.train.get_context().get_world_rank():05d}.json")
            took("digests")
            ray.train.report({"number": number}, checkpoint=ray.train.Checkpoint.from_directory(folder))
            took("report")
        dist.barrier()
        started = time.perf_counter()
        copies = [_local(tensor).clone() for tensor in trainer.state().values()]
        took("copy")
    size = sum(copy.nbytes for copy in copies)
    return json.dumps({"seconds": {part: found[1:] for part, found in seconds.items()}, "bytes": size})


def _local(tensor: Any) -> Any:
    """A tensor, or this rank's rows of a sharded one."""
    return tensor.local_shards()[0].tensor if hasattr(tensor, "local_shards") else tensor


def run(folder: str, options: argparse.Namespace, *, optimizer: str, ranks: int) -> dict[str, Any]:
    """The measurement with so many workers."""
    from ray.train import CheckpointConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from jobs.training.loopback import LoopbackTorchConfig

    trainer = TorchTrainer(
        measure,
        train_loop_config={**vars(options), "optimizer": optimizer},
        torch_config=LoopbackTorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=ranks),
        run_config=RunConfig(
            name=f"{optimizer}-{ranks}", storage_path=folder, checkpoint_config=CheckpointConfig(num_to_keep=2)
        ),
    )
    return json.loads(str(trainer.fit().return_value))


def main() -> int:
    """Measure and print; returns the exit code."""
    from jobs.config import load_config
    from jobs.runtime.engines import ray_session

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--songs", type=int, default=200_000, help="rows of the item table")
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2], help="numbers of processes, a core each")
    parser.add_argument("--quick", action="store_true", help="one process, three rounds")
    options = parser.parse_args()
    if options.quick:
        options.ranks, options.rounds = [1], 3
    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = POLL_S
    ray_session(load_config(overrides=[], environment={}).cluster)
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="fuxi-checkpoints-") as folder:
        for ranks in options.ranks:
            for optimizer in ("rowwise_adagrad", "adamw"):
                result = run(folder, options, optimizer=optimizer, ranks=ranks)
                rounds = result["seconds"]
                waits = [sum(parts) for parts in zip(*(rounds[part] for part in PARTS[:-1]), strict=True)]
                parts = {part: statistics.median(rounds[part]) for part in PARTS}
                shown = {"median": statistics.median(waits), "least": min(waits), **parts}
                found.append({"ranks": ranks, "optimizer": optimizer, "bytes": result["bytes"], **shown})
                say(f"{ranks} processes, {optimizer}: {shown['median']:.3f} s")
    title = (
        f"a checkpoint of {options.songs:,} songs x {options.dim}: ms in which steps wait, of {options.rounds} rounds"
    )
    table = Table(title=title, caption=f"{machine.describe()}, {available_cores()} cores")
    for column in ("processes", "item optimizer", "MB a process", "median", "least", *PARTS):
        table.add_column(column, justify="right")
    for one in found:
        times = [f"{1000 * one[column]:.0f}" for column in ("median", "least", *PARTS)]
        table.add_row(str(one["ranks"]), one["optimizer"], f"{one['bytes'] / 1e6:.0f}", *times)
    Console(width=110).print(table)
    print(json.dumps({"benchmark": "checkpoints", "machine": machine.describe(), "rows": found}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
