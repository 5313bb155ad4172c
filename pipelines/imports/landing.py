"""Plays of a data set as play logs by day, which the daily job reads: streamed, resumable, and counted.

A data set is read in chunks that are the same each time. The plays of a chunk are appended to a staging file a day,
songs to one of a few by their id; then a small state file is replaced that says how long each of them is. A run that
was killed goes on there: what is longer is cut off. When every chunk is staged, each day is read, freed of duplicates,
and written. Memory: a chunk and eight bytes a song, then a day or a sixteenth of the songs.
"""

import contextlib
import fcntl
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from pyarrow import ipc

from pipelines import storage
from pipelines.errors import InputError
from pipelines.imports.dataset import LINE, Chunk, Dataset, Published, Rejected, Rows
from pipelines.imports.sources import Download, reading
from pipelines.schema import (
    DURATION_MS,
    ITEM_ID,
    PLAY_MS,
    PLAY_SOURCE,
    REASON,
    SOURCE_FILE,
    TIMESTAMP,
    USER_ID,
    id_type,
)

PLAYS, CATALOGUE, REJECTED, STAGING = "plays", "catalogue", "rejected", "staging"
STATE_FILE, LOCK_FILE = "import.json", "import.lock"
SONG_FILES = 16
NULL_VALUE, BAD_TIME = "no_value", "impossible_time"
_FIRST_SECOND, _END_SECOND = 0, 4_102_444_800
"""From 1970 to 2100."""
_DAY_S = 86_400
_TYPES = {TIMESTAMP: pa.int64(), PLAY_MS: pa.int64(), DURATION_MS: pa.int64(), PLAY_SOURCE: pa.string()}
_REJECTED_SCHEMA = pa.schema([(REASON, pa.string()), (SOURCE_FILE, pa.string()), ("row", pa.string())])


@dataclass
class _State:
    """What is finished: the content of STATE_FILE."""

    dataset: str
    variant: dict[str, Any]
    number: int = 1  # of this import into the folder
    imported: list[str] = field(default_factory=list)  # files of imports that are finished
    files: list[str] = field(default_factory=list)  # of this one
    chunks: list[str] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)  # staging file -> bytes
    counts: dict[str, int] = field(default_factory=dict)
    rejected: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)  # reason -> where, and the row
    days: dict[str, int] = field(default_factory=dict)  # day -> plays that were written
    written: bool = False  # every day and all songs


class Landing:
    """A folder that a data set is imported into."""

    def __init__(self, folder: str, dataset: Dataset, *, max_rejected_share: float = 0.25) -> None:
        if storage.is_s3(folder):
            raise InputError(f"--out {folder}: an import is staged on a disk; give a folder, and copy it then")
        self.folder, self.dataset, self.max_rejected_share = Path(storage.absolute(folder)), dataset, max_rejected_share
        self.staging = self.folder / STAGING
        self._staged_songs = np.empty(0, np.uint64)  # sorted hashes of ids: eight bytes a song
        self.state = self._open()

    def run(self, downloads: Sequence[Download], *, on_rows: Callable[[int], Any] = lambda _: None) -> dict[str, Any]:
        """Import files, or go on with it; files that are in the folder already are passed over. Returns counts.

        on_rows: called with the number of rows read since its last call.
        Raises InputError, in one line: a damaged file, another data set in the folder, too many rows that are no plays.
        """
        new = [download for download in downloads if download.key not in self.state.imported]
        keys = [download.key for download in new]
        if self.state.files and set(self.state.files) - set(keys):
            raise InputError(
                f"{self.folder} holds an unfinished import of {', '.join(self.state.files)}: give these files again to "
                "finish it, or another --out"
            )
        if not new:
            return self._result(nothing_new=True)
        self.dataset.check(new, self.state.imported)
        with self._alone():
            return self._import(new, keys, on_rows)

    def _import(self, new: Sequence[Download], keys: list[str], on_rows: Callable[[int], Any]) -> dict[str, Any]:
        self.state.files = keys
        self._save()
        if not self.state.written:
            for download in new:
                self._stage(download, on_rows)
            self._check_share(final=True)
            self._publish()
            self.state.written = True
            self._save()
        shutil.rmtree(self.staging, ignore_errors=True)
        self.state.imported += keys
        result = self._result()
        self.state = _State(self.state.dataset, self.state.variant, self.state.number + 1, self.state.imported)
        self._save()
        return result

    def listeners(self) -> set[Any]:
        """Every listener of the plays in the folder."""
        return listeners_of(self.folder)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """InputError while another process imports into the folder; the kernel's lock ends with its process."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / LOCK_FILE, "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(f"another import into {self.folder} is running: wait for it, or stop it") from None
            self.state = self._open()
            yield

    def _open(self) -> _State:
        uri = str(self.folder / STATE_FILE)
        variant = self.dataset.variant()
        if not storage.exists(uri):
            if self.folder.exists() and any(file.name != LOCK_FILE for file in self.folder.iterdir()):
                raise InputError(f"--out {self.folder} holds other files and no {STATE_FILE}: give a new folder")
            return _State(self.dataset.name, variant)
        state = _State(**storage.read_json(uri))
        if (state.dataset, state.variant) != (self.dataset.name, json.loads(json.dumps(variant))):
            said = f"{state.dataset} {_in_words(state.variant)}".strip()
            raise InputError(
                f"--out {self.folder} holds {said}, not {self.dataset.name} {_in_words(variant)}".rstrip()
                + ": give a folder of its own to each"
            )
        return state

    def _save(self) -> None:
        storage.write_json(str(self.folder / STATE_FILE), asdict(self.state))

    def _stage(self, download: Download, on_rows: Callable[[int], Any]) -> None:
        self._cut()
        done = set(self.state.chunks)
        chunks = self.dataset.chunks(download)
        while (chunk := _next(chunks, download)) is not None:
            key = f"{download.key}#{chunk.key}"
            if key in done:
                continue
            with reading(download.path):
                rows = chunk.read()
            self._append(rows, f"{Path(download.path).name}, {chunk.key}", key)
            self.state.chunks.append(key)
            self._check_share()
            self._save()
            on_rows(rows.read)

    def _cut(self) -> None:
        """Take staging files back to what the state says."""
        for file in self.staging.rglob("*.arrows") if self.staging.exists() else ():
            wanted = self.state.sizes.get(file.relative_to(self.staging).as_posix(), 0)
            if not wanted:
                file.unlink()
            elif file.stat().st_size > wanted:
                with file.open("r+b") as stream:
                    stream.truncate(wanted)
        for name, size in self.state.sizes.items():
            file = self.staging / name
            if (file.stat().st_size if file.exists() else 0) != size:
                raise InputError(f"{file} is not as it was staged: remove {self.folder} and import again")

    def _append(self, rows: Rows, where: str, key: str) -> None:
        counts = Counter({"rows_read": rows.read, "ignored": rows.ignored, "staged": 0})
        rejected = list(rows.rejected)
        if rows.plays is not None and rows.plays.num_rows:
            plays, more = _sift(rows.plays, self.dataset)
            rejected += more
            counts["staged"] = plays.num_rows
            for day, part in _by_day(plays):
                self._write(f"{PLAYS}/{day}.arrows", part)
        if rows.songs is not None and rows.songs.num_rows:
            for number, part in self._new_songs(rows.songs.filter(rows.songs[ITEM_ID].is_valid())):
                self._write(f"{CATALOGUE}/{number:02d}.arrows", part)
        if rejected:
            self._reject(rejected, where, key)
        self.state.counts = dict(Counter(self.state.counts) + counts) | {
            name: self.state.counts.get(name, 0) + counts[name] for name in counts
        }

    def _new_songs(self, songs: pa.Table) -> Iterator[tuple[int, pa.Table]]:
        """The songs of each catalogue file, chosen by a hash of their id, that this run has not staged yet."""
        ids = pc.unique(songs[ITEM_ID])
        hashes = np.fromiter(
            (xxhash.xxh3_64_intdigest(str(one).encode()) for one in ids.to_pylist()), np.uint64, len(ids)
        )
        new = ~np.isin(hashes, self._staged_songs)
        self._staged_songs = np.union1d(self._staged_songs, hashes)
        first = pc.index_in(ids.filter(pa.array(new)), songs[ITEM_ID].combine_chunks())
        rows, files = songs.take(first), hashes[new] % SONG_FILES
        for number in np.unique(files).tolist():
            yield int(number), rows.filter(pa.array(files == number))

    def _write(self, name: str, table: pa.Table) -> None:
        file = self.staging / name
        file.parent.mkdir(parents=True, exist_ok=True)
        options = ipc.IpcWriteOptions(compression="lz4")
        with storage.writing(str(file)), file.open("ab") as sink:
            with ipc.new_stream(sink, table.schema, options=options) as writer:
                writer.write_table(table)
            sink.flush()
            self.state.sizes[name] = sink.tell()

    def _reject(self, rejected: Sequence[Rejected], where: str, key: str) -> None:
        counted = Counter(one.reason for one in rejected)
        self.state.rejected = dict(sorted((Counter(self.state.rejected) + counted).items()))
        for one in rejected:
            self.state.examples.setdefault(one.reason, f"{where}, {one.where}: {one.text[:80]!r}")
        rows = [{REASON: one.reason, SOURCE_FILE: f"{where}, {one.where}", "row": one.text} for one in rejected]
        name = hashlib.blake2b(key.encode(), digest_size=8).hexdigest()
        uri = str(self.folder / REJECTED / f"{self.state.number:04d}-{name}.parquet")
        storage.write_table(uri, pa.Table.from_pylist(rows, _REJECTED_SCHEMA))

    def _check_share(self, *, final: bool = False) -> None:
        read, rejected = self.state.counts.get("rows_read", 0), sum(self.state.rejected.values())
        if (final or read >= 1000) and rejected > self.max_rejected_share * read:
            reason = max(self.state.rejected, key=lambda name: self.state.rejected[name])
            raise InputError(
                f"{rejected:,} of {read:,} rows are no plays ({rejected / read:.0%}, --max-rejected-share allows "
                f"{self.max_rejected_share:.0%}), most as {reason}: {self.state.examples[reason]}"
            )
        if final and not self.state.counts.get("staged"):
            raise InputError(f"there is no play in {', '.join(self.state.files)}: are they of this data set?")

    def _publish(self) -> None:
        names = [name for name in self.state.sizes if name.startswith(f"{PLAYS}/")]
        for name in sorted(names):
            day = Path(name).stem
            distinct = _distinct(_read_staged(self.staging / name))
            uri = str(self.folder / PLAYS / f"ds={day}" / f"{self.dataset.name}-{self.state.number:04d}.parquet")
            storage.write_table(uri, distinct.sort_by([(TIMESTAMP, "ascending"), (USER_ID, "ascending")]))
            self.state.days[day] = distinct.num_rows
        for name in self.state.sizes:
            if name.startswith(f"{CATALOGUE}/"):
                self._publish_songs(name)

    def _publish_songs(self, name: str) -> None:
        """The songs of a staging file, with those of earlier imports: the first row of each."""
        target = self.folder / CATALOGUE / f"{Path(name).stem}.parquet"
        staged = _read_staged(self.staging / name)
        if target.exists():
            staged = pa.concat_tables([storage.read_table(str(target)), staged], promote_options="default")
        others = [(column, "first") for column in staged.column_names if column != ITEM_ID]
        first = staged.group_by(ITEM_ID, use_threads=False).aggregate(others).sort_by(ITEM_ID)
        renamed = [column.removesuffix("_first") for column in first.column_names]
        storage.write_table(str(target), first.rename_columns(renamed))

    def _result(self, *, nothing_new: bool = False) -> dict[str, Any]:
        if nothing_new:
            return {"dataset": self.dataset.name, "imported": "already", "files": len(self.state.imported)}
        kept = sum(self.state.days.values())
        return {
            "dataset": self.dataset.name,
            "rows_read": self.state.counts["rows_read"],
            "plays_read": self.state.counts["rows_read"] - self.state.counts["ignored"],
            "plays": kept,
            "duplicates": self.state.counts["staged"] - kept,
            "ignored": self.state.counts["ignored"],
            "rejected": self.state.rejected,
            "days": len(self.state.days),
            "first_day": min(self.state.days),
            "last_day": max(self.state.days),
        }


def against_published(counts: dict[str, Any], published: Iterable[Published]) -> list[str]:
    """A line for each published number: whether it is the one that was read."""
    lines = []
    for number in published:
        read = counts[number.what]
        verdict = "as published" if read == number.count else f"DIFFERS from the {number.count:,} published"
        lines.append(f"{number.what} {read:,}: {verdict} ({number.source})")
    return lines


def listeners_of(folder: str | Path) -> set[Any]:
    """Every listener of the plays below a folder that was imported into."""
    found: set[Any] = set()
    for file in sorted(Path(folder, PLAYS).rglob("*.parquet")):
        found.update(pc.unique(storage.read_table(str(file), [USER_ID])[USER_ID]).to_pylist())
    return found


def _next(chunks: Iterator[Chunk], download: Download) -> Chunk | None:
    with reading(download.path):
        return next(chunks, None)


def _sift(plays: pa.Table, dataset: Dataset) -> tuple[pa.Table, list[Rejected]]:
    """Plays in the types of the data set, and the rows that cannot be any."""
    types = {**_TYPES, USER_ID: id_type(dataset.user_id_type), ITEM_ID: id_type(dataset.item_id_type)}
    table = pa.table({name: plays[name].cast(types[name]) for name in dataset.columns})
    reasons = np.full(table.num_rows, "", object)
    time = table[TIMESTAMP].fill_null(0).to_numpy()
    reasons[(time < _FIRST_SECOND) | (time >= _END_SECOND)] = BAD_TIME
    for name in (TIMESTAMP, ITEM_ID, USER_ID):
        reasons[table[name].is_null().to_numpy()] = f"{NULL_VALUE}_{name}"
    bad = np.flatnonzero(reasons != "")
    if not len(bad):
        return table, []
    rows = table.take(pa.array(bad)).to_pylist()
    lines = plays[LINE].take(pa.array(bad)).to_pylist() if LINE in plays.column_names else bad.tolist()
    where = LINE if LINE in plays.column_names else "row"
    rejected = [
        Rejected(str(reasons[place]), f"{where} {line}", json.dumps(row, ensure_ascii=False))
        for place, line, row in zip(bad, lines, rows, strict=True)
    ]
    return table.filter(pa.array(reasons == "")), rejected


def _by_day(plays: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    """The plays of each day (UTC, ISO date), in their order."""
    days = plays[TIMESTAMP].to_numpy() // _DAY_S
    order = np.argsort(days, kind="stable")
    days, plays = days[order], plays.take(pa.array(order))
    starts = np.flatnonzero(np.diff(days, prepend=-1))
    for start, end in zip(starts, [*starts[1:], len(days)], strict=True):
        yield str(np.datetime64(int(days[start]), "D")), plays.slice(start, end - start)


def _read_staged(file: Path) -> pa.Table:
    """All streams of a staging file, one behind the other."""
    tables = []
    with pa.OSFile(str(file)) as source:
        while source.tell() < source.size():
            tables.append(ipc.open_stream(source).read_all())
    return pa.concat_tables(tables)


def _distinct(plays: pa.Table) -> pa.Table:
    """One of the plays of equal listener, song and second: as far played as any."""
    keys = [USER_ID, ITEM_ID, TIMESTAMP]
    others = [name for name in plays.column_names if name not in keys]
    how = [(name, "first" if name == PLAY_SOURCE else "max") for name in others]
    grouped = plays.group_by(keys, use_threads=False).aggregate(how)
    return pa.table({**{key: grouped[key] for key in keys}, **{n: grouped[f"{n}_{a}"] for n, a in how}})


def _in_words(variant: dict[str, Any]) -> str:
    return f"({', '.join(f'{name} {value}' for name, value in variant.items())})" if variant else ""
