"""What the process behind synthetic logs allows, measured on the same cases as recommenders are.

A ceiling has a run of its own like a recommender: lists by the true probabilities (`pipelines.synthetic.ceiling`) of
songs that were known before a day's cut and not heard before its request.
"""

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from fuxi_beta.evaluation.metrics import RankedLists
from fuxi_beta.evaluation.next_day import Chunk
from jobs.places import located
from jobs.reproduce.side import item_ids
from pipelines import storage
from pipelines.errors import InputError
from pipelines.histories.shards import Manifest
from pipelines.synthetic.ceiling import oracle_lists
from pipelines.synthetic.config import GENERATOR_VERSION


@dataclass(frozen=True)
class OracleLists:
    """Makes the lists of chunks. logs: the folder of the synthetic log, with `plays/` and `truth/`."""

    manifest: Manifest
    logs: str
    knows: Literal["state", "history"]
    k: int

    @cached_property
    def item_ids(self) -> np.ndarray:
        """By item index, 0 for the padding. int64 [V]."""
        return np.concatenate([[0], item_ids(self.manifest).to_numpy()])

    def lists(self, chunk: Chunk) -> Iterator[tuple[str, str, RankedLists]]:
        """One recommender, "run", and its raw lists."""
        cases, seen = chunk.cases, chunk.histories.before(chunk.cases.request_time)
        width, rows = len(cases.known), np.arange(len(seen))
        row, song = np.divmod(seen.pairs(rows), 1 << 32)
        heard = np.split(self.item_ids[song], np.searchsorted(row, rows[1:]))
        lists = oracle_lists(
            self.logs,
            cases.ds - dt.timedelta(days=1),
            seen.users,
            heard=heard,
            k=self.k,
            knows=self.knows,
            candidates=self.item_ids[np.flatnonzero(cases.known)],
        )
        order = np.argsort(self.item_ids, kind="stable")
        items = order[np.searchsorted(self.item_ids[order], lists)]
        yield "run", "", chunk.marked(items, row * width + song)


def synthetic_logs(manifest: Manifest) -> str | None:
    """The folder of the synthetic log that the shards were built from; None if there is none with a ceiling."""
    workspace = storage.parent(storage.parent(manifest.folder))
    record = storage.join(workspace, "runs", f"ds={manifest.ds}", "run_record.json")
    places = {"workspace": workspace}
    if storage.exists(record):  # logs outside of the workspace are where they were
        places["logs.path"] = located(storage.read_json(record).get("logs_path", ""), places)
    files = located(storage.read_table(manifest.uri(manifest.inputs))["uri"].to_pylist(), places)
    folder = storage.parent(files[0]) if files else ""
    for _ in range(3):  # plays/ds=D/part
        marker = storage.join(folder, "_synthetic.json")
        if folder and storage.exists(marker):
            return folder if storage.read_json(marker).get("generator_version") == GENERATOR_VERSION else None
        folder = storage.parent(folder) if folder else ""
    return None


def oracle(manifest: Manifest, system: str, *, k: int) -> OracleLists:
    """The lists of `systems.CEILINGS`. Raises InputError if the logs are not synthetic."""
    logs = synthetic_logs(manifest)
    if logs is None:
        raise InputError(f"{manifest.folder}: {system} needs the synthetic logs these were built from: leave it out")
    return OracleLists(manifest, logs, "state" if system.endswith("state") else "history", k)
