"""Files of finished runs: `NAME.json`, and beside it `NAME.ranks.parquet` with the rank of each listener's song, or
under next_day `NAME.cases.parquet` with the metrics of each listener's day.

A run is one training (or one baseline) on one data set with one seed. Its JSON is written last and atomically, so a run
that was killed has none, and a folder of runs can be read at any time.
"""

import dataclasses
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
from fuxi_beta.evaluation.metrics import metric_order
from jobs.reproduce.paper import PAPER_METRICS, PaperDataset
from jobs.reproduce.settings import Settings
from pipelines import storage
from pipelines.errors import InputError
from pipelines.schema import DS, USER_ID

RANK = "rank"
TimeCondition = Literal["true", "previous", "permuted", "fixed-hour"]
"""The time that stood for t_{i+1}: the true one, t_i, t_i plus another listener's gap, the next fixed hour."""
RunProtocol = Literal[Protocol, "temporal_split"]
"""temporal_split: `leave_one_out` of each listener's first event after nine tenths of all events."""
_Share = Annotated[float, Field(ge=0, le=1)]
_Count = Annotated[int, Field(ge=0)]
_PositiveCount = Annotated[int, Field(ge=1)]
_Seconds = Annotated[float, Field(ge=0)]


@dataclass(frozen=True)
class Dataset:
    """The data set of a run. paper: the paper's data set whose numbers stand beside it, "" for none."""

    name: str
    title: str
    paper: PaperDataset | Literal[""]
    listeners: _PositiveCount
    songs: _PositiveCount
    events: _PositiveCount


@dataclass(frozen=True)
class TemporalCurves:
    """The learned functions of elapsed time: weights [L][len(seconds)], a row for each layer."""

    seconds: list[float]
    weights: list[list[float]]


@dataclass(frozen=True, kw_only=True)
class ExperimentRun:
    """One finished run. Raises a ValueError that begins with the field."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    format: Literal[1] = 1
    name: str  # the file's name without its ending
    dataset: Dataset
    system: Annotated[str, Field(min_length=1)]  # of `fuxi_beta.models`, "bprmf", or one of `systems.SANITY`
    layers: _Count
    temporal: TemporalName  # the function of elapsed time
    epochs: _Count  # trained; 0 for what has no epochs
    published_epochs: _Count  # of the paper's setting
    seed: int
    condition: TimeCondition
    validation: bool  # whether the epoch was picked on the second-newest event
    best_epoch: int | None
    protocol: RunProtocol
    metrics: dict[str, dict[str, _Share]]  # slice by gap -> metric -> mean over its listeners
    listeners: dict[str, _Count]  # slice -> how many
    curves: TemporalCurves | None
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
    label: str = ""  # names settings that are not the preset's
    settings: Settings = dataclasses.field(default_factory=dict)  # of what is trained; {} in runs of earlier releases
    days: _PositiveCount = 1  # next_day: how many days one training was measured on
    ds: str = ""  # whose sequences were used; "" in runs of earlier releases

    def __post_init__(self) -> None:
        if "all" not in self.metrics:
            raise ValueError("metrics.all: missing")
        for slice_name, values in self.metrics.items():
            if missing := [name for name in PAPER_METRICS if name not in values]:
                raise ValueError(f"metrics.{slice_name}.{missing[0]}: missing")
            if slice_name not in self.listeners:
                raise ValueError(f"listeners.{slice_name}: missing")
        if self.curves and any(len(row) != len(self.curves.seconds) for row in self.curves.weights):
            expected = len(self.curves.seconds)
            raise ValueError(f"curves.weights: expected {expected} numbers a layer, as in curves.seconds")


class Ranks(NamedTuple):
    """Listeners sorted by id, and the rank (1 = first) of each one's song. [U]."""

    users: np.ndarray
    ranks: np.ndarray


_RUN = TypeAdapter(ExperimentRun)


def write(folder: str | Path, run: ExperimentRun) -> Path:
    """Write a run's file atomically. Call it after `write_ranks`: the file marks the run as finished."""
    path = Path(folder, f"{run.name}.json")
    storage.write_bytes(str(path), (json.dumps(dataclasses.asdict(run)) + "\n").encode())
    return path


def write_ranks(
    folder: str | Path, name: str, users: Sequence[int] | Sequence[str] | np.ndarray, ranks: np.ndarray
) -> Path:
    """Write the ranks of run `name` atomically, listeners in any order. Returns the file's path."""
    path = Path(folder, f"{name}.ranks.parquet")
    storage.write_table(str(path), pa.table({USER_ID: pa.array(users), RANK: np.asarray(ranks, dtype=float)}))
    return path


def write_cases(folder: str | Path, name: str, cases: pa.Table) -> Path:
    """Write the cases of run `name` atomically, as of `NextDaysResult`. Returns the file's path."""
    path = Path(folder, f"{name}.cases.parquet")
    storage.write_table(str(path), cases)
    return path


def finished(folder: str | Path, name: str) -> bool:
    """Whether the run's file exists."""
    return Path(folder, f"{name}.json").is_file()


def read(folder: str | Path) -> list[ExperimentRun]:
    """The runs of a folder sorted by name. Raises InputError that names the file and field if one is damaged."""
    if not Path(folder).is_dir():
        raise InputError(f"{folder} is no folder: give one that holds the files of runs")
    return [_read_one(path) for path in sorted(Path(folder).glob("*.json"))]


def _read_one(path: Path) -> ExperimentRun:
    try:
        run = _RUN.validate_json(path.read_bytes(), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        problem = f"{field}: {first['msg']}" if field else first["msg"].removeprefix("Value error, ")
        raise InputError(f"{path} is not the file of a run ({problem}): remove it and run again") from None
    if run.name != path.stem:
        raise InputError(f"{path} is not the file of a run (name: {run.name!r}, not {path.stem!r}): rename it")
    return run


def further_metrics(runs: Sequence[ExperimentRun]) -> list[str]:
    """Metrics besides the paper's that all runs have, in order. None under next_day, which measures many more."""
    if not runs or any(run.protocol == "next_day" for run in runs):
        return []
    return sorted(set.intersection(*(set(run.metrics["all"]) for run in runs)) - set(PAPER_METRICS), key=metric_order)


def read_ranks(folder: str | Path, run: ExperimentRun) -> Ranks:
    """A run's ranks. Raises InputError if the file is missing or damaged, or has another number of listeners."""
    path = Path(folder, f"{run.name}.ranks.parquet")
    try:
        table = pq.read_table(path, columns=[USER_ID, RANK]).sort_by(USER_ID)
        users, ranks = table[USER_ID].to_numpy(), np.asarray(table[RANK].to_numpy(), dtype=float)
    except (OSError, KeyError, ValueError) as error:  # Arrow's own errors are among them
        text = str(error).splitlines()[0]
        raise InputError(f"{path} holds no ranks ({text}): remove {run.name}.json and run again") from None
    if len(ranks) != (said := run.listeners["all"]):
        raise InputError(f"{path} holds {len(ranks)} listeners, {run.name}.json says {said}: remove both, run again")
    if not (ranks >= 1).all():  # false for nan too
        raise InputError(f"{path} is damaged ({RANK}: below 1 or no number): remove it and {run.name}.json, run again")
    return Ranks(users, ranks)


def read_cases(folder: str | Path, run: ExperimentRun) -> pa.Table:
    """A run's cases, sorted by ds and listener. Raises InputError if the file is missing or damaged."""
    path = Path(folder, f"{run.name}.cases.parquet")
    try:
        cases = pq.read_table(path).sort_by([(DS, "ascending"), (USER_ID, "ascending")])
    except (OSError, KeyError, ValueError) as error:  # Arrow's own errors are among them
        text = str(error).splitlines()[0]
        raise InputError(f"{path} holds no cases ({text}): remove {run.name}.json and run again") from None
    if cases.num_rows != (said := run.listeners["all"]):
        raise InputError(f"{path} holds {cases.num_rows} cases, {run.name}.json says {said}: remove both, run again")
    return cases


def ranks_in(folders: Sequence[str | Path]) -> Callable[[ExperimentRun], Ranks]:
    """A function that reads a run's ranks from the folder that holds its file. Names may repeat between folders."""
    return lambda run: read_ranks(_home(folders, run), run)


def cases_in(folders: Sequence[str | Path]) -> Callable[[ExperimentRun], pa.Table]:
    """The same for a run's cases."""
    return lambda run: read_cases(_home(folders, run), run)


def _home(folders: Sequence[str | Path], run: ExperimentRun) -> str | Path:
    files = ((folder, Path(folder, f"{run.name}.json")) for folder in folders)
    return next((folder for folder, file in files if file.exists() and _read_one(file) == run), folders[0])
