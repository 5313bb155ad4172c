"""A whole serving day at a share of the paper's industrial size: `python -m benchmarks.whole_day --folder F`.

Generates the logs (`fuxi synth --preset daily-recommendations --scale 0.1`, kept in the folder), runs `fuxi daily` as
a user would, and with `--day-after` the next day, which starts warm and has a landing day more. It prints seconds,
processor seconds, peak memory and bytes of every stage, what a play or a listener costs in each, and from these the
full preset and 1e10 plays on this machine and on clusters (arguments of `benchmarks.cluster_sizes`).

Stages resume: one that an earlier call finished is not run again, and of one in which it was killed the rest is run and
measured; their lines say so. A stage has the start of its engines, the first one that of the command. Processor seconds
and memory are of the whole tree of processes, sampled twice a second; what came after a last sample is missed.
Memory is proportional set size (pages that processes share count once). Larger days take all seconds of a stage as
proportional to its plays or listeners, start included. Linux only.
"""

import argparse
import datetime as dt
import json
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import IO, Any

import psutil
import yaml
from rich.console import Console
from rich.table import Table

from benchmarks.lib.industrial_logs import PRESET, synth
from benchmarks.lib.processes import available_cores, folder_bytes, log_message
from benchmarks.lib.timing import say
from jobs.day import STAGES
from jobs.runtime import machine
from pipelines.synthetic.industrial.config import BASE_DAYS, PRESETS, industrial_config

UNIT = {"sessionize": "plays", "train": "plays", "recommend": "listeners"}
"""What the cost of a stage grows with; the others' does not: evaluate measures a sample of listeners."""
SAMPLE_S = 0.5
RESULT = "whole_day.json"


@dataclass
class Stage:
    """What a stage took."""

    wall_s: float = 0.0
    cpu_s: float = 0.0
    peak_gb: float = 0.0
    written_gb: float = 0.0  # growth of the workspace
    earlier: bool = False  # measured by an earlier call
    resumed: bool = False  # an earlier call was killed in it: this is the rest


class Tree:
    """Processor seconds and memory of a process and its descendants, as they were last seen."""

    def __init__(self, root: psutil.Process) -> None:
        self.peak_gb = 0.0
        self._root, self._seconds = root, dict[tuple[int, float], float]()

    @property
    def cpu_s(self) -> float:
        """Of all processes so far, those that have ended included; half a sample of each is missed."""
        return sum(self._seconds.values())

    def sample(self) -> None:
        """Read every process once."""
        memory = 0
        for process in self._processes():
            try:
                with process.oneshot():
                    times, key = process.cpu_times(), (process.pid, process.create_time())
                self._seconds[key] = times.user + times.system
                memory += process.memory_full_info().pss
            except psutil.Error:
                continue  # it has just ended
        self.peak_gb = max(self.peak_gb, memory / 1e9)

    def _processes(self) -> list[psutil.Process]:
        try:
            return [self._root, *self._root.children(recursive=True)]
        except psutil.Error:
            return []


class Day:
    """A run of `fuxi daily`, measured stage by stage.

    known: stages of earlier calls, kept unless redone. killed_in: the stage in which an earlier call ended, or "".
    """

    def __init__(self, command: Sequence[str], workspace: Path, known: dict[str, Stage], killed_in: str = "") -> None:
        self.stages = {name: Stage(**{**asdict(stage), "earlier": True}) for name, stage in known.items()}
        self._command, self._workspace, self._killed_in = command, workspace, killed_in

    def run(self) -> Iterator[dict[str, Stage]]:
        """Run it; yields all stages after each. RuntimeError if one fails, or if it ends with a code but 0 and 3."""
        process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        assert process.stderr
        tree = Tree(psutil.Process(process.pid))
        ended, done, last = threading.Event(), list[str](), [""]
        reader = threading.Thread(target=_follow, args=(process.stderr, done, last), daemon=True)
        sampler = threading.Thread(target=_sample, args=(tree, ended), daemon=True)
        reader.start()
        sampler.start()
        began, cpu_before = time.monotonic(), 0.0
        stored = folder_bytes(self._workspace)
        while True:
            over = process.poll() is not None
            if over:
                reader.join()
            while done:
                name = done.pop(0)
                now, cpu, size = time.monotonic(), tree.cpu_s, folder_bytes(self._workspace)
                if name.startswith("already "):
                    say(f"  {name.removeprefix('already ')}: already done")
                else:
                    took = Stage(now - began, cpu - cpu_before, tree.peak_gb, (size - stored) / 1e9)
                    took.resumed = name == self._killed_in
                    self.stages[name] = took
                    say(f"  {name}: {took.wall_s:,.0f} s, {took.cpu_s:,.0f} CPU-s, {took.peak_gb:.1f} GB")
                began, cpu_before, stored, tree.peak_gb = now, cpu, size, 0.0
                yield self.stages
            if over:
                break
            time.sleep(0.1)
        ended.set()
        sampler.join()
        if process.returncode not in (0, 3) or " failed" in last[0]:
            raise RuntimeError(f"{shlex.join(self._command)} ended with exit code {process.returncode}: {last[0]}")


def _follow(lines: IO[str], done: list[str], last: list[str]) -> None:
    """Note the stages that log lines say are done, and the last message."""
    for line in lines:
        message = log_message(line)
        if not message:
            continue
        if " failed" not in last[0]:
            last[0] = message  # of a stage that failed, the day ends well without it
        _tell(json.loads(line))
        for name in STAGES:
            if message == f"{name} done":
                done.append(name)
            elif message == f"{name} already done":
                done.append(f"already {name}")


def _tell(line: dict[str, Any]) -> None:
    """Repeat a line of progress, of those that are a minute or more apart."""
    if "seconds_left" in line and line["seconds"] % 60 < 5:
        done = f"{line['done']:,} of {line['total']:,} {line['unit']}"
        say(f"    {line['message']}: {done}, {line['seconds_left']:,} s left")


def _sample(tree: Tree, ended: threading.Event) -> None:
    while not ended.wait(SAMPLE_S):
        tree.sample()


def settings(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The configuration of the day."""
    return {
        "workspace": str(folder / "workspace"),
        "logs": {"path": str(folder / "logs" / "plays"), "catalogue": str(folder / "logs" / "catalogue")},
        "model": {"dim": options.dim, "layers": options.layers},
        "train": {
            "epochs": options.epochs,
            "warm_start_epochs": options.epochs,
            "incremental": True,
            "batch_size": options.batch_size,
        },
        "gates": {"serve_baseline": False},  # of these logs no model learns more than which songs are popular
        "cluster": {"train_workers": 1, "train_cpus_per_worker": available_cores()},
    }


def generate(options: argparse.Namespace, folder: Path) -> float:
    """Make the logs that are missing; returns seconds."""
    began = time.monotonic()
    synth(folder / "logs", scale=options.scale, days=BASE_DAYS + 1)
    return time.monotonic() - began


def sizes_of(workspace: Path, ds: str) -> dict[str, float]:
    """Plays and listeners of a day, as its marker has them."""
    result = json.loads((workspace / "runs" / f"ds={ds}" / "sessionize.json").read_text())["result"]
    return {"plays": result["events"], "read": result["rows_read"], "listeners": result["listeners"]}


def projected(stages: dict[str, Stage], sizes: dict[str, float], wanted: dict[str, float]) -> dict[str, Stage]:
    """The stages of a day with `wanted` plays and listeners: proportional to what each grows with, else unchanged."""
    grown = {}
    for name, stage in stages.items():
        factor = wanted[UNIT[name]] / sizes[UNIT[name]] if name in UNIT else 1.0
        grown[name] = Stage(stage.wall_s * factor, stage.cpu_s * factor, stage.peak_gb, stage.written_gb * factor)
    return grown


def full_sizes() -> list[tuple[str, dict[str, float]]]:
    """Plays and listeners of the whole preset, and of 1e10 plays with as many plays a listener."""
    listeners, _, plays = PRESETS[PRESET]
    return [
        ("the preset whole", {"plays": plays, "listeners": listeners}),
        ("1e10 plays", {"plays": 1e10, "listeners": listeners * 1e10 / plays}),
    ]


def arguments(stages: dict[str, Stage], sizes: dict[str, float]) -> str:
    """What a day costs beyond sessionizing, as arguments of `benchmarks.cluster_sizes`."""
    cost = {name: stages[name].cpu_s / sizes[unit] * 1e6 for name, unit in UNIT.items() if name in stages}
    values = {f"{name}-cpu-s-per-million": f"{cost[name]:.3g}" for name in cost if name != "sessionize"}
    values["evaluate-cpu-s"] = f"{stages['evaluate'].cpu_s:.3g}"
    values["listeners-per-play"] = f"{sizes['listeners'] / sizes['plays']:.3g}"
    return shlex.join([word for name, value in values.items() for word in (f"--{name}", value)])


def print_day(ds: str, stages: dict[str, Stage], sizes: dict[str, float], caption: str) -> None:
    """A line a stage."""
    title = f"ds {ds}: {sizes['plays'] / 1e6:,.1f} M plays, {sizes['listeners'] / 1e6:,.2f} M listeners"
    table = Table(title=title, caption=caption, caption_justify="left")
    table.add_column("stage")
    for column in ("seconds", "CPU-seconds", "peak GB", "written GB", "a second and core"):
        table.add_column(column, justify="right")
    for name, stage in stages.items():
        speed = f"{sizes[UNIT[name]] / max(stage.cpu_s, 1e-9):,.0f} {UNIT[name]}" if name in UNIT else ""
        shown = name + " (the rest)" * stage.resumed + " (earlier call)" * stage.earlier
        cells = [f"{stage.wall_s:,.1f}", f"{stage.cpu_s:,.1f}", f"{stage.peak_gb:.1f}", f"{stage.written_gb:.2f}"]
        table.add_row(shown, *cells, speed)
    wall, cpu = (sum(getattr(stage, name) for stage in stages.values()) for name in ("wall_s", "cpu_s"))
    peak, written = max(s.peak_gb for s in stages.values()), sum(s.written_gb for s in stages.values())
    table.add_row("all", f"{wall:,.1f}", f"{cpu:,.1f}", f"{peak:.1f}", f"{written:.2f}", "", style="bold")
    Console(width=110).print(table)


def print_projection(stages: dict[str, Stage], sizes: dict[str, float]) -> None:
    """Hours of larger days on this many cores, and CPU-hours for a cluster."""
    table = Table(title=f"larger days, by the costs above, on {available_cores()} cores")
    table.add_column("stage")
    days = [(name, projected(stages, sizes, wanted)) for name, wanted in full_sizes()]
    for name, _ in days:
        table.add_column(f"{name}: hours", justify="right")
        table.add_column("CPU-hours", justify="right")
    for stage in (*UNIT, "evaluate"):
        found = [day[stage] for _, day in days if stage in day]
        table.add_row(stage, *(f"{value / 3600:,.2f}" for one in found for value in (one.wall_s, one.cpu_s)))
    totals = [sum(getattr(s, key) for s in day.values()) for _, day in days for key in ("wall_s", "cpu_s")]
    table.add_row("all stages", *(f"{value / 3600:,.2f}" for value in totals), style="bold")
    Console(width=110).print(table)


def measure(options: argparse.Namespace, folder: Path, ds: str, kept: dict[str, Any]) -> None:
    """Run a day and keep what each stage took, as soon as it is known."""
    known = {name: Stage(**stage) for name, stage in kept.get(ds, {}).get("stages", {}).items()}
    begun = next((name for name in STAGES if name not in known), "") if ds in kept else ""
    workspace = folder / "workspace"
    command = [sys.executable, "-m", "jobs.cli", "daily", "--ds", ds, "--config", str(folder / "daily.yaml")]
    command += [word for text in options.set for word in ("--set", text)]
    say(f"fuxi daily --ds {ds}")
    for stages in Day(command, workspace, known, begun).run():
        stored = {name: {f.name: getattr(stage, f.name) for f in fields(Stage)} for name, stage in stages.items()}
        kept[ds] = {"stages": stored, "sizes": sizes_of(workspace, ds)}
        (folder / RESULT).write_text(json.dumps(kept, indent=1))


def main() -> None:
    """Generate, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="for logs, workspace and results; kept")
    parser.add_argument("--scale", type=float, default=0.1, help="share of the preset's plays and listeners")
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=512, help="listeners a step: nearly every song is in each")
    parser.add_argument("--day-after", action="store_true", help="run the next day, too")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="more settings of the days")
    parser.add_argument("--quick", action="store_true", help="a thousandth: shows that it works, costs mean little")
    options = parser.parse_args()
    options.scale = 0.001 if options.quick else options.scale
    folder = options.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    say(f"logs, scale {options.scale:g}")
    seconds = generate(options, folder)
    (folder / "daily.yaml").write_text(yaml.safe_dump(settings(options, folder), sort_keys=False))
    first = industrial_config(PRESET, scale=options.scale).first_day + dt.timedelta(days=BASE_DAYS)
    days = [str(first + dt.timedelta(days=n)) for n in range(1 + options.day_after)]
    kept = json.loads((folder / RESULT).read_text()) if (folder / RESULT).exists() else {}
    for ds in days:
        measure(options, folder, ds, kept)
    caption = f"{machine.describe()}; D {options.dim}, {options.layers} layers; logs in {seconds:.0f} s"
    for ds in days:
        print_day(ds, {name: Stage(**s) for name, s in kept[ds]["stages"].items()}, kept[ds]["sizes"], caption)
    whole = {name: Stage(**stage) for name, stage in kept[days[0]]["stages"].items()}
    print_projection(whole, kept[days[0]]["sizes"])
    print(f"python -m benchmarks.cluster_sizes ... {arguments(whole, kept[days[0]]['sizes'])}")
    print(json.dumps({"benchmark": "whole_day", "machine": machine.describe(), "days": {ds: kept[ds] for ds in days}}))


if __name__ == "__main__":
    main()
