"""What a day's catalogue says to its training: side information by item index, and the songs it has by now."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fuxi_beta.config import ModelConfig
from fuxi_beta.data.side import SideInformation, SideVocabulary, align, appearance, side_information, takes_side
from jobs.day import Day
from jobs.runtime.console import log
from jobs.serving.catalogue import read_catalogue, read_vocabulary
from jobs.serving.rule_tables import as_seconds
from pipelines.errors import InputError
from pipelines.schema import AVAILABLE_FROM, ITEM_ID, RELEASE_DATE


def songs_of_catalogue(day: Day) -> pa.Array | None:
    """Distinct ids of the songs that are released when the lists of `day.ds` are requested, for the vocabulary.

    A song has a row of the item table from then on, whether anybody has played it or not. None if the model takes no
    side information: then only songs that were played have one.
    """
    if not takes_side(day.config.model):
        return None
    rows = catalogue(day)
    there = appearance(rows, day.calendar)[1:] <= day.calendar.request_time(day.ds)
    return pc.unique(rows[ITEM_ID].filter(pa.array(there))).drop_null()


def side_of(
    day: Day, *, candidates: np.ndarray, played: np.ndarray, cut: int, parent: SideVocabulary | None
) -> SideInformation | None:
    """Side information for the training of a day; None if its model takes none. Arguments as of `side_information`."""
    if not takes_side(day.config.model):
        return None
    songs = read_vocabulary(day, of=day.manifest(day.ds))
    return side_information(
        align(catalogue(day), songs[ITEM_ID]),
        model=day.config.model,
        calendar=day.calendar,
        candidates=candidates,
        played=played,
        cut=cut,
        parent=parent,
    )


def catalogue(day: Day) -> pa.Table:
    """The day's catalogue with the columns that the model takes, and with times in Unix seconds.

    Raises InputError if there is no catalogue, or if it cannot be read.
    """
    columns = _columns(day.config.model)
    rows = read_catalogue(day, [*columns, RELEASE_DATE, AVAILABLE_FROM], needed_by="the model needs")
    if rows is None:
        raise InputError(
            f"model.side and model.content name {', '.join(columns)}, but the day has no catalogue: set "
            "logs.catalogue, or unset the keys"
        )
    for name in (RELEASE_DATE, AVAILABLE_FROM):
        if name in rows.column_names:
            seconds, bad = as_seconds(rows[name].combine_chunks(), day.calendar)
            if bad.any():
                log("catalogue values passed over", column=name, songs=int(bad.sum()), reason="no time")
            rows = rows.set_column(rows.column_names.index(name), name, seconds)
    return rows


def _columns(model: ModelConfig) -> list[str]:
    return [*model.side, *([] if model.content is None else [model.content])]
