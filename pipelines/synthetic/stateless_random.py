"""Counter-based (stateless) random numbers: a pure function of (key, stream, counter, channel), in any order.

The generator is splitmix64. The key is that of a listener, the stream says what the number is for, the counter is a
play, a session or a day of that listener. Every chunk of listeners, every day and every replicate of the future can
therefore be drawn on its own.
"""

import math
from enum import IntEnum

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_erfc = np.frompyfunc(math.erfc, 1, 1)


class Stream(IntEnum):
    """What a random number is for. Every generated row depends on these values: never renumber."""

    LISTENER = 1
    TASTE = 2
    DAY = 3
    GAP = 4
    SESSION = 5
    PACE = 6
    EPISODE = 7
    CHOICE = 8
    SONG = 9
    LISTENING = 10
    LANDING = 11
    DIRT = 12
    BOT = 13
    ARTIST = 14
    CATALOGUE = 15
    REPLICATE = 16


def mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64, a bijection of uint64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def keys(seed: int, numbers: np.ndarray) -> np.ndarray:
    """One uint64 key for each number (a listener, an artist, a song) under a seed."""
    root = mix(np.array([seed & 0xFFFFFFFFFFFFFFFF], np.uint64) + _GOLDEN)
    return mix(root + (np.asarray(numbers).astype(np.uint64) + np.uint64(1)) * _GOLDEN)


def derive(key: np.ndarray, number: int | np.ndarray, stream: Stream) -> np.ndarray:
    """Independent keys, for example of replicate `number` of each listener."""
    step = np.atleast_1d(number).astype(np.uint64) * np.uint64(64) + np.uint64(stream)
    return mix(mix(key) + (step + np.uint64(1)) * _GOLDEN)


def uniform(key: np.ndarray, counter: int | np.ndarray, stream: Stream, channels: int) -> np.ndarray:
    """float64 [channels, n] in the open interval (0, 1), for n keys and their counters."""
    base = mix(key + np.uint64(stream * 0xD1342543DE82EF95 % 2**64))
    first = np.asarray(counter).astype(np.uint64) * np.uint64(channels) + np.uint64(1)
    number = first + np.arange(channels, dtype=np.uint64)[:, None]
    bits = mix(base + number * _GOLDEN) >> np.uint64(11)
    return (bits.astype(np.float64) + 0.5) * 2.0**-53


def normal(u: np.ndarray) -> np.ndarray:
    """The standard normal quantile of u in (0, 1): Acklam's rational approximation, relative error below 1.2e-9."""
    u = np.asarray(u, np.float64)
    centre = _centre(np.clip(u, 0.02425, 0.97575) - 0.5)
    low = _tail(np.minimum(u, 0.5))
    high = -_tail(np.minimum(1 - u, 0.5))
    return np.where(u < 0.02425, low, np.where(u > 0.97575, high, centre))


def normal_survival(z: np.ndarray) -> np.ndarray:
    """The probability that a standard normal exceeds z."""
    return 0.5 * np.asarray(_erfc(np.asarray(z, np.float64) / math.sqrt(2)), np.float64)


def _polynomial(x: np.ndarray, *coefficients: float) -> np.ndarray:
    value = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value = value * x + coefficient
    return value


def _centre(q: np.ndarray) -> np.ndarray:
    r = q * q
    above = _polynomial(
        r,
        *(-39.69683028665376, 220.9460984245205, -275.9285104469687),
        *(138.3577518672690, -30.66479806614716, 2.506628277459239),
    )
    below = _polynomial(
        r, -54.47609879822406, 161.5858368580409, -155.6989798598866, 66.80131188771972, -13.28068155288572, 1.0
    )
    return q * above / below


def _tail(u: np.ndarray) -> np.ndarray:
    q = np.sqrt(-2 * np.log(np.maximum(u, 1e-300)))
    above = _polynomial(
        q,
        *(-0.007784894002430293, -0.3223964580411365, -2.400758277161838),
        *(-2.549732539343734, 4.374664141464968, 2.938163982698783),
    )
    below = _polynomial(q, 0.007784695709041462, 0.3224671290700398, 2.445134137142996, 3.754408661907416, 1.0)
    return above / below
