"""The best score that the process behind synthetic logs allows, measured as `fuxi evaluate` measures models."""

import datetime as dt
from collections.abc import Sequence
from typing import Any, Literal

from pipelines import storage
from pipelines.calendar import Calendar
from pipelines.histories.shards import read_manifest
from pipelines.workspace import open_workspace


def ceiling(
    workspace: str,
    logs: str,
    ds: dt.date,
    *,
    knows: Literal["state", "history"] = "state",
    at: Sequence[int] = (30,),
    max_listeners: int = 100_000,
) -> dict[str, Any]:
    """Metrics of the oracle under `next_day` for serving day `ds`, on the listeners `fuxi evaluate` uses.

    workspace: holds the sequences of `ds`, built from the synthetic logs in `logs` (the folder with `plays/`).
    knows: see `pipelines.synthetic.ceiling.oracle_probabilities`. Returns listeners and every
    registered metric of lists at the cut-offs `at`.
    """
    from fuxi_beta.config import EvaluateConfig, TrainConfig
    from fuxi_beta.evaluation.next_days import cases_of_days, first_events, measure_cases
    from jobs.reproduce.ceiling import OracleLists

    space = open_workspace(workspace)
    manifest = read_manifest(space.sequences(ds))
    calendar = Calendar(space.spec.timezone)  # of the default request hour, which is that of the generator
    config, first = EvaluateConfig(at=tuple(at), max_listeners=max_listeners), first_events(manifest)
    cases = cases_of_days(manifest, [ds], calendar=calendar, train=TrainConfig(), config=config, first_event=first)
    oracle = OracleLists(manifest, storage.absolute(logs), knows, max(at))
    result = measure_cases(cases, oracle.lists, config=config, first_event=first)
    return {"listeners": result.listeners, "knows": knows, **result.metrics["run"]["all"]}
