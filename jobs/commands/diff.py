"""`fuxi diff`: how the lists of two days differ, and what can have made them differ: plays, model, settings.

Listeners are compared by bucket, so memory does not grow with them.
"""

import datetime as dt
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.config import Config
from jobs.day import Day, RunRecord
from jobs.runtime.console import progress
from jobs.runtime.screen import screen
from jobs.serving.baselines import LABELS
from jobs.stage_inputs import differences
from jobs.tables.published_lists import PublishedLists, published_lists
from pipelines.errors import InputError
from pipelines.histories.histories import offsets_of, places_in, user_array
from pipelines.histories.shards import Manifest
from pipelines.schema import ITEM_ID, ITEMS, USER_ID
from pipelines.workspace import open_workspace

PLAYED, SILENT = "played in between", "did not"


@dataclass
class Changed:
    """Listeners who are on both days, and what became of their lists."""

    listeners: int = 0
    same: int = 0  # the same songs in the same order
    reordered: int = 0  # the same songs in another order
    kept_songs: float = 0.0  # sum over listeners of the share of the later list's songs that were in the earlier one

    @property
    def overlap(self) -> float | None:
        """Mean share of the later list's songs that were in the earlier one; None without listeners."""
        return self.kept_songs / self.listeners if self.listeners else None

    def add(self, same: np.ndarray, reordered: np.ndarray, share: np.ndarray) -> None:
        """Count listeners, one an element."""
        self.listeners += len(same)
        self.same += int(same.sum())
        self.reordered += int(reordered.sum())
        self.kept_songs += float(share.sum())


@dataclass
class ListDiff:
    """The lists of two days beside each other."""

    before: dt.date
    after: dt.date
    causes: list[str]  # what else differs, in words
    only_before: int = 0  # listeners with a list on one of them
    only_after: int = 0
    changed: dict[str, Changed] = field(default_factory=lambda: {PLAYED: Changed(), SILENT: Changed()})

    def as_json(self) -> str:
        """The same as JSON, with the overlaps."""
        groups = {name: {**asdict(group), "overlap": group.overlap} for name, group in self.changed.items()}
        content = {**asdict(self), "changed": groups}
        return json.dumps(content, indent=2, default=str)


def run(config: Config, first: dt.date, second: dt.date) -> ListDiff:
    """Compare the lists of two days, the older one first whatever the order. Writes nothing.

    InputError if one of them has no lists.
    """
    workspace = open_workspace(config.workspace)
    before, after = (Day(config, ds, workspace) for ds in sorted((first, second)))
    if before.ds == after.ds:
        raise InputError(f"ds {first} is given twice: give two days")
    lists = published_lists(workspace, [before.ds, after.ds])
    for day, of_day in zip((before, after), lists, strict=True):
        if not of_day.files:
            days = f"run `fuxi daily --ds {day.ds}`, or see `fuxi status {workspace.uri}` for days with lists"
            raise InputError(f"ds {day.ds} has no lists in {workspace.recommendations}: {days}")
    found = ListDiff(before.ds, after.ds, list(causes(before, after)))
    _compare_listeners(before, after, lists, found)
    return found


def causes(before: Day, after: Day) -> list[str]:
    """What of plays, model and settings differs on the later day, in words."""
    if not (before.has_record and after.has_record):
        return ["a run record is gone: what the lists were made from is not known"]
    return [*_other_plays(before, after), *_other_model(before.record, after.record), *_other_settings(before, after)]


def _other_plays(before: Day, after: Day) -> list[str]:
    if before.sequences_ds == after.sequences_ds:
        return []
    then, now = (day.manifest(day.sequences_ds) for day in (before, after))
    return [
        f"plays: histories of ds {now.ds} ({now.events:,} plays of {now.rows:,} listeners) in place of ds {then.ds} "
        f"({then.events:,} of {then.rows:,})"
    ]


def _other_model(then: RunRecord, now: RunRecord) -> list[str]:
    """What else makes the lists: another model, or a baseline in its place."""
    old, new = (_recommender(record) for record in (then, now))
    return [] if old == new else [f"model: {new} in place of {old}"]


def _recommender(record: RunRecord) -> str:
    if record.chosen_baseline:
        return LABELS[record.chosen_baseline]
    return f"version {record.chosen_model}" if record.chosen_model else "none"


def _other_settings(before: Day, after: Day) -> list[str]:
    markers = [day.marker("recommend") for day in (before, after)]
    settings = [marker["inputs"]["settings"] for marker in markers if marker and "inputs" in marker]
    if len(settings) < 2:
        return ["settings: not noted by the release that made one of the days"]
    found = [f"setting {text}" for text in differences(*settings)]
    if 0 < (after.ds - before.ds).days <= (listed := settings[1].get("rules.listed_days", 0)):
        found.append(f"rule: songs that were listed in the {listed} days before are kept out (rules.listed_days)")
    return found


def _compare_listeners(before: Day, after: Day, lists: Sequence[PublishedLists], found: ListDiff) -> None:
    """Count bucket by bucket."""
    earlier, later = lists
    buckets = sorted({bucket for of_day in lists for bucket in of_day.files if bucket is not None})
    since = before.calendar.day_start(before.sequences_ds)
    manifest = after.manifest(after.sequences_ds)
    with progress("compare", len(buckets), unit="buckets") as advance:
        for bucket in buckets:
            players = _players(manifest, bucket, before.sequences_ds, since)
            _compare_bucket(earlier.read(bucket), later.read(bucket), players, found)
            advance(1)


def _players(manifest: Manifest, bucket: int, ds: dt.date, since: int) -> np.ndarray:
    """The listeners of a bucket, ascending, with a play that the histories of `ds`, which end at `since`, lack."""
    found = []
    for file in (file for file in manifest.files if file.bucket == bucket):
        for group in range(len(file.row_groups)):
            if added := manifest.added_after(file, group, ds):
                rows = np.unique(added.listener[added.timestamp >= since])
                found.append(added.users[rows])
    return np.unique(np.concatenate(found)) if found else np.zeros(0, np.int64)


def _compare_bucket(then: pa.Table, now: pa.Table, players: np.ndarray, found: ListDiff) -> None:
    users, place = user_array(now[USER_ID]), _places(then, now)
    both = np.flatnonzero(place >= 0)
    found.only_before += then.num_rows - len(both)
    found.only_after += now.num_rows - len(both)
    if not len(both):
        return
    old, new = _songs(then, place[both]), _songs(now, both)
    same = np.array([np.array_equal(a, b) for a, b in zip(old, new, strict=True)])
    kept = np.array([np.isin(b, a).sum() for a, b in zip(old, new, strict=True)])
    sizes = np.array([len(b) for b in new])
    all_kept = (kept == sizes) & (sizes == np.array([len(a) for a in old]))
    share = np.where(sizes > 0, kept / np.maximum(sizes, 1), 1.0)
    played = places_in(players, users[both]) >= 0
    for name, group in ((PLAYED, played), (SILENT, ~played)):
        found.changed[name].add(same[group], (all_kept & ~same)[group], share[group])


def _places(then: pa.Table, now: pa.Table) -> np.ndarray:
    """Where each listener of the later day is among those of the earlier one; -1 if not there."""
    known = user_array(then[USER_ID])
    order = np.argsort(known, kind="stable")
    places = places_in(known[order], user_array(now[USER_ID]))
    return np.where(places >= 0, order[places], -1) if len(order) else places


def _songs(rows: pa.Table, taken: np.ndarray) -> list[np.ndarray]:
    """The song ids of some listeners' lists, in rank order."""
    lists = rows[ITEMS].combine_chunks().take(pa.array(taken, pa.int64()))
    offsets = offsets_of(lists.value_lengths().to_numpy(zero_copy_only=False))
    items = pc.struct_field(lists.flatten(), ITEM_ID).to_numpy(zero_copy_only=False)
    return np.split(items, offsets[1:-1])


def render(found: ListDiff) -> None:
    """Print what else differs, and a row for each group of listeners."""
    shown, numbers, rows = screen(), ("Listeners", "Same list", "Reordered", "Songs kept"), []
    shown.say(f"Lists of {found.after} beside those of {found.before}", style="bold")
    for cause in found.causes or ["nothing that lists are made from differs"]:
        shown.say(f"  {cause}", indent=4)
    for name, group in found.changed.items():
        kept = "" if group.overlap is None else f"{group.overlap:.1%}"
        rows.append((name, f"{group.listeners:,}", f"{group.same:,}", f"{group.reordered:,}", kept))
    shown.table(("On both days", *numbers), rows, right=numbers, wrapped=("On both days",))
    shown.say(
        f"only on {found.before}: {found.only_before:,} listeners; only on {found.after}: {found.only_after:,}",
        indent=2,
    )
