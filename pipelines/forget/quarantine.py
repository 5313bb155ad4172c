"""Removes listeners from the quarantine, whose rows are kept as the logs had them."""

from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from pipelines import storage
from pipelines.forget.listeners import ListenersToForget, Matches
from pipelines.forget.redact import possible_users
from pipelines.histories.shards import open_parquet
from pipelines.histories.writer import ParquetSink


def erase_from_quarantine(
    uris: Iterable[str], listeners: ListenersToForget, *, column: str, dry_run: bool = False
) -> Matches:
    """Rewrite the files that hold rows of the listeners, each atomically. column: the logs' name of user_id."""
    matches = Matches()
    for uri in uris:
        theirs = _rows_of(listeners, uri, column)
        if theirs.any():
            matches += Matches(1, int(theirs.sum()))
            if not dry_run:
                _drop_rows(uri, theirs)
    return matches


def _rows_of(listeners: ListenersToForget, uri: str, column: str) -> np.ndarray:
    """Which rows of a quarantine file are, or may be, of the listeners, bool."""
    masks = [np.zeros(0, bool)]
    with open_parquet(uri) as file:
        for group in range(file.num_row_groups):
            texts = file.read_row_group(group, ["row"])["row"].to_pylist()
            theirs = (listeners.any_of(possible_users(text, column, listeners.user_id_type)) for text in texts)
            masks.append(np.fromiter(theirs, bool, len(texts)))
    return np.concatenate(masks)


def _drop_rows(uri: str, dropped: np.ndarray) -> None:
    """Replace a Parquet file by one without some of its rows; a file that loses all of them is deleted."""
    start = 0
    with open_parquet(uri) as source:
        sink = ParquetSink(uri, source.schema_arrow)
        for group in range(source.num_row_groups):
            table = source.read_row_group(group)
            kept = table.filter(pa.array(~dropped[start : start + table.num_rows]))
            start += table.num_rows
            if kept.num_rows:
                sink.write(kept)
    if not sink.close():
        storage.delete_files([uri])
