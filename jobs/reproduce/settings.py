"""Which runs a table of the paper needs, and how each is trained and measured."""

from dataclasses import dataclass, replace
from typing import get_args

from fuxi_beta import models
from fuxi_beta.baselines.bprmf import BPRMFConfig
from fuxi_beta.config import ModelConfig, RequestTime, TemporalName, TrainConfig
from fuxi_beta.presets import Preset
from jobs.reproduce.runs import Condition, RunProtocol, Sanity
from pipelines.errors import InputError

LARGE = 8  # layers
SANITY: tuple[Sanity, ...] = get_args(Sanity)
TABLE_3: tuple[str, ...] = (
    "fuxi-beta",
    "sasrec",
    "fuxi-alpha",
    "hstu",
    "llama",
    "retnet",
    "flash",
    "gru4rec",
    "narm",
    "bprmf",
)
_STEPS: tuple[str, ...] = ("fuxi-alpha", "fuxi-beta-frab", "fuxi-beta-aftm", "fuxi-beta")
_CHANNELS: tuple[str, ...] = (
    "fuxi-beta-frab",
    "fuxi-beta",
    "fuxi-beta-frab-no-position",
    "fuxi-beta-frab-no-time",
)
_FRAMEWORK: tuple[str, ...] = ("llama", "llama-beta", "hstu", "hstu-beta", "fuxi-alpha", "fuxi-beta")
_TIMED: tuple[str, ...] = (*_STEPS, "hstu", "sasrec-gap", "llama-gap")
CONDITIONS: tuple[Condition, ...] = get_args(Condition)
DEPTHS, GPU_DEPTHS = (2, 4, 8, 16), (2, 4, 8, 16, 32)
TABLES = (3, 5, 6, 7, 8)
_UNTRAINED = {*SANITY, "bprmf"}
_NO_DEPTH = {*_UNTRAINED, "gru4rec", "narm"}
# More than one head where the published Large setting has them and the head size stays whole.
_LARGE_HEADS = {50: 2, 256: 8}


@dataclass(frozen=True)
class Spec:
    """One run: what is trained, for how long, from which seed, and what it is told of the time."""

    system: str
    epochs: int
    seed: int
    layers: int = 2
    temporal: TemporalName = "pow"
    condition: Condition = "true"
    validation: bool = False
    hidden: int = 100  # width of the recurrent state of gru4rec and narm
    protocol: RunProtocol = "leave_one_out"

    @property
    def name(self) -> str:
        """Of the run's file: everything that tells it from other runs on the same data."""
        parts = [self.system]
        parts += [self.temporal] if self.temporal != "pow" else []
        parts += [f"L{self.layers}"] if self.system not in _NO_DEPTH else []
        parts += [f"h{self.hidden}"] if self.system == "gru4rec" else []
        parts += [f"e{self.epochs}", f"s{self.seed}"] if self.system not in SANITY else []
        parts += [self.condition] if self.condition != "true" else []
        parts += [self.protocol.replace("_", "-")] if self.protocol != "leave_one_out" else []
        return "-".join([*parts, *(["validated"] if self.validation else [])])

    def configs(self, preset: Preset) -> tuple[ModelConfig, TrainConfig]:
        """The network (meaningless for baselines without one) and how it is fitted."""
        model = replace(preset.model, layers=self.layers, temporal=self.temporal, hidden=self.hidden)
        if self.layers >= LARGE:
            model = replace(model, heads=_LARGE_HEADS.get(model.dim, model.heads))
        if self.system not in _UNTRAINED:
            model = replace(model, name=self.system)
        request_time: RequestTime = "true" if self.condition == "permuted" else self.condition
        train = replace(preset.train, epochs=max(self.epochs, 1), seed=self.seed, request_time=request_time)
        train = replace(train, protocol="leave_one_out", mode="all", min_listeners=0, capacity_margin=0.0)
        train = replace(train, held_out=2 if self.validation else 1, min_completion=TrainConfig.min_completion)
        if self.protocol == "temporal_split":
            train = replace(train, held_out=0)
        if self.protocol == "next_day":
            train = replace(train, protocol="next_day", mode="exclusive", min_listeners=TrainConfig.min_listeners)
        return model, train


@dataclass(frozen=True)
class Request:
    """What the command line asks for."""

    preset: Preset
    models: tuple[str, ...] = ()
    table: int | None = None
    epochs: int | None = None
    seeds: tuple[int, ...] = ()
    layers: int | None = None
    conditions: tuple[Condition, ...] = ()
    validation: bool = False
    scaling: bool = False
    protocol: RunProtocol = "leave_one_out"
    on_gpu: bool = False


def specs(request: Request) -> list[Spec]:
    """The runs of a request in the order they are made, none twice. InputError for a model that does not exist."""
    epochs = request.preset.train.epochs if request.epochs is None else request.epochs
    if request.protocol != "leave_one_out" and (request.validation or request.conditions):
        raise InputError(f"--protocol {request.protocol}: --validation and --time-condition belong to leave_one_out")
    found: list[Spec] = []
    for seed in request.seeds or (request.preset.train.seed,):
        for spec in _one_seed(request, epochs, seed):
            for condition in _conditions(request, spec):
                varied = replace(spec, condition=condition, validation=request.validation, protocol=request.protocol)
                found += [varied] if varied not in found else []
    return found


def _conditions(request: Request, spec: Spec) -> tuple[Condition, ...]:
    return request.conditions if request.conditions and spec.system in _TIMED else ("true",)


def _one_seed(request: Request, epochs: int, seed: int) -> list[Spec]:
    base = Spec("fuxi-beta", epochs, seed, request.layers or request.preset.model.layers)
    large = replace(base, layers=request.layers or LARGE)
    if request.models:
        return [_own_epochs(_named(name, base, large=large.layers), request) for name in request.models]
    if request.scaling:
        return [replace(base, layers=depth) for depth in (GPU_DEPTHS if request.on_gpu else DEPTHS)]
    if request.table == 6:
        return [replace(large, temporal=function) for function in get_args(TemporalName)]
    if request.table in {7, 8}:
        return [replace(large, system=system) for system in (_CHANNELS if request.table == 7 else _FRAMEWORK)]
    systems = _STEPS if request.table == 5 else _TIMED if request.conditions else TABLE_3
    trained = [_own_epochs(replace(base, system=system), request) for system in systems]
    if request.protocol == "next_day":  # BPR-MF scores listeners, not histories, so it makes no lists
        trained = [spec for spec in trained if spec.system != "bprmf"]
    return trained if systems is not TABLE_3 else [Spec(system, 0, 0) for system in SANITY] + trained


def _own_epochs(spec: Spec, request: Request) -> Spec:
    """BPR-MF's epochs are another thing than the networks': its own number, unless some are asked for."""
    return replace(spec, epochs=BPRMFConfig().epochs) if spec.system == "bprmf" and not request.epochs else spec


def _named(name: str, base: Spec, *, large: int) -> Spec:
    """`SYSTEM`, `SYSTEM-large`, `fuxi-beta:FUNCTION` with one of Table 6, or `gru4rec:WIDTH` of the state."""
    system, _, variant = name.lower().partition(":")
    is_large = name.lower().endswith("-large")
    system, variant = system.removesuffix("-large"), variant.removesuffix("-large")
    there = (*models.SYSTEMS, "bprmf", *SANITY)
    if system not in there:
        raise InputError(f"--model {name}: there is no such system: use one of {', '.join(there)}")
    if system in SANITY and not variant:
        return Spec(system, 0, 0)  # type: ignore[arg-type]
    spec = replace(base, system=system, layers=large if is_large else base.layers)
    if not variant:
        return spec
    if system == "fuxi-beta" and variant in get_args(TemporalName):
        return replace(spec, temporal=variant)
    if system == "gru4rec" and variant.isdigit() and int(variant) > 0:
        return replace(spec, hidden=int(variant))
    functions = ", ".join(get_args(TemporalName))
    raise InputError(f"--model {name}: a variant is fuxi-beta:FUNCTION ({functions}) or gru4rec:WIDTH")
