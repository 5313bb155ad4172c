"""What each list rule costs in NDCG@30 as served, and what it gives: `python -m benchmarks.list_rules`.

Reads a workspace that `make daily` has made. The challenger of a day makes the lists of a week under each setting of
the rules, a day's list knowing the lists of the days before, and the last is measured by the protocol `next_day`.
Differences are against lists with heard songs out and no other rule, with 95 % intervals of a paired bootstrap over
listeners.
"""

import argparse
import datetime as dt
from dataclasses import dataclass, field

import numpy as np
import torch

from fuxi_beta.config import ModelConfig
from fuxi_beta.evaluation.metrics import RankedLists, list_metrics
from fuxi_beta.evaluation.next_day import NextDayCases
from fuxi_beta.evaluation.protocol import Contexts
from fuxi_beta.evaluation.statistics import paired_difference
from fuxi_beta.training.checkpoint import TrainedModel, load_export
from jobs.commands.demo import SERVING_DAYS, demo_config
from jobs.day import Day, open_day
from jobs.registry import versions
from jobs.runtime import machine
from jobs.serving.baselines import known_songs
from jobs.serving.day_rules import read_item_ids, recent_popularity
from jobs.serving.rules import ListenerFacts, ListRules, MadeLists
from jobs.serving.rules.facts import SongFacts, strangers
from jobs.serving.song_facts import song_facts
from pipelines.histories.histories import Histories
from pipelines.histories.shards import read_manifest

K = 30
NO_RULE = {"listed_days": 0, "one_version": False, "max_per_artist": 0, "space_artists": False}
SETTINGS = {
    "heard songs out, no other rule": NO_RULE,
    "listed_days: 7": NO_RULE | {"listed_days": 7},
    "max_per_artist: 2": NO_RULE | {"max_per_artist": 2},
    "max_per_artist: 2, space_artists": NO_RULE | {"max_per_artist": 2, "space_artists": True},
    "max_per_artist: 1": NO_RULE | {"max_per_artist": 1},
    "new_releases: 3": NO_RULE | {"new_releases": 3},
    "popularity_dampening: 0.1": NO_RULE | {"popularity_dampening": 0.1},
    "explore: 2": NO_RULE | {"explore": 2},
    "the defaults": {},
}


@dataclass
class Measured:
    """The figures of one setting, a value a listener in each part."""

    ndcg: list[np.ndarray] = field(default_factory=list)
    hits: list[np.ndarray] = field(default_factory=list)
    artists: list[np.ndarray] = field(default_factory=list)
    overlap: list[np.ndarray] = field(default_factory=list)


@dataclass(frozen=True)
class Week:
    """Makes a listener's lists day after day."""

    day: Day
    model: TrainedModel
    songs: SongFacts

    def lists(self, rules: dict[str, object], histories: Histories, eve: dt.date) -> list[MadeLists]:
        """The lists of seven days, the last of them of `eve`, each from the plays before its day."""
        config = self.day.config.rules.model_copy(update=rules)
        engine = ListRules(config, self.songs, mode=self.model.mode, k=K)
        made: list[MadeLists] = []
        for back in range(7, -1, -1):
            ds = eve - dt.timedelta(days=back)
            calendar = self.day.calendar
            known = histories.before(calendar.day_start(ds))
            contexts = Contexts(known, calendar.request_time(ds), ModelConfig(), self.model.train_config, calendar)
            facts = strangers(len(known))
            if config.listed_days:
                facts = ListenerFacts(facts.segment, listed=_listed(made))
            made.append(engine.lists(self.model, contexts, K, facts=facts))
        return made


def _listed(made: list[MadeLists]) -> tuple[torch.Tensor, torch.Tensor]:
    places = [lists.items.nonzero() for lists in made]
    nothing = torch.zeros(0, dtype=torch.int64)
    rows = torch.cat([nothing, *(place[:, 0] for place in places)])
    return rows, torch.cat([nothing, *(lists.items[lists.items > 0] for lists in made)])


def measure(day: Day) -> dict[str, Measured]:
    """Every setting on the same listeners."""
    manifest = read_manifest(day.workspace.sequences(day.ds))
    trained = day.result("train")
    assert trained is not None
    model = load_export(versions.download_model(day, trained["model_version"]))
    popularity = recent_popularity(day, manifest, model.train_config)
    songs = song_facts(day, read_item_ids(day, manifest), popularity=popularity.listeners)
    eve = day.ds - dt.timedelta(days=1)
    known = known_songs(manifest, before=day.calendar.day_start(eve))
    cases = NextDayCases(manifest, day.ds, day.calendar, model.train_config, known, day.config.evaluate.max_listeners)
    week, found = Week(day, model, songs), {name: Measured() for name in SETTINGS}
    for histories, truth in cases.row_groups():
        relevant = np.bincount(truth // len(known), minlength=len(histories))
        rows = np.flatnonzero(relevant)
        for name, rules in SETTINGS.items():
            _measure(found[name], week, week.lists(rules, histories.take(rows), eve), truth, rows, relevant)
    return found


def _measure(
    found: Measured, week: Week, made: list[MadeLists], truth: np.ndarray, rows: np.ndarray, relevant: np.ndarray
) -> None:
    items = made[-1].items.numpy()
    keys = np.where(items > 0, rows[:, None] * week.songs.size + items, -1)
    lists = RankedLists(items, np.isin(keys, truth), relevant[rows], np.zeros(items.shape, bool))
    values = list_metrics(lists, [K])
    artist = np.sort(week.songs.artists.group.numpy()[items], axis=1)
    yesterday = (made[-1].items[:, :, None] == made[-2].items[:, None, :]).any(2)
    found.ndcg.append(values[f"ndcg_{K}"])
    found.hits.append(values[f"hr_{K}"])
    found.artists.append(1 + (np.diff(artist, axis=1) > 0).sum(axis=1))
    found.overlap.append((yesterday & (made[-1].items > 0)).float().mean(dim=1).numpy())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", default="./workspace")
    parser.add_argument("--ds", default=str(SERVING_DAYS[-1]))
    options = parser.parse_args()
    config = demo_config(options.workspace, [])
    found = measure(open_day(config, dt.date.fromisoformat(options.ds), create=False))
    plain = np.concatenate(found[next(iter(SETTINGS))].ndcg)
    print(f"{machine.describe()}, {len(plain):,} listeners, lists of {options.ds} minus one day")
    print("| rules | NDCG@30 | against none | HR@30 | artists a list | in yesterday's list |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, values in found.items():
        ndcg, hits = np.concatenate(values.ndcg), np.concatenate(values.hits)
        change = paired_difference(ndcg[None], plain[None], seed=0)
        interval = f"{change.mean:+.4f} [{change.low:+.4f}, {change.high:+.4f}]"
        artists, overlap = np.concatenate(values.artists).mean(), np.concatenate(values.overlap).mean()
        print(f"| {name} | {ndcg.mean():.4f} | {interval} | {hits.mean():.3f} | {artists:.1f} | {overlap:.0%} |")


if __name__ == "__main__":
    main()
