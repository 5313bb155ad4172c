"""What `fuxi show` prints."""

import io
from collections import Counter
from collections.abc import Callable

import pytest
from rich.cells import cell_len

from jobs.commands import show
from jobs.runtime.screen import screen

from ..conftest import DAY_ONE, Deployment


def printed(shown: show.ServedListener, width: int = 100) -> str:
    text = io.StringIO()
    show.render(shown, screen(text, width=width))
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
        place = next(n for n, line in enumerate(lines) if line.startswith(f"{item['rank']:2}  Crooked Meadow in"))
        assert lines[place].rstrip().endswith(f"  {item['score']:.3f}") and len(lines[place]) <= width
        for play in item["reasons"][:1]:
            when = f"{play['ds']:%A} {play['ds'].day} {play['ds']:%B}"
            assert f"because you played {play['title']} on {when}" in lines[place + 1]
            found += 1
    assert found > 15


TITLES = (
    "A Title of So Many Words That It Needs Two Lines of a Narrow Terminal, or Three of Them, to Be Read at All",
    "夜の終わりに聞こえる遠い列車の音と静かな街の灯りについての長い長い歌の題名である",
    "Cafe\u0301 No\u0308el " * 9,
    "Ohnepausenundleerzeichengeschriebenerliedtiteldersobreitistwiekeinfensterundweitergeht",
    "\N{FAMILY} \N{WOMAN}\u200d\N{ROCKET} flags \N{REGIONAL INDICATOR SYMBOL LETTER J}" * 3,
)


@pytest.mark.parametrize("width", [40, 80, 120])
@pytest.mark.parametrize("title", TITLES, ids=range(len(TITLES)))
def test_titles_of_any_length_and_script_are_whole_and_within_the_terminal(title: str, width: int) -> None:
    play = {"title": title, "artist": "", "day": "Monday 2 March", "time": "2026-03-02 23:00", "completion": 97}
    song = {"rank": 1, "title": title, "artist": title, "score": 0.25, "reasons": [play]}
    listener = show.ServedListener(
        user="3",
        ds="2026-03-03",
        known=True,
        source="model",
        model_version="2",
        stale_days=0,
        timezone="UTC",
        recent=[play],
        items=[song],
    )
    text = printed(listener, width)
    assert all(cell_len(line) <= width for line in text.splitlines())
    left = Counter("".join(text.split()))
    left.subtract(Counter("".join(title.split()) * 4))
    assert min(left.values()) >= 0


def test_a_song_with_a_blank_title_is_called_by_its_id(deployment: Callable[..., Deployment]) -> None:
    from jobs.serving.listener import named

    assert named({"item_id": 7}, {7: (" \t ", "  ")}) == {"item_id": 7, "title": "7", "artist": ""}


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
    show.render_explanation(found, screen(text, width=80))
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
