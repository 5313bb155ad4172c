"""The list rules of a serving day: its configuration, catalogue, listeners and tables brought together."""

import datetime as dt
from typing import TYPE_CHECKING

import pyarrow as pa

from jobs.day import Day
from jobs.serving.catalogue import read_vocabulary
from jobs.serving.rules import ListRules
from jobs.serving.song_facts import song_facts
from jobs.serving.stored_listeners import stored_listeners
from pipelines.errors import InputError
from pipelines.histories.shards import Manifest
from pipelines.schema import ITEM_ID

if TYPE_CHECKING:
    from fuxi_beta.baselines.popularity import Popularity
    from fuxi_beta.config import TrainConfig


def day_rules(day: Day, ds: dt.date, item_ids: pa.Array, popularity: "Popularity") -> ListRules:
    """The rules under which the lists of `ds` are made, with what is known on the day `day`.

    item_ids: of the songs 1..V. Raises InputError if a rule cannot hold with this catalogue, or a table of the
    configuration's `rules` cannot be used.
    """
    config = day.config
    songs = song_facts(day, item_ids, popularity=popularity.listeners)
    listeners = stored_listeners(day, ds, item_ids, songs)
    return ListRules(config.rules, songs, mode=popularity.mode, k=config.recommend.k, listeners=listeners)


def read_item_ids(day: Day, manifest: Manifest) -> pa.Array:
    """item_id of the songs 1..V of a manifest. InputError if the vocabulary has lost some."""
    songs = read_vocabulary(day, of=manifest)
    if songs.num_rows != manifest.vocabulary_size:
        raise InputError(
            f"{day.workspace.vocabulary} has {songs.num_rows} songs, the manifest of {manifest.ds} says "
            f"{manifest.vocabulary_size}: restore the vocabulary"
        )
    return songs[ITEM_ID].combine_chunks()


def recent_popularity(day: Day, manifest: Manifest, train: "TrainConfig") -> "Popularity":
    """Songs that anybody played in the days before the cut, by distinct listeners."""
    from fuxi_beta.baselines.popularity import Popularity, fit_popularity

    end = day.calendar.day_start(day.ds)
    listeners = fit_popularity(manifest, end=end, train=train, config=day.config.evaluate).listeners
    return Popularity(listeners, train=train, candidates=listeners > 0)
