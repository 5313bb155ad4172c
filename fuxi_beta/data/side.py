"""Side information of songs: columns of the catalogue and content vectors, laid out for the song table.

Each value of a column of `model.side` is a row of a table beside the item table (`fuxi_beta.training.song_table`); so
is, for each column, what is unknown: null, empty, missing, a song that the catalogue lacks, a value that no song
learned from has. A column may be of lists: the song then has the mean of the vectors of its values.

Shapes: `V` songs and the padding row, `E` entries (a value of a song), `S` rows of the side table with its padding row,
`K` width of the content vectors. A catalogue is an Arrow table with a row a song, in the order of item indices from 1.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from safetensors.numpy import load, save

from fuxi_beta.config import ModelConfig
from pipelines import storage
from pipelines.calendar import Calendar
from pipelines.errors import InputError
from pipelines.histories.histories import offsets_of
from pipelines.schema import AVAILABLE_FROM, ITEM_ID, RELEASE_DATE

COLUMN, VALUE = "column", "value"
_ROWS = pa.schema([pa.field(COLUMN, pa.string(), nullable=False), pa.field(VALUE, pa.string())])
_ARRAYS = ("offsets", "rows", "weights", "content")
LONG_AGO, NEVER = np.iinfo(np.int64).min, np.iinfo(np.int64).max


@dataclass(frozen=True, eq=False)
class SideVocabulary:
    """What the rows of the side table stand for: row r is the pair r - 1 of (column, value). It only ever grows."""

    pairs: pa.Table = field(default_factory=_ROWS.empty_table)  # null is the unknown value

    @property
    def rows(self) -> int:
        """S: rows of the table, row 0 (padding) counted."""
        return len(self.pairs) + 1

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that have rows."""
        return tuple(pc.unique(self.pairs[COLUMN]).to_pylist())

    def unknown(self, column: str) -> int | None:
        """The row of the unknown value of a column; None for a column without rows."""
        rows, values = self._of(column)
        place = pc.index(pc.is_null(values), True).as_py()
        return None if place < 0 else int(rows[place])

    def find(self, column: str, values: pa.Array) -> np.ndarray:
        """The row of each value of a column, that of the unknown value for one without. int64."""
        rows, known = self._of(column)
        place = pc.fill_null(pc.index_in(values, value_set=known, skip_nulls=True), -1).to_numpy(zero_copy_only=False)
        unknown = self.unknown(column)
        assert unknown is not None  # `grown` gives it a row
        return np.where(place < 0, unknown, rows[place])

    def grown(self, column: str, values: pa.Array) -> "SideVocabulary":
        """With a row for the unknown value of a column and for each of these values, new ones in ascending order."""
        _, known = self._of(column)
        fresh = pc.unique(values.filter(pc.invert(pc.is_in(values, value_set=known))).drop_null())
        fresh = fresh.take(pc.array_sort_indices(fresh))
        if not known.null_count:
            fresh = pa.concat_arrays([pa.nulls(1, pa.string()), fresh])
        added = pa.table({COLUMN: pa.repeat(pa.scalar(column, pa.string()), len(fresh)), VALUE: fresh}, schema=_ROWS)
        return SideVocabulary(pa.concat_tables([self.pairs, added]).combine_chunks())

    def _of(self, column: str) -> tuple[np.ndarray, pa.Array]:
        """The rows of a column, int64, and their values."""
        chosen = np.flatnonzero(np.asarray(pc.equal(self.pairs[COLUMN], column)))
        return chosen + 1, self.pairs[VALUE].take(chosen).combine_chunks()


@dataclass(frozen=True, eq=False)
class SongSide:
    """Side information by item index: the vector of a song is its own row + sum of weights x rows + map of content."""

    offsets: np.ndarray  # int64 [V + 1]: entries of song i are offsets[i] .. offsets[i + 1] - 1; padding has none
    rows: np.ndarray  # int32 [E], of the side table
    weights: np.ndarray  # float32 [E]: one over the number of values that the song has in the column
    size: int  # S
    content: np.ndarray | None = None  # float32 [V, K], zeros for a song without

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def write(self, uri: str) -> None:
        """Write it as one file, for the workers of a training: it may be too large to send to each."""
        arrays = {name: getattr(self, name) for name in _ARRAYS if getattr(self, name) is not None}
        storage.write_bytes(uri, save(arrays | {"size": np.array([self.size])}))

    @staticmethod
    def read(uri: str) -> "SongSide":
        """What `write` wrote."""
        arrays = load(storage.read_bytes(uri))
        return SongSide(**{name: arrays.get(name) for name in _ARRAYS}, size=int(arrays["size"][0]))  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class SideInformation:
    """What a training knows of songs besides plays, and which songs may be listed by that alone."""

    side: SongSide
    vocabulary: SideVocabulary
    own: np.ndarray  # bool [V], songs whose own row counts in an export; the others are what is known of them
    listed_from: np.ndarray  # int64 [V], Unix second from which a song may be listed; NEVER for no candidate


@dataclass(frozen=True, eq=False)
class KnownSongs:
    """What a training knows of songs at its start."""

    candidates: np.ndarray  # bool [V], that negatives are drawn from
    plays: np.ndarray  # int64 [V], before the cut
    information: SideInformation | None = None  # None for a model that takes none

    @property
    def side(self) -> SongSide | None:
        """What the song table needs of it."""
        return self.information.side if self.information else None


def align(catalogue: pa.Table, item_ids: pa.Array | pa.ChunkedArray) -> pa.Table:
    """The catalogue's rows in the order of `item_ids` (those of indices 1, 2, ...), nulls for a song that it lacks.

    catalogue: a column item_id and others; of several rows of a song the last one counts.
    """
    if ITEM_ID not in catalogue.column_names:
        raise InputError(f"catalogue: column {ITEM_ID} is missing (found {', '.join(catalogue.column_names)}): add it")
    ids = item_ids.combine_chunks() if isinstance(item_ids, pa.ChunkedArray) else item_ids
    numbered = pa.table({ITEM_ID: catalogue[ITEM_ID].cast(ids.type), "row": np.arange(catalogue.num_rows)})
    last = numbered.group_by(ITEM_ID).aggregate([("row", "max")])
    place = pc.take(last["row_max"], pc.index_in(ids, value_set=last[ITEM_ID].combine_chunks()))
    return catalogue.take(place)


def takes_side(model: ModelConfig) -> bool:
    """Whether a model takes side information."""
    return bool(model.side) or model.content is not None


def side_information(
    catalogue: pa.Table | None,
    *,
    model: ModelConfig,
    calendar: Calendar,
    candidates: np.ndarray,
    played: np.ndarray,
    cut: int,
    parent: SideVocabulary | None = None,
) -> SideInformation | None:
    """Side information for a training whose targets are before `cut` (Unix seconds); None if the model takes none.

    candidates, played: bool [V], songs that negatives are drawn from, and songs with a play before the cut. Of a song
    that was played what the catalogue says from the cut on is unknown. Only values of songs that were played get rows,
    so what no training has touched tells nothing. parent: the vocabulary that keeps its rows.
    """
    if not takes_side(model):
        return None
    catalogue = _checked(catalogue, model, songs=len(played) - 1)
    appears = appearance(catalogue, calendar)
    hidden = played & (appears >= cut)
    vocabulary, entries, known = parent or SideVocabulary(), [], np.zeros(len(played), bool)
    for column in model.side:
        song, values = _values(catalogue, column)
        shown = ~hidden[song]
        song, values = song[shown], values.filter(pa.array(shown))
        vocabulary = vocabulary.grown(column, values.filter(pa.array(played[song])))
        rows = vocabulary.find(column, values)
        known[song[rows != vocabulary.unknown(column)]] = True
        entries.append(_with_unknown(song, rows, vocabulary.unknown(column) or 0, songs=len(played)))
    content = _content(catalogue, model.content, hidden)
    if content is not None:
        known |= content.any(axis=1)
    cold = ~candidates & known & ~hidden
    listed_from = np.where(candidates, LONG_AGO, np.where(cold, appears, NEVER))
    return SideInformation(
        side=_packed(entries, songs=len(played), size=vocabulary.rows, content=content),
        vocabulary=vocabulary,
        own=candidates | (played & ~cold),
        listed_from=listed_from,
    )


def appearance(catalogue: pa.Table, calendar: Calendar) -> np.ndarray:
    """The later of release_date and available_from, LONG_AGO where neither is known. int64 [V], Unix seconds.

    Dates are their 00:00 in the calendar's zone, numbers are Unix seconds. InputError for a column of another type.
    """
    appears = np.full(catalogue.num_rows + 1, LONG_AGO)
    for name in (RELEASE_DATE, AVAILABLE_FROM):
        if name in catalogue.column_names:
            seconds = _seconds(name, catalogue[name].combine_chunks(), calendar)
            appears[1:] = np.maximum(appears[1:], pc.fill_null(seconds, LONG_AGO).to_numpy(zero_copy_only=False))
    return appears


def _seconds(name: str, values: pa.Array, calendar: Calendar) -> pa.Array:
    kind = values.type
    if pa.types.is_integer(kind) or pa.types.is_null(kind):
        return values.cast(pa.int64())
    if pa.types.is_timestamp(kind):
        return values.cast(pa.timestamp("s", kind.tz), safe=False).cast(pa.int64())
    if not pa.types.is_date(kind):
        raise InputError(f"catalogue: column {name} is {kind}, expected dates or Unix seconds: convert it")
    distinct = pc.unique(values).to_pylist()
    starts = pa.array([None if day is None else calendar.day_start(day) for day in distinct], pa.int64())
    return starts.take(pc.index_in(values, value_set=pa.array(distinct, kind)))


def _checked(catalogue: pa.Table | None, model: ModelConfig, *, songs: int) -> pa.Table:
    """The catalogue with exactly so many rows. InputError if it lacks a column that the model asks for."""
    wanted = [("model.side", name) for name in model.side]
    wanted += [("model.content", model.content)] if model.content is not None else []
    if catalogue is None:
        raise InputError(f"{wanted[0][0]} names {wanted[0][1]}, but there is no catalogue: give one, or unset the key")
    for key, name in wanted:
        if name not in catalogue.column_names:
            found = ", ".join(catalogue.column_names) or "none"
            raise InputError(f"{key} names {name}, which the catalogue lacks (it has {found}): correct the key")
    return catalogue.take(pa.array(np.arange(songs), mask=np.arange(songs) >= catalogue.num_rows))


def _values(catalogue: pa.Table, column: str) -> tuple[np.ndarray, pa.Array]:
    """Item index and text of every value of a column that is there, by ascending item index. int64 [E], string [E]."""
    values = catalogue[column].combine_chunks()
    song = np.arange(1, len(values) + 1)
    if isinstance(values, pa.DictionaryArray):
        values = values.dictionary_decode()
    if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        song, values = pc.list_parent_indices(values).to_numpy().astype(np.int64) + 1, pc.list_flatten(values)
    try:
        values = values.cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise InputError(
            f"model.side: catalogue column {column} is {values.type}, expected text, numbers, or lists of them"
        ) from None
    there = np.asarray(pc.fill_null(pc.not_equal(values, ""), False), bool)
    return song[there], values.filter(pa.array(there))


def _with_unknown(
    song: np.ndarray, rows: np.ndarray, unknown: int, *, songs: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Song, row and weight of every entry of a column; a song without a value has the unknown one."""
    counts = np.bincount(song, minlength=songs)
    without = np.flatnonzero(counts == 0)[1:]  # padding is the first
    weights = 1 / counts[song]
    song = np.concatenate([song, without])
    return (
        song,
        np.concatenate([rows, np.full(len(without), unknown)]),
        np.concatenate([weights, np.ones(len(without))]),
    )


def _packed(
    entries: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]], *, songs: int, size: int, content: np.ndarray | None
) -> SongSide:
    """The entries of all columns by song."""
    columns = [*entries] or [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    song, rows, weights = (np.concatenate(parts) for parts in zip(*columns, strict=True))
    order = np.argsort(song, kind="stable")
    return SongSide(
        offsets=offsets_of(np.bincount(song, minlength=songs)),
        rows=rows[order].astype(np.int32),
        weights=weights[order].astype(np.float32),
        size=size,
        content=content,
    )


def _content(catalogue: pa.Table, column: str | None, hidden: np.ndarray) -> np.ndarray | None:
    """The content vectors, float32 [V, K]; None without a column. InputError if lengths differ or one is not finite."""
    if column is None:
        return None
    values = catalogue[column].combine_chunks()
    kind = values.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        raise InputError(f"model.content: catalogue column {column} is {kind}, expected lists of numbers of one length")
    lengths = pc.list_value_length(values).drop_null().unique().to_pylist()
    if len(lengths) != 1 or not lengths[0]:
        raise InputError(
            f"model.content: vectors of catalogue column {column} have lengths {sorted(lengths)[:5]}, expected one "
            "length: leave null what is missing"
        )
    there = np.concatenate([[False], np.asarray(pc.is_valid(values))])
    content = np.zeros((len(there), lengths[0]), np.float32)
    flat = pc.list_flatten(values.drop_null()).cast(pa.float32()).to_numpy(zero_copy_only=False)
    content[there] = flat.reshape(-1, lengths[0])
    if not np.isfinite(content).all():
        song = int(np.flatnonzero(~np.isfinite(content).all(axis=1))[0])
        raise InputError(f"model.content: the vector of song {song} in column {column} is not finite: leave it null")
    content[hidden] = 0
    return content
