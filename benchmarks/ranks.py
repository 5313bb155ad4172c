"""What each further training process adds: `python -m benchmarks.ranks [--ranks 1 2]`.

Logs of a share of the paper's Daily Recommendations are sessionized once; then one epoch is trained with each number
of processes (`cluster.train_workers`), a thread each, in turns. Plays a second are those of the training loop, start-up
and exports left out. The item table is sharded over the processes and batch sizes are global, so every number of them
must end with the same loss, to one part in a million; if not, the command ends with exit code 1.

A second table takes steps apart (`--steps`): what as many processes need for the same batches with nothing to exchange,
which is the most that this machine allows, what exchange and waiting for each other add, and the bytes of it.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from benchmarks.lib.industrial_logs import serving_day, synth
from benchmarks.lib.processes import available_cores
from benchmarks.lib.rank_steps import StepCost, Steps, measured
from benchmarks.lib.timing import say, spread
from jobs.config import load_config
from jobs.runtime import machine
from pipelines.synthetic.industrial.config import BASE_DAYS

TOLERANCE = 1e-6


def fuxi(*arguments: str) -> None:
    """Run a command. RuntimeError with its last line if it fails."""
    done = subprocess.run([sys.executable, "-m", "jobs.cli", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(
            f"fuxi {arguments[0]} ended with exit code {done.returncode}: {done.stderr.splitlines()[-1:]}"
        )


def prepare(folder: Path, options: argparse.Namespace) -> tuple[str, str]:
    """Make logs and shards; returns the configuration's path and the ds."""
    synth(folder / "logs", scale=options.scale, days=BASE_DAYS)
    settings = {
        "workspace": str(folder / "workspace"),
        "logs": {"path": str(folder / "logs" / "plays"), "catalogue": str(folder / "logs" / "catalogue")},
        "model": {"dim": options.dim, "layers": options.layers},
        "train": {"epochs": 1, "batch_size": options.batch_size, "checkpoint_every_steps": 100_000},
        "cluster": {"train_cpus_per_worker": 1},
    }
    file = folder / "daily.yaml"
    file.write_text(yaml.safe_dump(settings, sort_keys=False))
    ds = serving_day(folder / "logs" / "plays")
    fuxi("sessionize", "--ds", ds, "--config", str(file))
    return str(file), ds


def train(folder: Path, config: str, ds: str, ranks: int) -> dict[str, Any]:
    """Train with so many processes; the result of the stage."""
    fuxi("train", "--ds", ds, "--config", config, "--force", "--set", f"cluster.train_workers={ranks}")
    return json.loads((folder / "workspace" / "runs" / f"ds={ds}" / "train.json").read_text())["result"]


def take_apart(folder: Path, config: str, ds: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Steps of each number of processes, together and apart, in turns; one row a number."""
    settings = load_config(config)
    found: dict[tuple[int, bool], list[StepCost]] = {}
    for number in range(options.rounds):
        for ranks in options.ranks:
            for together in (True, False):
                shards = str(folder / "workspace" / "sequences" / f"ds={ds}")
                wanted = Steps(shards, settings.model, settings.train, ranks, options.steps, together)
                found.setdefault((ranks, together), []).append(measured(wanted))
            say(f"steps, round {number + 1}, {ranks}: {found[ranks, True][-1].wall_s * 1e3:,.0f} ms")
    return [_parts(ranks, found[ranks, True], found[ranks, False]) for ranks in options.ranks]


def _parts(ranks: int, together: list[StepCost], apart: list[StepCost]) -> dict[str, Any]:
    wall, alone = (statistics.median(one.wall_s for one in costs) for costs in (together, apart))
    cpu = statistics.median(one.cpu_s for one in together)
    return {
        "processes": ranks,
        "step_ms": wall * 1e3,
        "apart_ms": alone * 1e3,
        "exchange": 1 - alone / wall,
        "idle": max(1 - cpu / wall, 0.0),
        "sent_mb": statistics.median(one.sent_mb for one in together),
        "plays_per_s": together[0].plays / wall,
    }


def print_parts(rows: list[dict[str, Any]]) -> None:
    """The second table."""
    table = Table(title="steps taken apart, in milliseconds", caption="apart: the same batches, nothing to exchange")
    for column in ("processes", "a step", "apart", "exchange and waiting", "idle", "MB sent by each", "plays/s"):
        table.add_column(column, justify="right")
    for row in rows:
        shares = f"{row['exchange']:.0%}", f"{row['idle']:.0%}"
        times = f"{row['step_ms']:,.0f}", f"{row['apart_ms']:,.0f}"
        table.add_row(str(row["processes"]), *times, *shares, f"{row['sent_mb']:.1f}", f"{row['plays_per_s']:,.0f}")
    Console(width=110).print(table)


def main() -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2], help="numbers of processes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=0.005, help="share of the preset: 5 M plays, 16,581 songs")
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--steps", type=int, default=20, help="steps that are taken apart")
    parser.add_argument("--quick", action="store_true", help="one round, a tenth of the plays")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.scale, options.steps = 1, options.scale / 10, 3
    found: dict[int, list[dict[str, Any]]] = {ranks: [] for ranks in options.ranks}
    with tempfile.TemporaryDirectory(prefix="fuxi-ranks-") as name:
        folder = Path(name)
        config, ds = prepare(folder, options)
        for number in range(options.rounds):
            for ranks, results in found.items():
                results.append(train(folder, config, ds, ranks))
                say(f"round {number + 1}, {ranks}: {results[-1]['events_per_s']:,} plays/s")
        parts = take_apart(folder, config, ds, options)
    speeds = {ranks: [one["events_per_s"] for one in results] for ranks, results in found.items()}
    losses = [one["final_loss"] for results in found.values() for one in results]
    base, first = min(options.ranks), losses[0]
    table = Table(title="training processes of one thread", caption=f"{machine.describe()}, {available_cores()} cores")
    for column in ("processes", "plays/s", "spread", "against the fewest", "waiting for data", "loss - the first"):
        table.add_column(column, justify="right")
    for ranks, results in found.items():
        middle = statistics.median(speeds[ranks])
        waiting = statistics.median(one["waiting_share"] for one in results)
        apart = max(abs(one["final_loss"] - first) / first for one in results)
        gain = f"{middle / statistics.median(speeds[base]):.2f}x"
        table.add_row(
            str(ranks), f"{middle:,.0f}", f"{spread(speeds[ranks]):,.0f}", gain, f"{waiting:.1%}", f"{apart:.1e}"
        )
    Console(width=110).print(table)
    print_parts(parts)
    line = {"machine": machine.describe(), "events_per_s": speeds, "losses": losses, "steps": parts}
    print(json.dumps({"benchmark": "ranks", **line}))
    return int(max(abs(loss - first) / first for loss in losses) > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
