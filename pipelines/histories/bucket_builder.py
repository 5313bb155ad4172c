"""The new file of one bucket: a day's histories laid over what the parent has of it, row group by row group."""

from bisect import bisect_right
from dataclasses import replace
from typing import Any

import numpy as np

from pipelines.histories.histories import Histories, no_histories
from pipelines.histories.increments import Increment, Layer, increment_over
from pipelines.histories.merge import overlay
from pipelines.histories.publish import BuildSpec, BuiltShards
from pipelines.histories.shards import Manifest, ShardFile


class BucketBuilder:
    """Writes a new base, or an increment over the parent's base, while histories of a bucket arrive by user_id."""

    def __init__(self, spec: BuildSpec, bucket: int, parent: ShardFile | None, built: BuiltShards):
        self._spec, self._parent, self._built = spec, parent, built
        rewrites = parent is None or spec.compacts(parent)
        self._base = spec.base_writer(bucket) if rewrites else None
        self._increment = None if rewrites else spec.increment_writer(bucket)
        self._pending: list[Histories] = []
        self._group = 0  # the next row group of the parent
        self._rows: list[int] = []  # of each row group as it will be read
        self._events = parent.events if parent else 0

    def add(self, histories: Histories) -> None:
        """The histories of the next listeners."""
        if self._parent is None:
            assert self._base
            self._built.add_listeners(histories.lifetime_songs())
            self._base.write(histories)
            return
        self._pending.append(histories)
        while (last := self._last_user(self._group)) is not None and histories.user_id[-1].as_py() > last:
            self._merge_group(last)

    def close(self) -> ShardFile:
        """Finish the bucket and describe it."""
        if self._parent:
            for group in range(self._group, len(self._parent.row_groups)):
                self._merge_group(self._last_user(group))
        if self._base:
            base = self._base.close()
            assert base is not None
            self._built.written_bytes += base.bytes
            return base
        assert self._parent and self._increment
        increment = self._increment.close()
        carried = self._manifest.carried(self._parent)
        if increment is None:
            return carried
        self._built.written_bytes += increment.bytes
        return replace(
            carried,
            rows=sum(self._rows),
            events=self._events,
            row_groups=tuple(self._rows),
            increments=(*carried.increments, increment),
        )

    @property
    def _manifest(self) -> Manifest:
        assert self._spec.parent
        return self._spec.parent

    def _last_user(self, group: int) -> Any:
        """The last user id of a row group of the parent; None for the last group, to which all greater ids belong."""
        assert self._parent
        at_end = group == len(self._parent.row_groups) - 1
        return None if at_end else self._manifest.base_users(self._parent, group)[-1]

    def _merge_group(self, last: Any) -> None:
        """Lay the pending listeners up to user id `last` (None: all) over the next row group of the parent."""
        assert self._parent
        group, self._group = self._group, self._group + 1
        new = self._take_pending(last)
        if self._base:
            layers = self._manifest.layers(self._parent, group)
            if len(new):
                self._count(increment_over([Layer.of(layer) for layer in layers], new, since=self._manifest.data_end))
                layers.append(new)
            self._base.write(overlay(layers, max_history=self._spec.max_history))
        elif self._increment and len(new):
            layers = self._manifest.lazy_layers(self._parent, group)
            increment = increment_over(layers, new, since=self._manifest.data_end)
            self._count(increment)
            self._write_increment(increment, group)
        elif self._increment:
            self._increment.write(new, np.zeros(0, np.int32))
            self._rows.append(self._parent.row_groups[group])

    def _count(self, increment: Increment) -> None:
        self._built.add_listeners(increment.first_heard)
        self._built.duplicates += increment.duplicates

    def _write_increment(self, increment: Increment, group: int) -> None:
        assert self._parent and self._increment
        histories, num_new, num_before = increment.histories, increment.num_new, increment.num_before
        adds = np.flatnonzero((histories.lengths > 0) | (np.diff(histories.heard_offsets) > 0))
        self._increment.write(histories if len(adds) == len(histories) else histories.take(adds), num_new[adds])
        most = self._spec.max_history
        before = np.clip(num_before, 0, most)
        self._rows.append(self._parent.row_groups[group] + int((num_before[adds] < 0).sum()))
        self._events += int((np.minimum(before + num_new, most) - before).sum())

    def _take_pending(self, last: Any) -> Histories:
        """Take the pending listeners up to user id `last` (None: all)."""
        taken, rest = [], []
        for histories in self._pending:
            count = len(histories)
            stop = count if last is None else bisect_right(histories.user_id, last, key=lambda user: user.as_py())
            taken += [histories.slice(0, stop)] if stop else []
            rest += [histories.slice(stop, count)] if stop < count else []
        self._pending = rest
        return overlay(taken, max_history=self._spec.max_history) if taken else no_histories()
