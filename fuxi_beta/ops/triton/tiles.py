"""The packed histories of a batch cut into tiles, for kernels that run one program a tile.

Shapes: `B` listeners, `T` packed tokens, `S` places for tiles.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fuxi_beta.data.batches import Batch

FIELDS = 4  # of a tile: its first token, the first and the end of its listener's tokens, its first lag


@dataclass(frozen=True)
class Tiles:
    """Tiles of tokens of one listener each."""

    table: Tensor  # int64 [S, FIELDS]; unused places are zeros: tiles without tokens
    lags: int  # room for one number of every lag of every tile

    def __len__(self) -> int:
        return len(self.table)


@dataclass(frozen=True)
class Sequences:
    """Offsets and times of a batch and its tiles, shared by all layers and both passes. Never waits for a device."""

    offsets: Tensor  # int64 [B + 1]
    timestamp: Tensor  # int64 [T]
    next_timestamp: Tensor  # int64 [T]
    longest: int
    _tiles: dict[int, Tiles] = field(default_factory=dict)

    @classmethod
    def of(cls, batch: Batch) -> "Sequences":
        """The sequences of a batch."""
        times = (batch.offsets, batch.timestamp, batch.next_timestamp)
        return cls(*(tensor.contiguous() for tensor in times), longest=batch.longest)

    def tiles(self, size: int) -> Tiles:
        """Tiles of up to `size` tokens, computed once for each size. There must be a token."""
        if size not in self._tiles:
            self._tiles[size] = self._cut(size)
        return self._tiles[size]

    def _cut(self, size: int) -> Tiles:
        """A listener's tiles are neighbours, so that programs that run together read the same tokens.

        Only the device knows how many there are; `places` is an upper bound that the host knows.
        """
        tokens, listeners = len(self.timestamp), len(self.offsets) - 1
        filled = min(listeners, tokens)
        places = tokens // size + filled
        lags = tokens * (self.longest + size) // (2 * size) + filled * size // 8 + 1
        counts = (self.offsets.diff() + size - 1).div(size, rounding_mode="floor")
        ends = counts.cumsum(0)
        place = torch.arange(places, device=ends.device)
        owner = torch.searchsorted(ends, place, right=True).clamp_(max=listeners - 1)
        start, stop = self.offsets[owner], self.offsets[owner + 1]
        first = start + (place - (ends - counts)[owner]) * size
        table = torch.stack([first, start, stop, torch.zeros_like(first)], dim=1)
        table *= (place < ends[-1])[:, None]
        counted = table[:, 2] - table[:, 0]  # lags of a tile: rows from its first token to the end of its listener
        table[:, 3] = counted.cumsum(0) - counted
        return Tiles(table, lags)
