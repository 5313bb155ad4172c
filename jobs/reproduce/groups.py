"""Runs grouped by setting: the runs of one setting differ by seed alone and make one row of a table."""

import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fuxi_beta.evaluation.metrics import rank_metrics
from jobs.reproduce.runs import Dataset, ExperimentRun, Ranks
from jobs.reproduce.systems import BASE_LAYERS, WITHOUT_DEPTH, in_order, label_at_depth, timing_key
from pipelines.errors import InputError

MARK = " †"
_USUAL_STATE = 100  # of gru4rec
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class SeedGroup:
    """The runs of one setting in the order of their seeds."""

    runs: tuple[ExperimentRun, ...]

    @property
    def first(self) -> ExperimentRun:
        """Any run, for what all have in common."""
        return self.runs[0]

    @property
    def system(self) -> str:
        """The system's name in files."""
        return self.first.system

    @property
    def variant(self) -> str:
        """The system as `--model` names it, with FuXi-beta's function of elapsed time where it is not its own."""
        own = self.system != "fuxi-beta" or self.first.temporal == "pow"
        return self.system if own else f"{self.system}:{self.first.temporal}"

    @property
    def layers(self) -> int:
        """Depth; that of the base models where a system has none."""
        return BASE_LAYERS if self.system in WITHOUT_DEPTH else self.first.layers

    @property
    def plain(self) -> bool:
        """Whether times are true and the function of elapsed time is the paper's choice."""
        return self.first.condition == "true" and self.variant == self.system

    def mean(self, metric: str, slice_name: str = "all") -> float | None:
        """Mean over seeds; None if a run lacks the slice."""
        values = self._values(metric, slice_name)
        return statistics.mean(values) if values else None

    def spread(self, metric: str, slice_name: str = "all") -> float | None:
        """Standard deviation over seeds (n - 1); None below two."""
        values = self._values(metric, slice_name)
        return statistics.stdev(values) if len(values) > 1 else None

    def _values(self, metric: str, slice_name: str) -> list[float]:
        if any(slice_name not in run.metrics for run in self.runs):
            return []
        return [run.metrics[slice_name][metric] for run in self.runs]

    @property
    def rank(self) -> tuple[int, bool, bool, int]:
        """The group with the largest rank stands for its system: by epochs, no validation, usual width, seeds."""
        run = self.first
        return run.epochs, not run.validation, run.hidden in {0, _USUAL_STATE}, len(self.runs)

    @property
    def name(self) -> str:
        """The system's name in tables, with its depth."""
        return label_at_depth(self.system, self.layers)

    def label(self, name: str | None = None) -> str:
        """A row's first cell: name, mark of the models that receive t_{i+1}, and what differs from the paper."""
        return (name or self.name) + MARK * self.first.uses_time + self.notes

    @property
    def label_with_function(self) -> str:
        """`label`, with the function of elapsed time where it is not the paper's choice."""
        return self.label() if self.variant == self.system else self.label(f"{self.name}, {self.first.temporal}")

    @property
    def notes(self) -> str:
        """The differences from the published setting in brackets; empty if there are none."""
        run, notes = self.first, [self.first.label] if self.first.label else []
        if run.hidden:
            notes.append(f"state of {run.hidden}")
        if 0 < run.epochs < run.published_epochs:
            notes.append(f"{run.epochs} of {run.published_epochs} epochs")
        if run.validation:
            picked = sorted({r.best_epoch for r in self.runs if r.best_epoch is not None})
            notes.append("epoch picked on validation: " + ", ".join(map(str, picked)))
        return f" ({'; '.join(notes)})" if notes else ""


def group_by_setting(runs: Sequence[ExperimentRun]) -> list[SeedGroup]:
    """The settings of one data set, in the order of the tables. Two runs of one setting and seed: InputError."""
    by_setting: dict[tuple, dict[int, ExperimentRun]] = defaultdict(dict)
    for run in runs:
        key = (run.system, run.layers, run.temporal, run.hidden, run.condition, run.validation, run.epochs)
        key += (run.label, run.days, run.ds if run.protocol == "next_day" else "")
        if twin := by_setting[key].get(run.seed):
            raise InputError(f"{twin.name} and {run.name} are the same setting with the same seed: leave one out")
        by_setting[key][run.seed] = run
    groups = [SeedGroup(tuple(by_seed[seed] for seed in sorted(by_seed))) for by_seed in by_setting.values()]
    place = {system: n for n, system in enumerate(in_order(g.system for g in groups))}

    def order(g: SeedGroup) -> tuple:
        run = g.first
        order = (g.layers, place[g.system], run.temporal, run.hidden, -run.epochs, run.validation, run.condition)
        return (*order, run.label, run.days)

    return sorted(groups, key=order)


def by_dataset(runs: Sequence[ExperimentRun]) -> dict[tuple[Dataset, str], list[ExperimentRun]]:
    """(data set, protocol) -> runs, smallest first. One name for two data sets: InputError."""
    grouped: dict[tuple[Dataset, str], list[ExperimentRun]] = defaultdict(list)
    first: dict[str, ExperimentRun] = {}
    for run in sorted(runs, key=lambda r: (r.dataset.events, r.dataset.name, r.protocol)):
        other = first.setdefault(run.dataset.name, run)
        if other.dataset != run.dataset:
            both = f"{other.name} and {run.name}"
            raise InputError(f"{both} describe data set {run.dataset.name!r} differently: name one otherwise")
        grouped[run.dataset, run.protocol].append(run)
    return dict(grouped)


def one_each(groups: Sequence[SeedGroup]) -> dict[str, SeedGroup]:
    """System -> the group that stands for it among `groups` (`SeedGroup.rank`)."""
    best = {g.system: g for g in sorted(groups, key=lambda g: g.rank)}
    return {system: best[system] for system in in_order(best)}


def names_of(g: SeedGroup) -> list[str]:
    """A setting as `--against` may name it: `item-knn`, `fuxi-beta-wide` with its label, or a run's full name."""
    depth = f"-L{g.layers}" if g.layers != BASE_LAYERS else ""
    return [f"{g.variant}{'-' * bool(g.first.label)}{g.first.label}{depth}", *(run.name for run in g.runs)]


def named(groups: Sequence[SeedGroup], name: str) -> SeedGroup:
    """The setting that `--against` means. Raises InputError, with the names there are, if none or several are."""
    found = [g for g in groups if name in names_of(g)]
    if len(found) != 1:
        names = ", ".join(names_of(g)[0] for g in groups)
        how_many = "several settings are" if found else "nothing is"
        raise InputError(f"--against {name}: {how_many} called so among those compared: there are {names}")
    return found[0]


@dataclass(frozen=True)
class EpochTimes:
    """Seconds an epoch, and multiples of a baseline's.

    timing: measured apart, `timing_key` -> seconds. Without it the runs' own times are taken, and only times of one
    machine and kernels are compared.
    """

    groups: Sequence[SeedGroup]
    timing: Mapping[str, float] | None

    def seconds(self, system: str, layers: int) -> dict[str, float]:
        """Machine and kernels -> seconds an epoch; empty if there is no such time."""
        if self.timing is not None:
            measured = self.timing.get(timing_key(system, layers))
            return {"": measured} if measured else {}
        times: dict[str, list[float]] = defaultdict(list)
        for g in self.groups:
            if g.plain and (g.system, g.layers) == (system, layers):
                for run in g.runs:
                    times[f"{run.machine}; {run.kernels}"].append(run.epoch_seconds)
        return {where: statistics.median(values) for where, values in times.items() if min(values) > 0}

    def relative(self, g: SeedGroup, baseline: str) -> float | None:
        """Multiple of the time of `baseline` at the same depth."""
        own, base = self.seconds(g.system, g.layers), self.seconds(baseline, g.layers)
        ratios = [own[where] / base[where] for where in own if where in base]
        return statistics.median(ratios) if ratios else None


class ListenerMetrics:
    """The metrics of each listener, from the ranks of runs. All runs must have ranked for the same listeners."""

    def __init__(self, ranks_of: Callable[[ExperimentRun], Ranks]) -> None:
        self._ranks_of = ranks_of
        self._by_run: dict[str, dict[str, np.ndarray]] = {}
        self._users: np.ndarray | None = None
        self._first_run = ""

    def values(self, g: SeedGroup, metric: str) -> np.ndarray:
        """A metric of each listener, a row a seed. float32 [S, U]. Raises InputError if ranks and run file differ."""
        return np.stack([self._of(run)[metric] for run in g.runs])

    def _of(self, run: ExperimentRun) -> dict[str, np.ndarray]:
        if run.name not in self._by_run:
            ranks = self._ranks_of(run)
            if self._users is None:
                self._users, self._first_run = ranks.users, run.name
            if not np.array_equal(ranks.users, self._users):
                both = f"{run.name} and {self._first_run}"
                raise InputError(f"the ranks of {both} are of different listeners: run one again")
            metrics = rank_metrics(ranks.ranks)
            for name, stated in run.metrics["all"].items():
                if name in metrics and abs(metrics[name].mean() - stated) > _TOLERANCE:
                    computed = f"{metrics[name].mean():.4f}"
                    raise InputError(
                        f"{run.name}: its ranks give {name} {computed}, its file {stated:.4f}: run it again"
                    )
            self._by_run[run.name] = {name: values.astype(np.float32) for name, values in metrics.items()}
        return self._by_run[run.name]
