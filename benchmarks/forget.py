"""The cost of forgetting listeners, and of the blocklist on every later day.

    python -m benchmarks.forget --root DIR --events 10000000

Writes industrial logs below DIR, sessionizes all but the last landing day, lays the last one over them as increments,
and then forgets more and more listeners. The last line is one JSON object.
"""

import argparse
import datetime as dt
import json
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.lib.industrial_logs import day_folders, logs_of, serving_day
from jobs.commands import forget
from jobs.config import Config, load_config
from jobs.day import open_day
from jobs.stages import sessionize
from pipelines.forget import blocklist
from pipelines.histories.shards import Manifest, read_manifest

LISTED = 100_000  # listeners on the blocklist


def main() -> None:
    """Print the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder for logs and workspace")
    parser.add_argument("--events", type=int, default=10_000_000)
    options = parser.parse_args()
    logs = logs_of(Path(options.root), events=options.events, workers=2)
    folder = f"{options.root}/forget-{time.time_ns()}"
    config = load_config(overrides=[f"workspace={folder}", f"logs.path={logs}", "quality.max_volume_ratio=100"])
    last = dt.date.fromisoformat(serving_day(logs))
    days = [last - dt.timedelta(days=1), last]
    assert len(day_folders(logs)) > 1
    folders = [_publish(config, ds) for ds in days]
    rows = [*_list_cost(folder), *(_forget(config, read_manifest(folders[-1]), n) for n in (1, 1_000, LISTED))]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(json.dumps({"benchmark": "forget", "events": options.events, "peak_gb": round(peak, 2), "rows": rows}))


def _publish(config: Config, ds: dt.date) -> str:
    day = open_day(config, ds)
    day.finish("sessionize", sessionize.run(day), 0.0)
    return day.workspace.sequences(ds)


def _list_cost(folder: str) -> list[dict[str, Any]]:
    """Processor seconds for a million rows of logs, with an empty blocklist and with LISTED listeners on it."""
    rng = np.random.default_rng(0)
    rows = []
    for kind in ("int64", "string"):
        ids = rng.integers(0, 20_000_000, 65_536 * 20)
        batches = [pa.array(part) for part in np.split(ids, 20)]
        listed = pa.array(np.unique(rng.integers(0, 20_000_000, LISTED)))
        if kind == "string":
            batches = [pa.array([f"user-{n}" for n in batch.to_pylist()]) for batch in batches]
            listed = pa.array([f"user-{n}" for n in listed.to_pylist()])
        blocklist.add(f"{folder}/list-{kind}", listed)
        for name, blocked in (("nobody", blocklist.empty()), (f"{LISTED:,}", blocklist.load(f"{folder}/list-{kind}"))):
            blocked.mask(batches[0])
            started = time.process_time()
            for batch in batches:
                blocked.mask(batch)
            seconds = (time.process_time() - started) / len(ids) * 1e6
            rows.append({"case": f"{name} on the list, {kind}", "cpu_s_per_million_rows": round(seconds, 4)})
    return rows


def _forget(config: Config, manifest: Manifest, count: int) -> dict[str, Any]:
    users = np.concatenate([manifest.read(f, None, ["user_id"])["user_id"].to_numpy() for f in manifest.files])
    count = min(count, len(users))
    gone = pa.array(np.random.default_rng(count).choice(users, count, replace=False))
    started, cpu = time.monotonic(), time.process_time()
    result = forget.forget(config, gone)
    rewritten = result.stores["sequences"]
    return {
        "case": f"forget {count:,} of {len(users):,}",
        "files": rewritten.files,
        "rows": rewritten.rows,
        "wall_s": round(time.monotonic() - started, 2),
        "cpu_s": round(time.process_time() - cpu, 2),
    }


if __name__ == "__main__":
    main()
