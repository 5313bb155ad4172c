"""What a day has published and what is left of killed runs, by a process that has cached nothing: JSON on its output.

python -m benchmarks.lib.chaos.inspect_day CONFIG_FILE DS
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Inspected:
    """`outcome`: of `outcome.outcome`; lines for each file that is damaged, and for each that is left."""

    outcome: dict[str, Any]
    damaged: list[str]
    left: list[str]


def inspect(config_file: Path, ds: str, *, environment: Mapping[str, str]) -> Inspected:
    """Look at a day in a fresh process. RuntimeError if it cannot be read."""
    command = [sys.executable, "-m", "benchmarks.lib.chaos.inspect_day", str(config_file), ds]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(environment))
    if done.returncode:
        raise RuntimeError(f"{ds} of {config_file} cannot be read: {done.stderr.strip()[-2000:]}")
    return Inspected(**json.loads(done.stdout.splitlines()[-1]))


def look(day: Any) -> Inspected:
    """The same of a `jobs.day.Day`, in this process."""
    from benchmarks.lib.chaos import leftovers
    from benchmarks.lib.chaos.outcome import outcome
    from jobs.commands import verify

    left = leftovers.of_workspace(day)
    return Inspected(outcome(day), list(verify.run(day.workspace.uri).damaged), left)


def main() -> None:
    """Print it."""
    import tempfile

    from jobs.config import load_config
    from jobs.day import open_day
    from pipelines.schema import parse_ds

    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    with tempfile.TemporaryDirectory() as scratch:
        tempfile.tempdir = scratch  # for what MLflow downloads
        day = open_day(load_config(sys.argv[1], environment={}), parse_ds(sys.argv[2]), create=False)
        print(json.dumps(look(day).__dict__, default=str))


if __name__ == "__main__":
    main()
