"""Tiny shard folders and random jagged batches for the tests of this package."""

import datetime as dt
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.histories.publish import BuildSpec, publish_shards, write_bases
from pipelines.histories.shards import Manifest

from ..small_histories import Event, histories_of


@pytest.fixture
def make_shards(tmp_path: Path) -> Callable[..., Manifest]:
    """A function that publishes shards of given buckets.

    buckets: a list of {user id: events}; row_group_events: as of `BuildSpec`; heard_before: {user id: songs}. Songs
    above vocabulary_size are those of a later day.
    """

    def make(
        buckets: list[dict[int, list[Event]]],
        *,
        vocabulary_size: int,
        data_end: int,
        ds: dt.date = dt.date(2026, 3, 4),
        row_group_events: int = 1_000_000,
        heard_before: dict[int, list[int]] | None = None,
        timezone: str = "UTC",
    ) -> Manifest:
        histories = [histories_of(users, heard_before=heard_before) for users in buckets]
        spec = BuildSpec(
            folder=str(tmp_path / f"ds={ds}"),
            ds=ds,
            data_end=data_end,
            vocabulary_size=max([vocabulary_size, *(own.lifetime_songs().max(initial=0) for own in histories)]),
            buckets=len(buckets),
            row_group_events=row_group_events,
            timezone=timezone,
        )
        built = write_bases(spec, enumerate(histories))
        known = replace(built, listeners=built.listeners[: vocabulary_size + 1])
        return publish_shards(replace(spec, vocabulary_size=vocabulary_size), known)

    return make
