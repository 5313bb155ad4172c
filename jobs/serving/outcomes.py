"""The published lists of a day joined with what their listeners played, a bucket at a time.

Only what the days after the lists wrote of the histories is read: nothing older can hold a play of that day. In memory
are a bucket's lists and its plays of the day, and one row group of histories.
"""

import datetime as dt
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fuxi_beta.evaluation.served import Group, HitSums, ServedLists
from jobs.tables.published_lists import PublishedLists
from pipelines.calendar import Calendar
from pipelines.histories.shards import Manifest, ShardFile
from pipelines.schema import (
    COMPLETION,
    DEFAULT_SEGMENT,
    EVERY,
    ITEM_ID,
    ITEMS,
    PROPENSITY,
    SEGMENT,
    SOURCE,
    SOURCE_DEFAULT,
    USER_ID,
)


@dataclass(frozen=True)
class ListOutcomes:
    """The lists of `ds`, and the histories of a later day in which its plays are."""

    ds: dt.date
    lists: PublishedLists
    manifest: Manifest
    item_ids: pa.Array  # item_id of the songs 1..V, at index - 1
    calendar: Calendar
    min_completion: int  # per cent; a play of less is a skip

    def measure(self, sums: HitSums, *, on_progress: Callable[[int], None]) -> None:
        """Add the lists of every bucket to `sums`. on_progress: called with the listeners of a file.

        A listener without a list has seen the default list; where there is none, such plays count nowhere.
        """
        default = self.lists.read(None)
        default = default.filter(pc.is_null(default[SEGMENT])).slice(0, 1)
        for file in self.manifest.files:
            lists = self.lists.read(file.bucket)
            sums.add_lists(_groups(_texts(lists[SOURCE]), _segments(lists)))
            plays = pa.concat_tables(self._plays(file)).combine_chunks()
            self._add(sums, lists, default, plays)
            on_progress(file.rows)

    def _plays(self, file: ShardFile) -> Iterator[pa.Table]:
        """Plays of a bucket from the request time of ds to its end: user_id, item_id, completion."""
        start, end = self.calendar.request_time(self.ds), self.calendar.day_start(self.ds + dt.timedelta(days=1))
        kinds = {USER_ID: self.lists.spec.schema.field(USER_ID).type, ITEM_ID: self.item_ids.type}
        yield pa.schema([*kinds.items(), (COMPLETION, pa.uint8())]).empty_table()
        for group in range(len(file.row_groups)):
            histories = self.manifest.added_after(file, group, self.ds)
            if histories is not None:
                plays = histories.keep((histories.timestamp >= start) & (histories.timestamp < end))
                songs = self.item_ids.take(pa.array(plays.item_index - 1))
                users = plays.user_id.take(pa.array(plays.listener))
                yield pa.table({USER_ID: users, ITEM_ID: songs, COMPLETION: plays.completion})

    def _add(self, sums: HitSums, lists: pa.Table, default: pa.Table, plays: pa.Table) -> None:
        """Add the listeners with a play. lists, plays: of one bucket."""
        if not default.num_rows:
            plays = plays.filter(pc.is_in(plays[USER_ID], value_set=lists[USER_ID]))
        users, songs = pc.unique(plays[USER_ID]), pc.unique(plays[ITEM_ID])
        if not len(users):
            return
        own = pc.index_in(users, value_set=lists[USER_ID])
        seen = pa.concat_tables([lists, default]).take(pc.fill_null(own, lists.num_rows)).combine_chunks()
        served = ServedLists(
            *_matrices(seen, songs),
            listener=_numbers(pc.index_in(plays[USER_ID], value_set=users)),
            song=_numbers(pc.index_in(plays[ITEM_ID], value_set=songs)) + 1,
            skipped=plays[COMPLETION].to_numpy() < self.min_completion,
        )
        sources = np.where(own.is_null().to_numpy(zero_copy_only=False), SOURCE_DEFAULT, _texts(seen[SOURCE]))
        sums.add(served, _groups(sources, _segments(seen)))


def _matrices(lists: pa.Table, songs: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Songs [B, K] as their place among `songs` from 1 on, all others as one further number; propensities [B, K]."""
    column = lists[ITEMS].combine_chunks()
    lengths = column.value_lengths().to_numpy(zero_copy_only=False)
    elements = column.flatten()
    there = np.arange(max(lengths.max(initial=0), 1)) < lengths[:, None]
    items, propensity = np.zeros(there.shape, np.int64), np.full(there.shape, np.nan)
    places = pc.index_in(pc.struct_field(elements, ITEM_ID), value_set=songs)
    items[there] = pc.fill_null(places, len(songs)).to_numpy() + 1
    propensity[there] = pc.struct_field(elements, PROPENSITY).to_numpy(zero_copy_only=False)  # null: NaN
    return items, propensity


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    return column.to_numpy().astype(np.int64)


def _texts(column: pa.ChunkedArray) -> np.ndarray:
    return np.array(column.to_pylist(), object)


def _segments(lists: pa.Table) -> np.ndarray:
    return _texts(pc.fill_null(lists[SEGMENT], DEFAULT_SEGMENT))


def _groups(sources: np.ndarray, segments: np.ndarray) -> dict[Group, np.ndarray]:
    """Members of all lists, of those of each source and of those of each segment. bool [lists] each."""
    groups = {(EVERY, EVERY): np.ones(len(sources), bool)}
    groups |= {(EVERY, source): sources == source for source in sorted(set(sources))}
    return groups | {(segment, EVERY): segments == segment for segment in sorted(set(segments))}
