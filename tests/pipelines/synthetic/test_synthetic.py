"""The synthetic logs: reproducible, extendable, as dirty as they say, and with a ceiling that is one."""

import dataclasses
import datetime as dt
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from pipelines import storage
from pipelines.errors import InputError
from pipelines.schema import CATALOGUE_SCHEMA
from pipelines.synthetic import FROZEN, GENERATOR_VERSION, SyntheticConfig, generate, read_config
from pipelines.synthetic.ceiling import oracle_lists, oracle_probabilities
from pipelines.synthetic.listeners import FIRST_USER_ID, artist_weights, bot_numbers, make_listeners
from pipelines.synthetic.log import UNKNOWN_EVENTS
from pipelines.synthetic.process import first_state, resample_dwell, simulate, start_day
from pipelines.synthetic.songs import choose_songs
from pipelines.synthetic.stateless_random import Stream, derive, normal, normal_survival, uniform
from pipelines.synthetic.world import FIRST_ITEM_ID, make_artists, make_songs, song_count

SMALL = SyntheticConfig(seed=5, listeners=120, songs=900, artists=100, days=6, plays_per_day=8.0, new_songs_per_day=4)
DAY = 86_400


def read_plays(out: Path | str) -> Any:  # a DataFrame, whose stubs know no boolean indexing
    """Every row, with its landing day, in the order of the files."""
    parts = []
    for file in storage.list_files(f"{out}/plays"):
        landing = file.uri.split("ds=")[1][:10]
        parts.append(storage.read_table(file.uri).to_pandas().assign(landing=landing))
    return pd.concat(parts, ignore_index=True)


def clean_plays(out: Path | str) -> Any:
    """What a pipeline keeps: valid plays, each once, by listener and time; the bot left out."""
    config = read_config(str(out))
    plays = read_plays(out)
    plays = plays[(plays.event_type == "play") & plays[["user_id", "item_id", "timestamp"]].notna().all(axis=1)]
    plays = plays.astype({"user_id": np.int64, "item_id": np.int64, "timestamp": np.int64})
    inside = plays.timestamp.between(config.day_start(0), config.day_start(config.days) - 1)
    plays = plays[inside & (plays.play_ms >= 0) & ~plays.user_id.isin(FIRST_USER_ID + bot_numbers(config))]
    plays = plays.drop_duplicates(["user_id", "item_id", "timestamp"])
    return plays.sort_values(["user_id", "timestamp"], kind="stable").reset_index(drop=True)


def digests(out: Path | str) -> dict[str, str]:
    """Digest of the values of every published file; Parquet's own bytes may differ between releases of pyarrow."""
    found = {}
    for kind in ("plays", "catalogue"):
        for file in storage.list_files(f"{out}/{kind}"):
            rows = storage.read_table(file.uri).to_pylist()
            found[file.uri.removeprefix(f"{out}/")] = hashlib.sha256(repr(rows).encode()).hexdigest()[:16]
    return found


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("small")
    generate(SMALL, str(out))
    return out


@pytest.fixture(scope="module")
def month(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Large enough for statistics: about 230,000 plays."""
    out = tmp_path_factory.mktemp("month")
    generate(SyntheticConfig(seed=2, listeners=1200, days=30), str(out))
    return out


@pytest.fixture(scope="module")
def timeless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with the dial at 0."""
    out = tmp_path_factory.mktemp("timeless")
    generate(SyntheticConfig(seed=2, listeners=1200, days=30, elapsed_time=0.0), str(out))
    return out


def test_the_generator_is_frozen(small: Path):
    # A changed digest means other logs from the same configuration: raise GENERATOR_VERSION with it.
    assert GENERATOR_VERSION == 1
    found = digests(small)
    assert found["plays/ds=2026-01-05/part-00000.parquet"] == "9a861324fa93ed1b"
    assert found["plays/ds=2026-01-10/part-00000.parquet"] == "3469a6e9b11fe651"
    assert found["catalogue/ds=2026-01-07/part-00000.parquet"] == "960b1e45688af05c"


def test_the_frozen_setting_is_the_same_for_ever(tmp_path: Path):
    # It is for the last table alone. If this fails, restore the setting or the generator; do not write a new digest.
    generate(dataclasses.replace(FROZEN, days=2), str(tmp_path))
    found = digests(tmp_path)
    assert found["plays/ds=2025-09-02/part-00000.parquet"] == "c32bc006f50005ef"
    assert found["catalogue/ds=2025-09-02/part-00000.parquet"] == "18d97537825ea9ca"


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three weeks of a part of the frozen setting's listeners."""
    out = tmp_path_factory.mktemp("frozen")
    generate(dataclasses.replace(FROZEN, listeners=600, days=21), str(out))
    return out


def test_the_frozen_setting_is_another_kind_of_listening(month: Path, frozen: Path):
    """In what a log shows: the share of the most played tenth of songs, runs of one artist, and weekends."""
    shown = []
    for out in (month, frozen):
        plays = clean_plays(out)
        config = read_config(str(out))
        artist = make_songs(config, make_artists(config), config.days - 1).artist
        counts = np.sort(plays.item_id.value_counts().to_numpy())[::-1]
        of_artist = artist[plays.item_id.to_numpy() - FIRST_ITEM_ID]
        same = (np.diff(of_artist) == 0) & (np.diff(plays.user_id) == 0) & (np.diff(plays.timestamp) < 600)
        close = (np.diff(plays.user_id) == 0) & (np.diff(plays.timestamp) < 600)
        weekend = ((plays.timestamp // DAY + 3) % 7 >= 5).mean() / (2 / 7)
        shown.append((counts[: len(counts) // 10].sum() / counts.sum(), same.sum() / close.sum(), weekend))
    (skew, runs, flat), (more_skew, fewer_runs, weekends) = shown
    assert more_skew > skew + 0.03 and fewer_runs < runs - 0.05
    assert abs(flat - 1) < 0.08 and weekends > 1.25


def test_the_frozen_setting_has_a_ceiling_that_is_one(frozen: Path):
    """Its probabilities are those of what is then played: in sum over all songs, and by tenths of the best songs."""
    day = FROZEN.first_day + dt.timedelta(days=20)
    plays = clean_plays(frozen)
    start = read_config(str(frozen)).day_start(20)
    that_day = plays[(plays.timestamp >= start + 8 * 3600) & (plays.timestamp < start + DAY)]
    users = np.unique(that_day.user_id.to_numpy())[:150]
    played = {(u, i) for u, i in zip(that_day.user_id, that_day.item_id, strict=True)}
    expected = found = 0.0
    for positions, items, probability in oracle_probabilities(str(frozen), day, users, replicates=16):
        best = np.argsort(-probability, axis=1)[:, :30]
        expected += np.take_along_axis(probability, best, axis=1).sum()
        found += sum((users[p], items[b]) in played for p, row in zip(positions, best, strict=True) for b in row)
    assert found == pytest.approx(expected, rel=0.35) and found > 50


@pytest.mark.parametrize("change", [{"weekend": 0.0}, {"loyalty": 1.0}, {"discovery": -0.1}, {"home_hours": -1.0}])
def test_habits_that_cannot_be_are_refused(change: Any):
    with pytest.raises(InputError, match=f"synthetic {next(iter(change))} is"):
        SyntheticConfig(**change)


def test_the_same_seed_gives_the_same_rows_and_another_seed_others(small: Path, tmp_path: Path):
    generate(SMALL, f"{tmp_path}/again")
    assert digests(f"{tmp_path}/again") == digests(small)
    generate(dataclasses.replace(SMALL, seed=6), f"{tmp_path}/other")
    assert not set(digests(f"{tmp_path}/other").values()) & set(digests(small).values())


def test_a_log_extended_day_by_day_equals_one_made_at_once(small: Path, tmp_path: Path):
    steps = []
    for days in (1, 2, 5, 6):
        result = generate(dataclasses.replace(SMALL, days=days), str(tmp_path), on_progress=steps.append)
        assert result["last_day"] == str(SMALL.day(days - 1))
    assert digests(tmp_path) == digests(small)
    assert steps == [1, 1, 1, 2, 1, 1, 1, 5, 1]  # what was there counts at once
    assert read_config(str(tmp_path)).days == 6


def test_a_run_killed_within_a_day_continues_to_the_same_rows(small: Path, tmp_path: Path):
    def stop(done: int) -> None:
        if (tmp_path / "plays" / "ds=2026-01-07").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(SMALL, str(tmp_path), on_progress=stop)
    (tmp_path / "plays" / "ds=2026-01-08").mkdir()
    (tmp_path / "plays" / "ds=2026-01-08" / "part-00000.parquet").write_bytes(b"half a file")
    generate(SMALL, str(tmp_path))
    assert digests(tmp_path) == digests(small)


def test_the_size_of_a_chunk_changes_no_row(small: Path, tmp_path: Path):
    generate(SMALL, str(tmp_path), chunk_size=37)
    chunks = read_plays(tmp_path)
    pd.testing.assert_frame_equal(chunks, read_plays(small))
    assert len(storage.list_files(f"{tmp_path}/plays/ds=2026-01-05")) == 4


def test_memory_does_not_grow_with_days_or_listeners(tmp_path: Path):
    import tracemalloc

    peaks = []
    for listeners, days in ((400, 4), (1600, 8)):
        config = dataclasses.replace(SMALL, listeners=listeners, days=days, bots=0)
        tracemalloc.start()
        generate(config, f"{tmp_path}/{listeners}", chunk_size=200)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0]


def test_another_configuration_or_version_of_a_folder_is_refused(small: Path, tmp_path: Path):
    with pytest.raises(InputError, match=r"_synthetic.json: elapsed_time is 1.0 but 0.5 was asked for"):
        generate(dataclasses.replace(SMALL, elapsed_time=0.5), str(small))
    generate(dataclasses.replace(SMALL, days=1), str(tmp_path))
    marker = storage.read_json(f"{tmp_path}/_synthetic.json")
    storage.write_json(f"{tmp_path}/_synthetic.json", {**marker, "generator_version": 0})
    with pytest.raises(InputError, match="generator_version is 0, this release is"):
        generate(SMALL, str(tmp_path))
    with pytest.raises(InputError, match="is not a synthetic log"):
        read_config(f"{tmp_path}/nothing")


@pytest.mark.parametrize(
    ("field", "value"),
    [("listeners", 0), ("artists", 101), ("songs", 50), ("elapsed_time", 1.5), ("null_share", 0.9), ("bots", 120)],
)
def test_impossible_configurations_are_named(field: str, value: float):
    with pytest.raises(InputError, match=field):
        dataclasses.replace(SMALL, **{field: value})


def test_the_catalogue_is_complete_on_the_first_day_and_grows_daily(small: Path):
    days = [storage.read_table(file.uri) for file in storage.list_files(f"{small}/catalogue")]
    assert [table.num_rows for table in days] == [900, 4, 4, 4, 4, 4]
    assert all(table.schema.equals(CATALOGUE_SCHEMA) for table in days)
    songs = pa.concat_tables(days).to_pandas()
    assert songs.item_id.is_unique and songs.title.is_unique
    assert songs.groupby("artist_id").artist.nunique().eq(1).all() and songs.artist.nunique() == 100
    assert songs.title.str.fullmatch(r"[\w ,()]+").all() and songs.duration_ms.between(125_000, 420_000).all()
    assert (days[0].to_pandas().release_date < SMALL.first_day).all()
    assert set(days[3].to_pandas().release_date) == {SMALL.day(3)}
    plays = clean_plays(small)
    released = plays.item_id.map(songs.set_index("item_id").release_date)
    assert (pd.to_datetime(released) <= pd.to_datetime(plays.timestamp, unit="s")).all()


def test_every_kind_of_dirt_is_there_at_its_share(tmp_path: Path):
    shares = {"null": 0.02, "duplicate": 0.03, "far": 0.01, "negative": 0.015, "unknown": 0.01, "like": 0.02}
    options: dict[str, Any] = {f"{kind}_share": share for kind, share in shares.items()}
    config = SyntheticConfig(seed=3, listeners=700, days=5, bots=0, late_share=0.0, **options)
    generate(config, str(tmp_path))
    plays = read_plays(tmp_path)
    landing = plays.landing.map(lambda day: dt.date.fromisoformat(day).toordinal() - dt.date(1970, 1, 1).toordinal())
    days_off = (plays.timestamp // DAY - landing).abs()
    found = {
        "null": plays[["user_id", "item_id", "timestamp"]].isna().sum(axis=1).eq(1),
        "duplicate": plays.duplicated() & plays.user_id.notna() & plays.item_id.notna() & plays.timestamp.notna(),
        "far": days_off >= 90,
        "negative": (plays.play_ms < 0) & (plays.duration_ms < 0),
        "unknown": plays.event_type.isin(UNKNOWN_EVENTS),
        "like": plays.event_type == "like",
    }
    clean = len(plays) - sum(int(mask.sum()) for mask in found.values())
    assert np.sum([mask.to_numpy() for mask in found.values()], axis=0).max() == 1  # one fault a row
    for kind, mask in found.items():
        expected = shares[kind] * clean
        assert abs(mask.sum() - expected) < 4 * np.sqrt(expected) + 1, kind
    assert days_off[~found["far"]].dropna().max() == 0
    assert {len(plays[plays[c].isna()]) > 0 for c in ("user_id", "item_id", "timestamp")} == {True}


def test_removing_all_dirt_leaves_the_log_that_is_made_without_any(tmp_path: Path):
    config = dataclasses.replace(SMALL, late_share=0.0)
    none = {name: 0.0 for name in config.__dataclass_fields__ if name.endswith("_share")}
    generate(config, f"{tmp_path}/dirty")
    generate(dataclasses.replace(config, **none), f"{tmp_path}/clean")
    assert len(read_plays(f"{tmp_path}/dirty")) > len(read_plays(f"{tmp_path}/clean"))
    dirty, clean = clean_plays(f"{tmp_path}/dirty"), clean_plays(f"{tmp_path}/clean")
    pd.testing.assert_frame_equal(dirty, clean, check_dtype=False)


def test_late_events_land_one_to_three_days_after_and_none_is_lost(tmp_path: Path):
    config = dataclasses.replace(SMALL, days=8, late_share=0.2, bots=0)
    generate(config, f"{tmp_path}/late")
    generate(dataclasses.replace(config, late_share=0.0), f"{tmp_path}/punctual")
    late, punctual = clean_plays(f"{tmp_path}/late"), clean_plays(f"{tmp_path}/punctual")
    landed = (pd.to_datetime(late.landing) - pd.Timestamp(0)).dt.days
    delay = landed - late.timestamp // DAY
    assert set(delay) == {0, 1, 2, 3}
    early = late.timestamp < config.day_start(5)
    assert 0.15 < (delay[early] > 0).mean() < 0.25
    columns = ["user_id", "item_id", "timestamp", "play_ms"]
    on_time = punctual[punctual.timestamp < config.day_start(5)]
    pd.testing.assert_frame_equal(late[early][columns].reset_index(drop=True), on_time[columns].reset_index(drop=True))


def test_one_bot_plays_as_much_as_a_hundred_listeners_and_nobody_else_comes_near(month: Path):
    config = read_config(str(month))
    plays = read_plays(month)
    counts = plays[plays.event_type == "play"].groupby("user_id").size()
    bot = FIRST_USER_ID + int(bot_numbers(config)[0])
    assert counts.idxmax() == bot
    people = counts.drop(bot)
    assert 75 < counts[bot] / people.mean() < 160
    assert people.max() < 0.15 * counts[bot]


def test_sizes_gaps_repeats_and_skips_are_those_of_a_music_service(month: Path):
    plays = clean_plays(month)
    per_listener = plays.groupby("user_id").size()
    assert 130 < per_listener.mean() < 240 and per_listener.mean() > 1.2 * per_listener.median()
    gaps = np.diff(plays.timestamp)[np.diff(plays.user_id) == 0]
    assert np.quantile(gaps, 0.5) < 600  # minutes
    assert (gaps > 7 * DAY).sum() > 200 and gaps.max() > 14 * DAY  # weeks
    assert 0.35 < plays.duplicated(["user_id", "item_id"]).mean() < 0.6
    heard = plays.play_ms / plays.duration_ms
    assert 0.1 < (heard < 0.3).mean() < 0.2 and (heard == 1).mean() > 0.4 and heard.max() <= 1
    follow = plays.user_id.to_numpy()[1:] == plays.user_id.to_numpy()[:-1]
    assert (np.diff(plays.timestamp)[follow] * 1000 >= plays.play_ms.to_numpy()[:-1][follow]).all()


def test_popularity_has_a_head_and_a_long_tail_and_new_listeners_keep_coming(month: Path):
    plays = clean_plays(month)
    counts = np.sort(plays.groupby("item_id").size().to_numpy())[::-1]
    # Zipf within artists and genres; over the whole catalogue flatter, because nobody hears all genres.
    assert 0.2 < counts[: len(counts) // 10].sum() / counts.sum() < 0.6
    assert counts[len(counts) // 2 :].sum() / counts.sum() < 0.35
    config = read_config(str(month))
    weight = np.sort(make_artists(config).weight[: config.artists_per_genre])[::-1]
    slope = np.polyfit(np.log(np.arange(1, len(weight) + 1)), np.log(weight), 1)[0]
    assert -1.2 < slope < -0.5
    first_day = plays.groupby("user_id").timestamp.min() // DAY
    assert (first_day > first_day.min() + 14).sum() > 30


def switch_rates(out: Path) -> tuple[float, float, np.ndarray, np.ndarray]:
    """Share of consecutive plays whose genre differs, for gaps within an hour and above ten; and the raw columns."""
    config = read_config(str(out))
    plays = clean_plays(out)
    songs = make_songs(config, make_artists(config), config.days)
    genre = songs.artist[plays.item_id.to_numpy() - FIRST_ITEM_ID] // config.artists_per_genre
    same = np.diff(plays.user_id) == 0
    gap, switched = np.diff(plays.timestamp)[same], (np.diff(genre) != 0)[same]
    return switched[gap < 3600].mean(), switched[gap > 36_000].mean(), gap, switched


def test_at_dial_one_a_long_gap_means_another_taste(month: Path):
    short, long, _, _ = switch_rates(month)
    assert short < 0.25 and long > short + 0.25


def test_at_dial_zero_a_gap_carries_no_information(timeless: Path):
    short, long, gap, switched = switch_rates(timeless)
    n_short, n_long = (gap < 3600).sum(), (gap > 36_000).sum()
    deviation = np.sqrt(switched.mean() * (1 - switched.mean()) * (1 / n_short + 1 / n_long))
    assert abs(long - short) < 3.5 * deviation
    correlation = np.corrcoef(np.argsort(np.argsort(gap)), switched)[0, 1]
    assert abs(correlation) < 3.5 / np.sqrt(len(gap))


def test_the_timing_of_plays_does_not_depend_on_the_dial(month: Path, timeless: Path):
    timed, untimed = clean_plays(month), clean_plays(timeless)
    assert np.array_equal(timed[["user_id", "timestamp"]], untimed[["user_id", "timestamp"]])
    assert (timed.item_id.to_numpy() != untimed.item_id.to_numpy()).mean() > 0.5


def simple_metrics(lists: Any, truth: list[set[int]]) -> dict[str, float]:
    """HR, recall and NDCG at 30, written out."""
    hits = [[item in wanted for item in row[:30]] for row, wanted in zip(lists, truth, strict=True)]
    discount = 1 / np.log2(np.arange(30) + 2)
    ideal = [discount[: min(len(wanted), 30)].sum() for wanted in truth]
    gains = [sum(d for d, hit in zip(discount, row, strict=False) if hit) for row in hits]
    return {
        "hr": float(np.mean([any(row) for row in hits])),
        "recall": float(np.mean([sum(row) / len(wanted) for row, wanted in zip(hits, truth, strict=True)])),
        "ndcg": float(np.mean(np.array(gains) / np.array(ideal))),
    }


def next_day(out: Path) -> dict:
    """The `next_day` protocol on the last day: users, songs heard before, truth, songs known, plays before."""
    config = read_config(str(out))
    plays = clean_plays(out)
    start = config.day_start(config.days - 1)
    before = plays[plays.timestamp < start]
    heard = plays[plays.timestamp < start + 8 * 3600].groupby("user_id").item_id.agg(set)
    window = plays[(plays.timestamp >= start + 8 * 3600) & (plays.play_ms >= 0.3 * plays.duration_ms)]
    window = window[window.item_id.isin(set(before.item_id))]
    truth = {user: set(items) - heard.get(user, set()) for user, items in window.groupby("user_id").item_id}
    users = np.array(sorted(user for user, wanted in truth.items() if wanted))
    return {
        "day": config.day(config.days - 1),
        "users": users,
        "truth": [truth[user] for user in users],
        "heard": [np.array(sorted(heard.get(user, set())), np.int64) for user in users],
        "known": np.array(sorted(set(before.item_id))),
        "before": before,
    }


def oracle(out: Path, case: dict, **options) -> dict[str, float]:
    folder, day, users = str(out), case["day"], case["users"]
    lists = oracle_lists(folder, day, users, heard=case["heard"], candidates=case["known"], **options)
    for row, heard in zip(lists, case["heard"], strict=True):
        assert len(set(row)) == 30 and not set(row) & set(heard)
    return simple_metrics(list(lists), case["truth"])


def test_the_oracle_beats_what_cheats_and_what_does_not(month: Path):
    case = next_day(month)
    assert len(case["users"]) > 150
    state, history = oracle(month, case), oracle(month, case, knows="history")
    fans = case["before"].groupby("item_id").user_id.nunique().sort_values(ascending=False)
    popular = [[i for i in fans.index[:1500] if i not in set(h)][:30] for h in case["heard"]]
    # A cheat: the listener's own genres are known, and what is popular in them.
    config = read_config(str(month))
    songs = make_songs(config, make_artists(config), config.days)
    genre = songs.artist // config.artists_per_genre
    of_item = {int(i): int(genre[i - FIRST_ITEM_ID]) for i in fans.index}
    last = case["before"].groupby("user_id").item_id.last()
    guesses = []
    for user, heard in zip(case["users"], case["heard"], strict=True):
        mine = of_item.get(int(last.get(user, fans.index[0])), 0)
        seen = set(heard)
        guesses.append([i for i in fans.index if of_item[i] == mine and i not in seen][:30])
    by_popularity = simple_metrics(popular, case["truth"])
    by_last_genre = simple_metrics(guesses, case["truth"])
    for metric in ("hr", "recall", "ndcg"):
        assert by_popularity[metric] < 0.5 * by_last_genre[metric]
        assert by_last_genre[metric] < 0.8 * history[metric]
        assert history[metric] < 1.03 * state[metric]  # knowing more helps; little where tastes end overnight anyway


def test_the_oracle_s_chances_are_those_of_the_process(tmp_path: Path):
    """Against plain frequencies: the window simulated thousands of times, songs and all."""
    config = SyntheticConfig(seed=8, listeners=40, songs=200, artists=40, days=10, plays_per_day=12.0, bots=0)
    generate(config, str(tmp_path))
    day, times = 9, 6000
    everybody = make_listeners(config, 0, 40)
    number = np.flatnonzero(everybody.arrival <= 0)[[3, 12, 20]]
    chances = np.concatenate(
        [c for _, _, c in oracle_probabilities(str(tmp_path), config.day(day), FIRST_USER_ID + number, replicates=3000)]
    )
    artists = make_artists(config)
    songs = make_songs(config, artists, day)
    truth = storage.read_table(f"{tmp_path}/truth/ds={config.day(day)}/request-00000.parquet").to_pandas()
    for place, who in enumerate(number):
        rows = np.full(times, who)
        people = everybody.take(rows)
        people = dataclasses.replace(people, key=derive(people.key, 10**6 + np.arange(times), Stream.REPLICATE))
        state = first_state(people)
        for name in ("carry", "taste", "age", "draw_time", "draw_taste", "run_artist"):
            setattr(state, name, truth[name].to_numpy()[rows])
        state.liked[:] = (truth.liked.to_numpy()[rows][:, None] >> np.arange(5)) & 1
        resample_dwell(people, state)
        start = config.day_start(day)
        plays = simulate(people, state, start + 28_800, start + DAY, day=day, elapsed=1.0, force=True)
        song = choose_songs(people, artist_weights(artists, people), state, plays, artists=artists, songs=songs)
        counts = ~plays.repeat & ~plays.skipped
        pairs = np.unique(plays.row[counts] * 1000 + song[counts])
        frequency = np.bincount(pairs % 1000, minlength=len(songs.artist)) / times
        error = np.sqrt(np.maximum(frequency * (1 - frequency), 1e-4) / times)
        assert np.abs(frequency - chances[place]).max() < 0.02
        assert (np.abs(frequency - chances[place]) < 4.5 * error + 0.002).mean() > 0.99
        assert frequency.sum() > 1  # the case is not an empty one


def test_the_oracle_of_days_that_are_not_there_says_so(small: Path):
    nobody: dict[str, Any] = {"heard": [np.zeros(0, np.int64)]}
    with pytest.raises(InputError, match="holds 2026-01-05 to 2026-01-10, not 2026-02-01"):
        oracle_lists(str(small), dt.date(2026, 2, 1), np.array([FIRST_USER_ID]), **nobody)
    with pytest.raises(InputError, match="has no listener 5"):
        oracle_lists(str(small), SMALL.day(2), np.array([5]), **nobody)


def test_a_dwell_resampled_at_its_age_is_the_conditional_log_normal(tmp_path: Path):
    config = dataclasses.replace(SMALL, listeners=20_000, bots=0)
    listeners = make_listeners(config, 0, 20_000)
    state = first_state(listeners)
    fresh = state.dwell.copy()
    age = 20_000.0
    survivors = fresh[fresh > age]
    state.age[:] = age
    resample_dwell(listeners, state)
    assert (state.dwell >= age).all()
    mean = listeners.log_dwell[:, 0]
    weight = normal_survival(np.log(age) - mean)
    expected = np.average(state.dwell > 3 * age, weights=weight)
    assert abs(expected - (survivors > 3 * age).mean()) < 0.02


def test_uniforms_and_quantiles_are_what_they_claim():
    u = uniform(derive(np.full(200_000, 7, np.uint64), np.arange(200_000), Stream.SONG), 0, Stream.SONG, 2)
    assert abs(u.mean() - 0.5) < 0.003 and abs(np.corrcoef(u)[0, 1]) < 0.01
    assert u.min() > 0 and u.max() < 1
    from statistics import NormalDist

    points = np.array([1e-9, 0.001, 0.02, 0.3, 0.5, 0.9, 0.99999])
    exact = [NormalDist().inv_cdf(float(p)) for p in points]
    assert np.allclose(normal(points), exact, atol=1e-7)
    assert np.allclose(normal_survival(np.array(exact)), 1 - points, atol=1e-9)


def test_no_listener_plays_before_arriving_and_away_days_are_silent():
    listeners = make_listeners(SMALL, 0, 120)
    state = first_state(listeners)
    for day in range(10):
        start_day(listeners, state, day)
        around, start = state.around.copy(), SMALL.day_start(day)
        for low, high in ((0, 28_800), (28_800, DAY)):
            plays = simulate(listeners, state, start + low, start + high, day=day, elapsed=1.0)
            assert ((plays.time >= start + low) & (plays.time < start + high)).all()
            assert (listeners.arrival[plays.row] <= day).all() and around[plays.row].all()
            order = np.lexsort((plays.time, plays.row))
            assert np.array_equal(order, np.arange(len(order)))
    assert song_count(SMALL, 9) == 936
