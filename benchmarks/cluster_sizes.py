"""The size of a cluster for a number of plays, from one machine's figures: `python -m benchmarks.cluster_sizes --help`.

Every figure is an argument without a default, so that the command beside a table shows all its inputs.
`python -m benchmarks.cluster_cost` measures a day on one machine and prints the arguments that are measured;
`python -m benchmarks.whole_day` those of the stages behind sessionize, which are left out unless all are given.
"""

import argparse
import math
import shlex
import sys
from dataclasses import dataclass, fields
from pathlib import Path

from pipelines.histories.build import plan_shuffle
from pipelines.histories.shuffle import RUN_ROWS

JVM_OVERHEAD_MIB, JVM_OVERHEAD_SHARE = 384, 0.1
"""What Spark itself adds to a heap for the rest of a JVM: the larger of the two."""
MAX_BUCKETS = 65_536
BEGIN, END = "<!-- sizes: begin -->", "<!-- sizes: end -->"


@dataclass(frozen=True)
class Measured:
    """A day's figures on one machine. Every field is an argument of the command."""

    cpu_s_per_million: float  # processor seconds of all processes for a million rows
    busy: float  # processor seconds / (wall seconds x cores); the rest is waiting, and cores idle at the end of a stage
    task_mib: int  # most memory of a Python worker
    partition_plays: float  # plays of the largest partition that was built meanwhile
    log_bytes: float  # of a row, as read
    temporary_bytes: float  # of a play on its way to its bucket
    shard_bytes: float  # of a play in the shards
    driver_mib: int  # most memory of the driver's Python
    heap_mib: int  # of every JVM


@dataclass(frozen=True)
class MeasuredBehind:
    """Figures of the stages behind sessionize on one machine. Arguments of the command, all of them or none."""

    train_cpu_s_per_million: float  # processor seconds for a million plays and an epoch
    evaluate_cpu_s: float  # of a day of any size: a sample of listeners is measured
    recommend_cpu_s_per_million: float  # for a million listeners
    listeners_per_play: float
    hours: float  # in which these stages are to be done

    def of(self, plays: float) -> "Behind":
        """What a day with so many plays takes."""
        listeners = plays * self.listeners_per_play
        return Behind(
            listeners=listeners,
            train_hours=plays / 1e6 * self.train_cpu_s_per_million / 3600,
            evaluate_hours=self.evaluate_cpu_s / 3600,
            recommend_hours=listeners / 1e6 * self.recommend_cpu_s_per_million / 3600,
            within_hours=self.hours,
        )


@dataclass(frozen=True)
class Behind:
    """Processor hours of the stages behind sessionize."""

    listeners: float
    train_hours: float
    evaluate_hours: float
    recommend_hours: float
    within_hours: float

    @property
    def cores(self) -> int:
        """That do them in the hours wanted, if all are busy."""
        total = self.train_hours + self.evaluate_hours + self.recommend_hours
        return max(math.ceil(total / self.within_hours), 1)


@dataclass(frozen=True)
class Wanted:
    """Bounds on the cluster. Every field is an argument of the command."""

    minutes: float
    executor_cores: int


@dataclass(frozen=True)
class Size:
    """A cluster for one full build."""

    plays: float
    cpu_hours: float
    executors: int
    executor_cores: int
    minutes: float
    heap_mib: int
    executor_overhead_mib: int
    driver_overhead_mib: int
    buckets: int
    partitions: int
    runs: int
    log_gb: float
    temporary_gb: float
    shard_gb: float

    @property
    def cores(self) -> int:
        """Of all executors."""
        return self.executors * self.executor_cores

    @property
    def executor_mb_s(self) -> float:
        """What an executor reads and writes through the object store, on average, in megabytes a second."""
        moved_gb = self.log_gb + 2 * self.temporary_gb + self.shard_gb
        return moved_gb * 1000 / (self.minutes * 60 * self.executors)


def size(plays: float, measured: Measured, wanted: Wanted) -> Size:
    """Cores from processor time, memory from a task's, and buckets so that no partition exceeds the measured one."""
    cpu_s = plays / 1e6 * measured.cpu_s_per_million
    executor_s = wanted.executor_cores * measured.busy  # processor seconds of an executor a second
    executors = max(math.ceil(cpu_s / (wanted.minutes * 60 * executor_s)), 1)
    buckets = 1 << max(math.ceil(math.log2(plays / measured.partition_plays)), 0)
    if buckets > MAX_BUCKETS:
        sys.exit(f"{plays:.3g} plays need {buckets} buckets of {measured.partition_plays:.3g}, more than {MAX_BUCKETS}")
    shuffle = plan_shuffle(buckets, int(plays), parallelism=executors * wanted.executor_cores, max_history=1)
    jvm = math.ceil(max(JVM_OVERHEAD_MIB, JVM_OVERHEAD_SHARE * measured.heap_mib))
    return Size(
        plays=plays,
        cpu_hours=cpu_s / 3600,
        executors=executors,
        executor_cores=wanted.executor_cores,
        minutes=cpu_s / (executors * executor_s) / 60,
        heap_mib=measured.heap_mib,
        executor_overhead_mib=jvm + wanted.executor_cores * measured.task_mib,
        driver_overhead_mib=jvm + measured.driver_mib,
        buckets=buckets,
        partitions=shuffle.partitions,
        runs=math.ceil(plays / RUN_ROWS),
        log_gb=plays * measured.log_bytes / 1e9,
        temporary_gb=plays * measured.temporary_bytes / 1e9,
        shard_gb=plays * measured.shard_bytes / 1e9,
    )


def name(plays: float) -> str:
    """A short name, and part of the file's.

    >>> name(1e9), name(1e10), name(2.5e9)
    ('1e9', '1e10', '2.5e9')
    """
    digits, exponent = f"{plays:e}".split("e")
    return f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}"


def table(sizes: list[Size], behind: MeasuredBehind | None = None) -> str:
    """The sizes in Markdown. behind: of the other stages, to be told, too."""
    rows = {
        "plays": [name(cluster.plays) for cluster in sizes],
        "processor time": [f"{cluster.cpu_hours:,.1f} hours" for cluster in sizes],
        "executors": [f"{cluster.executors:,} of {cluster.executor_cores} cores" for cluster in sizes],
        "expected": [f"{cluster.minutes:.0f} minutes" for cluster in sizes],
        "memory of an executor": [_memory(cluster.heap_mib, cluster.executor_overhead_mib) for cluster in sizes],
        "memory of the driver": [_memory(cluster.heap_mib, cluster.driver_overhead_mib) for cluster in sizes],
        "object store: logs": [f"{cluster.log_gb:,.0f} GB" for cluster in sizes],
        "object store: for a while": [f"{cluster.temporary_gb:,.0f} GB" for cluster in sizes],
        "object store: shards": [f"{cluster.shard_gb:,.0f} GB" for cluster in sizes],
        "an executor reads and writes": [f"{cluster.executor_mb_s:.0f} MB/s" for cluster in sizes],
        "`sequences.buckets`, at least": [f"{cluster.buckets:,}" for cluster in sizes],
        "batches read between the stages": [f"{cluster.runs * cluster.partitions:,}" for cluster in sizes],
    }
    if behind:
        rows |= _rows_behind([behind.of(cluster.plays) for cluster in sizes])
    lines = [f"| {title} | {' | '.join(cells)} |" for title, cells in rows.items()]
    return "\n".join([lines[0], "| --- |" + " --- |" * len(sizes), *lines[1:]])


def _rows_behind(days: list[Behind]) -> dict[str, list[str]]:
    hours = f"{days[0].within_hours:g} {'hour' if days[0].within_hours == 1 else 'hours'}"
    return {
        "listeners": [f"{day.listeners / 1e6:,.0f} million" for day in days],
        "train, an epoch: processor time": [f"{day.train_hours:,.1f} hours" for day in days],
        "evaluate: processor time": [f"{day.evaluate_hours:,.1f} hours" for day in days],
        "recommend: processor time": [f"{day.recommend_hours:,.1f} hours" for day in days],
        f"cores that do these in {hours}": [f"{day.cores:,}" for day in days],
    }


def _memory(heap: int, overhead: int) -> str:
    return f"{(heap + overhead) / 1024:.1f} GiB, {heap / 1024:.1f} of it heap"


def patch(cluster: Size, command: str) -> str:
    """What a size adds to the SparkApplication, YAML."""
    return f"""\
# {name(cluster.plays)} plays in about {cluster.minutes:.0f} minutes. Made by
{_wrapped(command, "#   ")}
apiVersion: sparkoperator.k8s.io/v1beta2
kind: SparkApplication
metadata:
  name: fuxi-sessionize-2026-03-02
spec:
  sparkConf:
    spark.default.parallelism: "{cluster.cores}"
  dynamicAllocation:
    initialExecutors: {cluster.executors}
    maxExecutors: {cluster.executors}
  driver:
    cores: 1
    memory: {cluster.heap_mib}m
    memoryOverhead: {cluster.driver_overhead_mib}m
  executor:
    cores: {cluster.executor_cores}
    instances: {cluster.executors}
    memory: {cluster.heap_mib}m
    memoryOverhead: {cluster.executor_overhead_mib}m
"""


def _wrapped(command: str, margin: str) -> str:
    """A command over several lines, as a shell takes it."""
    words = command.replace(" --", "\n--").split("\n")
    lines = [words[0]]
    for word in words[1:]:
        if len(margin + lines[-1] + word) > 110:
            lines.append("  " + word)
        else:
            lines[-1] += " " + word
    return " \\\n".join(margin + line for line in lines)


def write(folder: Path, sizes: list[Size], command: str, behind: MeasuredBehind | None = None) -> None:
    """Write the sizes into `sizes-NAME.yaml` and between the marks in README.md."""
    for cluster in sizes:
        (folder / f"sizes-{name(cluster.plays)}.yaml").write_text(patch(cluster, command))
    readme = folder / "README.md"
    before, _, rest = readme.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    block = f"{BEGIN}\n\n{_wrapped(command, '    ')}\n\n{table(sizes, behind)}\n\n{END}"
    readme.write_text(before + block + after)


def main() -> None:
    """Print the sizes, or write them into the folder of the manifests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plays", type=float, nargs="+", required=True, help="for example 1e9 1e10")
    kinds = [
        (field.name, float if field.type is float else int) for kind in (Measured, Wanted) for field in fields(kind)
    ]
    for field, kind in kinds:
        parser.add_argument(f"--{field.replace('_', '-')}", type=kind, required=True)
    later = parser.add_argument_group("the stages behind sessionize")
    for field in fields(MeasuredBehind):
        later.add_argument(f"--{field.name.replace('_', '-')}", type=float)
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="infra/spark: README.md and sizes-NAME.yaml there")
    options = vars(parser.parse_args())
    measured = Measured(**{field.name: options[field.name] for field in fields(Measured)})
    wanted = Wanted(**{field.name: options[field.name] for field in fields(Wanted)})
    figures = {field.name: options[field.name] for field in fields(MeasuredBehind)}
    missing = [f"--{name.replace('_', '-')}" for name, value in figures.items() if value is None]
    if 0 < len(missing) < len(figures):
        parser.error(f"of the stages behind sessionize {', '.join(missing)} is missing: give all of them, or none")
    behind = None if missing else MeasuredBehind(**figures)
    sizes = [size(plays, measured, wanted) for plays in options["plays"]]
    if options["write"]:
        write(options["write"], sizes, shlex.join(["python", "-m", "benchmarks.cluster_sizes", *sys.argv[1:]]), behind)
    print(table(sizes, behind))


if __name__ == "__main__":
    main()
