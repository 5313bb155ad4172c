"""The reasons of listed songs as a column of the table of lists.

Shapes: `B` listeners, `K` list length, `S` listed songs of all of them, `n` reasons of a song.
"""

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from pipelines.calendar import Calendar

if TYPE_CHECKING:
    from fuxi_beta.data.batches import Batch
    from fuxi_beta.recommender import Reasons


def reasons_column(
    found: "Reasons", batch: "Batch", listed: np.ndarray, item_ids: pa.Array, *, calendar: Calendar, type: pa.ListType
) -> pa.ListArray:
    """The S songs' plays, strongest first: item, day of the play and weight.

    batch: what `found` is of. listed: bool [B, K]. item_ids: of the songs 1..V. Null for listeners without a token,
    whose lists are not the model's; empty for a song that no play pulled.
    """
    token, weight = (part.numpy()[listed] for part in (found.token, found.weight))  # [S, n]
    there = token >= 0
    plays = token[there]
    days = calendar.day_number(batch.timestamp.numpy()[plays]).astype(np.int32)
    item, ds, pull = type.value_type
    reasons = pa.StructArray.from_arrays(
        [
            item_ids.take(pa.array(batch.item_index.numpy()[plays] - 1)),
            pa.array(days, pa.int32()).cast(pa.date32()),
            pa.array(weight[there], pa.float32()),
        ],
        fields=[item, ds, pull],
    )
    offsets = np.concatenate([[0], there.sum(axis=1).cumsum()]).astype(np.int32)
    unexplained = np.broadcast_to(batch.lengths.numpy()[:, None] == 0, listed.shape)[listed]
    return pa.ListArray.from_arrays(pa.array(offsets), reasons, type=type, mask=pa.array(unexplained))
