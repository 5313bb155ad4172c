"""`fuxi show`: one listener's recent plays and list of a day, with titles and artists."""

import datetime as dt
from functools import partial
from typing import TYPE_CHECKING

from jobs.config import Config
from jobs.day import Day
from jobs.serving.listener import ServedListener, served_listener
from pipelines.schema import COMPLETION, SCORE
from pipelines.workspace import open_workspace

if TYPE_CHECKING:
    from rich.console import Console


def show(config: Config, user: str, ds: dt.date) -> ServedListener:
    """A listener's recent plays and the list of `ds`. Raises InputError if nothing is published for `ds`."""
    return served_listener(Day(config, ds, open_workspace(config.workspace)), user)


def render(shown: ServedListener, console: "Console | None" = None) -> None:
    """Print the plays, then the list."""
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text  # titles are text: "[Intro]" is no markup

    console = console or Console()
    text = partial(Column, overflow="ellipsis", no_wrap=True)
    if shown["recent"]:
        console.print(Text(f"Listener {shown['user']}, last plays before {shown['ds']}", style="bold"))
        plays = Table(text("When"), text("Title"), text("Artist"), Column("Played", justify="right", min_width=6))
        for play in shown["recent"]:
            plays.add_row(play["time"], Text(play["title"]), Text(play["artist"]), f"{play[COMPLETION]} %")
        console.print(plays)
    console.print(Text(_headline(shown), style="bold"))
    songs = Table(Column(justify="right"), text("Title"), text("Artist"), Column("Score", justify="right"))
    for item in shown["items"]:
        songs.add_row(str(item["rank"]), Text(item["title"]), Text(item["artist"]), f"{item[SCORE]:.3f}")
    console.print(songs)


def _headline(shown: ServedListener) -> str:
    songs = f"{len(shown['items'])} songs for {shown['ds']}"
    if not shown["known"]:
        return f"{songs}: the list for unknown listeners ({shown['user']} has none of their own)"
    origin = f"model version {shown['model_version']}" if shown["source"] == "model" else "popular songs"
    stale = f", from sequences {shown['stale_days']} days old" if shown["stale_days"] else ""
    return f"{songs} for listener {shown['user']}: {origin}{stale}"
