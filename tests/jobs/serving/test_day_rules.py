"""The rules of a day from real files and tables, and that every way to a list takes them."""

import datetime as dt
import re
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake

from jobs.serving.baselines import known_songs
from jobs.serving.make_lists import default_part, make_part
from jobs.serving.rules import ListRule
from jobs.serving.rules import lists as engine
from jobs.stages import evaluate, recommend
from jobs.tables import recommendations as lists
from pipelines.errors import InputError

DAY_ONE, DAY_TWO = dt.date(2026, 3, 2), dt.date(2026, 3, 3)
SONGS = 120


def catalogue(made: Any, folder: Path, **columns: Callable[[int], Any]) -> str:
    """Write a catalogue of every song of a deployment; a column is a function of the item index."""
    numbers = range(1, made.songs + 1)
    table = {"item_id": [made.item_id(n) for n in numbers], "title": [f"song {n}" for n in numbers]}
    table |= {name: [value(n) for n in numbers] for name, value in columns.items()}
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.table(table), folder / "songs.parquet")
    return str(folder)


def artist(number: int) -> int:
    return number % 25 + 1000


def table(path: Path, **columns: list[Any]) -> str:
    pq.write_table(pa.table(columns), path)
    return str(path)


def parts_of(made: Any, ds: dt.date) -> list[dict[str, Any]]:
    """Rows of the lists of a day, made in this process and published."""
    job = recommend.list_job(made.day(ds))
    opened = lists.open_lists(made.day(ds).workspace)
    parts = [default_part(job), *(make_part(job, file) for file in job.manifest.files)]
    lists.commit(opened, ds, parts, key=1, metadata={})
    return [row for part in parts for row in pq.read_table(f"{job.table_uri}/{part.path}").to_pylist()]


def songs_of(row: dict[str, Any]) -> list[Any]:
    return [song["item_id"] for song in row["items"]]


def test_the_lists_of_two_days_keep_the_default_rules(deployment: Callable[..., Any], tmp_path: Path) -> None:
    made = deployment("recommend.k=10", f"logs.catalogue={tmp_path}/catalogue", listeners=60, songs=SONGS)
    catalogue(made, tmp_path / "catalogue", artist_id=artist, work_id=lambda n: n // 2)
    made.sessionized(DAY_ONE)
    made.choose(DAY_ONE, made.trained(DAY_ONE))
    yesterday = {row["user_id"]: set(songs_of(row)) for row in parts_of(made, DAY_ONE)}
    made.sessionized(DAY_TWO, made.histories)
    made.choose(DAY_TWO, made.trained(DAY_TWO))
    number_of = {made.item_id(n): n for n in range(1, SONGS + 1)}
    rows = parts_of(made, DAY_TWO)
    assert sum(row["user_id"] is not None for row in rows) > 40
    apart = 0
    for row in rows:
        songs = songs_of(row)
        artists = [artist(number_of[song]) for song in songs]
        assert len(songs) == 10 and row["short"] is False and row["segment"] is None
        assert max(Counter(artists).values()) <= 2
        apart += sum(a != b for a, b in pairwise(artists))
        assert len({number_of[song] // 2 for song in songs}) == 10
        if row["user_id"] is not None:
            assert not set(songs) & yesterday.get(row["user_id"], set())
            heard = {index // 2 for index, _, _ in made.histories[row["user_id"]]}
            assert not {number_of[song] // 2 for song in songs} & heard
    assert apart == 9 * len(rows)


def test_dislikes_segments_and_song_lists_are_obeyed(deployment: Callable[..., Any], tmp_path: Path) -> None:
    made = deployment(
        "recommend.k=10",
        f"logs.catalogue={tmp_path}/catalogue",
        f"rules.feedback={tmp_path}/feedback",
        f"rules.listeners={tmp_path}/listeners.parquet",
        f"rules.song_lists={tmp_path}/song_lists.parquet",
        "rules.segments={kids: {explicit: false}, none: {}}",
        listeners=60,
        songs=SONGS,
    )
    catalogue(made, tmp_path / "catalogue", artist_id=artist, explicit=lambda n: n % 3 == 0)
    users = [made.user(n) for n in range(60)]
    late, forever = dt.date(2026, 3, 1), None
    feedback = {
        "user_id": [users[1], users[1], users[2], users[3], users[4], users[4], users[5]],
        "item_id": [made.item_id(1), None, made.item_id(2), made.item_id(3), made.item_id(4), made.item_id(4), 10**9],
        "artist_id": [None, 1007, None, None, None, None, None],
        "action": ["dislike", "dislike", "dislike", "dislike", "dislike", "like", "dislike"],
        "until": [forever, forever, late, forever, forever, forever, forever],
        "timestamp": [1_000, 1_000, 1_000, 1_000, 1_000, 2_000, 1_000],
    }
    schema = pa.schema([("user_id", pa.int64()), ("item_id", pa.int64()), ("artist_id", pa.int64())])
    for name, kind in (("action", pa.string()), ("until", pa.date32()), ("timestamp", pa.int64())):
        schema = schema.append(pa.field(name, kind))
    write_deltalake(str(tmp_path / "feedback"), pa.table(feedback, schema))
    table(
        tmp_path / "listeners.parquet",
        user_id=users[:30],
        segment=["kids" if n < 20 else "unheard of" for n in range(30)],
    )
    table(
        tmp_path / "song_lists.parquet",
        action=["block", "block"],
        item_id=[made.item_id(10), None],
        artist_id=pa.array([None, "1011"]),
        segment=[None, "kids"],
    )
    made.sessionized(DAY_ONE)
    made.choose(DAY_ONE, made.trained(DAY_ONE))
    rules_ = recommend.list_job(made.day(DAY_ONE)).rules
    facts = rules_.listeners.facts(pa.array(users[:6]))
    assert rules_.listeners.undefined == 10
    pairs = list(zip(*(part.tolist() for part in facts.disliked_songs), strict=True))
    assert pairs == [(1, 1), (3, 3)]  # expired; taken back by a later like; a song that nobody has played
    assert [part.tolist() for part in facts.disliked_artists] == [[1], [rules_.songs.artist_ids.index(1007) + 1]]
    rows = parts_of(made, DAY_ONE)
    seen = Counter(row["segment"] for row in rows)
    assert seen["kids"] > 10 and set(seen) == {None, "kids", "none"}
    defaults = [row for row in rows if row["user_id"] is None]
    assert [row["segment"] for row in defaults] == [None, "kids", "none"]
    number_of = {made.item_id(n): n for n in range(1, SONGS + 1)}
    for row in rows:
        numbers = [number_of[song] for song in songs_of(row)]
        assert 10 not in numbers
        if row["segment"] == "kids":
            assert all(n % 3 and artist(n) != 1011 for n in numbers)
        if row["user_id"] == users[1]:
            assert all(n != 1 and artist(n) != 1007 for n in numbers)
    assert any(n % 3 == 0 for row in rows for n in map(number_of.get, songs_of(row)) if n)
    found = lists.read_list(made.day(DAY_ONE).workspace, DAY_ONE, None)
    assert found is not None and found["segment"] is None


GOOD = {"user_id": [1, 2], "item_id": [1, 2], "action": ["like", "dislike"]}
BAD_FEEDBACK: dict[str, tuple[dict[str, list[Any]], str]] = {
    "no action": ({"user_id": [1], "item_id": [1]}, "lacks the column action"),
    "words": (GOOD | {"action": ["love", "dislike"]}, r"1 of 2 rows .*action other than like or dislike.*'love'"),
    "types": (GOOD | {"user_id": ["ann", "bob"]}, r"2 of 2 rows .*user_id that is no int64.*'ann'"),
    "struct": (GOOD | {"item_id": [{"a": 1}, {"a": 2}]}, r"2 of 2 rows .*item_id that is no int64"),
    "nobody": (GOOD | {"user_id": [None, 1]}, r"with neither user_id"),
    "nothing": (GOOD | {"item_id": [None, None]}, r"with neither item_id nor artist_id"),
    "future": (GOOD | {"timestamp": [dt.datetime(2026, 4, 1), None]}, r"1 of 2 rows .*from the future"),
    "no time": (GOOD | {"until": ["soon", "2026-05-01"]}, r"1 of 2 rows .*until that is no time.*'soon'"),
}


@pytest.mark.parametrize("case", BAD_FEEDBACK)
def test_a_feedback_table_that_cannot_be_used_is_one_line(
    deployment: Callable[..., Any], tmp_path: Path, case: str
) -> None:
    rows, message = BAD_FEEDBACK[case]
    made = deployment("recommend.k=10", f"rules.feedback={table(tmp_path / 'f.parquet', **rows)}", songs=SONGS)
    made.sessionized(DAY_ONE)
    made.choose(DAY_ONE, None)
    with pytest.raises(InputError, match=message) as error:
        recommend.run(made.day(DAY_ONE))
    assert "\n" not in str(error.value) and "rules.feedback" in str(error.value)
    assert lists.published_days(made.day(DAY_ONE).workspace) == []


def test_a_few_rows_that_cannot_be_used_are_counted_and_passed_over(
    deployment: Callable[..., Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "f.parquet"
    made = deployment("recommend.k=10", f"rules.feedback={path}", songs=SONGS)
    made.sessionized(DAY_ONE)
    made.choose(DAY_ONE, None)
    songs = [made.item_id(n) for n in (1, 1, 2, 3, 4)]
    table(path, user_id=[1, 1, 2, 3, 9_999_999], item_id=songs, action=["dislike"] * 4 + ["hate"])
    known = recommend.list_job(made.day(DAY_ONE)).rules.listeners.facts(pa.array([1, 2]))
    assert known.disliked_songs[0].tolist() == [0, 1]  # the same dislike twice is one
    assert "1 with a action other than like or dislike" in capfd.readouterr().err


CONTRADICTIONS = [
    (["rules.max_per_artist=3"], "rules.max_per_artist needs the column artist_id"),
    (["rules.one_version=true"], "rules.one_version needs the column work_id"),
    (["rules.explicit=false"], "rules.explicit needs the column explicit"),
    (["rules.segments={kids: {explicit: false}}"], "rules.explicit needs the column explicit"),
    (["rules.new_releases=2"], "rules.new_releases needs the column release_date"),
    (["rules.feedback=/no/such/table"], "rules.feedback: /no/such/table cannot be read"),
    (["recommend.k=500"], "songs may be listed for everybody, recommend.k asks for 500"),
    (["rules.song_lists=SONGS"], "is blocked and allowed for everybody (one of 1)"),
    (["rules.song_lists=SONGS", "rules.max_rejected_share=0"], "1 of 12 rows"),
]


@pytest.mark.parametrize(("overrides", "message"), CONTRADICTIONS)
def test_rules_that_contradict_each_other_or_need_what_is_not_there_are_one_line(
    deployment: Callable[..., Any], tmp_path: Path, overrides: list[str], message: str
) -> None:
    songs = tmp_path / "songs.parquet"
    made = deployment("recommend.k=10", *(text.replace("SONGS", str(songs)) for text in overrides), songs=SONGS)
    numbers = [7, 7, *range(8, 18)]
    table(songs, action=["block", "allow", "mute"] + ["allow"] * 9, item_id=[made.item_id(n) for n in numbers])
    made.sessionized(DAY_ONE)
    made.choose(DAY_ONE, None)
    with pytest.raises(InputError, match=re.escape(message)) as error:
        recommend.run(made.day(DAY_ONE))
    assert "\n" not in str(error.value)
    assert lists.published_days(made.day(DAY_ONE).workspace) == []


def test_a_segment_without_songs_and_an_undefined_one_are_refused(
    deployment: Callable[..., Any], tmp_path: Path
) -> None:
    path = tmp_path / "songs.parquet"
    made = deployment("recommend.k=10", "rules.segments={kids: {}}", f"rules.song_lists={path}", songs=SONGS)
    made.sessionized(DAY_ONE)
    made.choose(DAY_ONE, None)
    table(path, action=["allow"], item_id=[made.item_id(7)], segment=["kids"])
    with pytest.raises(InputError, match=r"1 songs may be listed for segment 'kids', recommend\.k asks for 10"):
        recommend.run(made.day(DAY_ONE))
    table(path, action=["block"], item_id=[7], segment=["kid"])
    with pytest.raises(InputError, match=r"segment 'kid' is not in rules\.segments"):
        recommend.run(made.day(DAY_ONE))


def test_a_broken_catalogue_stops_the_lists_in_one_line(deployment: Callable[..., Any], tmp_path: Path) -> None:
    folder = tmp_path / "catalogue"
    made = deployment("recommend.k=10", f"logs.catalogue={folder}", songs=SONGS)
    made.sessionized(DAY_ONE)
    made.choose(DAY_ONE, None)
    folder.mkdir()
    (folder / "songs.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(InputError, match=r"songs\.parquet cannot be read, and list rules need it"):
        recommend.run(made.day(DAY_ONE))
    catalogue(made, folder, withdrawn=lambda n: "sometimes")
    with pytest.raises(InputError, match="withdrawn must be true or false, found 'sometimes'"):
        recommend.run(made.day(DAY_ONE))


class OnlyFirstSongs(ListRule):
    """Allows songs 1 to 39."""

    name = "first songs"

    def __init__(self, size: int) -> None:
        self.size = size

    def songs(self, segment: str, time: int) -> Any:
        import torch

        return torch.arange(self.size) < 40


def test_serving_evaluation_and_the_pyfunc_take_the_same_rules(
    deployment: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    from jobs.registry import versions

    made = deployment("recommend.k=10", "evaluate.at=[10]", listeners=60, songs=SONGS)
    made.sessionized(DAY_ONE)
    version = made.trained(DAY_ONE)
    made.choose(DAY_ONE, version)
    plain = engine.list_rules

    def with_one_more(config: Any, facts: Any, **given: Any) -> list[ListRule]:
        return [*plain(config, facts, **given), OnlyFirstSongs(facts.size)]

    monkeypatch.setattr(engine, "list_rules", with_one_more)
    first_ids = {made.item_id(index) for index in range(1, 40)}
    rows = parts_of(made, DAY_ONE)
    assert rows and all(row["items"] and set(songs_of(row)) <= first_ids for row in rows)

    day = made.day(DAY_ONE)
    job = recommend.list_job(day)
    metrics = evaluate.run(day)["metrics"]
    known = int(known_songs(job.manifest, before=job.cut - 86_400).sum())
    for values in metrics.values():
        assert 0 < values["all"]["served_coverage_10"] <= 39 / known
    assert any(v["all"]["coverage_10"] != v["all"]["served_coverage_10"] for v in metrics.values())

    model = mlflow.pyfunc.load_model(versions.model_uri(day, version))
    example = model.input_example
    assert example is not None
    (listed,) = model.predict(example)["items"]
    assert 0 < len(listed) <= 10 and set(listed) <= first_ids
    asked = example.assign(listed_item_ids=[listed[:2]], disliked_item_ids=[listed[2:3]])
    (again,) = model.predict(asked)["items"]
    assert again[: len(listed) - 3] == listed[3:]
