"""Kills, full disks, outages and second runs, at moments drawn from a seed: `python -m benchmarks.chaos [--kills 30]`.

A small workspace gets one serving day, then the next one, undisturbed. Each round puts the first day back and runs
the second one again, disturbed: in every run of `fuxi daily` one process gets SIGKILL (the driver, a worker of Ray,
the raylet, a worker of Spark, the JVM) at a drawn moment of a drawn stage, or the disk is full, read-only, the store is
gone for 20 s, a second run starts. It is run again until it is done. On S3 (moto's server) all requests pass a proxy
that answers a twentieth with 503, delays some and resets some.

Lists, metrics, histories, model versions with their weights, and the run record must be those of the undisturbed run,
`fuxi verify` must find no damage, and one more run must find nothing to do. Then it counts what the killed runs left:
files that nothing names, temporary files, shared memory, processes, unfinished uploads, runs of MLflow.

Exit code 1 if anything differs, is left, or hangs. A file system of its own, for a full and a read-only disk, needs
Linux and `unshare`; without it these are left out.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.lib.chaos import leftovers, processes
from benchmarks.lib.chaos.disturbances import DISK_FULL, READ_ONLY, SPELLS, VICTIMS, Disturbance, draw_round
from benchmarks.lib.chaos.inspect_day import Inspected, inspect
from benchmarks.lib.chaos.outcome import differences
from benchmarks.lib.chaos.places import LocalPlace, S3Place
from benchmarks.lib.chaos.runs import Run, run
from benchmarks.lib.processes import adopt_orphans
from benchmarks.lib.timing import say

DAY_ONE, DAY_TWO = "2026-01-19", "2026-01-20"
LOGS = {"listeners": 120, "songs": 200, "artists": 20, "plays_per_day": 20, "first_day": "2026-01-05", "days": 15}
SETTINGS = {
    "sequences": {"buckets": 2, "max_history": 100},
    "model": {"dim": 32, "layers": 1, "max_history": 50},
    "train": {
        "epochs": 15,
        "warm_start_epochs": 3,
        "min_listeners": 2,
        "batch_size": 16,
        "lr": 0.01,
        "checkpoint_every_steps": 5,
        "item_optimizer": "adamw",
    },
    "recommend": {"max_fallback_share": 1.0},
    "gates": {"margin": 1.0},
    "cluster": {"spark_master": "local[2]", "train_workers": 1},
}
_NAMESPACE = "CHAOS_NAMESPACE"
_MOST_RUNS_WITHOUT_KILL = 4
KILLS_A_ROUND = 5

Place = LocalPlace | S3Place


@dataclass
class Round:
    """A second day that was disturbed until it was done."""

    where: str
    number: int
    runs: list[Run]
    differing: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    @property
    def kills(self) -> int:
        """SIGKILLs that found their victim."""
        return sum(what.is_kill for one in self.runs for what in one.happened)

    @property
    def wrong(self) -> list[str]:
        """Everything that must not be."""
        hung = [f"hung: {one}" for one in self.runs if one.hung]
        traced = [f"a trace in place of a line: {one}" for one in self.runs if one.traced]
        return [
            *(f"differs: {line}" for line in self.differing),
            *(f"damaged: {line}" for line in self.damaged),
            *(f"left: {line}" for line in self.left),
            *(line for one in self.runs for line in one.wrong),
            *hung,
            *traced,
        ]


class Chaos:
    """A place with a first day, what the second one gives undisturbed, and the rounds in which it is disturbed."""

    def __init__(self, place: Place, options: argparse.Namespace) -> None:
        self.place, self.options = place, options
        self.usual: Mapping[str, float] = {}
        self.wanted: Inspected | None = None

    def prepare(self) -> None:
        """Run the first day, keep it, run the second one. RuntimeError if one of them fails."""
        self._undisturbed(DAY_ONE)
        self.place.keep()
        self.usual = self._undisturbed(DAY_TWO).stages
        self.wanted = self._inspect()
        if isinstance(self.place, S3Place):
            self.place.faulty = True
        seconds = ", ".join(f"{name} {value:.1f}" for name, value in self.usual.items())
        say(f"{self.place.name}: undisturbed, {DAY_TWO} takes {sum(self.usual.values()):.0f} s: {seconds}")

    def _undisturbed(self, ds: str) -> Run:
        done = run(self.place, ds, usual={}, limit_s=self.options.limit)
        if done.code:
            raise RuntimeError(f"{ds} on {self.place.name} ended with {done.outcome}:\n" + "\n".join(done.output[-30:]))
        return done

    def _inspect(self) -> Inspected:
        return inspect(self.place.config_file, DAY_TWO, environment=os.environ)

    def round(self, number: int, *, kills: int, spells: bool) -> Round:
        """Put the first day back, and run the second one until it is done."""
        draw = random.Random(f"{self.options.seed}-{self.place.name}-{number}")
        self.place.restore()
        memory, known, result = leftovers.in_memory(), processes.children(), Round(self.place.name, number, [])
        each = [one for one in SPELLS[self.place.name] if one not in (DISK_FULL, READ_ONLY) or self.place.has_disk]
        spell = each[(number - 1) % len(each)] if spells else None  # in turn, so that a few rounds have them all
        pending = draw_round(draw, kills=kills, spell=spell, only=self.options.victims)
        most = len(pending) + _MOST_RUNS_WITHOUT_KILL
        while len(result.runs) < most and not (result.runs and result.runs[-1].code == 0):
            result.runs.append(self._run(pending))
        if result.runs[-1].code:
            result.runs[-1].wrong.append(f"not done: {' '.join(result.runs[-1].output[-1:])}")
            return result
        again = self._run([])
        if again.code:
            result.runs[-1].wrong.append(f"a finished day run again ends with {again.outcome}")
        found = self._inspect()
        assert self.wanted
        result.differing, result.damaged = differences(self.wanted.outcome, found.outcome), found.damaged
        shared = [f"/dev/shm/{name}" for name in sorted(leftovers.in_memory() - memory)]
        running = [f"process {name}" for name in processes.outliving(known, seconds=10)]
        result.left = [*found.left, *leftovers.of_host(self.place.scratch), *shared, *running]
        return result

    def _run(self, pending: list[Disturbance]) -> Run:
        self.place.wait_for_calm()  # a run is refused at once while the store is gone, as the operator would see
        done = run(self.place, DAY_TWO, pending, usual=self.usual, limit_s=self.options.limit)
        say(f"  {done}")
        if self.options.keep:
            log = self.place.root / f"run-{time.time():.0f}.log"
            log.write_text("\n".join(done.output))
        return done


def rounds(place: Place, options: argparse.Namespace, kills: int) -> Iterator[Round]:
    """Rounds until so many kills have found their victim."""
    chaos, done, number = Chaos(place, options), 0, options.first_round
    chaos.prepare()
    while done < kills:
        number += 1
        planned = min(options.kills_a_round, kills - done)
        say(f"{place.name}, round {number}: {done} of {kills} kills so far")
        result = chaos.round(number, kills=planned, spells=not options.kills_only)
        done += result.kills
        for line in result.wrong:
            say(f"  WRONG: {line}")
        yield result


def print_tables(found: Sequence[Round]) -> None:
    """How often each victim was killed and what its run said, then a line a round."""
    counts: dict[str, Counter[str]] = {}
    happened = [(what, one.outcome) for each in found for one in each.runs for what in one.happened]
    for what, outcome in happened:
        counts.setdefault(f"{what.what} in {what.stage}", Counter())[outcome] += 1
    table = Table("what happened", "times", "the run", title="disturbances")
    for what, outcomes in sorted(counts.items()):
        said = ", ".join(f"{outcome}: {count}" for outcome, count in outcomes.most_common())
        table.add_row(what, str(sum(outcomes.values())), said)
    summary = Table("where", "round", "runs", "kills", "differing", "damaged", "left", "other", title="rounds")
    for each in found:
        parts = [len(each.differing), len(each.damaged), len(each.left)]
        numbers = [each.number, len(each.runs), each.kills, *parts, len(each.wrong) - sum(parts)]
        summary.add_row(each.where, *map(str, numbers))
    console = Console(width=120)
    console.print(table)
    console.print(summary)
    kills, wrong = sum(each.kills for each in found), [line for each in found for line in each.wrong]
    for line in dict.fromkeys(wrong):
        console.print(f"WRONG: {line}", highlight=False, soft_wrap=True)
    console.print(f"{kills} SIGKILLs in {len(found)} rounds, {len(wrong)} things wrong")


def places(root: Path, options: argparse.Namespace) -> Iterator[Place]:
    """The places that were asked for, one after the other."""
    logs = _logs(root)
    for where in options.where.split(","):
        if where == "local":
            place: Place = LocalPlace(root / "l", SETTINGS, has_disk=_NAMESPACE in os.environ)
        else:
            place = S3Place(root / "s", SETTINGS, seed=options.seed)
            place.upload_logs(logs)
        try:
            yield place
        finally:
            place.close()


def _logs(root: Path) -> Path:
    from pipelines.schema import parse_ds
    from pipelines.synthetic import SyntheticConfig, generate

    first_day = parse_ds(str(LOGS["first_day"]))
    generate(SyntheticConfig(**{**LOGS, "first_day": first_day}, seed=5), str(root / "logs"))
    return root / "logs"


def enter_namespace() -> None:
    """Start again in a mount namespace of its own, where the system allows it: mounts end with this process."""
    if _NAMESPACE in os.environ or sys.platform != "linux" or not shutil.which("unshare"):
        return
    for flags in (["--mount"], ["--user", "--map-root-user", "--mount"]):
        probe = ["unshare", *flags, "mount", "-t", "tmpfs", "chaos", "/mnt"]
        if subprocess.run(probe, check=False, capture_output=True).returncode == 0:
            os.environ[_NAMESPACE] = "1"
            os.execvp("unshare", ["unshare", *flags, sys.executable, "-m", "benchmarks.chaos", *sys.argv[1:]])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10_000), help="default: a new one")
    parser.add_argument("--kills", type=int, default=30, help="SIGKILLs, over all places")
    parser.add_argument("--where", default="local,s3", help="local, s3 or both")
    parser.add_argument("--kills-a-round", type=int, default=KILLS_A_ROUND)
    parser.add_argument("--first-round", type=int, default=0, help="go on behind so many rounds of this seed")
    parser.add_argument("--kills-only", action="store_true", help="no full disk, outage or second run")
    parser.add_argument("--victims", default="", help=f"some of {', '.join(VICTIMS)}, by commas")
    parser.add_argument("--limit", type=float, default=240, help="seconds after which a run counts as hung")
    parser.add_argument("--keep", metavar="DIR", help="work here and leave everything; default: a temporary folder")
    options = parser.parse_args()
    options.victims = [name for name in options.victims.split(",") if name]
    if unknown := {*options.where.split(",")} - {"local", "s3"} or {*options.victims} - VICTIMS.keys():
        parser.error(f"{', '.join(sorted(unknown))}: unknown, see --help")
    return options


def main() -> None:
    """Print progress, the tables, and what is wrong."""
    options = _options()
    enter_namespace()
    if _NAMESPACE in os.environ:  # shared memory of these runs alone, so that what is left can be told
        subprocess.run(["mount", "-t", "tmpfs", "chaos", str(leftovers.MEMORY)], check=True)
    adopt_orphans()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    say(f"seed {options.seed}: `python -m benchmarks.chaos --seed {options.seed} ...` draws the same disturbances")
    found: list[Round] = []
    kills = options.kills // len(options.where.split(","))
    with tempfile.TemporaryDirectory(prefix="chaos-") as temporary:
        root = Path(options.keep or temporary).absolute()
        root.mkdir(parents=True, exist_ok=True)
        try:
            for place in places(root, options):
                for result in rounds(place, options, kills):
                    found.append(result)
        except KeyboardInterrupt:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            say("stopped")
    print_tables(found)
    sys.exit(any(each.wrong for each in found))


if __name__ == "__main__":
    main()
