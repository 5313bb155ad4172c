"""MovieLens ratings as plays, read from the published formats.

A rating is a play of its film, heard in full; the value of the rating is not used.
"""

import csv
import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from pipelines import storage
from pipelines.errors import InputError
from pipelines.histories.merge import Plays
from pipelines.imports.plays import existing_column, whole_numbers
from pipelines.schema import ITEM_ID, TIMESTAMP, TITLE, USER_ID, catalogue_schema

RATING_FILES = ("ratings.dat", "ratings.csv", "u.data", "ratings.parquet")
MOVIE_FILES = {
    "ratings.dat": "movies.dat",
    "ratings.csv": "movies.csv",
    "u.data": "u.item",
    "ratings.parquet": "movies.parquet",
}
_SEPARATORS = {"dat": "::", "csv": ",", "data": "\t", "tsv": "\t"}
_EXPECTED = {
    "::": "UserID::MovieID::Rating::Timestamp",
    ",": "userId,movieId,rating,timestamp",
    "\t": "user, item, rating and timestamp with tabs between",
}
_BLOCK_BYTES = 32 << 20
_MAX_BAD_LINES = 10_000
_INTEGER, _NUMBER = r"^\s*[0-9]{1,18}\s*$", r"^\s*[0-9]+(\.[0-9]+)?\s*$"


@dataclass(frozen=True)
class BadLine:
    """A line that is no rating: counted, quarantined, and left out."""

    number: int  # from 1
    text: str
    reason: str


@dataclass(frozen=True)
class Ratings:
    """The ratings of a file, in its order."""

    uri: str
    user_id: np.ndarray  # int64 [T]
    item_id: np.ndarray  # int64 [T]
    timestamp: np.ndarray  # int64 [T], Unix seconds
    bad: tuple[BadLine, ...] = ()

    @property
    def rows_read(self) -> int:
        """Lines of the file that are not its header."""
        return len(self.timestamp) + len(self.bad)

    def take(self, rows: np.ndarray) -> "Ratings":
        """Some of the ratings, in the given order."""
        return Ratings(self.uri, self.user_id[rows], self.item_id[rows], self.timestamp[rows], self.bad)

    def plays(self, item_index: np.ndarray) -> Plays:
        """The ratings as plays, in the same order. item_index: int32 [T], the index of each rating's film."""
        completion = np.full(len(self.timestamp), 100, np.uint8)
        return Plays(pa.array(self.user_id, pa.int64()), self.timestamp, item_index, completion)

    def rejected(self) -> Counter[str]:
        """Bad lines by reason."""
        return Counter(line.reason for line in self.bad)


def find_ratings(path: str) -> str:
    """The ratings file at a path: the file itself, or the one a folder holds."""
    uri = storage.absolute(path)
    if not storage.exists(uri):
        raise InputError(f"{path} is not there: give {', '.join(RATING_FILES)} or a folder that holds one of them")
    try:
        return storage.file_info(uri).uri
    except FileNotFoundError:  # a folder
        pass
    for name in RATING_FILES:
        if storage.exists(storage.join(uri, name)):
            return storage.join(uri, name)
    raise InputError(f"{path} holds none of {', '.join(RATING_FILES)}: give the ratings file itself")


def find_movies(ratings: str) -> str | None:
    """The titles that belong to a ratings file, where they are beside it under their published name."""
    name = MOVIE_FILES.get(storage.name(ratings))
    uri = storage.join(storage.parent(ratings), name) if name else ""
    return uri if uri and storage.exists(uri) else None


def read_ratings(uri: str) -> Ratings:
    """Read ratings.dat, ratings.csv, u.data or Parquet with user_id, item_id, timestamp.

    Bad lines are set apart. Raises InputError, with file and line, if there is no rating at all.
    """
    ending = uri.rsplit(".", 1)[-1].lower()
    if ending == "parquet":
        ratings = _read_parquet(uri)
    elif ending in _SEPARATORS:
        ratings = _read_text(uri, _SEPARATORS[ending])
    else:
        raise InputError(f"{uri}: the ending .{ending} is unknown, expected .dat, .csv, .data, .tsv or .parquet")
    if not len(ratings.timestamp):
        first = f"line {ratings.bad[0].number} is {ratings.bad[0].text[:80]!r}" if ratings.bad else "it is empty"
        expected = _EXPECTED.get(_SEPARATORS.get(ending, ""), "columns user_id, item_id and timestamp")
        raise InputError(f"{uri} holds no ratings ({first}): expected {expected}")
    return ratings


def read_movies(uri: str) -> pa.Table:
    """Titles as a catalogue table (`schema.catalogue_schema`) from movies.dat, movies.csv, u.item or Parquet."""
    ending = uri.rsplit(".", 1)[-1].lower()
    if ending == "parquet":
        table = storage.read_table(uri)
        ids = whole_numbers(uri, table, ITEM_ID).to_pylist()
        titles = existing_column(uri, table, TITLE).cast(pa.string()).to_pylist()
    else:
        ids, titles = _movie_lines(uri, ending)
    target = catalogue_schema("int64")
    columns = {ITEM_ID: pa.array(ids, pa.int64()), TITLE: pa.array(titles, pa.string())}
    missing = {field.name: pa.nulls(len(ids), field.type) for field in target if field.name not in columns}
    return pa.table({**columns, **missing}).select(target.names).cast(target)


def _read_text(uri: str, separator: str) -> Ratings:
    parts: list[np.ndarray] = []
    bad: list[BadLine] = []
    before = 0  # lines of earlier blocks
    for lines in _lines(uri):
        columns, wrong = _parse_lines(lines, separator)
        parts.append(columns)
        for position in wrong.tolist():
            text = lines[position].cast(pa.binary()).as_py().decode("utf-8", "replace")
            if before + position == 0 and text.lower().startswith("userid"):
                continue  # the header of ratings.csv
            bad.append(BadLine(before + position + 1, text, "malformed_line"))
        before += len(lines)
        if len(bad) > _MAX_BAD_LINES and not any(part.size for part in parts):
            break  # not a ratings file at all
    user_id, item_id, timestamp = np.concatenate(parts, axis=1) if parts else np.zeros((3, 0), np.int64)
    return Ratings(uri, user_id, item_id, timestamp, tuple(bad))


def _lines(uri: str) -> Iterator[pa.Array]:
    """The lines of a file in blocks, as they are: strings that may not be valid UTF-8."""
    fs, path = storage.filesystem(uri)
    one_column = pa_csv.ParseOptions(delimiter="\x01", quote_char=False, ignore_empty_lines=False)
    reading = pa_csv.ReadOptions(column_names=["line"], block_size=_BLOCK_BYTES)
    raw = pa_csv.ConvertOptions(column_types={"line": pa.string()}, strings_can_be_null=False, check_utf8=False)
    try:
        with fs.open_input_stream(path) as stream:
            if not stream.read(1):
                return
        with fs.open_input_stream(path) as stream:
            for batch in pa_csv.open_csv(stream, reading, one_column, raw):
                yield batch.column(0)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{uri} cannot be read ({' '.join(str(error).split())}): replace the file") from None


def _parse_lines(lines: pa.Array, separator: str) -> tuple[np.ndarray, np.ndarray]:
    """int64 [3, good] users, films and times; and the positions of lines that are no rating, empty ones left out."""
    text = pc.ascii_trim_whitespace(lines)
    filled = _mask(pc.greater(pc.binary_length(text), 0))
    complete = _mask(pc.string_is_ascii(text)) & _mask(pc.equal(pc.count_substring(text, separator), 3))
    split = pc.split_pattern(text.filter(pa.array(complete)), separator)
    fields = split.flatten()
    columns = [fields.take(pa.array(np.arange(column, len(fields), 4))) for column in range(4)]
    patterns = (_INTEGER, _INTEGER, _NUMBER, _INTEGER)
    good = np.ones(len(split), bool)
    for column, pattern in zip(columns, patterns, strict=True):
        good &= _mask(pc.match_substring_regex(column, pattern))
    numbers = [pc.utf8_trim_whitespace(columns[c].filter(pa.array(good))).cast(pa.int64()) for c in (0, 1, 3)]
    wrong = filled & ~complete
    wrong[np.flatnonzero(complete)[~good]] = True
    return np.stack([column.to_numpy(zero_copy_only=False) for column in numbers]), np.flatnonzero(wrong)


def _mask(values: pa.Array) -> np.ndarray:
    return values.to_numpy(zero_copy_only=False).astype(bool)


def _read_parquet(uri: str) -> Ratings:
    fs, path = storage.filesystem(uri)
    try:
        with fs.open_input_file(path) as source:
            names = pq.ParquetFile(source).schema_arrow.names
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{uri} cannot be read as Parquet ({' '.join(str(error).split())}): replace it") from None
    wanted = (USER_ID, ITEM_ID, TIMESTAMP)
    table = storage.read_table(uri, [name for name in names if name in wanted])
    table = pa.table({name: whole_numbers(uri, table, name) for name in wanted})
    complete = np.ones(table.num_rows, bool)
    for column in table.columns:
        complete &= _mask(column.combine_chunks().is_valid())
    bad = [
        BadLine(int(row) + 1, str(table.slice(int(row), 1).to_pylist()[0]), "null_value")
        for row in np.flatnonzero(~complete)
    ]
    columns = [column.filter(pa.array(complete)).to_numpy() for column in table.columns]
    return Ratings(uri, *columns, bad=tuple(bad))


def _movie_lines(uri: str, ending: str) -> tuple[list[int], list[str]]:
    """Ids and titles of a text file; the encodings are those of the published files."""
    content = storage.read_bytes(uri)
    if ending == "csv":
        rows = list(csv.reader(io.StringIO(content.decode("utf-8", "replace"))))[1:]
    else:
        separator = "::" if ending == "dat" else "|"
        rows = [line.split(separator) for line in content.decode("latin-1").splitlines()]
    ids, titles = [], []
    for number, row in enumerate(rows, start=2 if ending == "csv" else 1):
        if not row or row == [""]:
            continue
        try:
            ids.append(int(row[0]))
            titles.append(row[1].strip())
        except (ValueError, IndexError):
            expected = "a film's id and its title first"
            raise InputError(f"{uri}, line {number} is {'|'.join(row)[:80]!r}: expected {expected}") from None
    return ids, titles
