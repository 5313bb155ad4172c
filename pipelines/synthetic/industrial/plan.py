"""Music logs of the paper's industrial sizes, written by parallel processes; each has one part in memory at a time.

    <out>/_synthetic.json                    configuration, generator version, days written so far
    <out>/plays/ds=D/part-00000.parquet      rows landing on D, at most two million a file: user_id, item_id, timestamp
    <out>/catalogue/ds=D/part-00000.parquet  the whole catalogue, on the first day

A part is a pure function of the configuration, its day and its number, whatever the number of processes and runs.
Files have their final name only when complete, so a run continues with the parts that are missing.
"""

import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing import get_context, parent_process
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import storage
from pipelines.errors import InputError
from pipelines.schema import ITEM_ID, TIMESTAMP, USER_ID
from pipelines.synthetic.config import GENRES, SyntheticConfig
from pipelines.synthetic.industrial.config import BASE_DAYS, INDUSTRIAL_VERSION, IndustrialConfig
from pipelines.synthetic.industrial.plays import plays_table
from pipelines.synthetic.world import catalogue_table, make_artists, make_songs

BYTES_A_PLAY = 5.9
"""Measured on parts of the largest preset; logs with fewer listeners have shorter ids and need less."""

_SPARE = 1.05
_CATALOGUE_BYTES_A_SONG = 30
_SONGS_AN_ARTIST = 8
_ROW_GROUP = 2**20


@dataclass(frozen=True)
class Plan:
    """What a run will write: the missing parts of `out`, as (day number, part)."""

    config: IndustrialConfig
    out: str
    days: int
    complete: int  # days from the first on that will be complete afterwards; at least `days`
    missing: tuple[tuple[int, int], ...]
    rows: int  # in the missing parts
    bytes: int  # estimated, of the missing parts and the catalogue


def plan(config: IndustrialConfig, out: str, *, days: int = BASE_DAYS) -> Plan:
    """List what is missing of the first `days` landing days; writes nothing.

    out: local folder or s3:// prefix. Raises InputError if it holds another log, or if the local disk is too small.
    """
    if days < 1:
        raise InputError(f"days is {days}: it must be at least 1")
    out = storage.absolute(out)
    _check_marker(config, out)
    written = {file.uri.removeprefix(f"{out}/") for file in storage.list_files(storage.join(out, "plays"))}

    def absent(day: int) -> list[tuple[int, int]]:
        return [(day, part) for part in range(config.parts) if _name(config, day, part) not in written]

    missing = tuple(place for day in range(days) for place in absent(day))
    complete = next(day for day in itertools.count(days) if absent(day))
    rows = sum(config.rows(*place) for place in missing)
    needed = int(rows * BYTES_A_PLAY * _SPARE)
    if not storage.exists(_catalogue_uri(config, out)):
        needed += config.songs * _CATALOGUE_BYTES_A_SONG
    free = storage.free_bytes(out)
    if free is not None and needed > free:
        raise InputError(
            f"{out}: the log needs about {needed / 1e9:.2f} GB and {free / 1e9:.2f} GB are free on its disk: free "
            "space, choose another --out, or a smaller --scale"
        )
    return Plan(config, out, days, complete, missing, rows, needed)


def write(plan: Plan, *, workers: int = 1, on_progress: Callable[[int], None] | None = None) -> dict[str, Any]:
    """Write the missing parts of a plan with `workers` processes and return the counts of the whole log.

    on_progress: called with the number of rows written since the last call. Raises InputError if a process died.
    """
    config, out = plan.config, plan.out
    files = storage.list_files(storage.join(out, "plays"))
    storage.delete_files(file.uri for file in files if file.uri.endswith(".tmp"))  # of a killed run
    missing, written = set(plan.missing), 0
    _write_marker(config, out, _days_written(plan, missing))
    if not storage.exists(_catalogue_uri(config, out)):
        storage.write_table(_catalogue_uri(config, out), _catalogue(config))
    for place, size in _run(plan, workers):
        days_before = _days_written(plan, missing)
        missing.discard(place)
        written += size
        if (days := _days_written(plan, missing)) > days_before:
            _write_marker(config, out, days)
        if on_progress:
            on_progress(config.rows(*place))
    return {
        "out": out,
        "rows": sum(config.rows(day) for day in range(plan.days)),
        "days": plan.days,
        "last_day": str(config.day(plan.days - 1)),
        "rows_written": plan.rows,
        "bytes_written": written,
    }


def _write_part(config: IndustrialConfig, out: str, day: int, part: int) -> int:
    """Generate and write one file; returns its size in bytes.

    Delta encoding suits all three columns: the timestamps are sorted, and unordered ids take as many bits as their
    range needs, which is less than with a dictionary.
    """
    columns = (USER_ID, ITEM_ID, TIMESTAMP)
    sink = pa.BufferOutputStream()
    pq.write_table(
        plays_table(config, day, part),
        sink,
        compression="zstd",
        compression_level=1,
        row_group_size=_ROW_GROUP,
        use_dictionary=False,
        column_encoding=dict.fromkeys(columns, "DELTA_BINARY_PACKED"),
    )
    content = sink.getvalue().to_pybytes()
    storage.write_bytes(storage.join(out, _name(config, day, part)), content)
    return len(content)


def _run(plan: Plan, workers: int) -> Iterator[tuple[tuple[int, int], int]]:
    """Each missing part with its size in bytes, in order of completion; at most 2 * workers are submitted at a time."""
    places = iter(plan.missing)
    workers = min(workers, len(plan.missing))
    if workers <= 1:
        for place in places:
            yield place, _write_part(plan.config, plan.out, *place)
        return
    # Spawned, not forked: the calling process may have threads and locks of Arrow, Spark or Ray.
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_start_worker)
    running: dict[Future[int], tuple[int, int]] = {}
    try:
        while True:
            while len(running) < 2 * workers and (place := next(places, None)):
                running[pool.submit(_write_part, plan.config, plan.out, *place)] = place
            if not running:
                return
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                yield running.pop(done), done.result()
    except BrokenProcessPool:
        raise InputError(
            f"a process that wrote {plan.out} was killed, perhaps as memory ran out: run the same command again to "
            f"continue, with fewer --workers than {workers}"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """Leave Ctrl-C to the parent process, and end when that ends, even if it was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _days_written(plan: Plan, missing: set[tuple[int, int]]) -> int:
    """Days from the first on that are complete."""
    return min((day for day, _ in missing), default=plan.complete)


def _name(config: IndustrialConfig, day: int, part: int) -> str:
    return f"plays/ds={config.day(day)}/part-{part:05d}.parquet"


def _described(config: IndustrialConfig) -> dict[str, Any]:
    return {**asdict(config), "first_day": str(config.first_day)}


def _write_marker(config: IndustrialConfig, out: str, days: int) -> None:
    marker = {"generator_version": INDUSTRIAL_VERSION, "synthetic": True, "config": _described(config)}
    storage.write_json(storage.join(out, "_synthetic.json"), {**marker, "days_written": days})


def _check_marker(config: IndustrialConfig, out: str) -> None:
    """InputError if a folder has the log of another configuration or generator, or plays that are not synthetic."""
    uri = storage.join(out, "_synthetic.json")
    if not storage.exists(uri):
        if storage.list_folders(storage.join(out, "plays")):
            raise InputError(f"{out} has plays but no _synthetic.json: it is not a synthetic log, use another folder")
        return
    marker = storage.read_json(uri)
    if marker.get("generator_version") != INDUSTRIAL_VERSION:
        raise InputError(
            f"{uri}: generator_version is {marker.get('generator_version')}, a preset of this release needs "
            f"{INDUSTRIAL_VERSION}: use another folder"
        )
    found = marker["config"]
    for field, value in _described(config).items():
        if found.get(field) != value:
            raise InputError(
                f"{uri}: {field} is {found.get(field)} but {value} was asked for: use the first, or another folder"
            )


def _catalogue_uri(config: IndustrialConfig, out: str) -> str:
    return storage.join(out, "catalogue", f"ds={config.first_day}", "part-00000.parquet")


def _catalogue(config: IndustrialConfig) -> pa.Table:
    """Title and artist of every song id; they are independent of the songs' popularity."""
    artists = max(config.songs // _SONGS_AN_ARTIST // GENRES, 1) * GENRES
    world = SyntheticConfig(seed=config.seed, songs=config.songs, artists=artists, first_day=config.first_day)
    return catalogue_table(world, make_songs(world, make_artists(world), 0), 0)
