"""From stored histories to jagged batches, for training and for inference; `reader` decides their order.

Shapes: `B` listeners in a batch, `T` packed tokens (sum of history lengths), `N` newest events a context holds.
Tokens of a listener are contiguous, oldest first. Times are Unix seconds, UTC.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import pairwise
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from fuxi_beta.config import ModelConfig, TrainConfig
from fuxi_beta.data import stateless_random
from pipelines.calendar import Calendar
from pipelines.histories.histories import Histories, gather, offsets_of, ranges

Packed = TypeVar("Packed", "Batch", "Samples")
_OPTIONAL = ("back", "next_item", "next_completed")
"""Fields of a batch that some trainings have, of every token."""
_SORTED_AT_ONCE = 1 << 15
"""Events and listeners whose songs are sorted together: few enough that the arrays of a sort stay in the CPU cache."""


@dataclass(frozen=True)
class Batch:
    """Packed tokens of B listeners, the network's input."""

    offsets: Tensor  # int64 [B + 1]
    item_index: Tensor  # int64 [T], rows of the item table; 0 (padding) never appears
    timestamp: Tensor  # int64 [T]
    next_timestamp: Tensor  # int64 [T], t_{i+1}: of the event predicted at i, or the request time
    target: Tensor  # int64 [T], item to predict; 0 where there is none
    sample: Tensor  # int64 [B], global sample number, from which a sample's counter-based random numbers derive
    seen_offsets: Tensor  # int64 [B + 1]
    seen_items: Tensor  # int64, every song a listener heard before the batch's cut, ascending within a listener
    back: Tensor | None = None  # int64 [T], by how many tokens the state that predicts a target is earlier; None: by 0
    next_item: Tensor | None = None  # int64 [T], of the event after a token, skipped or not; 0: the model lacks it
    next_completed: Tensor | None = None  # int64 [T], 1 if that event is no skip, else 0

    @property
    def num_listeners(self) -> int:
        """B."""
        return self.offsets.shape[0] - 1

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Its fields by name, those that are there."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    @cached_property
    def lengths(self) -> Tensor:
        """Tokens of each listener. int64 [B]."""
        return self.offsets.diff()

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest context."""
        return int(self.lengths.max()) if self.num_listeners else 0

    @cached_property
    def in_order(self) -> bool:
        """Whether plays of every listener are in order of time, and none is predicted for a time before its own."""
        sorted_plays = (self.timestamp.diff() >= 0) | (self.listener.diff() != 0)
        return bool(sorted_plays.all() & (self.next_timestamp >= self.timestamp).all())

    @cached_property
    def at_plays(self) -> "Batch":
        """The same batch with each play's own time in place of t_{i+1}, for what looks at times between plays."""
        batch = replace(self, next_timestamp=self.timestamp)
        batch.__dict__.update(longest=self.longest, in_order=self.in_order)  # which would wait for a device
        return batch

    @cached_property
    def positions(self) -> Tensor:
        """Tokens that have a target. int64 [P]."""
        return self.target.nonzero().squeeze(1)

    @cached_property
    def states(self) -> Tensor:
        """The token whose state predicts each target. int64 [P], ascending."""
        return self.positions if self.back is None else self.positions - self.back[self.positions]

    @cached_property
    def listener(self) -> Tensor:
        """Row of the listener of each token. int64 [T]."""
        rows = torch.arange(self.num_listeners, device=self.offsets.device)
        return torch.repeat_interleave(rows, self.lengths, output_size=self.item_index.shape[0])

    @cached_property
    def position(self) -> Tensor:
        """Place of each token in its listener's context, 0 = oldest retained event. int64 [T]."""
        tokens = torch.arange(self.item_index.shape[0], device=self.offsets.device)
        return tokens - self.offsets[self.listener]

    @cached_property
    def seen_listener(self) -> Tensor:
        """Row of the listener of each entry of `seen_items`."""
        rows = torch.arange(self.num_listeners, device=self.offsets.device)
        return torch.repeat_interleave(rows, self.seen_offsets.diff(), output_size=self.seen_items.shape[0])

    def slice(self, start: int, stop: int) -> "Batch":
        """The listeners start..stop - 1, as views."""
        return _consecutive(self, start, stop)

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on a device; copies from page-locked memory to a GPU are asynchronous."""
        device = torch.device(device)
        if device == self.offsets.device:
            return self
        return self._moved(lambda tensor: tensor.to(device, non_blocking=device.type != "cpu"))

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked host memory. Needs a GPU."""
        return self._moved(Tensor.pin_memory)

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Keep the memory of a batch on a GPU until `stream` has run everything launched so far."""
        for tensor in (*self.tensors.values(), self.positions):
            tensor.record_stream(stream)

    def _moved(self, move: Callable[[Tensor], Tensor]) -> "Batch":
        """Move the fields, and the properties that depend on values: on a device, computing those would synchronise."""
        moved = Batch(**{name: move(tensor) for name, tensor in self.tensors.items()})
        moved.__dict__.update(longest=self.longest, in_order=self.in_order, positions=move(self.positions))
        return moved


def cuts_by_tokens(tokens: np.ndarray, most: int) -> Iterator[tuple[int, int]]:
    """Consecutive listeners, start to stop - 1, with at most so many tokens together, at least one listener each.

    tokens: int64 [B], of each listener.
    """
    ends, start = np.cumsum(tokens), 0
    while start < len(tokens):
        before = ends[start] - tokens[start]
        stop = max(int(np.searchsorted(ends, before + most, side="right")), start + 1)
        yield start, stop
        start = stop


def inference_batch(
    histories: Histories,
    *,
    request_time: int | np.ndarray,
    model: ModelConfig,
    train: TrainConfig,
    calendar: Calendar,
    vocabulary_size: int,
) -> Batch:
    """The network's input for a request: contexts of the newest N plays, with the request as t_{i+1} of the last.

    histories: events before the cut only (`Histories.before`). Skips and events of songs the model lacks
    (index > vocabulary_size) are no tokens, but count as seen. request_time: Unix seconds, one for all or one a
    listener.
    """
    plays = histories.keep(is_play(histories, train, vocabulary_size))
    newest_first = plays.offsets[1:][plays.listener] - 1 - np.arange(len(plays.item_index))  # 0 for the newest play
    plays = plays.keep(newest_first < model.max_history)
    has_plays = plays.lengths > 0
    last = plays.offsets[1:][has_plays] - 1
    requested = np.broadcast_to(np.asarray(request_time, np.int64), has_plays.shape)[has_plays]
    following = np.roll(plays.timestamp, -1)
    following[last] = requested if train.protocol == "leave_one_out" else plays.timestamp[last]
    next_timestamp = visible_next_time(plays.timestamp, following, train, calendar)
    if train.protocol == "next_day":
        next_timestamp[last] = requested  # whatever hour it is at
    (seen_offsets, seen_items), _ = _seen_songs(histories)
    return collate(
        [
            Samples(
                offsets=plays.offsets,
                item_index=plays.item_index,
                timestamp=plays.timestamp,
                next_timestamp=next_timestamp,
                target=np.zeros(len(plays.item_index), np.int32),
                sample=np.arange(len(histories)),
                seen_offsets=seen_offsets,
                seen_items=seen_items,
            )
        ]
    )


@dataclass(frozen=True)
class Samples:
    """Training samples before they are collated: the fields of a `Batch` in numpy."""

    offsets: np.ndarray  # int64 [B + 1]
    item_index: np.ndarray  # int32 [T]
    timestamp: np.ndarray  # int64 [T]
    next_timestamp: np.ndarray  # int64 [T]
    target: np.ndarray  # int32 [T]
    sample: np.ndarray  # int64 [B]
    seen_offsets: np.ndarray  # int64 [B + 1]
    seen_items: np.ndarray  # int32; empty where all plays are learned from, which does not use them
    back: np.ndarray | None = None  # int64 [T]
    next_item: np.ndarray | None = None  # int32 [T]
    next_completed: np.ndarray | None = None  # bool [T]

    def __len__(self) -> int:
        return len(self.sample)

    def slice(self, start: int, stop: int) -> "Samples":
        """The samples start..stop - 1, as views."""
        return _consecutive(self, start, stop)


def _consecutive(packed: Packed, start: int, stop: int) -> Packed:
    """The listeners start..stop - 1, as views."""
    tokens, seen = (slice(int(ends[start]), int(ends[stop])) for ends in (packed.offsets, packed.seen_offsets))
    return replace(
        packed,
        offsets=packed.offsets[start : stop + 1] - tokens.start,
        item_index=packed.item_index[tokens],
        timestamp=packed.timestamp[tokens],
        next_timestamp=packed.next_timestamp[tokens],
        target=packed.target[tokens],
        sample=packed.sample[start:stop],
        seen_offsets=packed.seen_offsets[start : stop + 1] - seen.start,
        seen_items=packed.seen_items[seen],
        **{name: None if (array := getattr(packed, name)) is None else array[tokens] for name in _OPTIONAL},
    )


def collate(pieces: Sequence[Samples]) -> Batch:
    """All samples of the pieces as one batch; no pieces make an empty one."""

    def offsets(name: str) -> Tensor:
        lengths = [np.diff(getattr(piece, name)) for piece in pieces]
        return torch.from_numpy(offsets_of(np.concatenate(lengths) if lengths else np.zeros(0, np.int64)))

    def joined(name: str) -> Tensor:
        arrays = [getattr(piece, name) for piece in pieces]
        return torch.from_numpy(np.concatenate(arrays, dtype=np.int64) if arrays else np.zeros(0, np.int64))

    lacking = {name for name in _OPTIONAL if not pieces or getattr(pieces[0], name) is None}
    names = [field.name for field in fields(Batch) if field.name not in lacking]
    return Batch(**{name: offsets(name) if name.endswith("offsets") else joined(name) for name in names})


def training_samples(
    histories: Histories,
    *,
    sample: np.ndarray,
    model: ModelConfig,
    train: TrainConfig,
    calendar: Calendar,
    data_end: int,
    vocabulary_size: int,
    rows: np.ndarray | None = None,
    epoch: int = 0,
    data_start: int = 0,
) -> Samples:
    """Contexts with a target at every position that is trained on.

    Tokens are N plays that have a next play before `data_end`: the newest, or in a share `random_windows` of the epochs
    any N that follow each other. The target is the next play; with a `target_window` or a `skip_weight` it is drawn
    anew in each epoch, and t_{i+1} stays that of the next play. With the objective `next_day` the next play is
    predicted from the state before the first play of its day, if there is one, and of equal songs of a day only the
    first is a target. Learning from `first_listens` a target is a first listen: a song in no earlier event of the
    listener, skipped ones included, nor in `heard_before`; only such samples have the songs seen. Under `leave_one_out`
    each listener's newest `held_out` plays, and all events after them, are removed first. Events before `data_start`
    (Unix seconds) are context and no targets. sample: int64 [B]. rows: the listeners to make samples of, in that order;
    all unless given.
    """
    if rows is None:
        rows = np.arange(len(histories))
    if train.protocol == "leave_one_out":
        histories = without_newest(histories, train.held_out, train, vocabulary_size)
    histories = histories.before(data_end)
    counts = is_play(histories, train, vocabulary_size)
    plays = histories.keep(counts)
    newest = plays.offsets[rows + 1] - 1  # has no next play
    lengths = np.clip(newest - plays.offsets[rows], 0, model.max_history)
    starts = newest - lengths
    if train.random_windows:
        starts -= _earlier(starts - plays.offsets[rows], sample[rows], train, epoch)
    offsets, tokens = ranges(starts, lengths)
    item_index, timestamp = plays.item_index[tokens], plays.timestamp[tokens]
    tokens += 1
    targets, back = np.flatnonzero(counts)[tokens], None  # events
    if train.target_window > 1 or train.skip_weight:
        weight = np.where(counts, _PLAY, round(train.skip_weight * _PLAY)) * (histories.item_index <= vocabulary_size)
        keys = _token_keys(offsets, sample[rows], train, epoch, site=stateless_random.TARGETS)
        targets = _drawn_targets(tokens, np.repeat(newest, lengths), weight, counts, keys, train)
    target = histories.item_index[targets] * (histories.timestamp[targets] >= data_start)
    seen_offsets, seen_items = np.zeros(len(rows) + 1, np.int64), np.zeros(0, np.int32)
    if train.learn_from == "first_listens":
        (all_offsets, all_items), first_listen = _seen_songs(histories)
        target *= first_listen[targets]
        seen_offsets, songs = gather(all_offsets, rows)
        seen_items = all_items[songs]
    if train.unchosen_weight < 1:
        target *= _weighed(histories.chosen[targets], offsets, sample[rows], train, epoch)
    after = np.flatnonzero(counts)[tokens - 1] + 1
    following = _next_events(histories, after, counts, vocabulary_size, train, data_start)
    if train.objective == "next_day":
        back, counted = _from_the_day_before(offsets, timestamp, plays.timestamp[tokens], target, calendar)
        target *= counted
    return Samples(
        offsets=offsets,
        item_index=item_index,
        timestamp=timestamp,
        next_timestamp=visible_next_time(timestamp, plays.timestamp[tokens], train, calendar),
        target=target,
        sample=sample[rows],
        seen_offsets=seen_offsets,
        seen_items=seen_items,
        back=back,
        **following,
    )


def _next_events(
    histories: Histories,
    events: np.ndarray,
    counts: np.ndarray,
    vocabulary_size: int,
    train: TrainConfig,
    data_start: int,
) -> dict[str, np.ndarray]:
    """The song of each event and whether it is no skip, for the completion head; nothing where there is none.

    events: int64 [T], each of the listener of its token, since a token has a later play.
    """
    if not train.completion_weight:
        return {}
    items = histories.item_index[events]
    predicted = (items <= vocabulary_size) & (histories.timestamp[events] >= data_start)
    return {"next_item": items * predicted, "next_completed": counts[events]}


def _earlier(spare: np.ndarray, sample: np.ndarray, train: TrainConfig, epoch: int) -> np.ndarray:
    """By how many plays each listener's window is before the newest one, by counter: 0 to `spare`. int64 [B]."""
    keys = stateless_random.combine(train.seed, epoch, stateless_random.WINDOWS, torch.from_numpy(sample))
    chosen = stateless_random.integers(keys, 1, 1 << 16)[:, 0].numpy() < round(train.random_windows * (1 << 16))
    bounds = torch.from_numpy(spare + 1)
    return stateless_random.below(stateless_random.combine(keys, 1), bounds).numpy() * chosen


def _token_keys(offsets: np.ndarray, sample: np.ndarray, train: TrainConfig, epoch: int, *, site: int) -> torch.Tensor:
    """The counter of each token at a site of random bits. int64 [T]."""
    listener = np.repeat(np.arange(len(sample)), np.diff(offsets))
    position = torch.from_numpy(np.arange(offsets[-1]) - offsets[listener])
    keys = stateless_random.combine(train.seed, epoch, site, torch.from_numpy(sample)[listener])
    return stateless_random.combine(keys, position)


def _weighed(chosen: np.ndarray, offsets: np.ndarray, sample: np.ndarray, train: TrainConfig, epoch: int) -> np.ndarray:
    """Which targets count in this epoch: those that the listener chose, and by counter a share of the others. bool [T].

    Its expectation over epochs is the weight `unchosen_weight`, and the loss stays a mean over targets.
    """
    keys = _token_keys(offsets, sample, train, epoch, site=stateless_random.UNCHOSEN)
    drawn = stateless_random.integers(keys, 1, 1 << 16)[:, 0].numpy()
    return chosen | (drawn < round(train.unchosen_weight * (1 << 16)))


_PLAY = 1 << 16
"""The weight of a play where a target is drawn; that of a skip is a share of it."""


def _drawn_targets(
    following: np.ndarray,
    newest: np.ndarray,
    weight: np.ndarray,
    counts: np.ndarray,
    keys: torch.Tensor,
    train: TrainConfig,
) -> np.ndarray:
    """The event that each token's target is, by counter. int64 [T].

    One of the next `target_window` plays, the newest standing for those that would follow it. With a `skip_weight`: any
    event after the token up to the last of them, as likely as its weight. following, newest: numbers of plays, int64
    [T]; weight, counts: of each event, the weight and whether it is a play.
    """
    events, left = np.flatnonzero(counts), newest - following
    if not train.skip_weight:
        passed_over = stateless_random.integers(keys, 1, train.target_window)[:, 0].numpy()
        return events[following + np.minimum(passed_over, left)]
    ends = np.cumsum(weight)
    after, last = ends[events[following - 1]], ends[events[following + np.minimum(train.target_window - 1, left)]]
    return np.searchsorted(ends, after + stateless_random.below(keys, torch.from_numpy(last - after)).numpy(), "right")


def _from_the_day_before(
    offsets: np.ndarray, timestamp: np.ndarray, following: np.ndarray, target: np.ndarray, calendar: Calendar
) -> tuple[np.ndarray, np.ndarray]:
    """How many tokens before each one the last token before the target's day is, and which targets count.

    timestamp, following: of each token and of its target, Unix seconds. A target counts if there is such a token, and
    if the same song is no earlier target of the day. int64 [T], bool [T].
    """
    day, number = calendar.day_number(following), np.arange(len(target))
    begins = np.ones(len(target), bool)
    begins[1:] = day[1:] != day[:-1]
    begins[offsets[:-1][np.diff(offsets) > 0]] = True
    first = np.maximum.accumulate(np.where(begins, number, 0))
    counted = calendar.day_number(timestamp)[first] < day
    once = np.zeros(len(target), bool)
    once[np.unique(first << 32 | target, return_index=True)[1]] = True
    return number - first, counted & once


def held_out(histories: Histories, train: TrainConfig, vocabulary_size: int) -> tuple[Histories, np.ndarray]:
    """Leave one out: histories without each listener's newest play and all events after it, and the play held out.

    Returns the shortened histories, and the event numbers of the held-out plays in the histories given: int64 [B], -1
    for a listener without plays.
    """
    newest = np.full(len(histories), -1, np.int64)
    play_numbers = np.flatnonzero(is_play(histories, train, vocabulary_size))
    newest[histories.listener[play_numbers]] = play_numbers  # the last write is the newest play
    cut = np.where(newest < 0, histories.offsets[1:], newest)
    return histories.keep(np.arange(len(histories.item_index)) < cut[histories.listener]), newest


def without_newest(histories: Histories, count: int, train: TrainConfig, vocabulary_size: int) -> Histories:
    """Histories without each listener's `count` newest plays and all events after them."""
    for _ in range(count):
        histories = held_out(histories, train, vocabulary_size)[0]
    return histories


def is_play(histories: Histories, train: TrainConfig, vocabulary_size: int) -> np.ndarray:
    """Events the model may read or predict: not skipped, and of a song it has. bool [T]."""
    return (histories.completion >= train.min_completion) & (histories.item_index <= vocabulary_size)


def visible_next_time(
    timestamp: np.ndarray, following: np.ndarray, train: TrainConfig, calendar: Calendar
) -> np.ndarray:
    """t_{i+1} as the model may see it, which is not always the true time of the next play. int64, same shape.

    timestamp: of each play. following: the true time of the play after it. Unix seconds, int64.
    """
    if train.protocol == "next_day":
        return calendar.served_next_timestamps(timestamp, following)
    if train.request_time == "previous":
        return timestamp
    if train.request_time == "fixed-hour":
        return calendar.next_request_time(timestamp)
    return following


def _seen_songs(histories: Histories) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """Distinct songs of each listener's lifetime as (offsets, items), and which events are first listens (bool [T])."""
    sizes = histories.offsets + histories.heard_offsets + np.arange(len(histories) + 1)
    starts = np.searchsorted(sizes, np.arange(0, sizes[-1] + 1, _SORTED_AT_ONCE)).tolist()
    found = [_seen_songs_of(histories, start, stop) for start, stop in pairwise([*starts, len(histories)])]
    songs, counts, first_listen = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
    return (offsets_of(counts), songs), first_listen


def _seen_songs_of(histories: Histories, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distinct songs of the listeners start..stop - 1, the count of each listener, and which events are first listens.

    One sort of 64-bit keys: listener | song | 0 for a song heard before, else 1 + number of the event.
    """
    offsets, heard_offsets = histories.offsets[start : stop + 1], histories.heard_offsets[start : stop + 1]
    items = histories.item_index[offsets[0] : offsets[-1]]
    heard = histories.heard_items[heard_offsets[0] : heard_offsets[-1]]
    low = len(items).bit_length()
    high = low + int(max(items.max(initial=0), heard.max(initial=0))).bit_length()
    assert high + (stop - start).bit_length() < 64
    listeners = np.arange(stop - start + 1) << high
    keys = np.repeat(listeners[:-1], np.diff(offsets)) | np.left_shift(items, low, dtype=np.int64)
    keys |= np.arange(1, len(items) + 1)
    if len(heard):
        older = np.repeat(listeners[:-1], np.diff(heard_offsets)) | np.left_shift(heard, low, dtype=np.int64)
        keys = np.concatenate([older, keys])
    keys.sort()
    pairs, differs = keys >> low, np.ones(len(keys), bool)
    np.not_equal(pairs[1:], pairs[:-1], out=differs[1:])
    firsts = keys[np.flatnonzero(differs)]
    first_listen = np.zeros(len(items) + 1, bool)
    first_listen[firsts & ((1 << low) - 1)] = True
    songs = ((firsts & ((1 << high) - 1)) >> low).astype(np.int32)
    return songs, np.diff(np.searchsorted(firsts, listeners)), first_listen[1:]
