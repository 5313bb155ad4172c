"""List rules for experiments: those of an unchanged configuration, with what the catalogue of the data set says."""

from fuxi_beta.baselines.popularity import Popularity
from fuxi_beta.evaluation.protocol import ListMaker
from jobs.config import RulesConfig
from jobs.reproduce.side import day_of, item_ids
from jobs.serving.rules import ListRules
from jobs.serving.song_facts import song_facts
from pipelines.errors import InputError
from pipelines.histories.shards import Manifest

_K = 30  # songs of a list as it is served


def default_rules(manifest: Manifest, popularity: Popularity) -> ListMaker:
    """Makes lists under the default rules. Raises InputError where they change nothing: without artists of songs.

    Nothing is known of listeners besides their histories: no lists of earlier days, no feedback, no segments.
    """
    day = day_of(manifest)
    songs = song_facts(day, item_ids(manifest), popularity=popularity.listeners)
    if songs.artist is None:
        raise InputError(f"{day.workspace.uri}: no catalogue names the artists of its songs: leave --served out")
    return ListRules(RulesConfig(), songs, mode=popularity.mode, k=_K).as_list_maker  # type: ignore[call-arg]
