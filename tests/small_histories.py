"""Histories written down in a test."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from pipelines import schema
from pipelines.histories.histories import Histories

Event = tuple[int, int, int]
"""(item index, Unix second, completion)."""


def histories_of(
    users: Mapping[Any, Sequence[Event]],
    *,
    heard_before: Mapping[Any, Sequence[int]] | None = None,
    user_id_type: str = "int64",
) -> Histories:
    """{user id: events, oldest first} as histories, by ascending user id."""
    rows = [
        {
            schema.USER_ID: user,
            schema.ITEM_INDEX: [event[0] for event in events],
            schema.TIMESTAMP: [event[1] for event in events],
            schema.COMPLETION: [event[2] for event in events],
            schema.HEARD_BEFORE: (heard_before or {}).get(user, []),
        }
        for user, events in sorted(users.items())
    ]
    return Histories.from_table(pa.Table.from_pylist(rows, schema=schema.increment_schema(user_id_type)))
