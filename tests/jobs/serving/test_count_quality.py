"""What tasks count of lists: by hand, against a slow walk, and in the table of two real days."""

import datetime as dt
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from fuxi_beta.recommender import Pairs
from jobs.config import RulesConfig
from jobs.day import run_stage
from jobs.serving.count_quality import QualityCount, songs_of_day
from jobs.serving.rules import ListenerFacts, MadeLists, SongFacts
from jobs.serving.rules.explain import Explanations
from jobs.stages import recommend
from pipelines import delta_tables
from pipelines.errors import InputError
from pipelines.histories.histories import Histories
from tests.jobs.serving.rules.conftest import NOW, World, random_world

DAY_ONE, DAY_TWO = dt.date(2026, 3, 2), dt.date(2026, 3, 3)
DAY = 86_400


def small_world() -> World:
    """Three listeners, six songs: artists 1, 1, 2, 3, 0 (unknown), 2."""
    songs = SongFacts(7, artist=torch.tensor([0, 1, 1, 2, 3, 0, 2]))
    histories = Histories(
        pa.array([5, 6, 7]),
        np.array([0, 1, 2, 2]),
        np.array([1, 5], np.int32),  # the first played a song by artist 1, the second one by nobody known
        np.array([NOW - 100, NOW - 50]),
        np.full(2, 100, np.uint8),
        np.array([0, 0, 1, 1]),
        np.array([3], np.int32),  # and, long ago, one by artist 2
    )
    facts = ListenerFacts(np.array(["", "kids", ""], object))
    return World(songs, histories, facts, torch.zeros(3, 7), RulesConfig())  # type: ignore[call-arg]


def counted(world: World, items: list[list[int]], before: Pairs, *, sample: float = 0.0) -> dict[str, Any]:
    """segment -> metric -> (sum, listeners) of given lists."""
    rules = world.rules(3)
    rules.listeners.lists_before = lambda user_id: before  # type: ignore[method-assign]
    made = MadeLists.empty_of(world.facts, 3)
    made.items[:] = torch.tensor(items)
    count = QualityCount(rules, world.recommender, world.recommender, sample)
    found = count.count(world.contexts, made, np.array([True, True, False]))
    return {segment: sums.sums for segment, sums in found.items()}


def test_figures_of_single_lists_by_hand() -> None:
    before = torch.tensor([0, 0, 1]), torch.tensor([2, 6, 5])
    found = counted(small_world(), [[2, 3, 6], [3, 4, 5], [0, 0, 0]], before)
    # 2, 3, 6 are by artists 1, 2, 2, of whom 1 was played; 3, 4, 5 by 2 (played long ago), 3 and nobody known.
    assert found["kids"] == {
        "popular_share": (0.0, 1),
        "short_share": (0.0, 1),
        "empty_share": (0.0, 1),
        "overlap": (pytest.approx(1 / 3), 1),
        "artists": (2.0, 1),
        "top_artist_share": (0.5, 1),
        "new_artist_share": (0.5, 1),
    } | {name: (0.0, 0) for name in found["kids"] if name.startswith("cut:")}
    assert found[""] == {
        "popular_share": (1.0, 2),
        "short_share": (1.0, 2),
        "empty_share": (1.0, 2),
        "overlap": (pytest.approx(2 / 3), 1),  # the empty list is no share of anything
        "artists": (2.0, 1),
        "top_artist_share": (pytest.approx(2 / 3), 1),
        "new_artist_share": (pytest.approx(2 / 3), 1),
    } | {name: (0.0, 0) for name in found[""] if name.startswith("cut:")}


def test_without_artists_and_earlier_lists_the_figures_of_them_are_missing() -> None:
    world, nothing = small_world(), torch.zeros(0, dtype=torch.int64)
    world.songs = SongFacts(7)
    found = counted(world, [[1, 2, 0], [3, 4, 5], [6, 0, 0]], (nothing, nothing))
    assert not {"artists", "top_artist_share", "new_artist_share"} & found[""].keys()
    assert found[""]["overlap"] == (0.0, 0)
    assert found[""]["short_share"] == (2.0, 2)


@pytest.mark.parametrize("seed", range(4))
def test_figures_of_artists_against_a_slow_walk(seed: int) -> None:
    world = random_world(seed, listeners=30, max_per_artist=4)
    rules = world.rules(9)
    made = rules.lists(world.recommender, world.contexts, 9)
    found = QualityCount(rules, world.recommender, world.recommender, 0.0).count(
        world.contexts, made, np.ones(30, bool)
    )
    assert world.songs.artist is not None
    artist, sums = world.songs.artist.tolist(), dict.fromkeys(("artists", "top_artist_share", "new_artist_share"), 0.0)
    for row, songs in enumerate(made.items.tolist()):
        by = Counter(artist[song] for song in songs if artist[song])
        played = {artist[song] for song in world.heard(row, None)}
        if by:
            sums["artists"] += len(by)
            sums["top_artist_share"] += max(by.values()) / by.total()
            sums["new_artist_share"] += sum(n for a, n in by.items() if a not in played) / by.total()
    for metric, total in sums.items():
        assert sum(part.sums[metric][0] for part in found.values()) == pytest.approx(total)


def test_what_rules_cut_is_counted_of_every_sampled_listener() -> None:
    world = random_world(2, listeners=12)
    rules = world.rules(6)
    made = rules.lists(world.recommender, world.contexts, 6)
    recommender = world.recommender
    found = QualityCount(rules, recommender, recommender, 1.0).count(world.contexts, made, np.ones(12, bool))
    expected = Counter[str]()
    for songs in Explanations(rules, recommender, world.contexts, made).passed_over(range(12)):
        for song in songs:
            expected[f"cut:{song.rule}"] += 1
    totals = Counter[str]()
    for part in found.values():
        for metric, (total, number) in part.sums.items():
            if metric.startswith("cut:"):
                totals[metric] += int(total)
                assert number == part.lists
    assert +totals == +expected and expected["cut:heard"] > 0


def test_ages_are_days_and_unknown_ones_no_number() -> None:
    unknown = np.iinfo(np.int64).min
    world = small_world()
    world.songs = SongFacts(4, released=torch.tensor([unknown, NOW - 3 * DAY, unknown, NOW]), popularity=torch.ones(4))
    songs = songs_of_day(world.rules(1), torch.tensor([False, True, True]), NOW)
    assert songs.age_days is not None and songs.age_days[[1, 3]].tolist() == [3.0, 0.0]
    assert np.isnan(songs.age_days[[0, 2]]).all()
    assert songs.eligible.tolist() == [False, True, True, False]


def served(made: Any, ds: dt.date) -> dict[str, Any]:
    made.sessionized(ds)
    made.choose(ds, made.trained(ds))
    return run_stage(made.day(ds), "recommend", recommend.run)


def rows_of(made: Any, ds: dt.date) -> dict[tuple[str, str], tuple[float, int]]:
    rows = delta_tables.read_days(made.day(ds).workspace.list_quality, since=ds, before=ds + dt.timedelta(days=1))
    return {(row["segment"], row["metric"]): (row["value"], row["listeners"]) for row in rows}


def catalogue(made: Any, folder: Path) -> None:
    numbers = range(1, made.songs + 1)
    released = [DAY_ONE - dt.timedelta(days=n) for n in numbers]
    columns = {"item_id": [made.item_id(n) for n in numbers], "artist_id": [n % 25 for n in numbers]}
    folder.mkdir()
    pq.write_table(pa.table(columns | {"release_date": released}), folder / "songs.parquet")


def test_two_days_by_segment_and_a_list_that_is_the_same_again(
    deployment: Callable[..., Any], ray_local: Any, tmp_path: Path
) -> None:
    made = deployment(
        "recommend.k=10",
        "rules.listed_days=0",  # the lists before are read all the same
        "recommend.max_overlap=1",
        f"logs.catalogue={tmp_path}/catalogue",
        f"rules.listeners={tmp_path}/listeners.parquet",
        "rules.segments={kids: {max_per_artist: 1}}",
    )
    catalogue(made, tmp_path / "catalogue")
    kids = [made.user(n) for n in range(1, 11)]
    pq.write_table(pa.table({"user_id": kids, "segment": ["kids"] * 10}), tmp_path / "listeners.parquet")
    served(made, DAY_ONE)
    one = rows_of(made, DAY_ONE)
    assert {segment for segment, _ in one} == {"all", "default", "kids"}
    assert one["kids", "artists"] == (10.0, 10) and one["kids", "top_artist_share"] == (pytest.approx(0.1), 10)
    assert one["default", "artists"][1] == 30 and ("all", "overlap") not in one
    assert 1 <= one["all", "age_days"][0] <= made.songs
    made.sessionized(DAY_TWO, made.histories)
    made.choose(DAY_TWO, "1")
    result = run_stage(made.day(DAY_TWO), "recommend", recommend.run)
    two = rows_of(made, DAY_TWO)
    assert two["all", "overlap"][1] == 40 and two["all", "overlap"][0] > 0.5
    assert two == {
        (segment, metric): (value, number)
        for segment, figures in result["quality"].items()
        for metric, (value, number) in figures.items()
    }
    assert two["all", "coverage"][0] == pytest.approx(result["coverage"])


def test_lists_that_are_the_same_as_before_are_refused(deployment: Callable[..., Any], ray_local: Any) -> None:
    made = deployment("rules.listed_days=0", "recommend.max_overlap=0.1")
    served(made, DAY_ONE)
    with pytest.raises(InputError, match=r"overlap \([\d.]+% of a list was in the list before, at most 10\.0%\)"):
        served(made, DAY_TWO)
    assert rows_of(made, DAY_TWO) == {} and rows_of(made, DAY_ONE)


def test_a_run_killed_before_it_wrote_the_figures_writes_them_when_it_runs_again(
    deployment: Callable[..., Any], ray_local: Any
) -> None:
    made = deployment()
    result, day = served(made, DAY_ONE), made.day(DAY_ONE)
    written = rows_of(made, DAY_ONE)
    delta_tables.open_table(day.workspace.list_quality).delete()  # type: ignore[union-attr]
    Path(day.path("recommend.json")).unlink()
    assert run_stage(day, "recommend", recommend.run) == result
    assert rows_of(made, DAY_ONE) == written and ("all", "gini") in written
    assert ("all", "artists") not in written  # there is no catalogue
