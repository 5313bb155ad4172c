"""What list rules know of songs: the catalogue, laid out by item index, and the operator's song lists."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from fuxi_beta.data.side import LONG_AGO, NEVER, align
from jobs.config import RulesConfig
from jobs.day import Day
from jobs.runtime.console import log
from jobs.serving.catalogue import read_catalogue
from jobs.serving.rule_tables import Named, as_seconds, read_rule_table
from jobs.serving.rules import SongFacts
from jobs.serving.rules.facts import NO_SEGMENT
from pipelines.calendar import Calendar
from pipelines.errors import InputError
from pipelines.schema import (
    ACTION,
    ARTIST,
    ARTIST_ID,
    AVAILABLE_FROM,
    AVAILABLE_UNTIL,
    EXPLICIT,
    ITEM_ID,
    RELEASE_DATE,
    SEGMENT,
    WITHDRAWN,
    WORK_ID,
)

COLUMNS = (ARTIST_ID, ARTIST, WORK_ID, RELEASE_DATE, AVAILABLE_FROM, AVAILABLE_UNTIL, WITHDRAWN, EXPLICIT)
BLOCK, ALLOW = "block", "allow"


def song_facts(day: Day, item_ids: pa.Array, *, popularity: Tensor | None = None) -> SongFacts:
    """The facts of the songs with these ids, in index order from 1. popularity: float32 [V], distinct listeners.

    Raises InputError if a catalogue file or the song lists cannot be read.
    """
    columns = _catalogue(day, item_ids)
    calendar = day.calendar
    artist, artist_ids = _numbered(columns.get(ARTIST_ID, columns.get(ARTIST)))
    facts = SongFacts(
        size=len(item_ids) + 1,
        artist=artist,
        work=_numbered(columns.get(WORK_ID))[0],
        released=_times(columns, RELEASE_DATE, calendar, LONG_AGO),
        available_from=_times(columns, AVAILABLE_FROM, calendar, LONG_AGO),
        available_until=_times(columns, AVAILABLE_UNTIL, calendar, NEVER),
        withdrawn=_flags(columns, WITHDRAWN),
        explicit=_flags(columns, EXPLICIT),
        popularity=popularity,
        artist_ids=artist_ids,
    )
    return _with_song_lists(day.config.rules, facts, item_ids)


def _catalogue(day: Day, item_ids: pa.Array) -> dict[str, pa.Array]:
    """The columns that any catalogue file has, a value a song; of several rows of a song the last one counts."""
    rows = read_catalogue(day, COLUMNS, needed_by="list rules need")
    if rows is None:
        return {}
    aligned = align(rows, item_ids)
    return {name: aligned[name].combine_chunks() for name in COLUMNS if name in rows.column_names}


def _numbered(values: pa.Array | None) -> tuple[Tensor | None, tuple[object, ...]]:
    """Values numbered from 1 in the order of their first appearance, 0 for null, as [V]; and the values."""
    if values is None or values.null_count == len(values):
        return None, ()
    encoded = values.dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    codes = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False).astype(np.int64) + 1
    return torch.from_numpy(np.concatenate([[0], codes])), tuple(encoded.dictionary.to_pylist())


def _times(columns: dict[str, pa.Array], name: str, calendar: Calendar, unknown: int) -> Tensor | None:
    if name not in columns or columns[name].null_count == len(columns[name]):
        return None
    seconds, bad = as_seconds(columns[name], calendar)
    if bad.any():
        _warn(name, columns[name], bad, "no time")
    filled = pc.fill_null(seconds, unknown).to_numpy(zero_copy_only=False)
    return torch.from_numpy(np.concatenate([[unknown], filled]))


def _flags(columns: dict[str, pa.Array], name: str) -> Tensor | None:
    if name not in columns or columns[name].null_count == len(columns[name]):
        return None
    try:
        flags = columns[name].cast(pa.bool_())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        example = columns[name].drop_null()[0].as_py()
        raise InputError(f"catalogue: {name} must be true or false, found {example!r}: correct the column") from None
    return torch.from_numpy(np.concatenate([[False], np.asarray(pc.fill_null(flags, False), bool)]))


def _warn(name: str, values: pa.Array, bad: np.ndarray, what: str) -> None:
    example = values[int(bad.argmax())].as_py()
    log("catalogue values passed over", column=name, songs=int(bad.sum()), reason=what, example=repr(example))


def _with_song_lists(config: RulesConfig, facts: SongFacts, item_ids: pa.Array) -> SongFacts:
    """The facts with the blocked and the allowed songs of `rules.song_lists`."""
    if not config.song_lists:
        return facts
    table = read_rule_table("rules.song_lists", config.song_lists, [ACTION], [ITEM_ID, ARTIST_ID, SEGMENT])
    table.use_words(ACTION, (BLOCK, ALLOW))
    table.use_ids(ITEM_ID, item_ids.type)
    table.need_one_of(ITEM_ID, ARTIST_ID)
    table.finish(config.max_rejected_share)
    named = Named(item_ids, facts.artist_ids)
    songs, artists = named.songs(table.rows), named.artists(table.rows)
    if unknown := int(((songs == 0) & (artists == 0)).sum()):
        log("rules.song_lists: songs and artists that nobody has played", rows=unknown)
    actions = np.array(table.rows[ACTION].to_pylist(), object)
    segments = np.array([name or NO_SEGMENT for name in table.rows[SEGMENT].to_pylist()], object)
    chosen = {}
    for action in (BLOCK, ALLOW):
        for segment in sorted(set(segments[actions == action])):
            if segment and segment not in config.segments:
                raise InputError(
                    f"rules.song_lists: {table.uri}: segment {segment!r} is not in rules.segments "
                    f"({', '.join(config.segments) or 'none'}): define it there, or correct the table"
                )
            rows = (actions == action) & (segments == segment)
            chosen[action, segment] = _mask(facts, songs[rows], artists[rows])
    _check_contradictions(table.uri, chosen, item_ids)
    of = {action: {name: mask for (kind, name), mask in chosen.items() if kind == action} for action in (BLOCK, ALLOW)}
    return replace(facts, blocked=of[BLOCK], allowed=of[ALLOW])


def _mask(facts: SongFacts, songs: np.ndarray, artists: np.ndarray) -> Tensor:
    """The songs that are named, and those by the artists that are. bool [V]."""
    mask = torch.isin(facts.artists.group, torch.from_numpy(artists[artists > 0]))
    mask[torch.from_numpy(songs[songs > 0])] = True
    return mask


def _check_contradictions(uri: str, chosen: dict[tuple[str, str], Tensor], item_ids: pa.Array) -> None:
    """InputError if a song is blocked and allowed for the same listeners."""
    for (action, segment), mask in chosen.items():
        both = mask & chosen.get((ALLOW, segment), torch.zeros_like(mask))
        if action == BLOCK and bool(both.any()):
            song = item_ids[int(both.nonzero()[0]) - 1].as_py()
            whom = f"segment {segment!r}" if segment else "everybody"
            raise InputError(
                f"rules.song_lists: {uri}: song {song!r} is blocked and allowed for {whom} (one of {int(both.sum())}): "
                "take it, or its artist, out of one of the two"
            )
