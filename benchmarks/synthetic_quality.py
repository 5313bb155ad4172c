"""The value of elapsed time on the synthetic logs: `python -m benchmarks.synthetic_quality`.

With the generator's dial at its default and at 0: FuXi-beta with and without its temporal channel, popularity, Markov,
and the ceiling of the generating process, on one serving day under the protocol next_day. The stages are those of
`fuxi daily`, each setting in a workspace of its own. At 0 elapsed time carries no information, so the two FuXi-betas
must tie. There are four times the listeners of the demo and ten epochs, because with fewer the network learns too
little for elapsed time to matter.
"""

import argparse
import json
import shutil
import tempfile
from typing import Any

from benchmarks.lib.ceiling import ceiling
from jobs.commands.demo import CATALOGUE, FIRST_LANDING_DAY, HISTORY_DAYS, SERVING_DAYS, demo_config
from jobs.day import open_day, run_stage
from jobs.runtime import machine
from jobs.stages import evaluate, sessionize, train
from pipelines.synthetic import SyntheticConfig, generate

DS = SERVING_DAYS[0]
METRICS = ("ndcg_30", "hr_30", "recall_30")
NAMES = {"pow": "FuXi-beta", "zero": "FuXi-beta, temporal channel off"}


def measure(root: str, *, dial: float, listeners: int, overrides: list[str]) -> list[dict[str, Any]]:
    """The rows of one setting of the dial."""
    rows: list[dict[str, Any]] = []
    logs = f"{root}/logs"
    settings = SyntheticConfig(
        listeners=listeners, **CATALOGUE, first_day=FIRST_LANDING_DAY, days=HISTORY_DAYS, elapsed_time=dial
    )
    generate(settings, logs)
    for temporal, name in NAMES.items():
        where = [f"logs.path={logs}/plays", f"logs.catalogue={logs}/catalogue", f"model.temporal={temporal}"]
        config = demo_config(f"{root}/{temporal}", [*where, *overrides])
        day = open_day(config, DS)
        for stage in (sessionize, train):
            run_stage(day, stage.__name__.rpartition(".")[2], stage.run)
        measured = run_stage(day, "evaluate", evaluate.run)
        rows.append({"dial": dial, "recommender": name, **measured["metrics"]["challenger"]["all"]})
        if temporal == "zero":
            for baseline in ("markov", "popularity"):
                rows.append({"dial": dial, "recommender": baseline, **measured["metrics"][baseline]["all"]})
            for knows in ("history", "state"):
                best = ceiling(config.workspace, logs, DS, knows=knows)
                rows.append({"dial": dial, "recommender": f"ceiling, knows the {knows}", **best})
    return rows


def main() -> None:
    """Print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="300 listeners, one epoch: shows that it runs")
    parser.add_argument("--listeners", type=int, default=12_000)
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    epochs, listeners = (1, 300) if options.quick else (10, options.listeners)
    overrides = [f"train.epochs={epochs}", "train.batch_size=64", *options.overrides]
    rows = []
    for dial in (1.0, 0.0):
        root = tempfile.mkdtemp(prefix="synthetic-quality-")
        try:
            rows += measure(root, dial=dial, listeners=listeners, overrides=overrides)
        finally:
            shutil.rmtree(root, ignore_errors=True)
    print(f"{'dial':>4}  {'recommender':<34}" + "".join(f"{name:>11}" for name in METRICS))
    for row in rows:
        print(f"{row['dial']:>4}  {row['recommender']:<34}" + "".join(f"{row[name]:>11.4f}" for name in METRICS))
    print(json.dumps({"benchmark": "synthetic_quality", "machine": machine.describe(), "rows": rows}))


if __name__ == "__main__":
    main()
