"""Exact top-k lists on a GPU: scoring, heard songs and selection in one kernel, so that no matrix of scores exists.

Songs are scored in half precision on the matrix units, and each listener keeps a shortlist longer than the list. The
shortlist is scored again exactly. The error of the first scores is bounded from the measured rounding of these very
vectors, and a list is proved exact if its last score exceeds the upper bound of every song outside of the shortlist.
Listeners without a proof, mostly because of many equal songs, are scored again by
`fuxi_beta.ops.top_k.blocked_top_k`.

A score here is the inner product in float64 rounded once to fp32, so that it depends neither on the order of a sum nor
on the shape of a matrix product, and equal vectors tie exactly.

Shapes: `B` listeners, `V` rows of the item table, `C` of them candidates, `D` width, `W` the same rounded up to whole
tiles, `K` list length, `N` shortlist length, `S` splits of the catalogue, so that few listeners fill a GPU.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from fuxi_beta.ops.top_k import NO_SONG, blocked_top_k, candidate_columns, pack, unpack
from fuxi_beta.ops.triton import tuning
from fuxi_beta.ops.triton.launch import kernel, on_device

SCORING = torch.float16  # 3 bits more than bf16 at the same speed; vectors it cannot hold fail the proof
LONGEST = 128  # of the lists the kernel takes
_WIDTH = 64  # of a tile
_PROGRAMS = 4  # a multiprocessor
_HEARD_BYTES = 2**29  # of the bit map of heard songs, which limits the listeners scored at a time
_LISTENERS = 2**16  # scored at a time without such a map
_UNPROVED_LISTENERS = 1024  # scored again at a time


class _Sizes(NamedTuple):
    """Tile sizes of a program."""

    queries: int  # listeners
    songs: int  # of a step
    warps: int


class Lists(NamedTuple):
    """The result of `search`."""

    items: Tensor  # int64 [B, K], 0 where there are too few candidates
    scores: Tensor  # fp32 [B, K], -inf there
    unproved: int  # listeners that were scored again


@dataclass(frozen=True)
class Catalogue:
    """An item table prepared for any number of searches."""

    table: Tensor  # fp32 [V, D]
    candidates: Tensor  # bool [V]
    items: Tensor  # int64 [C], the candidates
    column: Tensor  # int32 [V], a row's column among them, -1 for none
    rounded: Tensor  # [C, W] in half precision
    norm: Tensor  # upper bound of the candidates' norms. float64 []
    error: Tensor  # upper bound of the norms of the candidates' rounding errors. float64 []


def takes(queries: Tensor, table: Tensor, k: int) -> bool:
    """Whether `search` supports these arguments."""
    return queries.dtype == table.dtype == torch.float32 and 0 < k <= LONGEST


@on_device
def prepare(table: Tensor, candidates: Tensor, *, scoring: torch.dtype = SCORING) -> Catalogue:
    """Round the candidates' vectors and measure the rounding. table: fp32 [V, D]; candidates: bool [V]."""
    table = table.contiguous()
    items, column = candidate_columns(candidates)
    rounded, norms, errors = _round(table, items, scoring)
    zero = norms.new_zeros(1)
    norm, error = (torch.cat([zero, of_rows]).max() for of_rows in (norms, errors))
    return Catalogue(table, candidates, items, column.int(), rounded, norm, error)


@on_device
def search(
    queries: Tensor,
    catalogue: Catalogue,
    *,
    k: int,
    seen: tuple[Tensor, Tensor] | None = None,
    splits: int | None = None,
) -> Lists:
    """The k best candidates of each query. queries: fp32 [B, D]; seen: (listener, item) int64 pairs to leave out.

    splits: of the catalogue, searched in parallel; by default as many as fill the device.
    """
    queries = queries.contiguous()
    items = torch.zeros(len(queries), k, dtype=torch.int64, device=queries.device)
    scores = torch.full((len(queries), k), -torch.inf, device=queries.device)
    proved = torch.ones(len(queries), dtype=torch.bool, device=queries.device)
    if not len(catalogue.items):
        return Lists(items, scores, 0)
    words = tuning.ceil_div(len(catalogue.items), 32)
    step = _LISTENERS if seen is None else max(_HEARD_BYTES // (4 * words), 1)
    for start in range(0, len(queries), step):
        rows = slice(start, start + step)
        heard = None if seen is None else _heard_bits(seen, catalogue, start, len(queries[rows]), words)
        items[rows], scores[rows], proved[rows] = _proved_lists(queries[rows], catalogue, heard, k, splits)
    unproved = (~proved).nonzero().squeeze(1)
    for rows in unproved.split(_UNPROVED_LISTENERS):
        items[rows], scores[rows] = blocked_top_k(
            queries[rows].double(),
            catalogue.table,
            candidates=catalogue.candidates,
            k=k,
            seen=_of_listeners(rows, seen, len(queries)),
        )
    return Lists(items, scores, len(unproved))


def _of_listeners(listeners: Tensor, seen: tuple[Tensor, Tensor] | None, count: int) -> tuple[Tensor, Tensor] | None:
    """The seen pairs of some of `count` listeners, renumbered in their order."""
    if seen is None:
        return None
    number = torch.full((count,), -1, device=listeners.device)
    number[listeners] = torch.arange(len(listeners), device=listeners.device)
    renumbered = number[seen[0]]
    return renumbered[renumbered >= 0], seen[1][renumbered >= 0]


def _proved_lists(
    queries: Tensor, catalogue: Catalogue, heard: Tensor | None, k: int, splits: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Items [B, K], scores [B, K], and which lists are proved exact, bool [B]."""
    rounded, norms, errors = _round(queries, None, catalogue.rounded.dtype)
    approximate, column = _shortlists(rounded, catalogue, heard, k, splits)
    items = catalogue.items[column.clamp(min=0).long()]
    exact = _exact_scores(queries, catalogue.table, items)
    keys = pack(exact, items).masked_fill_(column < 0, NO_SONG)
    best, scores = unpack(keys.topk(k, dim=1).values)

    bound = _largest_error(norms, errors, catalogue)
    left_out = approximate[:, -1]  # the most that a song outside of the shortlist scored; -inf: there is no such song
    proved = left_out.isneginf() | (scores[:, -1].double() > left_out.double() + bound)
    return best, scores, proved & (bound < 1e30)  # a larger or NaN bound means that fp32 may have overflowed


def _largest_error(norms: Tensor, errors: Tensor, catalogue: Catalogue) -> Tensor:
    """Upper bound of |score of rounded vectors - exact score| for each query. float64 [B], of three float64 [B].

    With q', v' the rounded vectors: |q' v' - q v| <= |q'| |v' - v| + |q' - q| |v|. The error of a sum of D products in
    fp32 is below D 2^-22 |q'| |v'| in any order, even if the matrix units truncate. 2^-23 |q| |v| is for rounding the
    exact score, and D 2^-120 for products so small that they may underflow to zero.
    """
    dim = catalogue.table.shape[1]
    rounded_norms = norms + errors
    of_rounding = rounded_norms * catalogue.error + errors * catalogue.norm
    of_sums = (dim * 2.0**-22 + 2.0**-23) * rounded_norms * (catalogue.norm + catalogue.error)
    return of_rounding + of_sums + dim * 2.0**-120


def _round(rows: Tensor, index: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Rows (those of an index, if given) rounded to a dtype and padded to width W, with upper bounds of their norms and
    of the norms of their rounding errors: [R, W], float64 [R] twice."""
    count, dim = len(rows) if index is None else len(index), rows.shape[1]
    width = tuning.ceil_div(dim, _tile_width(dim)) * _tile_width(dim)
    rounded = torch.empty(count, width, dtype=dtype, device=rows.device)
    norms, errors = torch.empty(2, count, dtype=torch.float32, device=rows.device)
    if count:
        block = tuning.power_of_two(width)
        block_rows = max(2048 // block, 1)
        _round_rows[(tuning.ceil_div(count, block_rows),)](
            rows, rows if index is None else index, rounded, norms, errors, count,
            INDEXED=index is not None, DIM=dim, WIDTH=width, BLOCK_R=block_rows, BLOCK_D=block,
        )  # fmt: skip
    # The norms are sums of D squares in fp32, where squares of numbers below 2^-63 may underflow.
    upwards, lost = 1 + (dim + 8) * 2.0**-23, math.sqrt(dim) * 2.0**-62
    return rounded, norms.double() * upwards + lost, errors.double() * upwards + lost


def _tile_width(dim: int) -> int:
    return min(_WIDTH, tuning.power_of_two(max(dim, 16)))


def _heard_bits(seen: tuple[Tensor, Tensor], catalogue: Catalogue, first: int, count: int, words: int) -> Tensor:
    """Bits of the candidates that listeners first .. first + count - 1 have heard. int32 [count, words]."""
    heard = torch.zeros(count, words, dtype=torch.int32, device=catalogue.table.device)
    pairs = len(seen[0])
    if pairs:
        _mark_heard[(tuning.ceil_div(pairs, 1024),)](
            seen[0].contiguous(), seen[1].contiguous(), catalogue.column, heard, pairs, first, count,
            len(catalogue.column), words, BLOCK=1024,
        )  # fmt: skip
    return heard


def _shortlists(
    rounded: Tensor, catalogue: Catalogue, heard: Tensor | None, k: int, splits: int | None
) -> tuple[Tensor, Tensor]:
    """The N best candidates by rounded vectors, best first: scores fp32 [B, N], -inf where there are fewer, and columns
    of the candidates int32 [B, N], -1 there."""
    kept = max(tuning.power_of_two(2 * k), 16)
    key = ("retrieve", rounded.device.index, kept, rounded.shape[1], rounded.dtype, heard is None)

    def call(sizes: _Sizes) -> tuple[Tensor, Tensor]:
        return _shortlists_by(sizes, rounded, catalogue, heard, kept, splits)

    return tuning.run(key, _choices(kept), call)


def _choices(kept: int) -> list[_Sizes]:
    """Sizes to choose from; those whose shortlists certainly fit the registers come first."""
    every = [_Sizes(64, 64, 8), _Sizes(64, 128, 8), _Sizes(128, 64, 8), _Sizes(32, 64, 4), _Sizes(16, 64, 8)]
    some = [sizes for sizes in every if 1024 <= sizes.queries * kept <= 8192]
    return sorted(some, key=lambda sizes: sizes.queries * kept > 4096)


def _shortlists_by(
    sizes: _Sizes, rounded: Tensor, catalogue: Catalogue, heard: Tensor | None, kept: int, splits: int | None
) -> tuple[Tensor, Tensor]:
    blocks = tuning.ceil_div(len(rounded), sizes.queries)
    steps = tuning.ceil_div(len(catalogue.items), sizes.songs)
    splits = min(splits or _splits(rounded.device, blocks, steps), steps)
    scores = torch.empty(len(rounded), splits, kept, dtype=torch.float32, device=rounded.device)
    columns = torch.empty(len(rounded), splits, kept, dtype=torch.int32, device=rounded.device)
    _score_and_select[(blocks, splits)](
        rounded, catalogue.rounded, rounded if heard is None else heard, scores, columns, len(rounded),
        len(catalogue.items), tuning.ceil_div(steps, splits) * sizes.songs, 0 if heard is None else heard.shape[1],
        HEARD=heard is not None, WIDTH=rounded.shape[1], KEPT=kept, BLOCK_Q=sizes.queries, BLOCK_V=sizes.songs,
        BLOCK_D=_tile_width(rounded.shape[1]), num_warps=sizes.warps,
    )  # fmt: skip
    best = scores.flatten(1).topk(kept, dim=1)
    return best.values, columns.flatten(1).gather(1, best.indices)


def _splits(device: torch.device, blocks: int, steps: int) -> int:
    """Splits of the catalogue that keep every multiprocessor busy; at least 32 tiles each, as each restarts a list."""
    if device.type != "cuda":
        return 1
    wanted = _PROGRAMS * torch.cuda.get_device_properties(device).multi_processor_count
    return max(min(tuning.ceil_div(wanted, blocks), steps // 32), 1)


def _exact_scores(queries: Tensor, table: Tensor, items: Tensor) -> Tensor:
    """Inner products in float64, rounded to fp32. [B, D], [V, D], int64 [B, N] -> [B, N]."""
    scores = torch.empty(items.shape, dtype=torch.float32, device=queries.device)
    width = queries.shape[1]
    _exact_products[(len(queries),)](
        queries, table, items, scores, DIM=width, COUNT=items.shape[1], BLOCK_D=_tile_width(width)
    )
    return scores


@kernel(dynamic=("count",))
def _round_rows(rows, index, rounded, norms, errors, count, INDEXED: tl.constexpr, DIM: tl.constexpr,
                WIDTH: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr):  # fmt: skip
    """Rows in the dtype of `rounded`, padded with zeros, and the norms of the rows and of their rounding errors."""
    r = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    inside = r < count
    source = r
    if INDEXED:
        source = tl.load(index + r, mask=inside, other=0)
    d = tl.arange(0, BLOCK_D)
    live = inside[:, None] & (d < DIM)[None, :]
    value = tl.load(rows + source[:, None] * DIM + d[None, :], mask=live, other=0.0)
    nearest = value.to(rounded.dtype.element_ty)
    tl.store(rounded + r[:, None] * WIDTH + d[None, :], nearest, mask=inside[:, None] & (d < WIDTH)[None, :])
    error = nearest.to(tl.float32) - value  # exact
    tl.store(norms + r, tl.sqrt(tl.sum(value * value, axis=1)), mask=inside)
    tl.store(errors + r, tl.sqrt(tl.sum(error * error, axis=1)), mask=inside)


@kernel(dynamic=("pairs", "first", "count"))
def _mark_heard(listeners, songs, column, heard, pairs, first, count, rows, words, BLOCK: tl.constexpr):
    """Set the bit of each pair whose listener is in first .. first + count - 1 and whose song is a candidate."""
    pair = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = pair < pairs
    listener = tl.load(listeners + pair, mask=mask, other=-1) - first
    song = tl.load(songs + pair, mask=mask, other=-1)
    mask = mask & (listener >= 0) & (listener < count) & (song >= 0) & (song < rows)
    place = tl.load(column + song, mask=mask, other=-1)
    mask = mask & (place >= 0)
    place = tl.where(mask, place, 0)
    bit = tl.full([BLOCK], 1, tl.int32) << (place % 32)
    tl.atomic_or(heard + listener * words + place // 32, bit, mask=mask, sem="relaxed")


@kernel(dynamic=("count",))
def _score_and_select(queries, table, heard, best_scores, best_columns, count, candidates, per_split, words,
                      HEARD: tl.constexpr, WIDTH: tl.constexpr, KEPT: tl.constexpr, BLOCK_Q: tl.constexpr,
                      BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr):  # fmt: skip
    """The KEPT best songs of one split of the catalogue for a block of queries, unordered.

    A song that enters replaces the worst one kept. Few enter: with songs in random order the v-th does so with
    probability KEPT / v, so after its first tiles a program does little more than compare.
    """
    q = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    split = tl.program_id(1)
    real = q < count
    q = q.to(tl.int64)
    slots = tl.arange(0, KEPT)
    best = tl.full([BLOCK_Q, KEPT], float("-inf"), tl.float32)
    columns = tl.full([BLOCK_Q, KEPT], -1, tl.int32)
    worst = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    begin = split * per_split
    end = tl.minimum(begin + per_split, candidates)
    for start in range(begin, end, BLOCK_V):
        if HEARD:
            w = start // 32 + tl.arange(0, BLOCK_V // 32)
            known = tl.load(heard + q[:, None] * words + w[None, :], mask=real[:, None] & (w < words)[None, :], other=0)
        v = start + tl.arange(0, BLOCK_V)
        scores = tl.zeros([BLOCK_Q, BLOCK_V], tl.float32)
        for first in range(0, WIDTH, BLOCK_D):  # W is a whole number of tiles
            d = first + tl.arange(0, BLOCK_D)
            left = tl.load(queries + q[:, None] * WIDTH + d[None, :], mask=real[:, None], other=0.0)
            at = table + v.to(tl.int64)[None, :] * WIDTH + d[:, None]
            right = tl.load(at, mask=(v < end)[None, :], other=0.0)
            scores = tl.dot(left, right, scores, input_precision="ieee")
        scores = tl.where(real[:, None] & (v < end)[None, :], scores, float("-inf"))

        top, place = tl.max(scores, axis=1, return_indices=True)
        while tl.max((top > worst).to(tl.int32), axis=0) > 0:
            enters = top > worst
            if HEARD:
                word = tl.sum(
                    tl.where(tl.arange(0, BLOCK_V // 32)[None, :] == (place // 32)[:, None], known, 0), axis=1
                )
                enters = enters & (((word >> (place % 32)) & 1) == 0)
            slot = tl.argmin(best, axis=1)
            changes = enters[:, None] & (slots[None, :] == slot[:, None])
            best = tl.where(changes, top[:, None], best)
            columns = tl.where(changes, (start + place)[:, None], columns)
            worst = tl.min(best, axis=1)
            scores = tl.where(tl.arange(0, BLOCK_V)[None, :] == place[:, None], float("-inf"), scores)
            top, place = tl.max(scores, axis=1, return_indices=True)

    at = (q * tl.num_programs(1) + split)[:, None] * KEPT + slots[None, :]
    tl.store(best_scores + at, best, mask=real[:, None])
    tl.store(best_columns + at, columns, mask=real[:, None])


@kernel
def _exact_products(queries, table, items, scores, DIM: tl.constexpr, COUNT: tl.constexpr, BLOCK_D: tl.constexpr):
    """Inner products of one query with its songs, summed in float64."""
    query = tl.program_id(0).to(tl.int64)
    slots = tl.arange(0, COUNT)
    item = tl.load(items + query * COUNT + slots)
    total = tl.zeros([COUNT], tl.float64)
    for first in range(0, DIM, BLOCK_D):
        d = first + tl.arange(0, BLOCK_D)
        inside = d < DIM
        vector = tl.load(queries + query * DIM + d, mask=inside, other=0.0).to(tl.float64)
        rows = tl.load(table + item[:, None] * DIM + d[None, :], mask=inside[None, :], other=0.0).to(tl.float64)
        total += tl.sum(rows * vector[None, :], axis=1)
    tl.store(scores + query * COUNT + slots, total.to(tl.float32))
