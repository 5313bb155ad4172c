"""What `fuxi show` prints."""

import io
from collections.abc import Callable

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


def test_an_unknown_listener_is_told_that_the_list_is_the_default(deployment: Callable[..., Deployment]) -> None:
    made = deployment()
    made.published(DAY_ONE)
    text = printed(show.show(made.config, "123456", DAY_ONE))
    assert "the list for unknown listeners (123456 has none of their own)" in text
