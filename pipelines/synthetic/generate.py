"""Writes a synthetic log, one day and one chunk of listeners at a time; a run continues where an earlier one ended.

    <out>/_synthetic.json                      configuration, generator version, days written so far
    <out>/plays/ds=D/part-00000.parquet        rows landing on D, one file per chunk of listeners
    <out>/catalogue/ds=D/part-00000.parquet    the whole catalogue on the first day, then each day's releases
    <out>/truth/ds=D/midnight-00000.parquet    every listener's latent state at D 00:00; `request-` at D 08:00
    <out>/truth/state/ds=D/part-00000.npz      the state after D, from which the next day starts; only the last is kept

The rows and their order are a pure function of the configuration, whatever the size of a chunk and the number of runs.
"""

import dataclasses
import datetime as dt
import io
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines import storage
from pipelines.calendar import DAY_SECONDS
from pipelines.errors import InputError
from pipelines.schema import USER_ID
from pipelines.synthetic.config import GENERATOR_VERSION, SyntheticConfig
from pipelines.synthetic.listeners import FIRST_USER_ID, Traits, artist_weights, make_listeners
from pipelines.synthetic.log import LoggedPlays, bot_plays, log_table, logged_plays, no_plays
from pipelines.synthetic.process import REQUEST_SECONDS, State, first_state, simulate, start_day
from pipelines.synthetic.songs import choose_songs
from pipelines.synthetic.world import Artists, Songs, catalogue_table, make_artists, make_songs

CHUNK_SIZE = 20_000
"""Listeners simulated at a time: about 200 MB."""

TRUTH_COLUMNS = (
    *("around", "carry", "taste", "age", "draw_time", "draw_taste", "run_artist"),
    *("seen_time", "seen_taste", "seen_age"),
)


@dataclass
class _Chunk:
    number: int
    listeners: Traits
    weights: np.ndarray
    state: State
    pending: LoggedPlays  # plays so far that land on a later day


def generate(
    config: SyntheticConfig, out: str, *, on_progress: Callable[[int], None] | None = None, chunk_size: int = CHUNK_SIZE
) -> dict[str, Any]:
    """Write (or extend) a synthetic log and return its counts.

    out: local folder or s3:// prefix. on_progress: called with the number of days done since the last call.
    Raises InputError if the folder holds a log of another configuration or generator version.
    """
    out = storage.absolute(out)
    marker = _open_folder(config, out)
    chunk_size = marker.get("chunk", chunk_size)
    artists = make_artists(config)
    bounds = [*range(0, config.listeners, chunk_size), config.listeners]
    rows = 0
    kept: _Chunk | None = None
    if on_progress and marker["days_written"]:
        on_progress(marker["days_written"])
    for day in range(marker["days_written"], config.days):
        songs = make_songs(config, artists, day)
        _write(out, "catalogue", config.day(day), 0, catalogue_table(config, songs, day))
        for number in range(len(bounds) - 1):
            # A single chunk stays in memory; of several, each is read back every day.
            chunk = kept or _load_chunk(config, artists, out, day, number, (bounds[number], bounds[number + 1]))
            rows += _write_day(config, artists, songs, chunk, out, day)
            _save_chunk(config, chunk, out, day)
            kept = chunk if len(bounds) == 2 else None
        marker = {**marker, "days_written": day + 1, "chunk": chunk_size}
        storage.write_json(storage.join(out, "_synthetic.json"), marker)
        if day:
            storage.delete_folder(storage.join(out, "truth", "state", f"ds={config.day(day - 1)}"))
        if on_progress:
            on_progress(1)
    return {"out": out, "rows": rows, "days": config.days, "last_day": str(config.day(marker["days_written"] - 1))}


def read_config(out: str) -> SyntheticConfig:
    """The configuration a folder was made with; `days` is the number of days written."""
    uri = storage.join(storage.absolute(out), "_synthetic.json")
    if not storage.exists(uri):
        raise InputError(f"{uri} is not there: {out} is not a synthetic log, make one with `fuxi synth`")
    marker = storage.read_json(uri)
    if marker.get("generator_version") != GENERATOR_VERSION:
        raise InputError(
            f"{uri}: generator_version is {marker.get('generator_version')}, this release is {GENERATOR_VERSION}: "
            "use the release that made it, or another folder"
        )
    values = {**marker["config"], "first_day": dt.date.fromisoformat(marker["config"]["first_day"])}
    return SyntheticConfig(**{**values, "days": max(marker["days_written"], 1)})


def _open_folder(config: SyntheticConfig, out: str) -> dict[str, Any]:
    """Read or create the marker; InputError if the folder has another configuration."""
    uri = storage.join(out, "_synthetic.json")
    if not storage.exists(uri):
        content = {key: value for key, value in asdict(config).items() if key != "days"}
        marker = {"generator_version": GENERATOR_VERSION, "synthetic": True, "config": content, "days_written": 0}
        storage.write_json(uri, marker)
        return marker
    found = read_config(out)
    for field in dataclasses.fields(config):
        old, new = getattr(found, field.name), getattr(config, field.name)
        if field.name != "days" and old != new:
            raise InputError(f"{uri}: {field.name} is {old} but {new} was asked for: use the first, or another folder")
    return storage.read_json(uri)


def _write_day(config: SyntheticConfig, artists: Artists, songs: Songs, chunk: _Chunk, out: str, day: int) -> int:
    """Simulate one chunk's day in its two segments and write what lands. Returns the rows written."""
    listeners, state = chunk.listeners, chunk.state
    midnight = config.day_start(day)
    logged = [chunk.pending]
    start_day(listeners, state, day)
    for name, start, end in (("midnight", 0, REQUEST_SECONDS), ("request", REQUEST_SECONDS, DAY_SECONDS)):
        _write(out, "truth", config.day(day), chunk.number, _truth_table(listeners, state), stem=name)
        plays = simulate(listeners, state, midnight + start, midnight + end, day=day, elapsed=config.elapsed_time)
        song = choose_songs(listeners, chunk.weights, state, plays, artists=artists, songs=songs)
        logged.append(logged_plays(config, listeners, plays, song, songs))
    if config.bots:
        logged.append(bot_plays(config, listeners, day, round(config.bot_factor * config.plays_per_day)))
    every_play = LoggedPlays.concatenate(logged)
    chunk.pending = every_play.take(every_play.lands > day)
    table = log_table(config, listeners, every_play.take(every_play.lands <= day), songs)
    _write(out, "plays", config.day(day), chunk.number, table)
    return table.num_rows


def _truth_table(listeners: Traits, state: State) -> pa.Table:
    columns = {USER_ID: FIRST_USER_ID + listeners.number}
    columns |= {name: getattr(state, name) for name in TRUTH_COLUMNS}
    columns["liked"] = ((state.liked > 0) << np.arange(state.liked.shape[1])).sum(axis=1)
    return pa.table(columns)


def _write(out: str, kind: str, day: dt.date, number: int, table: pa.Table, *, stem: str = "part") -> None:
    storage.write_table(storage.join(out, kind, f"ds={day}", f"{stem}-{number:05d}.parquet"), table)


def _state_uri(config: SyntheticConfig, out: str, day: int, number: int) -> str:
    return storage.join(out, "truth", "state", f"ds={config.day(day)}", f"part-{number:05d}.npz")


def _load_chunk(
    config: SyntheticConfig, artists: Artists, out: str, day: int, number: int, bounds: tuple[int, int]
) -> _Chunk:
    """A chunk with its state at the end of the day before `day`."""
    listeners = make_listeners(config, *bounds)
    weights = artist_weights(artists, listeners)
    if day == 0:
        return _Chunk(number, listeners, weights, first_state(listeners), no_plays())
    uri = _state_uri(config, out, day - 1, number)
    try:
        saved = np.load(io.BytesIO(storage.read_bytes(uri)))
        state = State(**{name: saved[name] for name in State.__dataclass_fields__})
        pending = LoggedPlays(**{name: saved[f"pending_{name}"] for name in LoggedPlays.__dataclass_fields__})
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{uri} cannot be read ({error}): remove {out} and generate it again") from None
    if len(state.taste) != len(listeners.number):
        raise InputError(
            f"{uri} holds {len(state.taste)} listeners, expected {len(listeners.number)}: same chunk size?"
        )
    return _Chunk(number, listeners, weights, state, pending)


def _save_chunk(config: SyntheticConfig, chunk: _Chunk, out: str, day: int) -> None:
    arrays = {name: getattr(chunk.state, name) for name in State.__dataclass_fields__}
    arrays |= {f"pending_{name}": getattr(chunk.pending, name) for name in LoggedPlays.__dataclass_fields__}
    content = io.BytesIO()
    np.savez(content, **arrays)
    storage.write_bytes(_state_uri(config, out, day, chunk.number), content.getvalue())
