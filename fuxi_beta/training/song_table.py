"""The item table with side information: a song's vector is its own row, plus rows of values, plus a map of content.

    vector of i = own[i] + sum over entries e of i of weight_e side[row_e] + content[i] M

The rows of values (`fuxi_beta.data.side`) are a second table of the same kind as the item table, plain or sharded,
under the same optimizer; M [K, D] is held whole by every rank and learns by AdamW. Values' rows and M begin at zero, so
that a model without side information goes on as it is; their gradients are those of the vectors that they are added to,
and not zero.

Shapes: `V` rows of the item table, `U` distinct songs of a lookup, `E` their entries, `S` rows of the side table, `D`
width, `K` width of the content vectors.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import override

from fuxi_beta.config import TrainConfig
from fuxi_beta.data.side import SongSide
from fuxi_beta.training.item_table import ItemTable, capacity_rows, item_table, logical_state
from fuxi_beta.training.optimizers import adamw

SIDE, CONTENT = "side.", "content."
"""Prefixes of the names in `SongTable.state`: of the table of values and of the map of content."""
_CHUNK_SONGS = 1 << 16


class SongTable(ItemTable):
    """An item table whose lookup adds side information."""

    def __init__(
        self,
        items: ItemTable,
        side: ItemTable | None,
        songs: SongSide,
        *,
        dim: int,
        train: TrainConfig,
        device: torch.device | str = "cpu",
    ) -> None:
        """side: the table of values; None if no column has any. songs: of at most as many songs as `items` has rows."""
        self.items, self.side, self.songs, self.rows = items, side, songs, items.rows
        # On a device the number of entries of a lookup is known to the device alone.
        self.host_waits = items.host_waits or torch.device(device).type != "cpu"
        offsets = np.full(self.rows + 1, songs.offsets[-1])
        offsets[: len(songs.offsets)] = songs.offsets
        self._starts = torch.from_numpy(offsets[:-1]).to(device)
        self._lengths = torch.from_numpy(np.diff(offsets)).to(device)
        self._rows = torch.from_numpy(songs.rows).to(device)
        self._weights = torch.from_numpy(songs.weights).to(device)
        self.map, self.optimizer = None, None
        if songs.content is not None:
            content = torch.zeros(self.rows, songs.content.shape[1])
            content[: len(songs)] = torch.from_numpy(songs.content)
            self._content = content.to(device)
            self.map = nn.Parameter(torch.zeros(songs.content.shape[1], dim, device=device))
            self.optimizer = adamw([self.map], train)

    @override
    def __call__(self, item_index: Tensor) -> Tensor:
        vectors = self.items(item_index)
        if self.side is not None:
            song, entry = _entries(self._starts[item_index], self._lengths[item_index])
            rows, place = self._rows[entry].long().unique(return_inverse=True)
            values = self.side(rows).index_select(0, place) * self._weights[entry, None]  # [E, D]
            vectors = vectors.index_add(0, song, values)
        if self.map is not None:
            vectors = vectors + self._content[item_index] @ self.map
        return vectors

    @override
    def check(self, item_index: Tensor) -> None:
        self.items.check(item_index)

    @override
    def replicated(self) -> list[nn.Parameter]:
        return [*self.items.replicated(), *(self.side.replicated() if self.side else []), *self._maps()]

    @override
    def zero_grad(self) -> None:
        self.items.zero_grad()
        if self.side is not None:
            self.side.zero_grad()
        if self.optimizer is not None:
            self.optimizer.zero_grad()

    @override
    def step(self, diverged: Tensor | None = None) -> None:
        self.items.step(diverged)
        if self.side is not None:
            self.side.step(diverged)
        if self.optimizer is not None:
            self.optimizer.step()

    @override
    def weights(self) -> dict[str, Tensor]:
        side = self.side.weights() if self.side is not None else {}
        content = {} if self.map is None else {"weight": self.map.detach()}
        return {**self.items.weights(), **_prefixed(SIDE, side), **_prefixed(CONTENT, content)}

    @override
    def in_state(self, name: str, tensor: Tensor) -> Any:
        if name.startswith(SIDE) and self.side is not None:
            return self.side.in_state(name.removeprefix(SIDE), tensor)
        return tensor if name.startswith(CONTENT) else self.items.in_state(name, tensor)

    @override
    def state(self) -> dict[str, Any]:
        side = self.side.state() if self.side is not None else {}
        return {**self.items.state(), **_prefixed(SIDE, side), **_prefixed(CONTENT, self._map_state())}

    @override
    def full_weight(self) -> Tensor:
        """The songs' own rows."""
        return self.items.full_weight()

    @override
    def full_parts(self) -> dict[str, Tensor]:
        parts = {"weight": self.items.full_weight()}
        if self.side is not None:
            parts[f"{SIDE}weight"] = self.side.full_weight()
        return parts | {f"{CONTENT}weight": parameter.detach().cpu().clone() for parameter in self._maps()}

    @override
    def full_optimizer_state(self) -> dict[str, Tensor]:
        side = self.side.full_optimizer_state() if self.side is not None else {}
        content = {name: tensor.cpu().clone() for name, tensor in self._map_state().items() if name != "weight"}
        return {**self.items.full_optimizer_state(), **_prefixed(SIDE, side), **_prefixed(CONTENT, content)}

    @override
    def load_full(self, weight: Tensor, state: Mapping[str, Tensor] | None = None) -> None:
        """See `ItemTable.load_full`; of the side table the rows that both have are copied."""
        parts = {name: _of_part(state or {}, name) for name in ("", SIDE, CONTENT)}
        self.items.load_full(weight, parts[""])
        if self.side is not None and "weight" in parts[SIDE]:
            shared = {name: t[: self.side.rows] if t.ndim else t for name, t in parts[SIDE].items()}
            self.side.load_full(shared.pop("weight"), shared)
        for name, tensor in self._map_state().items():
            if name in parts[CONTENT]:
                tensor.copy_(parts[CONTENT][name])

    def _maps(self) -> list[nn.Parameter]:
        return [self.map] if self.map is not None else []

    def _map_state(self) -> dict[str, Tensor]:
        """Live tensors of the map of content."""
        if self.map is None or self.optimizer is None:
            return {}
        return {"weight": self.map.detach(), **self.optimizer.state[self.map]}


def song_table(
    rows: int,
    dim: int,
    *,
    train: TrainConfig,
    side: SongSide | None = None,
    device: torch.device | str = "cpu",
    kind: Callable[..., ItemTable] = item_table,
) -> ItemTable:
    """The table of a training run, with side information if there is any. kind: makes an item table.

    The side table has spare rows as the item table has, for the values of the next days.
    """
    items = kind(rows, dim, train=train, device=device)
    if side is None:
        return items
    values = None
    if len(side.rows):
        side_rows = capacity_rows(side.size - 1, train.capacity_margin)
        values = kind(side_rows, dim, train=train, device=device, initial_std=0.0)
    return SongTable(items, values, side, dim=dim, train=train, device=device)


def song_vectors(parts: Mapping[str, Tensor], side: SongSide, own: Tensor) -> Tensor:
    """The vectors of all songs as one table, float32 [V, D], for an export.

    parts: as `ItemTable.full_parts` has them. own: bool [up to V], the songs whose own row counts; the others' vectors
    are what is known of them alone. Rows behind the songs of `own` are as they are.
    """
    vectors = parts["weight"].clone()
    vectors[: len(own)] *= own[:, None]
    offsets = torch.from_numpy(side.offsets)
    for start in range(0, len(side), _CHUNK_SONGS):
        stop = min(start + _CHUNK_SONGS, len(side))
        if f"{SIDE}weight" in parts:
            entry = slice(int(offsets[start]), int(offsets[stop]))
            song = torch.repeat_interleave(torch.arange(start, stop), offsets[start : stop + 1].diff())
            values = parts[f"{SIDE}weight"][torch.from_numpy(side.rows[entry]).long()]
            vectors.index_add_(0, song, values * torch.from_numpy(side.weights[entry, None]))
        if side.content is not None:
            vectors[start:stop] += torch.from_numpy(side.content[start:stop]) @ parts[f"{CONTENT}weight"]
    return vectors


def logical_song_state(state: Mapping[str, Tensor], *, dim: int) -> dict[str, Tensor]:
    """`logical_state` of a song table, which may be an item table alone."""
    side = _of_part(state, SIDE)
    whole = logical_state(_of_part(state, ""), dim=dim) | _prefixed(CONTENT, _of_part(state, CONTENT))
    return whole | (_prefixed(SIDE, logical_state(side, dim=dim)) if side else {})


def _entries(starts: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """The entries of songs from where they start and how many they are: the place of the song, and the entry. [E]."""
    song = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
    before = lengths.cumsum(0) - lengths
    return song, torch.arange(len(song), device=song.device) + (starts - before)[song]


def _prefixed(prefix: str, state: Mapping[str, Any]) -> dict[str, Any]:
    return {prefix + name: value for name, value in state.items()}


def _of_part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The state of one part without its prefix; of the item table for ""."""
    if prefix:
        return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    return {name: tensor for name, tensor in state.items() if not name.startswith((SIDE, CONTENT))}
