"""What `fuxi show` finds and prints."""

import datetime as dt
import io
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from jobs.commands import show
from jobs.serving.make_lists import default_part, make_part
from jobs.stages.recommend import list_job
from jobs.tables import recommendations
from pipelines.errors import InputError

DAY_ONE, DAY_TWO = dt.date(2026, 3, 2), dt.date(2026, 3, 3)


def published(made: Any, ds: dt.date = DAY_ONE) -> Any:
    """Lists of a day, made as the Ray tasks make them but in this process."""
    made.sessionized(ds)
    made.choose(ds, made.trained(ds))
    job = list_job(made.day(ds))
    table = recommendations.open_lists(made.day(ds).workspace)
    parts = [default_part(job), *(make_part(job, file) for file in job.manifest.files)]
    recommendations.commit(table, ds, parts, key=1, metadata={})
    return made


def with_catalogue(made: Any, tmp_path: Any, file: str = "songs.parquet") -> Any:
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


def printed(shown: dict[str, Any], width: int = 100) -> str:
    text = io.StringIO()
    show.render(shown, Console(file=text, width=width))
    return text.getvalue()


@pytest.mark.parametrize("file", ["songs.parquet", "songs.csv"])
def test_a_listener_sees_plays_and_songs_with_titles_and_artists(
    deployment: Callable[..., Any], tmp_path: Any, file: str
) -> None:
    made = with_catalogue(published(deployment()), tmp_path, file)
    shown = show.show(made.config, "3", DAY_ONE)
    assert (shown["known"], shown["source"], shown["model_version"]) == (True, "model", "1")
    assert [item["rank"] for item in shown["items"]] == list(range(1, 31))
    newest_song, newest_time, _ = made.histories[3][-1]
    play = shown["recent"][0]
    assert (play["title"], play["timestamp"]) == (f"[Song] {newest_song}", newest_time)
    assert play["time"] == dt.datetime.fromtimestamp(newest_time, dt.UTC).strftime("%Y-%m-%d %H:%M")
    text = printed(shown)
    for item in shown["items"]:
        assert item["title"] in text and item["artist"] in text


def test_an_unknown_listener_gets_the_default_list_and_is_told_so(deployment: Callable[..., Any]) -> None:
    made = published(deployment())
    shown = show.show(made.config, "123456", DAY_ONE)
    assert (shown["known"], shown["source"], len(shown["items"])) == (False, "popular", 30)
    assert "the list for unknown listeners (123456 has none of their own)" in printed(shown)


def test_without_a_catalogue_the_id_stands_for_the_title(deployment: Callable[..., Any]) -> None:
    shown = show.show(published(deployment()).config, "3", DAY_ONE)
    assert all(item["title"] == str(item["item_id"]) for item in shown["items"])


def test_a_broken_catalogue_file_costs_the_titles_only(deployment: Callable[..., Any], tmp_path: Any) -> None:
    made = with_catalogue(published(deployment()), tmp_path)
    (tmp_path / "catalogue" / "songs.parquet").write_bytes(b"PAR1 no")
    shown = show.show(made.config, "3", DAY_ONE)
    assert shown["items"][0]["title"] == str(shown["items"][0]["item_id"])


def test_a_day_without_lists_names_those_that_are_there(deployment: Callable[..., Any]) -> None:
    made = published(deployment())
    with pytest.raises(InputError, match=rf"has no lists of {DAY_TWO}: lists are there for {DAY_ONE}"):
        show.show(made.config, "3", DAY_TWO)
    with pytest.raises(InputError, match="no day is published yet"):
        other = deployment(folder="other")
        other.day(DAY_ONE)
        show.show(other.config, "3", DAY_ONE)


def test_a_user_that_is_no_number_is_refused_where_ids_are_numbers(deployment: Callable[..., Any]) -> None:
    with pytest.raises(InputError, match="user 'abc' is not an int64 id"):
        show.show(published(deployment()).config, "abc", DAY_ONE)


def test_string_ids_are_shown(deployment: Callable[..., Any]) -> None:
    made = published(deployment(item_id_type="string", user_id_type="string"))
    shown = show.show(made.config, "user-00003", DAY_ONE)
    assert shown["known"] and len(shown["recent"]) == min(10, len(made.histories["user-00003"]))
