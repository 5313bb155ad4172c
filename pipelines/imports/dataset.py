"""What a data set is that can be imported as play logs, and what its reader hands over."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from pipelines.errors import InputError
from pipelines.imports.sources import Download

LINE = "line"


@dataclass(frozen=True)
class Rejected:
    """A row that is no play: why, where, and what it says."""

    reason: str
    where: str
    text: str


@dataclass
class Rows:
    """What a chunk holds.

    plays: the columns of the data set's `columns`, with nulls where a value is missing, and optionally LINE (int64),
    which says where a row is. songs: item_id and other columns of a catalogue, all of the same types in every chunk.
    """

    plays: pa.Table | None = None
    songs: pa.Table | None = None
    rejected: list[Rejected] = field(default_factory=list)
    ignored: int = 0  # rows that are known not to be plays

    @property
    def read(self) -> int:
        """Rows of plays, whatever becomes of them."""
        return (self.plays.num_rows if self.plays is not None else 0) + len(self.rejected) + self.ignored


@dataclass(frozen=True)
class Chunk:
    """A piece of a file. `read` is not called if it is staged already."""

    key: str
    read: Callable[[], Rows]


@dataclass(frozen=True)
class Published:
    """A number that whoever published a data set says it has, and where."""

    what: str  # a key of the result, or "listeners"
    count: int
    source: str


class Dataset(ABC):
    """A data set. A subclass reads its files; landing them, counting and going on are shared (`landing`)."""

    name: str
    user_id_type: str = "int64"
    item_id_type: str = "int64"
    columns: tuple[str, ...]
    """Of plays: user_id, item_id, timestamp, and of play_ms, duration_ms, play_source what it has."""
    unchosen_sources: tuple[str, ...] = ()
    """Values of play_source of plays that listeners did not choose."""
    expected: str
    """Its files, in words."""
    whole: tuple[str, ...] = ()
    """Beginnings of the names of files of which each has all the plays, so that only one may be imported."""

    @abstractmethod
    def wanted(self, name: str) -> bool:
        """Whether a file of a folder is of the data set."""

    @abstractmethod
    def chunks(self, download: Download) -> Iterator[Chunk]:
        """The pieces of a file, the same ones each time. Errors of a damaged file are left to the caller."""

    def variant(self) -> dict[str, Any]:
        """What must be equal for two imports to go into one folder."""
        return {}

    def check(self, downloads: Sequence[Download], imported: Sequence[str]) -> None:
        """InputError if files do not go together, or not with those that are imported already (their `key`)."""
        keys = dict.fromkeys([*(download.key for download in downloads), *imported])
        plays = [key.rpartition(":")[0] for key in keys if key.startswith(self.whole)] if self.whole else []
        if len(plays) > 1:
            raise InputError(f"{', '.join(sorted(plays))} have all the plays of {self.name}, each of them: give one")

    def published(self, downloads: Sequence[Download]) -> Sequence[Published]:
        """Counts to compare with; none where nobody published any."""
        return ()
