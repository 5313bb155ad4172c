"""What is read of a listener: plays and list, with titles and artists."""

import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from jobs.serving.listener import served_listener
from pipelines.errors import InputError

from ..conftest import DAY_ONE, DAY_TWO, Deployment


@pytest.fixture
def published(deployment: Callable[..., Deployment]) -> Callable[..., Deployment]:
    """Makes deployments with lists of DAY_ONE."""

    def publish(*overrides: str, **values: Any) -> Deployment:
        made = deployment(*overrides, **values)
        made.published(DAY_ONE)
        return made

    return publish


def with_catalogue(made: Deployment, tmp_path: Path, file: str = "songs.parquet") -> Deployment:
    folder = tmp_path / "catalogue"
    folder.mkdir()
    table = pa.table(
        {
            "item_id": [made.item_id(index) for index in range(1, made.songs + 1)],
            "title": [f"[Song] {index}" for index in range(1, made.songs + 1)],
            "artist": [f"Artist {index % 9}" for index in range(1, made.songs + 1)],
        }
    )
    pq.write_table(table, folder / file) if file.endswith("parquet") else pacsv.write_csv(table, folder / file)
    logs = made.config.logs.model_copy(update={"catalogue": str(folder)})
    made.config = made.config.model_copy(update={"logs": logs})
    return made


@pytest.mark.parametrize("file", ["songs.parquet", "songs.csv"])
def test_a_listener_has_plays_and_songs_with_titles_and_artists(published, tmp_path: Path, file: str) -> None:
    made = with_catalogue(published(), tmp_path, file)
    shown = served_listener(made.day(DAY_ONE), "3")
    assert (shown["known"], shown["source"], shown["model_version"]) == (True, "model", "1")
    assert [item["rank"] for item in shown["items"]] == list(range(1, 31))
    assert all(item["title"].startswith("[Song] ") and item["artist"] for item in shown["items"])
    newest_song, newest_time, _ = made.histories[3][-1]
    play = shown["recent"][0]
    assert (play["title"], play["timestamp"]) == (f"[Song] {newest_song}", newest_time)
    assert play["time"] == dt.datetime.fromtimestamp(newest_time, dt.UTC).strftime("%Y-%m-%d %H:%M")


def test_an_unknown_listener_gets_the_default_list(published) -> None:
    shown = served_listener(published().day(DAY_ONE), "123456")
    assert (shown["known"], shown["source"], len(shown["items"])) == (False, "popular", 30)


def test_what_would_command_a_terminal_or_turn_the_text_after_it_is_shown_as_a_mark(published, tmp_path: Path) -> None:
    made = with_catalogue(published(), tmp_path)
    songs = pq.read_table(tmp_path / "catalogue" / "songs.parquet")
    hostile = pa.array(["\x1b]0;owned\x07 \x1b[2Jgone\u202e\n next"] * songs.num_rows)
    pq.write_table(
        songs.set_column(songs.column_names.index("title"), "title", hostile), tmp_path / "catalogue" / "songs.parquet"
    )
    shown = served_listener(made.day(DAY_ONE), "3")
    assert {item["title"] for item in shown["items"]} == {"\ufffd]0;owned\ufffd \ufffd[2Jgone\ufffd next"}


def test_without_a_catalogue_the_id_stands_for_the_title(published) -> None:
    shown = served_listener(published().day(DAY_ONE), "3")
    assert all(item["title"] == str(item["item_id"]) for item in shown["items"])


def test_a_broken_catalogue_file_costs_the_titles_only(published, tmp_path: Path) -> None:
    made = with_catalogue(published(), tmp_path)
    (tmp_path / "catalogue" / "songs.parquet").write_bytes(b"PAR1 no")
    shown = served_listener(made.day(DAY_ONE), "3")
    assert shown["items"][0]["title"] == str(shown["items"][0]["item_id"])


def test_a_day_without_lists_names_those_that_are_there(published, deployment) -> None:
    with pytest.raises(InputError, match=rf"has no lists of {DAY_TWO}: lists are there for {DAY_ONE}"):
        served_listener(published().day(DAY_TWO), "3")
    with pytest.raises(InputError, match="no day is published yet"):
        served_listener(deployment(folder="other").day(DAY_ONE), "3")


def test_a_user_that_is_no_number_is_refused_where_ids_are_numbers(published) -> None:
    with pytest.raises(InputError, match="user 'abc' is not an int64 id"):
        served_listener(published().day(DAY_ONE), "abc")


def test_listeners_and_songs_may_have_text_ids(published) -> None:
    made = published(item_id_type="string", user_id_type="string")
    shown = served_listener(made.day(DAY_ONE), "user-00003")
    assert shown["known"] and len(shown["recent"]) == min(10, len(made.histories["user-00003"]))
