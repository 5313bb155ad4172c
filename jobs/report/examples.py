"""A few listeners for the day's page, each with the list of the day."""

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from jobs.day import Day
from jobs.serving.listener import served_listener
from pipelines import delta_tables
from pipelines.errors import InputError
from pipelines.histories.shards import Manifest
from pipelines.schema import BUCKET, DS, NUM_EVENTS, USER_ID

QUANTILES = {"light": 0.1, "middle": 0.5, "heavy": 0.9}
"""Which listeners are shown: quantiles of the number of stored plays."""


def example_lists(day: Day) -> tuple[list[dict[str, Any]], str]:
    """A `ServedListener` for a light, a middle and a heavy listener, with `band` and `num_events` added.

    The second value says why there are none, where that is so: the page does without.
    """
    try:
        picked = pick_listeners(day)
        shown = [served_listener(day, str(user_id)) for _, user_id, _ in picked]
    except (InputError, FileNotFoundError) as error:
        return [], str(error)
    examples = [{**s, "band": band, "num_events": events} for s, (band, _, events) in zip(shown, picked, strict=True)]
    return examples, "" if examples else "no listener has both a list and a sequence"


def pick_listeners(day: Day) -> list[tuple[str, int | str, int]]:
    """(band, user_id, stored plays) of up to three listeners with a list; the same on every call.

    They come from the first buckets that together have three, so that a table of millions is not read whole.
    """
    manifest = day.manifest(day.sequences_ds)
    candidates: list[pa.Table] = []
    for bucket in sorted({file.bucket for file in manifest.files}):
        histories = _stored_plays(manifest, bucket)
        served = _served(day, bucket).cast(histories[USER_ID].type)
        candidates.append(histories.filter(pc.is_in(histories[USER_ID], value_set=served)))
        if sum(table.num_rows for table in candidates) >= len(QUANTILES):
            break
    order = [(NUM_EVENTS, "ascending"), (USER_ID, "ascending")]
    rows = pa.concat_tables(candidates).sort_by(order) if candidates else None
    if rows is None or rows.num_rows == 0:
        return []
    places = {round(share * (rows.num_rows - 1)): band for band, share in QUANTILES.items()}
    return [(band, rows[USER_ID][place].as_py(), rows[NUM_EVENTS][place].as_py()) for place, band in places.items()]


def _stored_plays(manifest: Manifest, bucket: int) -> pa.Table:
    """user_id and num_events of the bucket's listeners."""
    files = [file for file in manifest.files if file.bucket == bucket]
    return pa.concat_tables([manifest.read(f, None, [USER_ID, NUM_EVENTS]) for f in files])


def _served(day: Day, bucket: int) -> pa.ChunkedArray:
    """user_id of the bucket's listeners with a list on the day."""
    wanted = (pc.field(DS) == pa.scalar(day.ds, pa.date32())) & (pc.field(BUCKET) == bucket)
    wanted &= pc.field(USER_ID).is_valid()
    lists = delta_tables.read(day.workspace.recommendations, wanted, [USER_ID])
    assert lists is not None  # they are published before the report
    return lists[USER_ID]
