"""The side information of a data set: what the catalogue of its workspace's day says of its songs."""

import numpy as np
import pyarrow as pa

from fuxi_beta.config import ModelConfig
from fuxi_beta.data.side import align, appearance, takes_side
from jobs.config import load_config
from jobs.day import Day
from jobs.serving.catalogue import catalogue_files, read_vocabulary
from jobs.training.side import catalogue
from pipelines import storage
from pipelines.calendar import Calendar
from pipelines.histories.shards import Manifest
from pipelines.schema import AVAILABLE_FROM, ITEM_ID, RELEASE_DATE
from pipelines.workspace import open_workspace


def catalogue_of(manifest: Manifest, model: ModelConfig) -> pa.Table | None:
    """The columns that a model takes, a row a song in the order of item indices; None if it takes none.

    Raises InputError if the day has no catalogue, or one without such a column.
    """
    if not takes_side(model):
        return None
    return _aligned(manifest, model)


def appearances(manifest: Manifest) -> np.ndarray | None:
    """When each song of the catalogue is out, Unix seconds, int64 [V]; None without a catalogue that says so."""
    rows = _aligned(manifest, ModelConfig())
    if rows is None or not {RELEASE_DATE, AVAILABLE_FROM} & set(rows.column_names):
        return None
    return appearance(rows, Calendar(manifest.timezone))


def day_of(manifest: Manifest, model: ModelConfig | None = None) -> Day:
    """The day of some sequences, under an unchanged configuration but for the model."""
    workspace = open_workspace(storage.parent(storage.parent(manifest.folder)))
    config = load_config(overrides=[f"workspace={workspace.uri}"], environment={})
    return Day(config.model_copy(update={"model": model or config.model}), manifest.ds, workspace)


def item_ids(manifest: Manifest) -> pa.Array:
    """item_id of the songs 1..V."""
    return read_vocabulary(day_of(manifest), of=manifest)[ITEM_ID].combine_chunks()


def _aligned(manifest: Manifest, model: ModelConfig) -> pa.Table | None:
    day = day_of(manifest, model)
    if not takes_side(model) and not catalogue_files(day):
        return None
    return align(catalogue(day), item_ids(manifest))
