"""The list rules, one class each, and which of them a configuration asks for.

Shapes: `R` listeners, `V` songs and the padding row, `M` ranked songs.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fuxi_beta.config import Mode
from fuxi_beta.recommender import Pairs
from jobs.config import RulesConfig
from jobs.serving.rules.facts import NO_SEGMENT, Request, SongFacts
from pipelines.errors import InputError


@dataclass(frozen=True)
class Groups:
    """At most `most` songs of each group may be in a list. ids: int64 [R, M], 0 for songs that are in no group."""

    ids: Tensor
    most: int | Tensor  # of each listener: int64 [R]


class ListRule:
    """One rule. It says which songs may be listed at all, which not for a listener, or how many of a group."""

    name = ""  # as `fuxi show --explain` and the table of list quality say it

    def songs(self, segment: str, time: int) -> Tensor | None:
        """Songs that may be listed for a segment at a time (Unix seconds). bool [V]; None: all."""
        return None

    def excluded(self, request: Request) -> Pairs | None:
        """Songs that must not be in the list of a listener, whatever else is."""
        return None

    def groups(self, request: Request, items: Tensor, rows: Tensor) -> Groups | None:
        """The groups of ranked songs, of which a list may have a number only.

        items: int64 [R, M], 0 behind the last. rows: int64 [R], the listener of each. The group of a song must not
        depend on the other songs ranked.
        """
        return None


class Available(ListRule):
    """Songs inside their window of availability that are not withdrawn."""

    name = "not available"

    def __init__(self, facts: SongFacts) -> None:
        self.facts = facts

    def songs(self, segment: str, time: int) -> Tensor:
        """By the catalogue's `available_from`, `available_until` and `withdrawn`."""
        facts, there = self.facts, torch.ones(self.facts.size, dtype=torch.bool)
        if facts.available_from is not None:
            there &= facts.available_from <= time
        if facts.available_until is not None:
            there &= facts.available_until > time
        return there if facts.withdrawn is None else there & ~facts.withdrawn


class NotExplicit(ListRule):
    """No explicit song, for segments that are to have none."""

    name = "explicit"

    def __init__(self, config: RulesConfig, explicit: Tensor) -> None:
        self.config, self.clean = config, ~explicit

    def songs(self, segment: str, time: int) -> Tensor | None:
        """By the catalogue's `explicit`."""
        return None if self.config.of(segment).explicit else self.clean


class SongLists(ListRule):
    """Songs and artists that are blocked, or the only ones allowed, for everybody or for a segment."""

    name = "blocked"

    def __init__(self, facts: SongFacts) -> None:
        self.facts = facts

    def songs(self, segment: str, time: int) -> Tensor | None:
        """What is blocked for everybody is blocked for each segment; a segment's own allow list takes the place."""
        there = torch.ones(self.facts.size, dtype=torch.bool)
        for name in {NO_SEGMENT, segment} & self.facts.blocked.keys():
            there &= ~self.facts.blocked[name]
        allowed = self.facts.allowed.get(segment, self.facts.allowed.get(NO_SEGMENT))
        return there if allowed is None else there & allowed


class Heard(ListRule):
    """No song that the listener heard in the last days, in any version. days: None for a lifetime."""

    name = "heard"

    def __init__(self, days: int | None) -> None:
        self.days = days

    def excluded(self, request: Request) -> Pairs:
        """Skipped songs are heard, too."""
        return request.songs.works.with_siblings(request.heard_since(self.days))


class ListedLately(ListRule):
    """No song of the listener's own lists of the last days, in any version."""

    name = "listed lately"

    def excluded(self, request: Request) -> Pairs:
        """The days are those for which `ListenerFacts.listed` was read."""
        return request.songs.works.with_siblings(request.listeners.listed)


class Disliked(ListRule):
    """No song that the listener dislikes, in any version, and none by a disliked artist."""

    name = "disliked"

    def excluded(self, request: Request) -> Pairs:
        """Dislikes that hold at the request."""
        rows, songs = request.songs.works.with_siblings(request.listeners.disliked_songs)
        more_rows, more_songs = request.songs.artists.songs_of(request.listeners.disliked_artists)
        return torch.cat([rows, more_rows]), torch.cat([songs, more_songs])


class OneVersion(ListRule):
    """One version of a piece of music a list: songs of one work."""

    name = "another version"

    def groups(self, request: Request, items: Tensor, rows: Tensor) -> Groups:
        """Songs by work."""
        return Groups(request.songs.works.group[items], 1)


class ArtistCap(ListRule):
    """At most a number of songs by one artist a list."""

    name = "artist cap"

    def __init__(self, config: RulesConfig, default: int) -> None:
        self.config, self.default = config, default

    def groups(self, request: Request, items: Tensor, rows: Tensor) -> Groups:
        """Songs by artist."""
        names, place = np.unique(request.listeners.segment[rows.numpy()].astype(str), return_inverse=True)
        caps = [self._cap(name) for name in names.tolist()]
        return Groups(request.songs.artists.group[items], torch.tensor(caps, dtype=torch.int64)[place])

    def _cap(self, segment: str) -> int:
        cap = self.config.of(segment).max_per_artist
        return self.default if cap == "auto" else cap or torch.iinfo(torch.int64).max


class KnownShare(ListRule):
    """At most a number of songs that the listener has heard, where lists may repeat songs."""

    name = "known share"

    def __init__(self, most: int) -> None:
        self.most = most

    def groups(self, request: Request, items: Tensor, rows: Tensor) -> Groups:
        """All known songs are one group."""
        rows_of, songs = request.heard_since(None)
        known = torch.unique(rows_of * request.songs.size + songs)
        keys = rows[:, None] * request.songs.size + items
        return Groups(torch.isin(keys, known).to(torch.int64), self.most)


def list_rules(config: RulesConfig, facts: SongFacts, *, mode: Mode, k: int) -> list[ListRule]:
    """The rules of a deployment, in the order in which a song that several cut is said to be cut.

    InputError where a rule that the configuration asks for needs a column that the catalogue lacks.
    """
    check(config, facts)
    rules: list[ListRule] = [Available(facts), SongLists(facts), Disliked(), ListedLately()]
    if facts.explicit is not None:
        rules.append(NotExplicit(config, facts.explicit))
    days = ("ever" if mode == "exclusive" else 0) if config.heard_days == "auto" else config.heard_days
    if days == "ever" or days > 0:
        rules.append(Heard(None if days == "ever" else days))
    if facts.work is not None and config.one_version:
        rules.append(OneVersion())
    if facts.artist is not None:
        rules.append(ArtistCap(config, DEFAULT_CAP if config.max_per_artist == "auto" else config.max_per_artist))
    if config.max_known_share < 1:
        rules.append(KnownShare(round(config.max_known_share * k)))
    return rules


DEFAULT_CAP = 2
"""Songs by one artist where the configuration leaves it open and the catalogue names artists."""


def check(config: RulesConfig, facts: SongFacts) -> None:
    """InputError unless the catalogue has every column that the configuration asks for."""
    segments = ["", *config.segments]
    caps = [config.of(name).max_per_artist for name in segments]
    needed = {
        ("max_per_artist", "artist_id"): any(cap != "auto" and cap for cap in caps) and facts.artist is None,
        ("one_version", "work_id"): config.one_version is True and facts.work is None,
        ("explicit", "explicit"): not all(config.of(name).explicit for name in segments) and facts.explicit is None,
        ("new_releases", "release_date"): config.new_releases > 0 and facts.released is None,
    }
    for (setting, column), missing in needed.items():
        if missing:
            raise InputError(
                f"rules.{setting} needs the column {column} of the catalogue, which has none: add the column "
                f"(logs.catalogue), or take rules.{setting} out of the configuration"
            )
