"""What a day asks of an object store: `python -m benchmarks.s3_requests [--scales 0.002 0.01]`.

Logs, catalogue and workspace are on an S3 server (moto) behind a proxy that counts. For every scale of the paper's
Daily Recommendations preset two serving days run as a user would run them, and each stage's requests and bytes are
those between its log line and the one before. Two scales tell what grows with the plays from what does not; from both
follows the whole preset, at list prices.
"""

import argparse
import datetime as dt
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import boto3
import yaml
from rich.console import Console
from rich.table import Table

from benchmarks.lib.fault_proxy import FaultProxy
from benchmarks.lib.industrial_logs import PRESET, synth
from benchmarks.lib.processes import available_cores, log_message
from benchmarks.lib.s3_server import environment, s3_server
from benchmarks.lib.timing import say
from jobs.day import STAGES
from jobs.runtime import machine
from pipelines import storage
from pipelines.synthetic.industrial.config import BASE_DAYS, PRESETS, industrial_config

BUCKET = "days"
KINDS = ("list", "get", "head", "put", "delete")
PRICES = {"list": 0.005, "put": 0.005, "get": 0.0004, "head": 0.0004, "delete": 0.0}
"""US dollars for a thousand requests: S3 Standard, us-east-1, https://aws.amazon.com/s3/pricing/."""
GB_MONTH = 0.023

Traffic = dict[str, Counter[str]]
"""Stage -> requests by kind, and bytes."""


class Store:
    """An S3 server with a bucket, a proxy that counts before it, and logs of a scale."""

    def __init__(self, folder: Path, scale: float) -> None:
        self.folder, self.scale, self._open = folder, scale, ExitStack()
        endpoint = self._open.enter_context(s3_server())
        os.environ |= environment(endpoint, key="counted", secret="counted-key")
        self.proxy = self._open.enter_context(FaultProxy(endpoint))
        self.client = boto3.client("s3")
        self.client.create_bucket(Bucket=BUCKET)
        self._upload_logs()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def _upload_logs(self) -> None:
        logs = self.folder / "logs"
        synth(logs, scale=self.scale, days=BASE_DAYS + 1)
        storage.upload_folder(str(logs), f"s3://{BUCKET}/logs")

    def write_settings(self) -> Path:
        """The configuration of the days."""
        content = {
            "workspace": f"s3://{BUCKET}/workspace",
            "logs": {"path": f"s3://{BUCKET}/logs/plays", "catalogue": f"s3://{BUCKET}/logs/catalogue"},
            "mlflow": {"tracking_uri": f"sqlite:///{self.folder}/mlflow.db"},
            "model": {"dim": 64, "layers": 2},
            "train": {"epochs": 1, "warm_start_epochs": 1, "batch_size": 512},
            "gates": {"serve_baseline": False},
            "cluster": {"train_workers": 1, "train_cpus_per_worker": available_cores()},
        }
        file = self.folder / "daily.yaml"
        file.write_text(yaml.safe_dump(content, sort_keys=False))
        return file

    def run(self, ds: str) -> Traffic:
        """Run a day; returns what each stage asked, and "end" for what came behind the last one."""
        command = [sys.executable, "-m", "jobs.cli", "daily", "--ds", ds, "--config", str(self.write_settings())]
        env = {**os.environ, "AWS_ENDPOINT_URL": self.proxy.url}
        traffic, before = Traffic(), Counter(self.proxy.traffic)

        def close(stage: str) -> None:
            nonlocal before
            now = Counter(self.proxy.traffic)
            traffic[stage], before = now - before, now

        last = ""
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=env)
        assert process.stderr
        for line in process.stderr:
            last = line
            if stage := _done(line):
                close(stage)
        if process.wait() not in (0, 3):
            raise RuntimeError(f"fuxi daily --ds {ds} ended with exit code {process.returncode}: {last}")
        close("end")
        return traffic

    def stored_gb(self) -> float:
        """Of all objects below the workspace."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix="workspace/")
        return sum(one["Size"] for page in pages for one in page.get("Contents", [])) / 1e9


def _done(line: str) -> str:
    """The stage that a log line says is done; "" for other lines."""
    return next((name for name in STAGES if log_message(line) == f"{name} done"), "")


def dollars(requests: Counter[str] | dict[str, float]) -> float:
    """What requests cost at list prices."""
    return sum(requests.get(kind, 0) / 1000 * price for kind, price in PRICES.items())


def extrapolated(plays: Sequence[float], counts: Sequence[float], wanted: float) -> float:
    """A count at `wanted` plays, of a line through the smallest and the largest number of plays; never below a count.

    >>> extrapolated([1, 3], [10, 14], 11), extrapolated([1, 3], [10, 9], 11)
    (30.0, 10.0)
    """
    slope = (counts[-1] - counts[0]) / (plays[-1] - plays[0]) if len(plays) > 1 else 0.0
    return max(counts[0] + slope * (wanted - plays[0]), *map(float, counts)) if slope > 0 else float(max(counts))


def print_day(title: str, traffic: Traffic) -> None:
    """A line a stage."""
    table = Table("stage", title=title)
    for column in (*KINDS, "MB written", "MB read", "dollars"):
        table.add_column(column, justify="right")
    total = sum(traffic.values(), Counter[str]())
    for stage, found in [*traffic.items(), ("all", total)]:
        cells = [f"{found[kind]:,}" for kind in KINDS] + [f"{found['in'] / 1e6:,.1f}", f"{found['out'] / 1e6:,.1f}"]
        table.add_row(stage, *cells, f"{dollars(found):.4f}", style="bold" if stage == "all" else "")
    Console(width=110).print(table)


def print_whole(plays: Sequence[float], days: Sequence[Traffic], stored: Sequence[float], which: str) -> None:
    """The whole preset by a line through the scales: requests of every stage and what they cost."""
    wanted = PRESETS[PRESET][2]
    table = Table("stage", title=f"{which} at {wanted / 1e6:,.0f} M plays, by a line through the scales")
    for column in (*KINDS, "dollars"):
        table.add_column(column, justify="right")
    total: Counter[str] = Counter()
    for stage in days[0]:
        found = {kind: extrapolated(plays, [day[stage][kind] for day in days], wanted) for kind in KINDS}
        total.update({kind: round(value) for kind, value in found.items()})
        table.add_row(stage, *(f"{found[kind]:,.0f}" for kind in KINDS), f"{dollars(found):.4f}")
    table.add_row("all", *(f"{total[kind]:,}" for kind in KINDS), f"{dollars(total):.4f}", style="bold")
    size = extrapolated(plays, stored, wanted)
    table.caption = f"workspace {size:.1f} GB: {size * GB_MONTH:.2f} dollars a month"
    Console(width=110).print(table)


def main() -> None:
    """Run two days of every scale and print what they asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scales", type=float, nargs="+", default=[0.002, 0.01], help="of the preset, ascending")
    options = parser.parse_args()
    plays, days, afters, stored = [], [], [], []
    for scale in sorted(options.scales):
        config = industrial_config(PRESET, scale=scale)
        first = config.first_day + dt.timedelta(days=BASE_DAYS)
        with tempfile.TemporaryDirectory(prefix="fuxi-s3-") as folder, Store(Path(folder), scale) as store:
            for ds, found in ((first, days), (first + dt.timedelta(days=1), afters)):
                say(f"scale {scale:g}: {ds}")
                found.append(store.run(str(ds)))
                print_day(f"ds {ds}, {config.interactions / 1e6:,.1f} M plays on S3", found[-1])
            stored.append(store.stored_gb())
        plays.append(config.interactions)
    if len(plays) > 1:
        print_whole(plays, days, stored, "the first day")
        print_whole(plays, afters, stored, "the day after")
    lines = [{"plays": n, "day": d, "day_after": a} for n, d, a in zip(plays, days, afters, strict=True)]
    print(json.dumps({"benchmark": "s3_requests", "machine": machine.describe(), "scales": lines}))


if __name__ == "__main__":
    main()
