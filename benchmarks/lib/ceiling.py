"""The best score that the process behind synthetic logs allows, measured as `fuxi evaluate` measures models."""

import datetime as dt
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from pipelines import storage
from pipelines.calendar import Calendar
from pipelines.histories import vocabulary
from pipelines.histories.shards import read_manifest
from pipelines.schema import ITEM_ID
from pipelines.synthetic.ceiling import oracle_lists
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
    from fuxi_beta.config import TrainConfig
    from fuxi_beta.evaluation.metrics import RankedLists, list_metrics
    from fuxi_beta.evaluation.next_day import NextDayCases
    from jobs.stages.evaluate import known_songs

    space = open_workspace(workspace)
    manifest = read_manifest(space.sequences(ds))
    calendar = Calendar(space.spec.timezone)  # of the default request hour, which is that of the generator
    cut = calendar.day_start(ds - dt.timedelta(days=1))
    known = known_songs(manifest, before=cut)
    cases = NextDayCases(manifest, ds, calendar, TrainConfig(), known, max_listeners)
    songs = vocabulary.read(space.vocabulary, manifest.item_id_type).table[ITEM_ID].to_numpy()
    item_ids = np.concatenate([[0], songs[: manifest.vocabulary_size]])  # by item_index
    users, heard, truth = _cases(cases, item_ids)
    lists = oracle_lists(
        storage.absolute(logs),
        ds - dt.timedelta(days=1),
        np.array(users, np.int64),
        heard=heard,
        k=max(at),
        knows=knows,
        candidates=item_ids[np.flatnonzero(known)],
    )
    hits = np.array([np.isin(row, wanted) for row, wanted in zip(lists, truth, strict=True)])
    relevant = np.array([len(wanted) for wanted in truth])
    ranked = RankedLists(lists, hits, relevant, heard=np.zeros_like(hits))  # the oracle leaves out heard songs
    means = {name: float(values.mean()) for name, values in list_metrics(ranked, at).items()}
    return {"listeners": len(users), "knows": knows, **means}


def _cases(cases: Any, item_ids: np.ndarray) -> tuple[list[int], list[np.ndarray], list[np.ndarray]]:
    """User, heard songs before the request, and truth of each listener who counts; songs as item ids."""
    users, heard, wanted, songs = [], [], [], len(cases.known)
    for histories, keys in cases.row_groups():
        truth = np.split(item_ids[keys % songs], np.searchsorted(keys, np.arange(1, len(histories)) * songs))
        seen = histories.before(cases.request_time)
        ids = histories.user_id.to_numpy(zero_copy_only=False)
        for row in np.unique(keys // songs):
            events = slice(seen.offsets[row], seen.offsets[row + 1])
            older = slice(seen.heard_offsets[row], seen.heard_offsets[row + 1])
            indices = np.unique(np.concatenate([seen.item_index[events], seen.heard_items[older]]))
            users.append(int(ids[row]))
            heard.append(item_ids[indices])
            wanted.append(truth[row])
    return users, heard, wanted
