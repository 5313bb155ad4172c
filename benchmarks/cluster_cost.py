"""What a day of `fuxi sessionize` costs on this machine, as arguments of `benchmarks.cluster_sizes`.

    python -m benchmarks.cluster_cost --ds 2026-01-30 --config daily.yaml

takes the arguments of `fuxi sessionize`, runs it, samples the memory of its processes and prints the arguments for
`python -m benchmarks.cluster_sizes`. The day must not be finished yet. Memory is proportional set size (Linux): pages
that processes share count once.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time

import psutil

from jobs.config import load_config
from pipelines import storage
from pipelines.histories.build import plan_shuffle
from pipelines.histories.shards import read_manifest

SAMPLE_S = 0.1


class Peaks:
    """Peak memory of the driver's Python and of any one Python worker, in bytes."""

    def __init__(self) -> None:
        self.driver = self.worker = 0

    def sample(self, driver: psutil.Process) -> None:
        """Read the memory of the driver and its workers once."""
        self.driver = max(self.driver, _pss(driver))
        for process in driver.children(recursive=True):
            try:
                is_worker = "pyspark.daemon" in process.cmdline()
            except psutil.Error:
                continue
            if is_worker:
                self.worker = max(self.worker, _pss(process))


def _pss(process: psutil.Process) -> int:
    try:
        return process.memory_full_info().pss
    except psutil.Error:
        return 0


def watch(arguments: list[str]) -> tuple[dict, Peaks]:
    """Run `fuxi sessionize`. Returns its result and the peak memory of its processes."""
    command = [sys.executable, "-m", "jobs.cli", "sessionize", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        driver, peaks = psutil.Process(process.pid), Peaks()
        while process.poll() is None:
            peaks.sample(driver)
            time.sleep(SAMPLE_S)
        output = process.stdout.read() if process.stdout else ""
    if process.returncode:
        sys.exit(process.returncode)
    return json.loads(output), peaks


def main() -> None:
    """Print the arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--ds", required=True)
    parser.add_argument("--config")
    parser.add_argument("--workspace")
    parser.add_argument("--set", action="append", default=[])
    given, _ = parser.parse_known_args()
    overrides = [*given.set, *([f"workspace={given.workspace}"] if given.workspace else [])]
    config = load_config(given.config, overrides=overrides)
    result, peaks = watch(sys.argv[1:])
    if result.get("skipped"):
        sys.exit(f"ds {given.ds} was done before: give another --workspace, or --force")
    manifest = read_manifest(storage.join(storage.absolute(config.workspace), "sequences", f"ds={given.ds}"))
    cores, rows, plays = os.cpu_count() or 1, result["rows_read"], result["accepted"]
    shuffle = plan_shuffle(manifest.buckets, rows, parallelism=cores, max_history=manifest.max_history)
    arguments = {
        "cpu-s-per-million": f"{result['cpu_s_per_million_rows']:.3g}",
        "busy": f"{result['cpu_s'] / (result['wall_s'] * cores):.2f}",
        "task-mib": f"{peaks.worker / 2**20:.0f}",
        "partition-plays": f"{plays / shuffle.partitions:.3g}",
        "log-bytes": f"{result['input_bytes'] / rows:.3g}",
        "temporary-bytes": f"{result['temporary_bytes'] / plays:.3g}",
        "shard-bytes": f"{sum(layer.bytes for file in manifest.files for layer in file.layers) / plays:.3g}",
        "driver-mib": f"{peaks.driver / 2**20:.0f}",
    }
    print(shlex.join([word for name, value in arguments.items() for word in (f"--{name}", value)]))


if __name__ == "__main__":
    main()
