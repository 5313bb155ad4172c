"""Every hyperparameter of a model and of its training, with its default. Published settings are in `presets`."""

from dataclasses import dataclass, field, replace
from typing import Literal, get_args

Mode = Literal["exclusive", "all"]
LearnFrom = Literal["plays", "first_listens"]
Objective = Literal["next_play", "next_day"]
NegativesFrom = Literal["uniform", "popularity", "in_batch", "full"]
Protocol = Literal["next_day", "leave_one_out"]
Precision = Literal["fp32", "bf16"]
Kernels = Literal["auto", "reference", "cpu", "triton"]
"""Implementations of the operators (`fuxi_beta.ops`). Not a hyperparameter: they differ by rounding only."""
PaperTemporalName = Literal["pow", "exp", "log", "linear", "sin", "nn", "mixed", "bucket", "zero"]
TemporalName = Literal[PaperTemporalName, "exppow"]
FAST_TEMPORAL = ("pow", "exppow", "zero")
"""Functions of elapsed time with which FuXi-beta runs on kernels, and so with all of its options."""
CHANNELS = ("content_channel", "periodic_channel", "interval_channel")
"""Options of FuXi-beta: channels of the mixer beside position and time."""
BaselineName = Literal["markov", "item-knn", "ease"]
RequestTime = Literal["true", "previous", "fixed-hour"]


@dataclass(frozen=True)
class ModelConfig:
    """Shape of the network. The number of songs is not here: it belongs to the item table."""

    name: str = "fuxi-beta"  # a sequence model of `fuxi_beta.models`
    dim: int = 50  # D, width of item vectors and of the residual stream
    layers: int = 2
    heads: int = 1  # maps are shared by heads, so heads only order the channels
    ffn_multiply: int = 1  # hidden width of the MFFN as a multiple of dim
    max_history: int = 200  # N, the newest events of a history that are a listener's context
    dropout: float = 0.2
    temporal: TemporalName = "pow"  # the function of elapsed time in FRAB; "zero" switches the channel off
    content_channel: bool = False  # fuxi-beta: a channel of the mixer by queries and keys (retention)
    periodic_channel: bool = False  # fuxi-beta: a channel of damped waves of an hour, a day and a week
    interval_channel: bool = False  # fuxi-beta: a channel of the times between plays, whatever the request's
    sparse_positions: float = 0.0  # fuxi-beta: share of positional weights left out after training; training keeps all
    hidden: int = 100  # width of the recurrent state of gru4rec and narm
    position_margin: int = 11  # positions and relative distances beyond max_history that have weights
    side: tuple[str, ...] = ()  # columns of the catalogue whose values have vectors, added to the song's own
    content: str | None = None  # column of the catalogue with a vector a song; a learned map of it is added

    def __post_init__(self) -> None:
        _check_choices(self, "model", temporal=TemporalName)
        _check_at_least_one(self, "model", "dim", "layers", "heads", "ffn_multiply", "max_history", "hidden")
        if self.dim % self.heads:
            raise ValueError(f"model.heads is {self.heads}: it must divide model.dim ({self.dim})")
        for channel in CHANNELS:
            if getattr(self, channel) and (self.name != "fuxi-beta" or self.temporal not in FAST_TEMPORAL):
                raise ValueError(
                    f"model.{channel} is on: fuxi-beta with temporal {' or '.join(FAST_TEMPORAL)} alone has it, "
                    f"not {self.name} with {self.temporal}"
                )
        if not 0 <= self.sparse_positions < 1:
            raise ValueError(f"model.sparse_positions is {self.sparse_positions}: it must be at least 0 and below 1")
        if self.sparse_positions and (self.name != "fuxi-beta" or self.temporal not in FAST_TEMPORAL):
            raise ValueError(
                f"model.sparse_positions is {self.sparse_positions}: fuxi-beta with temporal "
                f"{' or '.join(FAST_TEMPORAL)} alone has it, not {self.name} with {self.temporal}"
            )
        columns = [*self.side, *([] if self.content is None else [self.content])]
        for name in columns:
            if not name or columns.count(name) > 1:
                raise ValueError(
                    f"model.side and model.content have {name!r} {columns.count(name)} times: name it once"
                )
        if not 0 <= self.dropout <= 0.9999:  # sixteen bits decide a channel
            raise ValueError(f"model.dropout is {self.dropout}: it must be between 0 and 0.9999")

    def contains(self, other: "ModelConfig") -> bool:
        """Whether the weights of a model of another shape make one of this shape that computes the same.

        So they do if the two differ in dropout, in side information (songs' vectors are taken over whole), in positions
        that are left out after training, in channels that the other one lacks, which start without effect, or if
        `exppow` follows `pow`, where it starts.
        """
        wanted = replace(self, dropout=other.dropout, side=other.side, content=other.content)
        wanted = replace(wanted, sparse_positions=other.sparse_positions)
        if (self.temporal, other.temporal) == ("exppow", "pow"):
            wanted = replace(wanted, temporal="pow")
        for channel in CHANNELS:
            if getattr(self, channel):
                wanted = replace(wanted, **{channel: getattr(other, channel)})
        return wanted == other


@dataclass(frozen=True)
class TrainConfig:
    """How a model is fitted. The batch size and every count are global: the number of workers changes no result."""

    protocol: Protocol = "next_day"  # which targets are held out, and what t_{i+1} is at a day's end
    held_out: int = 1  # leave_one_out: newest plays kept from training: 0, 1, or 2 to validate on one of them
    request_time: RequestTime = "true"  # leave_one_out: t_{i+1}, as it was, := t_i, or the next request hour
    mode: Mode = "exclusive"  # what is listed and evaluated: songs that a listener never heard, or all
    learn_from: LearnFrom = "plays"  # targets: every play, or the first listen of each song only
    objective: Objective = (
        "next_play"  # targets of a state: one play that follows, or the songs of the next day with plays
    )
    target_window: int = 1  # the target is one of so many plays that follow, drawn anew in each epoch; 1: the next
    skip_weight: float = (
        0.0  # of a skip among the plays that the target is drawn from, each of weight 1; 0: never drawn
    )
    random_windows: float = 0.0  # share of epochs in which a history longer than N has a random window, not the newest
    min_completion: int = 30  # percent played below which an event is a skip: neither context nor target
    epochs: int = 5
    warm_start_epochs: int = 2  # epochs when weights come from the previous champion
    incremental: bool = False  # a warm start has targets among the plays that its parent was not trained on, alone
    min_steps: int = 0  # more epochs until so many steps are taken; of a warm start the same share as of its epochs
    full_every_days: int = 0  # a day trains from nothing if the last full retrain is so many days ago; 0: when asked
    batch_size: int = 128  # listeners a step, over all workers
    batch_tokens: int = 0  # instead: about this many events a step, of histories of like length; 0: use batch_size
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.0
    item_optimizer: Literal["adamw", "rowwise_adagrad"] = "rowwise_adagrad"
    item_lr: float = 0.05  # learning rate of row-wise Adagrad; AdamW on items uses lr
    item_eps: float = 1e-8
    accumulator_decay: float = 0.5  # warm start multiplies Adagrad's accumulators by this
    negatives: int = 128  # drawn for each target, with replacement
    negatives_from: NegativesFrom = "uniform"  # all candidates alike, by plays, targets of the batch, or all of them
    uniform_share: float = 0.5  # of the negatives by popularity or in_batch, drawn from all candidates alike
    logq: bool = False  # logits of negatives are corrected for how often each song is drawn
    temperature: float = 0.05
    completion_weight: float = 0.0  # of the loss of a head that predicts whether the next event is skipped; 0: no head
    ema: float = 0.0  # decay a step of the running average of all weights that is evaluated and exported; 0: off
    min_listeners: int = 5  # songs with fewer distinct listeners are neither negatives nor candidates
    capacity_margin: float = 0.10  # spare rows of the item table, for songs of the next days
    checkpoint_every_steps: int = 200
    lanes: int = 16  # row groups read in parallel, assigned to workers; more workers than lanes leaves some idle
    seed: int = 1
    precision: Precision = "fp32"  # of token-wise matrix products; "bf16" is faster where the hardware has it
    compile: bool = False  # MFFN by torch.compile instead of C++ kernels: for GPUs, and CPUs without kernels

    def __post_init__(self) -> None:
        choices = {"objective": Objective, "negatives_from": NegativesFrom, "learn_from": LearnFrom}
        _check_choices(self, "train", precision=Precision, request_time=RequestTime, mode=Mode, **choices)
        if self.held_out not in {0, 1, 2}:
            raise ValueError(
                f"train.held_out is {self.held_out}: it must be 0, 1, or 2 to validate on the second-newest"
            )
        counts = ("epochs", "warm_start_epochs", "batch_size", "negatives", "checkpoint_every_steps", "lanes")
        _check_at_least_one(self, "train", *counts, "target_window")
        for name in ("batch_tokens", "min_steps", "full_every_days"):
            if getattr(self, name) < 0:
                raise ValueError(f"train.{name} is {getattr(self, name)}: it must be 0 (off) or more")
        for name in ("lr", "item_lr", "item_eps", "temperature"):
            if getattr(self, name) <= 0:
                raise ValueError(f"train.{name} is {getattr(self, name)}: it must be above 0")
        if not 0 <= self.completion_weight < float("inf"):
            raise ValueError(f"train.completion_weight is {self.completion_weight}: it must be 0 (off) or more")
        for name, most in (("skip_weight", 1), ("random_windows", 1), ("uniform_share", 1), ("ema", 0.99999)):
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"train.{name} is {getattr(self, name)}: it must be between 0 and {most}")
        if self.objective == "next_day":
            self._check_next_day()

    def _check_next_day(self) -> None:
        needed = {"protocol": "next_day", "target_window": 1, "skip_weight": 0}
        for name, value in needed.items():
            if getattr(self, name) != value:
                raise ValueError(
                    f"train.objective is next_day, which takes every song of a day, and train.{name} is "
                    f"{getattr(self, name)}: set it to {value}, or train.objective to next_play"
                )

    def epochs_of(self, steps_per_epoch: int, *, warm: bool = False, incremental: bool = False) -> int:
        """How many epochs a training has: as set, and more where they are fewer steps than `min_steps`.

        warm: it starts from a champion's weights, and takes as much less of both as `warm_start_epochs` is of `epochs`.
        incremental: and from new plays alone, which are not repeated to reach `min_steps`.
        """
        if incremental:
            return self.warm_start_epochs
        epochs, steps = self.epochs, self.min_steps
        if warm:
            epochs, steps = self.warm_start_epochs, self.min_steps * self.warm_start_epochs // self.epochs
        return max(epochs, -(-steps // max(steps_per_epoch, 1)))


@dataclass(frozen=True)
class EvaluateConfig:
    """Which metrics are computed, and on which listeners."""

    at: tuple[int, ...] = (10, 30, 50)  # cut-offs of the ranking metrics; next_day's headline is 30
    max_listeners: int = 100_000  # a fixed hash sample above this
    light_events: int = 50  # histories up to this long are "light" listeners, longer ones "heavy"
    new_days: int = 7  # first heard of within this many days: "new"
    popularity_days: int = 28  # window of the popularity baseline and of the fallback list
    popularity_daily_cap: int = 200  # songs of one listener that count on one day; limits bots
    batch_size: int = field(default=256)
    baselines: tuple[BaselineName, ...] = ("markov", "item-knn", "ease")  # measured beside popularity every day
    baseline_events: int = 20_000_000  # above so many stored plays item-kNN and EASE are left out: they are held whole
    baseline_songs: int = 5_000  # above so many songs EASE is left out: its time grows with their cube

    def __post_init__(self) -> None:
        _check_choices(self, "evaluate", baselines=BaselineName)


def learn_from_before(mode: Mode) -> LearnFrom:
    """What a training learned from in releases without `train.learn_from`, where `train.mode` decided it, too."""
    return "first_listens" if mode == "exclusive" else "plays"


def _check_choices(config: object, section: str, **literals: object) -> None:
    """Every one of several values, if the setting is a tuple."""
    for name, literal in literals.items():
        value, choices = getattr(config, name), get_args(literal)
        for one in value if isinstance(value, tuple) else (value,):
            if one not in choices:
                raise ValueError(f"{section}.{name} is {one!r}: it must be one of {', '.join(choices)}")


def _check_at_least_one(config: object, section: str, *names: str) -> None:
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{section}.{name} is {getattr(config, name)}: it must be at least 1")
