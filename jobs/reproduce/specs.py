"""Which runs a request of the command line means, and how each is trained and measured."""

from dataclasses import dataclass, replace
from typing import get_args

from fuxi_beta import models
from fuxi_beta.baselines.bprmf import BPRMFConfig
from fuxi_beta.config import ModelConfig, RequestTime, TemporalName, TrainConfig
from fuxi_beta.presets import Preset
from jobs.reproduce.paper import TABLES
from jobs.reproduce.runs import RunProtocol, TimeCondition
from jobs.reproduce.settings import label_of, with_settings
from jobs.reproduce.systems import CEILINGS, LARGE_LAYERS, NOT_TRAINED_BY_STEPS, SANITY, UNTRAINED, WITHOUT_DEPTH
from pipelines.errors import InputError

TIMED: tuple[str, ...] = (*TABLES[5].systems, "hstu", "sasrec-gap", "llama-gap")
"""Systems that read times, and so have runs under other time conditions."""
BASELINES = "baselines"
"""As a `--model`: every baseline without training."""
DEPTHS, GPU_DEPTHS = (2, 4, 8, 16), (2, 4, 8, 16, 32)
# More than one head where the published Large setting has them and the head size stays whole.
_LARGE_HEADS = {50: 2, 256: 8}


@dataclass(frozen=True)
class RunSpec:
    """One run: the system, its training, the seed, and the time that stands for t_{i+1}."""

    system: str
    epochs: int
    seed: int
    layers: int = 2
    temporal: TemporalName = "pow"
    condition: TimeCondition = "true"
    validation: bool = False
    hidden: int = 100  # width of the recurrent state of gru4rec and narm
    protocol: RunProtocol = "leave_one_out"
    days: int = 1  # next_day: the newest days that one training is measured on
    label: str = ""  # names the run where its settings are not the preset's
    overrides: tuple[str, ...] = ()  # of `settings.with_settings`, over everything else
    served: bool = False  # next_day: lists under the default list rules are measured, too

    @property
    def name(self) -> str:
        """The run's file name without ending: all that differs between runs on the same data."""
        parts = [self.system]
        parts += [self.label] if self.label else []
        parts += [self.temporal] if self.temporal != "pow" else []
        parts += [f"L{self.layers}"] if self.system not in WITHOUT_DEPTH else []
        parts += [f"h{self.hidden}"] if self.system == "gru4rec" else []
        parts += [f"e{self.epochs}", f"s{self.seed}"] if self.system not in UNTRAINED else []
        parts += [self.condition] if self.condition != "true" else []
        parts += [self.protocol.replace("_", "-")] if self.protocol != "leave_one_out" else []
        parts += [f"{self.days}d"] if self.days > 1 else []
        return "-".join([*parts, *(["validated"] if self.validation else [])])

    def configs(self, preset: Preset) -> tuple[ModelConfig, TrainConfig]:
        """The network (without meaning for baselines that have none) and its training."""
        model = replace(preset.model, layers=self.layers, temporal=self.temporal, hidden=self.hidden)
        if self.layers >= LARGE_LAYERS:
            model = replace(model, heads=_LARGE_HEADS.get(model.dim, model.heads))
        if self.system not in NOT_TRAINED_BY_STEPS:
            model = replace(model, name=self.system)
        request_time: RequestTime = "true" if self.condition == "permuted" else self.condition
        train = replace(preset.train, epochs=max(self.epochs, 1), seed=self.seed, request_time=request_time)
        train = replace(train, protocol="leave_one_out", mode="all", min_listeners=0, capacity_margin=0.0)
        train = replace(train, held_out=2 if self.validation else 1, min_completion=TrainConfig.min_completion)
        if self.protocol == "temporal_split":
            train = replace(train, held_out=0)
        if self.protocol == "next_day":
            train = replace(train, protocol="next_day", mode="exclusive", min_listeners=TrainConfig.min_listeners)
        return with_settings(model, train, self.overrides)


@dataclass(frozen=True)
class RunSelection:
    """The runs that the command line selects."""

    preset: Preset
    models: tuple[str, ...] = ()
    table: int | None = None
    epochs: int | None = None
    seeds: tuple[int, ...] = ()
    layers: int | None = None
    conditions: tuple[TimeCondition, ...] = ()
    validation: bool = False
    scaling: bool = False
    protocol: RunProtocol = "leave_one_out"
    days: int = 1
    overrides: tuple[str, ...] = ()
    label: str | None = None
    served: bool = False
    on_gpu: bool = False


def specs(selection: RunSelection) -> list[RunSpec]:
    """The selected runs in the order in which they are made, each once. Raises InputError for an unknown model."""
    protocol = selection.protocol
    if protocol != "leave_one_out" and (selection.validation or selection.conditions):
        raise InputError(f"--protocol {protocol}: --validation and --time-condition belong to leave_one_out")
    if protocol != "next_day" and (selection.days > 1 or selection.served):
        raise InputError(f"--protocol {protocol}: --days and --served belong to next_day")
    selected: dict[RunSpec, None] = {}
    for seed in selection.seeds or (selection.preset.train.seed,):
        for spec in _one_seed(selection, seed):
            common = replace(spec, validation=selection.validation, protocol=protocol, days=selection.days)
            common = replace(common, served=selection.served and spec.system not in CEILINGS)
            if spec.system not in UNTRAINED:
                label = label_of(selection.overrides, selection.label)
                common = replace(common, label=label, overrides=selection.overrides)
            timed = selection.conditions and spec.system in TIMED
            for condition in selection.conditions if timed else ("true",):
                selected[replace(common, condition=condition)] = None
    if protocol != "next_day" and any(spec.system in CEILINGS for spec in selected):
        raise InputError(f"--model {CEILINGS[0]}: the ceiling belongs to --protocol next_day")
    for spec in selected:
        spec.configs(selection.preset)  # refuses settings that cannot be before anything runs
    return list(selected)


def _one_seed(selection: RunSelection, seed: int) -> list[RunSpec]:
    epochs = selection.preset.train.epochs if selection.epochs is None else selection.epochs
    base = RunSpec("fuxi-beta", epochs, seed, selection.layers or selection.preset.model.layers)
    large = replace(base, layers=selection.layers or LARGE_LAYERS)
    if selection.models:
        names = [one for name in selection.models for one in (SANITY if name == BASELINES else (name,))]
        selected = [_named(name, base, large=large.layers) for name in names]
    elif selection.scaling:
        selected = [replace(base, layers=depth) for depth in (GPU_DEPTHS if selection.on_gpu else DEPTHS)]
    else:
        table = TABLES[selection.table or 3]
        systems = TIMED if selection.conditions and table.number == 3 else table.systems
        selected = [_named(name, large if table.one_depth else base, large=large.layers) for name in systems]
        if selection.protocol == "next_day":  # BPR-MF scores listeners, not histories, so it makes no lists
            selected = [spec for spec in selected if spec.system != "bprmf"]
    # The published number of epochs is the networks'; BPR-MF has its own.
    own = None if selection.epochs else BPRMFConfig().epochs
    return [replace(spec, epochs=own) if own and spec.system == "bprmf" else spec for spec in selected]


def _named(name: str, base: RunSpec, *, large: int) -> RunSpec:
    """`SYSTEM`, `SYSTEM-large`, `fuxi-beta:FUNCTION` with one of Table 6, or `gru4rec:WIDTH` of the state."""
    system, _, variant = name.lower().partition(":")
    is_large = name.lower().endswith("-large")
    system, variant = system.removesuffix("-large"), variant.removesuffix("-large")
    known = (*models.SYSTEMS, "bprmf", *SANITY, BASELINES, *CEILINGS)
    if system not in known:
        raise InputError(f"--model {name}: there is no such system: use one of {', '.join(known)}")
    if system in UNTRAINED and not variant:
        return RunSpec(system, 0, 0)
    spec = replace(base, system=system, layers=large if is_large else base.layers)
    if not variant:
        return spec
    if system == "fuxi-beta" and variant in get_args(TemporalName):
        return replace(spec, temporal=variant)
    if system == "gru4rec" and variant.isdigit() and int(variant) > 0:
        return replace(spec, hidden=int(variant))
    functions = ", ".join(get_args(TemporalName))
    raise InputError(f"--model {name}: a variant is fuxi-beta:FUNCTION ({functions}) or gru4rec:WIDTH")
