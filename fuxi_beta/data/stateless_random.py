"""Counter-based (stateless) random numbers: every random bit is a pure function of its key.

The key is made of (seed, epoch, global sample, position, site, channel). So a dropout mask or a negative does not
depend on the batch that a listener is in, on the number of workers, or on how often a run was interrupted.

Shapes: `T` tokens, `C` channels, `W` 64-bit words, `K` draws.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

UNCHOSEN, WINDOWS, TARGETS, SHUFFLE_SHARES = (-5, -4, -3, -2)
SHUFFLE_LANE, SHUFFLE_ROWS, NEGATIVES, DROPOUT = (0, 1, 2, 3)
"""Sites: the purposes of random bits. The dropout sites of a network follow DROPOUT."""

_GOLDEN = 0x9E3779B97F4A7C15
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_SHIFTS = (30, 27, 31)
_MOST = (1 << 31) - 1


def signed(value: int) -> int:
    """An integer modulo 2^64, as an int64."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >= 1 << 63 else value


def scramble(x: Tensor) -> Tensor:
    """splitmix64's finaliser on int64, in place: a bijection that decorrelates neighbouring integers."""
    for shift, multiplier in zip(_SHIFTS, (*_MULTIPLIERS, None), strict=True):
        # int64 shifts keep the sign, and the finaliser needs zeros shifted in.
        x ^= (x >> shift).bitwise_and_((1 << (64 - shift)) - 1)
        if multiplier is not None:
            x *= signed(multiplier)
    return x


def combine(*parts: int | Tensor) -> Tensor:
    """One int64 key (broadcast over the tensor parts) from several integers, order mattering."""
    key: Tensor = torch.zeros((), dtype=torch.int64)
    for part in parts:
        # While the key is 0-d on the host, a device gets it as a kernel argument and not by a copy, which would wait.
        key = key + (part if isinstance(part, Tensor) else signed(part))
        key = scramble((key + 1) * signed(_GOLDEN))
    return key


def words(keys: Tensor, count: int) -> Tensor:
    """`count` words of 64 random bits for each key. int64 [T] -> int64 [T, W]."""
    counter = torch.arange(1, count + 1, device=keys.device) * signed(_GOLDEN)
    return scramble(keys[:, None] + counter)


def integers(keys: Tensor, count: int, below: int) -> Tensor:
    """`count` integers in [0, below) for each key, with replacement. int64 [T] -> int64 [T, K].

    Scales 32 random bits, so no value's probability is off by more than 2^-32.
    """
    if not 0 < below < 1 << 31:
        raise ValueError(f"cannot draw below {below}: it must be in 1..2^31 - 1")
    halves = words(keys, (count + 1) // 2).view(torch.int32)[:, :count]
    return halves.to(torch.int64).bitwise_and_(0xFFFFFFFF).mul_(below).bitwise_right_shift_(32)


def below(keys: Tensor, bounds: Tensor) -> Tensor:
    """One integer in [0, bound) for each key and its bound in 1..2^32 - 1. int64 [T], int64 [T] -> int64 [T].

    Scales 31 random bits.
    """
    return integers(keys, 1, _MOST)[:, 0] * bounds // _MOST


def permutation(length: int, *parts: int) -> Tensor:
    """A random order of range(length) that depends on `parts` only. int64 [length]."""
    return words(combine(*parts).reshape(1), length)[0].argsort(stable=True)


@dataclass(frozen=True)
class DropoutKey:
    """The part of the dropout keys that is the same in a whole forward pass."""

    seed: int
    epoch: int


@dataclass(frozen=True)
class Mask:
    """The keys and the rate that determine which channels of which tokens a dropout zeroes."""

    keys: Tensor  # int64 [T]
    rate: float  # in [0, 1), rounded to 1/65536: sixteen bits decide a channel


def dropout(x: Tensor, mask: Mask) -> Tensor:
    """Zero each channel with probability `rate` and scale the rest up, by the bits of each token's key. [T, C]."""
    channels = x.shape[1]
    if not x.numel():
        return x
    zeroed = round(mask.rate * 65536)
    sixteenths = words(mask.keys, (channels + 3) // 4).view(torch.int16)[:, :channels]
    keep = (sixteenths >= zeroed - 32768).to(x.dtype).mul_(65536 / (65536 - zeroed))
    return x * keep
