"""What list rules know of listeners: their lists of the last days, their feedback and their segments.

Lists are read from the table a bucket at a time, so memory does not grow with listeners.

Shapes: `B` listeners, `U` listeners of whom something is known.
"""

import datetime as dt
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from fuxi_beta.recommender import Pairs
from jobs.config import RulesConfig
from jobs.day import Day
from jobs.runtime.console import log
from jobs.serving.rule_tables import Named, RuleTable, read_rule_table
from jobs.serving.rules import ListenerFacts, Listeners
from jobs.serving.rules.facts import NO_SEGMENT, NOBODY, SongFacts
from jobs.tables.published_lists import PublishedLists, published_lists
from jobs.tables.recommendations import published_days
from pipelines.histories.buckets import user_bucket
from pipelines.histories.histories import gather, offsets_of, places_in, user_array
from pipelines.schema import (
    ACTION,
    ARTIST_ID,
    ITEM_ID,
    ITEMS,
    SEGMENT,
    TIMESTAMP,
    UNTIL,
    USER_ID,
    id_type,
)

LIKE, DISLIKE = "like", "dislike"


@dataclass(frozen=True)
class ByListener:
    """Numbers by listener."""

    users: np.ndarray  # [U], ascending
    offsets: np.ndarray  # int64 [U + 1]
    values: np.ndarray  # int64

    @staticmethod
    def of(users: np.ndarray, values: np.ndarray) -> "ByListener":
        """From (listener, number) pairs in any order."""
        order = np.argsort(users, kind="stable")
        users = users[order]
        first = np.flatnonzero(np.concatenate([[True], users[1:] != users[:-1]])) if len(users) else np.zeros(0, int)
        return ByListener(users[first], offsets_of(np.diff(first, append=len(users))), values[order])

    def pairs(self, users: np.ndarray) -> Pairs:
        """(row, number) of some listeners."""
        rows, places = self.rows(users)
        offsets, taken = gather(self.offsets, places)
        return torch.from_numpy(np.repeat(rows, np.diff(offsets))), torch.from_numpy(self.values[taken])

    def rows(self, users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which of some listeners are known, and where. int64 each."""
        places = places_in(self.users, users)
        found = np.flatnonzero(places >= 0)
        return found, places[found]


@dataclass(frozen=True)
class Dislikes:
    """Item indices and numbers of artists that listeners dislike."""

    songs: ByListener
    artists: ByListener


_LISTED, _BEFORE = 0, 1
"""Places in what `StoredListeners` keeps of a bucket."""
NONE = ByListener(np.zeros(0, np.int64), np.zeros(1, np.int64), np.zeros(0, np.int64))


@dataclass
class StoredListeners(Listeners):
    """Listeners of a workspace, as they are known for the lists of a day."""

    lists: list[PublishedLists]  # of the days that count
    before: PublishedLists | None  # of the latest earlier day that has lists
    buckets: int
    item_ids: pa.Array
    dislikes: "Dislikes"
    segments: tuple[str, ...]
    segment_of: ByListener  # number of the segment
    undefined: int = 0

    def __post_init__(self) -> None:
        self._bucket: tuple[int, tuple[ByListener, ByListener]] | None = None

    def facts(self, user_id: pa.Array) -> ListenerFacts:
        """Listeners of one bucket are found fastest."""
        users = user_array(user_id)
        segment = np.full(len(users), NO_SEGMENT, object)
        rows, places = self.segment_of.rows(users)
        segment[rows] = np.array(self.segments, object)[self.segment_of.values[places]]
        disliked = self.dislikes.songs.pairs(users), self.dislikes.artists.pairs(users)
        return ListenerFacts(segment, self._songs_of(user_id, users, _LISTED) if self.lists else NOBODY, *disliked)

    def lists_before(self, user_id: pa.Array) -> Pairs:
        """The songs of some listeners' lists of the latest earlier day, whatever days the rules look at."""
        return self._songs_of(user_id, user_array(user_id), _BEFORE) if self.before else NOBODY

    def _songs_of(self, user_id: pa.Array, users: np.ndarray, lists: int) -> Pairs:
        parts, bucket = [NOBODY], user_bucket(user_id, self.buckets)
        for number in np.unique(bucket):
            rows = np.flatnonzero(bucket == number)
            found, songs = self._lists_of(int(number))[lists].pairs(users[rows])
            parts.append((torch.from_numpy(rows)[found], songs))
        return torch.cat([rows for rows, _ in parts]), torch.cat([songs for _, songs in parts])

    def _lists_of(self, bucket: int) -> tuple[ByListener, ByListener]:
        """Songs of the lists of the days that count, and of the latest earlier day."""
        kept = self._bucket  # one reference: threads may replace it
        if kept is None or kept[0] != bucket:
            before = [self.before.read(bucket)] if self.before else []
            listed = [before[0] if lists is self.before else lists.read(bucket) for lists in self.lists]
            songs = _songs_by_listener(listed, self.item_ids), _songs_by_listener(before, self.item_ids)
            self._bucket = kept = bucket, songs
        return kept[1]


def _songs_by_listener(tables: list[pa.Table], item_ids: pa.Array) -> ByListener:
    if not any(table.num_rows for table in tables):
        return NONE
    lists = pa.concat_tables(tables)
    items = lists[ITEMS].combine_chunks()
    songs = pc.index_in(pc.struct_field(pc.list_flatten(items), ITEM_ID), value_set=item_ids)
    users = user_array(lists[USER_ID])[np.asarray(pc.list_parent_indices(items))]
    known = np.asarray(pc.is_valid(songs))
    return ByListener.of(users[known], songs.drop_null().to_numpy(zero_copy_only=False).astype(np.int64) + 1)


def stored_listeners(day: Day, ds: dt.date, item_ids: pa.Array, songs: SongFacts) -> StoredListeners:
    """Listeners as they are known for the lists of `ds`. InputError if a table of `rules` cannot be used."""
    config, workspace = day.config.rules, day.workspace
    segment_of, undefined = _segments(config, id_type(workspace.spec.user_id_type))
    days = [ds - dt.timedelta(days=back) for back in range(config.listed_days, 0, -1)]
    earlier = [other for other in published_days(workspace) if other < ds][-1:]
    wanted = sorted({*days, *earlier})
    by_day = {of: lists for of, lists in zip(wanted, published_lists(workspace, wanted), strict=True) if lists.files}
    return StoredListeners(
        lists=[by_day[of] for of in days if of in by_day],
        before=by_day.get(earlier[0]) if earlier else None,
        buckets=workspace.spec.buckets,
        item_ids=item_ids,
        dislikes=_dislikes(day, ds, Named(item_ids, songs.artist_ids)),
        segments=tuple(config.segments),
        segment_of=segment_of,
        undefined=undefined,
    )


def _dislikes(day: Day, ds: dt.date, named: Named) -> Dislikes:
    """The dislikes that hold at the request of `ds`."""
    config, calendar = day.config.rules, day.calendar
    if not config.feedback:
        return Dislikes(NONE, NONE)
    required, optional = [USER_ID, ACTION], [ITEM_ID, ARTIST_ID, UNTIL, TIMESTAMP]
    table = read_rule_table("rules.feedback", config.feedback, required, optional)
    table.use_words(ACTION, (LIKE, DISLIKE))
    table.use_ids(USER_ID, id_type(day.workspace.spec.user_id_type))
    table.use_ids(ITEM_ID, named.item_ids.type)
    table.need_one_of(USER_ID)
    table.need_one_of(ITEM_ID, ARTIST_ID)
    table.use_times(UNTIL, calendar)
    table.use_times(TIMESTAMP, calendar)
    end = calendar.day_start(ds + dt.timedelta(days=1))
    table.reject(pc.fill_null(pc.greater_equal(table.rows[TIMESTAMP], end), False), "from the future", TIMESTAMP)
    table.finish(config.max_rejected_share)
    time = calendar.request_time(ds)
    return Dislikes(_disliked(table, named.songs(table.rows), time), _disliked(table, named.artists(table.rows), time))


def _disliked(table: RuleTable, subject: np.ndarray, time: int) -> ByListener:
    """Of several rows of a listener on a subject the latest counts, the last of them if they have no times.

    subject: int64, a number for each row, 0 where it names none that is known.
    """
    rows = table.rows
    until = pc.fill_null(rows[UNTIL], np.iinfo(np.int64).max).to_numpy()
    given = pc.fill_null(rows[TIMESTAMP], np.iinfo(np.int64).min).to_numpy()
    known = np.flatnonzero(subject > 0)
    users = rows[USER_ID].take(pa.array(known)).combine_chunks().dictionary_encode()
    listener = users.indices.to_numpy()
    order = np.lexsort([known, given[known], subject[known], listener])
    same = (np.diff(listener[order], append=-1) == 0) & (np.diff(subject[known][order], append=-1) == 0)
    latest = known[order[~same]]
    holds = latest[(until[latest] > time) & np.asarray(pc.equal(rows[ACTION], DISLIKE))[latest]]
    return ByListener.of(user_array(rows[USER_ID].take(pa.array(holds))), subject[holds])


def _segments(config: RulesConfig, user: pa.DataType) -> tuple[ByListener, int]:
    """The segment of each listener of `rules.listeners`, and how many have one that is not defined."""
    names = tuple(config.segments)
    if not config.listeners:
        return NONE, 0
    table = read_rule_table("rules.listeners", config.listeners, [USER_ID, SEGMENT], [])
    table.use_ids(USER_ID, user)
    table.need_one_of(USER_ID)
    table.finish(config.max_rejected_share)
    texts = pc.fill_null(table.rows[SEGMENT].cast(pa.string()), NO_SEGMENT)
    number = pc.index_in(texts, value_set=pa.array(names, pa.string()))
    strange = texts.filter(pc.and_(pc.is_null(number), pc.not_equal(texts, NO_SEGMENT)))
    if len(strange):
        found = ", ".join(pc.unique(strange).to_pylist()[:5])
        log("rules.listeners: segments that rules.segments does not define", listeners=len(strange), segments=found)
    known = np.asarray(pc.is_valid(number))
    users = user_array(table.rows[USER_ID].filter(pa.array(known)))
    by_listener = ByListener.of(users, number.drop_null().to_numpy().astype(np.int64))
    last = by_listener.offsets[1:] - 1  # of several rows of a listener the last one counts
    return ByListener(by_listener.users, np.arange(len(last) + 1), by_listener.values[last]), len(strange)
