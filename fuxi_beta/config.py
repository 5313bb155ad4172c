"""Every hyperparameter of a model and of its training, with its default. Published settings are in `presets`."""

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, Literal, TypeVar, get_args

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
class Unit:
    """What a number is measured in: an annotation of a setting's type."""

    name: str


Share = Annotated[float, Unit("share")]
Percent = Annotated[int, Unit("per cent")]
Seconds = Annotated[int, Unit("seconds")]
Minutes = Annotated[float, Unit("minutes")]
Hours = Annotated[int, Unit("hours")]
Days = Annotated[int, Unit("days")]
Plays = Annotated[int, Unit("plays")]
Songs = Annotated[int, Unit("songs")]
Listeners = Annotated[int, Unit("listeners")]
Epochs = Annotated[int, Unit("epochs")]
Steps = Annotated[int, Unit("steps")]
Mebibytes = Annotated[int, Unit("MiB")]

T = TypeVar("T")

BOUNDS = {"ge": (operator.ge, "at least"), "gt": (operator.gt, "above"), "le": (operator.le, "at most")}
BOUNDS["lt"] = (operator.lt, "below")
"""How a setting may be bounded: whether a value keeps the bound, and the bound in words."""


def setting(default: T, description: str, **bounds: float) -> T:
    """A field of a configuration: its default, what it means, and its bounds (`BOUNDS`)."""
    unknown = bounds.keys() - BOUNDS.keys()
    if unknown:
        raise TypeError(f"{', '.join(sorted(unknown))}: bounds are {', '.join(BOUNDS)}")
    return field(default=default, metadata={"description": description, "bounds": bounds})


def bounds_in_words(bounds: Mapping[str, float]) -> str:
    """Bounds as people read them.

    >>> bounds_in_words({"ge": 0, "le": 1}), bounds_in_words({"ge": 0, "lt": 1}), bounds_in_words({"gt": 0})
    ('between 0 and 1', 'at least 0 and below 1', 'above 0')
    """
    if bounds.keys() == {"ge", "le"}:
        return f"between {bounds['ge']:g} and {bounds['le']:g}"
    return " and ".join(f"{BOUNDS[name][1]} {bound:g}" for name, bound in bounds.items())


@dataclass(frozen=True)
class ModelConfig:
    """The network. The number of songs is not here: it belongs to the item table."""

    name: str = setting("fuxi-beta", "the sequence model: one of those in fuxi_beta/models/")
    dim: int = setting(50, "width of item vectors and of the residual stream, D", ge=1)
    layers: int = setting(2, "number of blocks", ge=1)
    heads: int = setting(
        1, "number of heads; FuXi-beta's maps are shared by heads, which only order its channels", ge=1
    )
    ffn_multiply: int = setting(1, "hidden width of the MFFN as a multiple of `model.dim`", ge=1)
    max_history: Plays = setting(200, "newest plays of a history that are a listener's context, N", ge=1)
    dropout: Share = setting(0.2, "dropout rate", ge=0, le=0.9999)  # sixteen bits decide a channel
    temporal: TemporalName = setting(
        "pow", "FRAB's function of elapsed time; zero switches that map off (docs/model.md#functions-of-elapsed-time)"
    )
    content_channel: bool = setting(
        False, "whether FuXi-beta's mixer has a channel by queries and keys, too (docs/model.md#further-channels)"
    )
    periodic_channel: bool = setting(
        False, "whether it has a channel of waves of an hour, a day and a week, too (docs/model.md#further-channels)"
    )
    interval_channel: bool = setting(
        False, "whether it has a channel by the times between plays, too (docs/model.md#further-channels)"
    )
    sparse_positions: Share = setting(
        0.0,
        "share of FuXi-beta's positional weights, the least important ones, that is removed after training "
        "(docs/model.md#positions-left-out-after-training)",
        ge=0,
        lt=1,
    )
    hidden: int = setting(100, "width of the recurrent state of gru4rec and narm", ge=1)
    position_margin: int = setting(
        11, "how many positions and relative distances beyond `model.max_history` have weights of their own", ge=0
    )
    side: tuple[str, ...] = setting(
        (),
        "catalogue columns whose values have vectors that are added to the song's own, for example `[artist, genre]` "
        "(docs/model.md#side-information)",
    )
    content: str | None = setting(
        None, "catalogue column with a content vector of each song, of which a learned map is added"
    )

    def __post_init__(self) -> None:
        _check_choices(self, "model", temporal=TemporalName)
        _check_bounds(self, "model")
        if self.dim % self.heads:
            raise ValueError(f"model.heads is {self.heads}: it must divide model.dim ({self.dim})")
        for channel in CHANNELS:
            if getattr(self, channel) and (self.name != "fuxi-beta" or self.temporal not in FAST_TEMPORAL):
                raise ValueError(
                    f"model.{channel} is on: fuxi-beta with temporal {' or '.join(FAST_TEMPORAL)} alone has it, "
                    f"not {self.name} with {self.temporal}"
                )
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
    """How a model is fitted. Batch sizes and counts are global: the number of workers changes no result."""

    protocol: Protocol = setting(
        "next_day",
        "which targets are held out, and what the time of the next event is at a day's end (docs/model.md#protocols)",
    )
    held_out: Plays = setting(
        1, "under leave_one_out: newest plays that are not trained on: 0, 1, or 2 to validate on one of them"
    )
    request_time: RequestTime = setting(
        "true",
        "under leave_one_out: the time of the predicted event that the model is told: the true one, that of the event "
        "before (previous), or the next request hour (fixed-hour)",
    )
    mode: Mode = setting(
        "exclusive", "what is recommended and evaluated: songs that the listener has never played (exclusive), or all"
    )
    learn_from: LearnFrom = setting(
        "plays", "the targets: every play (plays), or only the first play of each song (first_listens)"
    )
    objective: Objective = setting(
        "next_play",
        "what a state predicts: one of the plays that follow (next_play), or the distinct songs of the next day with "
        "plays, from the state at the end of the day before (next_day; docs/model.md#objective-and-negatives)",
    )
    target_window: Plays = setting(
        1, "the target is one of so many plays that follow, drawn anew in each epoch; 1: the next play", ge=1
    )
    skip_weight: Share = setting(
        0.0, "weight of a skip when the target is drawn, where a play has 1; 0: a skip is never a target", ge=0, le=1
    )
    random_windows: Share = setting(
        0.0,
        "share of epochs in which a history longer than `model.max_history` is read in a random window of it, not in "
        "the newest one",
        ge=0,
        le=1,
    )
    min_completion: Percent = setting(30, "part of a song below which a play of it is a skip", ge=0, le=100)
    unchosen_weight: Share = setting(
        1.0,
        "weight as a target of a play that its listener did not choose (`logs.unchosen_sources`): the share of epochs "
        "in which it is one; 0: never, it is context alone",
        ge=0,
        le=1,
    )
    epochs: Epochs = setting(5, "length of a training from random weights (cold start)", ge=1)
    warm_start_epochs: Epochs = setting(
        2, "length of a training that starts from the champion's weights (warm start)", ge=1
    )
    incremental: bool = setting(
        False,
        "whether a warm start takes its targets only from plays that its parent was not trained on "
        "(docs/model.md#incremental-training)",
    )
    min_steps: Steps = setting(
        0,
        "more epochs than that are run until so many steps are taken; in a warm start, the same share of them as of "
        "its epochs (docs/measurements/next-day.md#how-much-data-the-network-needs)",
        ge=0,
    )
    full_every_days: Days = setting(
        0,
        "a day trains from random weights, on the whole history, if the last day that did is so long ago; 0: only when "
        "a gate asks for it (docs/day.md#a-gate-that-cannot-creep)",
        ge=0,
    )
    batch_size: Listeners = setting(128, "size of a batch, over all workers", ge=1)
    batch_tokens: Plays = setting(
        0, "size of a batch in plays, of histories of similar length, in place of `train.batch_size`; 0: off", ge=0
    )
    lr: float = setting(1e-3, "learning rate of AdamW", gt=0)
    betas: tuple[float, float] = setting((0.9, 0.98), "betas of AdamW")
    weight_decay: float = setting(0.0, "weight decay of AdamW", ge=0)
    item_optimizer: Literal["adamw", "rowwise_adagrad"] = setting("rowwise_adagrad", "optimizer of the item table")
    item_lr: float = setting(0.05, "learning rate of row-wise Adagrad; AdamW on the item table has `train.lr`", gt=0)
    item_eps: float = setting(1e-8, "epsilon of row-wise Adagrad", gt=0)
    accumulator_decay: float = setting(0.5, "a warm start multiplies the accumulators of Adagrad by this", ge=0)
    negatives: Songs = setting(128, "negatives drawn for each target, with replacement", ge=1)
    negatives_from: NegativesFrom = setting(
        "uniform",
        "how negatives are drawn: uniformly from all candidates (uniform), by their plays (popularity), from the "
        "targets of the batch (in_batch), or every candidate is one, up to 50,000 of them (full)",
    )
    uniform_share: Share = setting(
        0.5, "share of the negatives that is drawn uniformly under popularity and in_batch", ge=0, le=1
    )
    logq: bool = setting(False, "whether logits of negatives are corrected for how often each song is drawn (log-Q)")
    temperature: float = setting(0.05, "temperature of the softmax", gt=0)
    completion_weight: float = setting(
        0.0,
        "weight of the loss of a second head, which predicts whether the next event is skipped; 0: no such head "
        "(docs/model.md#objective-and-negatives)",
        ge=0,
    )
    ema: float = setting(
        0.0,
        "decay of the exponential moving average of all weights, which is then evaluated and exported; 0: the last "
        "weights are",
        ge=0,
        le=0.99999,
    )
    min_listeners: Listeners = setting(
        5, "a song with fewer distinct listeners is neither a negative nor a candidate", ge=0
    )
    capacity_margin: Share = setting(0.10, "spare rows of the item table, for songs of the next days", ge=0)
    checkpoint_every_steps: Steps = setting(200, "distance between checkpoints", ge=1)
    max_rollbacks: int = setting(
        2,
        "how often a training whose loss is not finite, or spikes, goes back to its last checkpoint and on behind the "
        "batch that led there, before it gives up (docs/model.md#a-loss-that-diverges)",
        ge=0,
    )
    spike_factor: float = setting(
        0.0, "a loss of more than so many times the median of the steps before it is a spike; 0: none is", ge=0
    )
    lanes: int = setting(
        16, "parts into which the row groups are divided; each worker reads some, so more workers than parts idle", ge=1
    )
    seed: int = setting(1, "seed of everything that is random")
    precision: Precision = setting(
        "fp32", "number format of token-wise matrix products; bf16 is faster where the hardware has it"
    )
    compile: bool = setting(
        False, "whether the MFFN runs by torch.compile in place of C++ kernels: for GPUs, and CPUs without kernels"
    )

    def __post_init__(self) -> None:
        choices = {"objective": Objective, "negatives_from": NegativesFrom, "learn_from": LearnFrom}
        _check_choices(self, "train", precision=Precision, request_time=RequestTime, mode=Mode, **choices)
        if self.held_out not in {0, 1, 2}:
            raise ValueError(
                f"train.held_out is {self.held_out}: it must be 0, 1, or 2 to validate on the second-newest"
            )
        _check_bounds(self, "train")
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

    at: tuple[int, ...] = setting((10, 30, 50), "cut-offs k of the ranking metrics, for example of NDCG@k")
    max_listeners: Listeners = setting(100_000, "of more listeners a fixed sample, by a hash, is measured", ge=1)
    light_events: Plays = setting(
        50, "a listener with a history up to this long is light, with a longer one heavy", ge=0
    )
    new_days: Days = setting(7, "a listener whose first play is at most so old is new", ge=0)
    popularity_days: Days = setting(28, "window of the popularity baseline and of popular lists", ge=1)
    popularity_daily_cap: Songs = setting(
        200, "for how many songs of a day one listener counts in popularity, which limits bots", ge=1
    )
    batch_size: Listeners = setting(256, "measured at once", ge=1)
    baselines: tuple[BaselineName, ...] = setting(
        ("markov", "item-knn", "ease"), "measured on the same listeners every day, beside popularity"
    )
    baseline_events: Plays = setting(
        20_000_000, "with more stored plays item-kNN and EASE are not fitted, which hold all of them in memory", ge=0
    )
    baseline_songs: Songs = setting(
        5_000, "with more songs EASE is not fitted, whose time grows with the cube of their number", ge=0
    )

    def __post_init__(self) -> None:
        _check_choices(self, "evaluate", baselines=BaselineName)
        _check_bounds(self, "evaluate")


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


def _check_bounds(config: Any, section: str) -> None:
    for one in fields(config):
        value, bounds = getattr(config, one.name), one.metadata["bounds"]
        if not all(BOUNDS[name][0](value, bound) for name, bound in bounds.items()) or value == math.inf:
            raise ValueError(f"{section}.{one.name} is {value}: it must be {bounds_in_words(bounds)}")
