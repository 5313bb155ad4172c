"""`fuxi import movielens`: ratings become the shards and the vocabulary that every other stage reads."""

import datetime as dt
from collections import Counter

import numpy as np
import pyarrow as pa

from jobs.config import Config
from jobs.day import Day, StageResult, open_day, run_stage
from jobs.reproduce.paper import Counts, against_paper
from jobs.runtime.console import log
from jobs.stages import sessionize
from pipelines import delta_tables, digests, storage
from pipelines.calendar import Calendar
from pipelines.errors import InputError
from pipelines.forget import blocklist
from pipelines.histories import vocabulary
from pipelines.imports import movielens
from pipelines.imports.plays import build_histories
from pipelines.logs.files import LogFile
from pipelines.logs.validate import QUARANTINE_SCHEMA
from pipelines.schema import ITEM_ID, ITEM_INDEX, LANDING_DAY, REASON, SOURCE_FILE


def run(config: Config, path: str, *, ds: dt.date | None = None, movies: str | None = None) -> StageResult:
    """Import a ratings file (or a folder that holds one) into the workspace as the sequences of `ds`.

    ds: default the day after the last rating; later ratings are left out. movies: titles; default the file published
    beside the ratings, if there is one. All its films get an index, so the whole catalogue is ranked. Returns what
    `fuxi sessionize` returns, and `ds`. Importing the same file again is skipped.
    """
    for name in ("user_id_type", "item_id_type"):
        if getattr(config.sequences, name) != "int64":
            raise InputError(f"sequences.{name} is {getattr(config.sequences, name)}: MovieLens ids need int64")
    ratings = movielens.read_ratings(movielens.find_ratings(path))
    titles = storage.absolute(movies) if movies else movielens.find_movies(ratings.uri)
    if titles and not storage.exists(titles):
        raise InputError(f"--movies {movies} is not there: give movies.dat, movies.csv, u.item or Parquet")
    _check_quality(config, ratings)
    last = Calendar(config.sequences.timezone).date_of(int(ratings.timestamp.max()))
    day = open_day(config, ds or last + dt.timedelta(days=1))
    files = [_input_file(uri, day) for uri in (ratings.uri, titles) if uri]
    if not day.has_record or day.record.files != tuple(files):
        day.force = True
    result = run_stage(day, "sessionize", lambda day: _import(day, ratings, files))
    if verdict := against_paper(Counts(result["listeners"], result["rated"], result["events"])):
        log("counts", of=verdict)
    log("imported", file=ratings.uri, ds=day.ds, **{key: result[key] for key in ("listeners", "events", "songs")})
    return {**result, "ds": str(day.ds)}


def _import(day: Day, ratings: movielens.Ratings, files: list[LogFile]) -> StageResult:
    """The import as a stage: run record first, manifest last, as in `sessionize`."""
    titles = movielens.read_movies(files[1].uri) if len(files) > 1 else None
    record = day.new_record(
        vocabulary_version=delta_tables.version(day.workspace.vocabulary),
        files=tuple(files),
        catalogue_files=_write_titles(day, titles),
    )
    in_time = ratings.timestamp < day.calendar.day_start(day.ds)
    if not in_time.any():
        raise InputError(f"{ratings.uri} has no rating before ds {day.ds}: give a later --ds, or none")
    forgotten = blocklist.load(day.workspace.forgotten).mask(pa.array(ratings.user_id))
    kept = ratings.take(np.flatnonzero(in_time & ~forgotten))
    films = np.unique(np.concatenate([ratings.item_id, titles[ITEM_ID].to_numpy()] if titles else [ratings.item_id]))
    songs = vocabulary.append(
        day.workspace.vocabulary, pa.array(films), ds=day.ds, item_id_type="int64", run_id=record.run_id
    )
    target = sessionize.build_spec(day, songs, None, played=songs.lookup(pa.array(films)))
    rated, inverse = np.unique(kept.item_id, return_inverse=True)
    built = build_histories(kept.plays(songs.lookup(pa.array(rated))[ITEM_INDEX].to_numpy()[inverse]), target)
    rejected = ratings.rejected() + Counter({"after_ds": int((~in_time).sum())})
    counts = {
        "rows_read": ratings.rows_read,
        "accepted": len(kept.timestamp),
        "ignored": 0,
        "forgotten": int((in_time & forgotten).sum()),
        "duplicates": built.duplicates,
        "rejected": dict(sorted(rejected.items())),
        "songs": songs.size(day.ds),
        "rated": len(rated),
        "new_songs": songs.new_on(day.ds),
    }
    _quarantine(day, ratings, record.run_id)
    manifest = sessionize.publish(day, target, built, files[:1], counts)
    return {**counts, "listeners": manifest.rows, "events": manifest.events, "files": len(manifest.files)}


def _check_quality(config: Config, ratings: movielens.Ratings) -> None:
    """Refuse a file with too many unreadable lines, naming the first."""
    share, limit = len(ratings.bad) / ratings.rows_read, config.logs.max_rejected_share
    if share > limit:
        first = ratings.bad[0]
        raise InputError(
            f"{ratings.uri}: {len(ratings.bad)} of {ratings.rows_read} lines are no ratings ({share:.0%}, "
            f"logs.max_rejected_share allows {limit:.0%}), the first is line {first.number}: {first.text[:80]!r}"
        )


def _input_file(uri: str, day: Day) -> LogFile:
    """A file as it is now, with the day before ds as its landing day."""
    info = storage.file_info(uri)
    return LogFile(info.uri, info.size, info.etag, str(day.ds - dt.timedelta(days=1)))


def _write_titles(day: Day, titles: pa.Table | None) -> tuple[LogFile, ...]:
    """Write the titles as a catalogue file, which `fuxi show` reads."""
    if titles is None:
        return ()
    uri = storage.join(day.workspace.uri, "catalogue", f"ds={day.ds}", "movies.parquet")
    storage.write_table(uri, titles)
    digests.note_digests(storage.parent(uri))
    return (_input_file(uri, day),)


def _quarantine(day: Day, ratings: movielens.Ratings, run_id: str) -> None:
    """Write the lines that are no ratings, as read."""
    folder = day.workspace.quarantine(day.ds)
    storage.delete_folder(folder)
    if not ratings.bad:
        return
    landed = day.ds - dt.timedelta(days=1)
    rows = [
        {REASON: line.reason, LANDING_DAY: landed, SOURCE_FILE: f"{ratings.uri}:{line.number}", "row": line.text}
        for line in ratings.bad
    ]
    table = pa.Table.from_pylist(rows, QUARANTINE_SCHEMA)
    storage.write_table(storage.join(folder, f"part-{run_id[:12]}.parquet"), table)
    digests.note_digests(folder)
