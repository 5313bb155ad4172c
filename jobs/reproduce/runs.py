"""Finished runs as files: `NAME.json`, and beside it `NAME.ranks.parquet` with the rank of each listener's song.

A run is one training (or one baseline) on one data set with one seed. Where a run was killed there is no JSON, because
that is written last and at once; so a folder of runs can be read at any time.
"""

import dataclasses
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from fuxi_beta.config import Protocol, TemporalName
from jobs.reproduce.paper import FIVE
from pipelines import storage
from pipelines.errors import InputError
from pipelines.schema import USER_ID

RANK = "rank"
Sanity = Literal["popularity", "recency", "markov", "item-knn", "ease"]
Condition = Literal["true", "previous", "permuted", "fixed-hour"]
"""What t_{i+1} was: the true time, t_i, the time by another listener's gap, the next fixed hour."""
RunProtocol = Literal[Protocol, "temporal_split"]
"""temporal_split: `leave_one_out`, but of the first event after the time by which nine tenths of all events were."""
_Share = Annotated[float, Field(ge=0, le=1)]
_Count = Annotated[int, Field(ge=0)]
_Some = Annotated[int, Field(ge=1)]
_Seconds = Annotated[float, Field(ge=0)]


@dataclass(frozen=True)
class Dataset:
    """What a run learned from. paper: the paper's data set to set beside it, "" for none."""

    name: str
    title: str
    paper: Literal["ML-1M", "ML-20M", ""]
    listeners: _Some
    songs: _Some
    events: _Some


@dataclass(frozen=True)
class Curves:
    """The learned functions of elapsed time: weights [L][len(seconds)], a row for each layer."""

    seconds: list[float]
    weights: list[list[float]]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One finished run. Raises ValueError that begins with the field."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    format: Literal[1] = 1
    name: str  # the file's name without its ending
    dataset: Dataset
    system: Annotated[str, Field(min_length=1)]  # of `fuxi_beta.models`, "bprmf", or one of Sanity
    layers: _Count
    temporal: TemporalName  # the function of elapsed time
    epochs: _Count  # trained; 0 for what has no epochs
    published_epochs: _Count  # of the paper's setting
    seed: int
    condition: Condition
    validation: bool  # whether the epoch was picked on the second-newest event
    best_epoch: int | None
    protocol: RunProtocol
    metrics: dict[str, dict[str, _Share]]  # slice by gap -> metric -> mean over its listeners
    listeners: dict[str, _Count]  # slice -> how many
    curves: Curves | None
    epoch_losses: list[float]
    epoch_seconds: _Seconds  # median wall time
    train_seconds: _Seconds
    parameters: _Count
    uses_time: bool  # whether the model receives t_{i+1}
    machine: str
    date: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\d$")]
    command: str
    kernels: str
    hidden: _Count = 0  # width of the recurrent state where that is varied (gru4rec), else 0

    def __post_init__(self) -> None:
        if "all" not in self.metrics:
            raise ValueError("metrics.all: missing")
        for part, values in self.metrics.items():
            if missing := [name for name in FIVE if name not in values]:
                raise ValueError(f"metrics.{part}.{missing[0]}: missing")
            if part not in self.listeners:
                raise ValueError(f"listeners.{part}: missing")
        if self.curves and any(len(row) != len(self.curves.seconds) for row in self.curves.weights):
            raise ValueError(
                f"curves.weights: expected {len(self.curves.seconds)} numbers a layer, as in curves.seconds"
            )


class Ranks(NamedTuple):
    """Listeners in the order of their ids, and the rank (1 = first) of each one's song. [U]."""

    users: np.ndarray
    ranks: np.ndarray


_RUN = TypeAdapter(Run)


def write(folder: str | Path, run: Run) -> Path:
    """Write a run's file at once, after its ranks: it says that the run is finished. Returns its path."""
    path = Path(folder, f"{run.name}.json")
    storage.write_bytes(str(path), (json.dumps(dataclasses.asdict(run)) + "\n").encode())
    return path


def write_ranks(
    folder: str | Path, name: str, users: Sequence[int] | Sequence[str] | np.ndarray, ranks: np.ndarray
) -> Path:
    """Write the ranks of run `name` at once, in any order of listeners. Returns the file's path."""
    sink, path = io.BytesIO(), Path(folder, f"{name}.ranks.parquet")
    pq.write_table(pa.table({USER_ID: pa.array(users), RANK: pa.array(np.asarray(ranks, dtype=float))}), sink)
    storage.write_bytes(str(path), sink.getvalue())
    return path


def finished(folder: str | Path, name: str) -> bool:
    """Whether the run's file is there."""
    return Path(folder, f"{name}.json").is_file()


def read(folder: str | Path) -> list[Run]:
    """The runs of a folder in the order of their names. A damaged or foreign file is an InputError with its field."""
    if not Path(folder).is_dir():
        raise InputError(f"{folder} is no folder: give one that holds the files of runs")
    return [_read_one(path) for path in sorted(Path(folder).glob("*.json"))]


def _read_one(path: Path) -> Run:
    try:
        run = _RUN.validate_json(path.read_bytes(), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        found = f"{field}: {first['msg']}" if field else first["msg"].removeprefix("Value error, ")
        raise InputError(f"{path} is not the file of a run ({found}): remove it and run again") from None
    if run.name != path.stem:
        raise InputError(f"{path} is not the file of a run (name: {run.name!r}, not {path.stem!r}): rename it")
    return run


def read_ranks(folder: str | Path, run: Run) -> Ranks:
    """A run's ranks. A missing or damaged file, or one of other numbers than the run's own, is an InputError."""
    path = Path(folder, f"{run.name}.ranks.parquet")
    try:
        table = pq.read_table(path, columns=[USER_ID, RANK]).sort_by(USER_ID)
        users, ranks = table[USER_ID].to_numpy(), np.asarray(table[RANK].to_numpy(), dtype=float)
    except (OSError, KeyError, ValueError) as error:  # Arrow's own errors are among them
        text = str(error).splitlines()[0]
        raise InputError(f"{path} holds no ranks ({text}): remove {run.name}.json and run again") from None
    if len(ranks) != run.listeners["all"]:
        expected = run.listeners["all"]
        raise InputError(
            f"{path} holds {len(ranks)} listeners, {run.name}.json says {expected}: remove both, run again"
        )
    if not (ranks >= 1).all():  # false for nan too
        raise InputError(f"{path} is damaged ({RANK}: below 1 or no number): remove it and {run.name}.json, run again")
    return Ranks(users, ranks)


def ranks_in(folders: Sequence[str | Path]) -> Callable[[Run], Ranks]:
    """A function that finds a run's ranks in whichever of the folders holds its file; names may repeat between them."""

    def ranks_of(run: Run) -> Ranks:
        files = ((folder, Path(folder, f"{run.name}.json")) for folder in folders)
        home = next((folder for folder, file in files if file.exists() and _read_one(file) == run), folders[0])
        return read_ranks(home, run)

    return ranks_of
