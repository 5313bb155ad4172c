"""Runs by setting: the runs of one setting differ by seed alone, and make one row of a table."""

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np

from fuxi_beta.evaluation.metrics import rank_metrics
from jobs.reproduce.paper import BASE_LAYERS, LARGE_LAYERS
from jobs.reproduce.runs import Dataset, Ranks, Run, Sanity
from pipelines.errors import InputError

LABELS = {
    "popularity": "popularity",
    "recency": "recency",
    "markov": "Markov",
    "item-knn": "item-kNN",
    "ease": "EASE",
    "bprmf": "BPRMF",
    "gru4rec": "GRU4Rec",
    "narm": "NARM",
    "flash": "FLASH",
    "retnet": "RetNet",
    "sasrec": "SASRec",
    "sasrec-gap": "SASRec with gaps",
    "llama": "LLaMa",
    "llama-gap": "LLaMa with gaps",
    "llama-beta": "LLaMa-β",
    "hstu": "HSTU",
    "hstu-beta": "HSTU-β",
    "fuxi-alpha": "FuXi-α",
    "fuxi-beta-frab": "FuXi-β-FRAB",
    "fuxi-beta-aftm": "FuXi-β-AFTM",
    "fuxi-beta-frab-no-position": "FuXi-β-FRAB without positions",
    "fuxi-beta-frab-no-time": "FuXi-β-FRAB without time",
    "fuxi-beta": "FuXi-β",
}
"""The paper's systems in the order of the tables' rows, as they are called there; others follow by their names."""
SANITY = get_args(Sanity)
WITHOUT_DEPTH = {*SANITY, "bprmf", "gru4rec", "narm"}
MARK = " †"
_AT = (10, 50)
_USUAL_STATE = 100  # of gru4rec
_TOLERANCE = 1e-3


def label(system: str) -> str:
    """What the tables call a system."""
    return LABELS.get(system, system)


def in_order(systems: Iterable[str]) -> list[str]:
    """Each system once, in the order of the tables' rows."""
    there = set(systems)
    return [*(system for system in LABELS if system in there), *sorted(there - set(LABELS))]


def named(system: str, layers: int) -> str:
    """What the tables call a system of a depth."""
    base, with_or_without, more = label(system).partition(" with")
    depth = {BASE_LAYERS: "", LARGE_LAYERS: "-Large"}.get(layers, f" ({layers} layers)")
    return base + depth + with_or_without + more


def timing_key(system: str, layers: int) -> str:
    """How times measured apart are filed: fuxi-beta, fuxi-beta-L8 for other depths than 2."""
    return system if system in WITHOUT_DEPTH or layers == BASE_LAYERS else f"{system}-L{layers}"


@dataclass(frozen=True)
class Group:
    """The runs of one setting in the order of their seeds."""

    runs: tuple[Run, ...]

    @property
    def first(self) -> Run:
        """Any run: for what all have in common."""
        return self.runs[0]

    @property
    def system(self) -> str:
        """The system's name in files."""
        return self.first.system

    @property
    def layers(self) -> int:
        """Depth; that of the base models where a system has none."""
        return BASE_LAYERS if self.system in WITHOUT_DEPTH else self.first.layers

    @property
    def large(self) -> bool:
        """Whether the paper would call it -Large."""
        return self.layers == LARGE_LAYERS

    @property
    def plain(self) -> bool:
        """Whether time is the true one and its function the paper's choice."""
        return self.first.condition == "true" and (self.system != "fuxi-beta" or self.first.temporal == "pow")

    def mean(self, metric: str, part: str = "all") -> float | None:
        """Mean over seeds; None if a run lacks the slice."""
        values = self._values(metric, part)
        return statistics.mean(values) if values else None

    def spread(self, metric: str, part: str = "all") -> float | None:
        """Standard deviation over seeds (n - 1); None below two."""
        values = self._values(metric, part)
        return statistics.stdev(values) if len(values) > 1 else None

    def _values(self, metric: str, part: str) -> list[float]:
        if any(part not in run.metrics for run in self.runs):
            return []
        return [run.metrics[part][metric] for run in self.runs]

    @property
    def rank(self) -> tuple:
        """The larger, the sooner this group stands for its system: epochs, no validation, usual width, seeds."""
        run = self.first
        return run.epochs, not run.validation, run.hidden in {0, _USUAL_STATE}, len(self.runs)

    @property
    def name(self) -> str:
        """The system with its depth: FuXi-β, FuXi-β-Large, FuXi-β (4 layers)."""
        return named(self.system, self.layers)

    def label(self, name: str | None = None) -> str:
        """A row's first cell: name, mark of the models that receive t_{i+1}, and what differs from the paper."""
        return (name or self.name) + MARK * self.first.uses_time + self.notes

    @property
    def notes(self) -> str:
        """What sets this group apart from the published setting; empty if nothing does."""
        run, notes = self.first, []
        if run.hidden:
            notes.append(f"state of {run.hidden}")
        if 0 < run.epochs < run.published_epochs:
            notes.append(f"{run.epochs} of {run.published_epochs} epochs")
        if run.validation:
            picked = sorted({r.best_epoch for r in self.runs if r.best_epoch is not None})
            notes.append("epoch picked on validation: " + ", ".join(map(str, picked)))
        return f" ({'; '.join(notes)})" if notes else ""


def group(runs: Sequence[Run]) -> list[Group]:
    """Group the runs of one data set, in the order of the tables. Two runs of one setting and seed: InputError."""
    found: dict[tuple, dict[int, Run]] = defaultdict(dict)
    for run in runs:
        key = (run.system, run.layers, run.temporal, run.hidden, run.condition, run.validation, run.epochs)
        if twin := found[key].get(run.seed):
            raise InputError(f"{twin.name} and {run.name} are the same setting with the same seed: leave one out")
        found[key][run.seed] = run
    groups = [Group(tuple(by_seed[seed] for seed in sorted(by_seed))) for by_seed in found.values()]
    place = {system: n for n, system in enumerate(in_order(g.system for g in groups))}

    def order(g: Group) -> tuple:
        run = g.first
        return g.layers, place[g.system], run.temporal, run.hidden, -run.epochs, run.validation, run.condition

    return sorted(groups, key=order)


def by_dataset(runs: Sequence[Run]) -> dict[tuple[Dataset, str], list[Run]]:
    """(data set, protocol) -> runs, smallest first. One name for two data sets: InputError."""
    found: dict[tuple[Dataset, str], list[Run]] = defaultdict(list)
    first: dict[str, Run] = {}
    for run in sorted(runs, key=lambda r: (r.dataset.events, r.dataset.name, r.protocol)):
        other = first.setdefault(run.dataset.name, run)
        if other.dataset != run.dataset:
            found_in = f"{other.name} and {run.name}"
            raise InputError(f"{found_in} describe data set {run.dataset.name!r} differently: name one otherwise")
        found[run.dataset, run.protocol].append(run)
    return dict(found)


def one_each(groups: Sequence[Group]) -> dict[str, Group]:
    """System -> the group that stands for it among `groups` (`Group.rank`)."""
    best: dict[str, Group] = {}
    for g in sorted(groups, key=lambda g: g.rank):
        best[g.system] = g
    return {system: best[system] for system in in_order(best)}


class Clock:
    """Seconds an epoch, and multiples of a baseline's.

    timing: measured apart, `timing_key` -> seconds; without it the runs' own count, and only times of one
    machine and kernels are set in proportion.
    """

    def __init__(self, groups: Sequence[Group], timing: Mapping[str, float] | None) -> None:
        self._groups, self.timing = groups, timing

    def seconds(self, system: str, layers: int) -> dict[str, float]:
        """Machine and kernels -> seconds an epoch; empty if there is no such time."""
        if self.timing is not None:
            found = self.timing.get(timing_key(system, layers))
            return {"": found} if found else {}
        times: dict[str, list[float]] = defaultdict(list)
        for g in self._groups:
            if g.plain and (g.system, g.layers) == (system, layers):
                for run in g.runs:
                    times[f"{run.machine}; {run.kernels}"].append(run.epoch_seconds)
        return {where: statistics.median(values) for where, values in times.items() if min(values) > 0}

    def relative(self, g: Group, baseline: str) -> float | None:
        """Multiple of the time of `baseline` at the same depth."""
        mine, base = self.seconds(g.system, g.layers), self.seconds(baseline, g.layers)
        ratios = [mine[where] / base[where] for where in mine if where in base]
        return statistics.median(ratios) if ratios else None


class Listeners:
    """The metrics of each listener, from the ranks of runs that must all speak of the same listeners."""

    def __init__(self, ranks_of: Callable[[Run], Ranks]) -> None:
        self._ranks_of = ranks_of
        self._known: dict[str, dict[str, np.ndarray]] = {}
        self._users: np.ndarray | None = None
        self._whose = ""

    def values(self, g: Group, metric: str) -> np.ndarray:
        """[S, U], a row a seed."""
        return np.stack([self._of(run)[metric] for run in g.runs])

    def _of(self, run: Run) -> dict[str, np.ndarray]:
        if run.name not in self._known:
            found = self._ranks_of(run)
            if self._users is None:
                self._users, self._whose = found.users, run.name
            if not np.array_equal(found.users, self._users):
                raise InputError(f"the ranks of {run.name} and {self._whose} are of different listeners: run one again")
            metrics = rank_metrics(found.ranks, _AT)
            for name, stated in run.metrics["all"].items():
                if name in metrics and abs(metrics[name].mean() - stated) > _TOLERANCE:
                    computed = f"{metrics[name].mean():.4f}"
                    raise InputError(
                        f"{run.name}: its ranks give {name} {computed}, its file {stated:.4f}: run it again"
                    )
            self._known[run.name] = {name: values.astype(np.float32) for name, values in metrics.items()}
        return self._known[run.name]
