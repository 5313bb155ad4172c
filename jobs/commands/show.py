"""`fuxi show`: one listener's recent plays and list of a day, with titles and artists, and why songs are not in it."""

import datetime as dt
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from jobs.config import Config
from jobs.day import Day
from jobs.runtime.screen import Screen, screen
from jobs.serving.baselines import LABELS
from jobs.serving.catalogue import titles
from jobs.serving.listener import ServedListener, named, parse_user, served_listener, stored_history
from pipelines.histories.histories import Histories
from pipelines.schema import COMPLETION, ITEM_ID, REASONS, SCORE, SOURCE_MODEL, SOURCE_POPULAR, id_type
from pipelines.workspace import open_workspace

if TYPE_CHECKING:
    from fuxi_beta.recommender import Recommender

PASSED_OVER = 40
"""Songs that `--explain` lists."""


def show(config: Config, user: str, ds: dt.date) -> ServedListener:
    """A listener's recent plays and the list of `ds`. Raises InputError if nothing is published for `ds`."""
    return served_listener(Day(config, ds, open_workspace(config.workspace)), user)


@dataclass(frozen=True)
class Explanation:
    """Songs that are better ranked than the last of a list, but not in it."""

    songs: list[dict[str, Any]]  # best first: item_id, title, artist, score, rule
    changed: bool  # whether the rules would make another list now than they did then


def explain(config: Config, user: str, ds: dt.date) -> Explanation:
    """Make a listener's list of `ds` again, with the same model and rules, and say what the rules kept out of it."""
    from jobs.serving.make_lists import contexts_of
    from jobs.serving.rules.explain import Explanations
    from jobs.stages.recommend import list_job

    day = Day(config, ds, open_workspace(config.workspace))
    user_id = parse_user(user, day.workspace.spec.user_id_type, f"user {user!r}")
    job = list_job(day)
    history = stored_history(day, user_id)
    if history is None:
        history = Histories.without_plays(pa.array([user_id], id_type(day.workspace.spec.user_id_type)))
    contexts = contexts_of(job, history.before(job.cut))
    recommender: Recommender = job.popularity
    if job.recommender is not None and bool(contexts.batch(job.recommender).lengths[0] > 0):
        recommender = job.recommender
    made = job.rules.lists(recommender, contexts, job.k)
    found = Explanations(job.rules, recommender, contexts, made).passed_over([0])[0]
    ids = job.item_ids.take(pa.array([each.item - 1 for each in found], pa.int64())).to_pylist()
    names = titles(day, ids)
    songs = [
        named({ITEM_ID: item, SCORE: each.score, "rule": each.rule}, names)
        for item, each in zip(ids, found, strict=True)
    ]
    listed = job.item_ids.take(pa.array(made.items[0][made.items[0] > 0].numpy() - 1)).to_pylist()
    return Explanation(songs, changed=listed != [item[ITEM_ID] for item in served_listener(day, user)["items"]])


def render_explanation(explanation: Explanation, shown: Screen | None = None) -> None:
    """Print the songs passed over, and how many each rule kept out."""
    shown = shown or screen()
    counts = Counter(song["rule"] for song in explanation.songs)
    said = ", ".join(f"{rule} {count}" for rule, count in counts.most_common()) or "none"
    shown.say(f"\nBetter-ranked songs that are not listed: {said}", style="bold", indent=2)
    if explanation.songs:
        rows = [(_song(song), f"{song[SCORE]:.3f}", song["rule"]) for song in explanation.songs[:PASSED_OVER]]
        shown.table(("Song", "Score", "Kept out by"), rows, right=("Score",), wrapped=("Song", "Kept out by"))
    if len(explanation.songs) > PASSED_OVER:
        shown.say(f"and {len(explanation.songs) - PASSED_OVER} more")
    if explanation.changed:
        shown.say("The rules, or what they know, have changed since: they would make another list now.")


def render(listener: ServedListener, shown: Screen | None = None) -> None:
    """Print the plays, then the list, below each song the play that pulled it in most."""
    shown = shown or screen()
    if listener["recent"]:
        plays = [(play["time"], _song(play), f"{play[COMPLETION]} %") for play in listener["recent"]]
        title = f"Listener {listener['user']}, last plays before {listener['ds']}"
        shown.table(("When", "Song", "Played"), plays, right=("Played",), wrapped=("Song",), title=title)
        shown.say("")
    songs = [(str(item["rank"]), _with_reason(item), f"{item[SCORE]:.3f}") for item in listener["items"]]
    names = ("#", "Song", "Score")
    shown.table(names, songs, right=("#", "Score"), wrapped=("Song",), title=_headline(listener))


def _song(song: dict[str, Any]) -> str:
    return f"{song['title']} · {song['artist']}" if song["artist"] else song["title"]


def _with_reason(item: dict[str, Any]) -> str:
    reasons = [f"  because you played {play['title']} on {play['day']}" for play in item[REASONS][:1]]
    return "\n".join([_song(item), *reasons])


def _headline(shown: ServedListener) -> str:
    songs = f"{len(shown['items'])} songs for {shown['ds']}"
    if not shown["known"]:
        return f"{songs}: the list for unknown listeners ({shown['user']} has none of their own)"
    version, source = shown["model_version"], shown["source"]
    origin = {SOURCE_MODEL: f"model version {version}", SOURCE_POPULAR: "popular songs"}.get(source)
    origin = origin or LABELS.get(source, source)
    stale = f", from sequences {shown['stale_days']} days old" if shown["stale_days"] else ""
    return f"{songs} for listener {shown['user']}: {origin}{stale}"
