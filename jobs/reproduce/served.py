"""List rules for experiments: those of an unchanged configuration, with what the catalogue of the data set says."""

import pyarrow as pa

from fuxi_beta.baselines.popularity import Popularity
from fuxi_beta.evaluation.protocol import ListMaker
from jobs.config import RulesConfig, load_config
from jobs.day import Day
from jobs.serving.rules import ListRules
from jobs.serving.song_facts import song_facts
from pipelines import storage
from pipelines.errors import InputError
from pipelines.histories import vocabulary
from pipelines.histories.shards import Manifest
from pipelines.schema import ITEM_ID
from pipelines.workspace import open_workspace

_K = 30  # songs of a list as it is served


def item_ids(manifest: Manifest) -> pa.Array:
    """item_id of the songs 1..V."""
    workspace = open_workspace(storage.parent(storage.parent(manifest.folder)))
    songs = vocabulary.read(workspace.vocabulary, manifest.item_id_type).table
    return songs[ITEM_ID].combine_chunks()[: manifest.vocabulary_size]


def default_rules(manifest: Manifest, popularity: Popularity) -> ListMaker:
    """Makes lists under the default rules. Raises InputError where they change nothing: without artists of songs.

    Nothing is known of listeners besides their histories: no lists of earlier days, no feedback, no segments.
    """
    workspace = open_workspace(storage.parent(storage.parent(manifest.folder)))
    config = load_config(overrides=[f"workspace={workspace.uri}"], environment={})
    songs = song_facts(Day(config, manifest.ds, workspace), item_ids(manifest), popularity=popularity.listeners)
    if songs.artist is None:
        raise InputError(f"{workspace.uri}: no catalogue names the artists of its songs: leave --served out")
    return ListRules(RulesConfig(), songs, mode=popularity.mode, k=_K).as_list_maker  # type: ignore[call-arg]
