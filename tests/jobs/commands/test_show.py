"""What `fuxi show` prints."""

import io
from collections.abc import Callable

import pytest
from rich.console import Console

from jobs.commands import show

from ..conftest import DAY_ONE, Deployment


def printed(shown: show.ServedListener, width: int = 100) -> str:
    text = io.StringIO()
    show.render(shown, Console(file=text, width=width))
    return text.getvalue()


def test_every_song_and_play_is_printed_markup_or_not(deployment: Callable[..., Deployment]) -> None:
    made = deployment()
    made.published(DAY_ONE)
    shown = show.show(made.config, "3", DAY_ONE)
    shown["items"] = [item | {"title": f"[Song] {item['rank']}", "artist": "[b]"} for item in shown["items"]]
    text = printed(shown)
    assert "30 songs for 2026-03-02 for listener 3: model version 1" in text
    assert all(f"[Song] {rank}" in text for rank in range(1, 31)) and text.count("[b]") == 30
    assert all(play["time"] in text and play["title"] in text for play in shown["recent"])


@pytest.mark.parametrize("width", [80, 120])
def test_below_a_song_stands_the_play_that_pulled_it_in_most(deployment: Callable[..., Deployment], width: int) -> None:
    made = deployment()
    made.published(DAY_ONE)
    shown = show.show(made.config, "3", DAY_ONE)
    shown["items"] = [item | {"title": "Crooked Meadow in Lisbon and in Many Other Towns"} for item in shown["items"]]
    lines = printed(shown, width).splitlines()
    found = 0
    for item in shown["items"]:
        place = next(n for n, line in enumerate(lines) if line.startswith(f"│ {item['rank']:2} │ Crooked Meadow in"))
        assert f" {item['score']:.3f} │" in lines[place] and len(lines[place]) <= width
        for play in item["reasons"][:1]:
            when = f"{play['ds']:%A} {play['ds'].day} {play['ds']:%B}"
            assert f"because you played {play['title']} " in lines[place + 1] and f" on {when} " in lines[place + 1]
            found += 1
    assert found > 15


def test_an_unknown_listener_is_told_that_the_list_is_the_default(deployment: Callable[..., Deployment]) -> None:
    made = deployment()
    made.published(DAY_ONE)
    text = printed(show.show(made.config, "123456", DAY_ONE))
    assert "the list for unknown listeners (123456 has none of their own)" in text


def test_a_baseline_that_serves_is_named_explains_its_songs_and_can_be_asked_why_not(
    deployment: Callable[..., Deployment],
) -> None:
    made = deployment()
    made.published(DAY_ONE, baseline="item-knn")
    text = printed(show.show(made.config, "3", DAY_ONE))
    assert "30 songs for 2026-03-02 for listener 3: Item-kNN" in text
    assert "because you played" in text
    found = show.explain(made.config, "3", DAY_ONE)
    assert not found.changed and found.songs


def test_songs_passed_over_are_printed_with_their_rule(deployment: Callable[..., Deployment]) -> None:
    made = deployment()
    made.published(DAY_ONE)
    found = show.explain(made.config, "3", DAY_ONE)
    assert not found.changed
    heard = {made.item_id(index) for index, _, _ in made.histories[3]}
    assert found.songs and {song["rule"] for song in found.songs} == {"heard"}
    assert {song["item_id"] for song in found.songs} <= heard
    text = io.StringIO()
    show.render_explanation(found, Console(file=text, width=80))
    assert f"Better-ranked songs that are not listed: heard {len(found.songs)}" in text.getvalue()
    assert all(line.count("heard") == 1 for line in text.getvalue().splitlines() if "0." in line)


def test_an_unknown_listener_is_explained_by_popularity(deployment: Callable[..., Deployment]) -> None:
    made = deployment()
    made.published(DAY_ONE)
    assert show.explain(made.config, "123456", DAY_ONE) == show.Explanation([], changed=False)


def test_a_setting_changed_since_is_said(deployment: Callable[..., Deployment]) -> None:
    made = deployment()
    made.published(DAY_ONE)
    other = made.config.model_copy(update={"rules": made.config.rules.model_copy(update={"heard_days": 0})})
    assert show.explain(other, "3", DAY_ONE).changed
