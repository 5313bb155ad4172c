"""A day on which lists are due: shards, a model and a catalogue, for benchmarks that make or measure lists.

The model is not trained. Item vectors are an artist's and the song's own in equal parts, as training makes them, so
that rankings hold many songs by few artists and the artist cap has to pass over them.
"""

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from benchmarks.lib import industrial_shards
from benchmarks.lib.industrial_shards import FILES, Scale, write_buckets
from fuxi_beta import models
from fuxi_beta.baselines.popularity import Popularity, fit_popularity
from fuxi_beta.config import EvaluateConfig, ModelConfig, TrainConfig
from fuxi_beta.training.checkpoint import TrainedModel
from jobs.config import RecommendConfig, RulesConfig
from jobs.serving.make_lists import ListJob, list_table
from jobs.serving.rules import ListRules, MadeLists, SongFacts, strangers
from jobs.serving.stored_listeners import NONE, Dislikes, StoredListeners
from jobs.tables import recommendations
from jobs.tables.published_lists import published_lists
from jobs.tables.recommendations import write_part
from pipelines.calendar import Calendar
from pipelines.histories.buckets import user_bucket
from pipelines.histories.histories import Histories
from pipelines.histories.shards import Manifest, ShardFile
from pipelines.schema import SOURCE_MODEL, USER_ID
from pipelines.workspace import Workspace, WorkspaceSpec

DS = dt.date(2026, 3, 4)
CALENDAR = Calendar()
SONGS, EVENTS, LONGEST, K, LISTED_DAYS = 33_162, 100.0, 201, 30, 7
LAST_HOURS = 12  # before DS in which everybody's last play is
SONGS_OF_AN_ARTIST = 4  # on average
FIRST_ID = 10_000  # item_id of the first song


MODEL = ModelConfig(dim=64, layers=2)


@dataclass(frozen=True)
class Size:
    """How many listeners and songs, and the model's shape."""

    listeners: int
    songs: int = SONGS
    model: ModelConfig = MODEL


def write_histories(folder: Path, size: Size) -> Manifest:
    """Shards of listeners with `EVENTS` plays on average, the last on the evening before DS, in the buckets of their
    ids.
    """
    ids = np.arange(size.listeners)
    bucket = user_bucket(pa.array(ids), FILES)
    end = CALENDAR.day_start(DS)

    def buckets() -> Iterator[Histories]:
        for number in range(FILES):
            own = ids[bucket == number]
            scale = Scale(len(own) * FILES, songs=size.songs, mean=EVENTS, longest=LONGEST)
            histories = industrial_shards.histories_of(number, scale)
            newest = histories.timestamp[histories.offsets[1:] - 1]
            late = end - np.random.default_rng(number).integers(1, LAST_HOURS * 3600, len(own)) - newest
            times = histories.timestamp + late[histories.listener]
            yield replace(histories, user_id=pa.array(own), timestamp=times)

    return write_buckets(folder, buckets(), songs=size.songs, data_end=end, row_group_events=1_000_000)


def artists(songs: int) -> np.ndarray:
    """Number of each song's artist from 1, 0 for the padding row: few have hundreds of songs, most have one. [V]."""
    random, count = np.random.default_rng(1), songs // SONGS_OF_AN_ARTIST
    weight = (np.arange(count) + 5.0) ** -0.8
    return np.concatenate([[0], random.choice(count, songs, p=weight / weight.sum()) + 1])


def untrained(size: Size, artist: np.ndarray, *, mode: str = "exclusive", seed: int = 0) -> TrainedModel:
    """A model as it is before its first step, with item vectors that know artists."""
    torch.manual_seed(seed)
    rows, dim = size.songs + 1, size.model.dim
    own = torch.randn(rows, dim)
    by_artist = torch.randn(int(artist.max()) + 1, dim)
    return TrainedModel(
        model=models.build(size.model).eval(),
        model_config=size.model,
        train_config=TrainConfig(mode=mode),  # type: ignore[arg-type]
        item_vectors=(own + by_artist[torch.from_numpy(artist)]) / 2**0.5,
        candidates=torch.arange(rows) > 0,
        vocabulary_size=size.songs,
        ds=str(DS),
        data_end=CALENDAR.day_start(DS),
    )


def list_job(folder: Path, manifest: Manifest, size: Size, *, rules: bool) -> ListJob:
    """The job of the day, as `fuxi recommend` makes it. rules: the defaults with a catalogue of artists, and lists of
    the days before in the table, and reasons of the songs; otherwise no rule but that nobody gets a song that
    they have heard, and no reasons.
    """
    train, item_ids = TrainConfig(), pa.array(np.arange(size.songs) + FIRST_ID)
    popular = fit_popularity(manifest, end=CALENDAR.day_start(DS), train=train, config=EvaluateConfig())
    popular = Popularity(popular.listeners, train=train, candidates=popular.listeners > 0)
    artist = artists(size.songs)
    workspace = Workspace(str(folder / "workspace"), WorkspaceSpec(buckets=FILES))
    recommendations.open_lists(workspace)
    facts = SongFacts(len(artist), artist=torch.from_numpy(artist) if rules else None)
    job = ListJob(
        ds=DS,
        calendar=CALENDAR,
        table_uri=workspace.recommendations,
        manifest=manifest,
        item_ids=item_ids,
        popularity=popular,
        recommender=untrained(size, artist),
        source=SOURCE_MODEL,
        model_config=ModelConfig(),
        rules=ListRules(RulesConfig(), facts, mode="exclusive", k=K),  # type: ignore[call-arg]
        model_version="1",
        stale_days=0,
        k=K,
        active_days=365,
        reasons=RecommendConfig().reasons if rules else 0,  # type: ignore[call-arg]
    )
    if rules:
        job.rules.listeners = _earlier_lists(workspace, job)
    return job


def _earlier_lists(workspace: Workspace, job: ListJob) -> StoredListeners:
    """Random lists of every listener on each of the days before, published, and the listeners as rules know them."""
    table, random = recommendations.open_lists(workspace), np.random.default_rng(2)
    days = [job.ds - dt.timedelta(days=back) for back in range(LISTED_DAYS, 0, -1)]
    for day in days:
        parts = [write_part(job.table_uri, day, _random_lists(job, file, random)) for file in job.manifest.files]
        recommendations.commit(table, day, parts, key=day.toordinal(), metadata={})
    lists = published_lists(workspace, days)
    return StoredListeners(
        lists=lists,
        before=lists[-1],
        buckets=FILES,
        item_ids=job.item_ids,
        dislikes=Dislikes(NONE, NONE),
        segments=(),
        segment_of=NONE,
    )


def _random_lists(job: ListJob, file: ShardFile, random: np.random.Generator) -> pa.Table:
    users = job.manifest.read(file, None, [USER_ID])[USER_ID].combine_chunks()
    made = MadeLists.empty_of(strangers(len(users)), job.k)
    made.items[:] = torch.from_numpy(random.integers(1, len(job.item_ids) + 1, made.items.shape))
    made.scores[:] = 0.0
    return list_table(job, users, made, np.ones(len(users), bool), bucket=file.bucket)
