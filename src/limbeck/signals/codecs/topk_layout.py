"""What codec `topk`'s writers and readers share: field widths, tables of levels, and the codes of masses.

Everything here is made once for a description and a vocabulary, in float64 or in integers, and kept.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from limbeck.signals.codecs.topk_prefix import PrefixCodes, prefix_codes
from limbeck.signals.codecs.topk_spec import TopkSpec

GROUP = 32  # positions that share one byte-aligned run of bits
COUNT_ORDER, BASE_ORDER, TAIL_ORDER, RATIO_ORDER = 4, 4, 11, 8  # of the Exp-Golomb code for a field's least number
MODE_BITS, GOLOMB_MODES = 5, 14  # modes below 14: Exp-Golomb of that order; mode 14 + w: w bits each
CODE_BITS = 6  # which prefix code
TAIL_REACH = 0.499  # of a code: how far from it a reader moves a tail, which is then given the same code again
TAIL_CODES, TAIL_CENTRE, TAIL_STEPS = 8192, 4096, 64  # log2(tail / head) = (code - centre) / steps; code 0: no tail
RATIO_TOP = 1023
MARGIN = 2.0**-18  # relative to a probability, but no more than an eighth of its level
TOP_MARGIN = 2.0**-40  # below 1, where a float32 logarithm is exact to a share of what is left
LEAST_SHARE = 2.0**-40  # of a level that starts at 0: what is kept has a logarithm, however small it is


@dataclass(frozen=True)
class Layout:
    """Tables of one description over one vocabulary.

    Attributes:
        vocabulary: V.
        cap: the most entries a position has: the smaller of the description's and V.
        with_base: whether positions say at which level theirs start.
        rice: int64 `[cap + 1]`, raw bits of a gap between sorted ids, by number of entries.
        codes: the prefix codes for levels.
        low: float64 `[L]`, the least probability of each level.
        high: float64 `[L]`, the greatest.
        centre: float64 `[L]`, the mean of a level under a density that falls with the square of the probability.
        floor: float64 `[L]`, the least probability that a reader makes of a level: within it by `MARGIN`, so that it
            is put into the same level again, float32 or not.
        ceiling: float64 `[L]`, the greatest.
        rules: float64 `[L, 4]`, of each level its centre c, d^2 with its width d, and the least and the greatest x for
            which c + x d^2 lies between floor and ceiling.
        ratios: the temperatures other than 1.
    """

    vocabulary: int
    cap: int
    with_base: bool
    rice: NDArray[np.int64]
    codes: PrefixCodes
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    centre: NDArray[np.float64]
    floor: NDArray[np.float64]
    ceiling: NDArray[np.float64]
    rules: NDArray[np.float64]
    ratios: tuple[float, ...]


@dataclass(frozen=True)
class TailTable:
    """What the 8,192 codes of a tail's odds stand for, float64 `[8192]` each; code 0 is no tail.

    Attributes:
        log: logarithm of the tail's mass.
        mass: the tail's mass.
        least: the least mass that a reader makes of a code; it rounds to the same one.
        most: the greatest.
    """

    log: NDArray[np.float64]
    mass: NDArray[np.float64]
    least: NDArray[np.float64]
    most: NDArray[np.float64]


@lru_cache(maxsize=16)
def layout_of(spec: TopkSpec, vocabulary: int) -> Layout:
    """Return the tables of `spec` over a vocabulary of this size."""
    cap = min(spec.cap, vocabulary)
    levels = int((1 - spec.origin) / spec.width) + 2
    edges = np.minimum(spec.origin + spec.width * np.arange(levels + 1), 1.0) ** (1 / spec.power)
    low, high = edges[:-1], edges[1:]
    high = np.maximum(high, np.nextafter(low, 2.0))
    inner = np.where(low > 0, low, high / 4)
    centre = np.log(high / inner) / (1 / inner - 1 / high)
    centre = np.clip(np.where(np.isfinite(centre), centre, low), low, high)
    narrow, certain = (high - low) / 8, (1 - spec.origin) / spec.width  # the level of p = 1
    floor = np.where(low > 0, low + np.minimum(low * MARGIN, narrow), high * LEAST_SHARE)
    below = np.where(high < 1, np.minimum(high * MARGIN, narrow), TOP_MARGIN)
    ceiling = high - np.where(np.arange(levels) + 1 <= certain, below, 0.0)
    give = (high - low) ** 2
    least = np.where(low < 1, (floor - centre) / give, np.inf)  # where p = 1 no x leaves anything to a tail
    return Layout(
        vocabulary=vocabulary,
        cap=cap,
        with_base=spec.select != "threshold",
        rice=np.array([rice_bits(count, vocabulary) for count in range(cap + 1)], dtype=np.int64),
        codes=prefix_codes(),
        low=low.copy(),
        high=high,
        centre=centre,
        floor=floor,
        ceiling=ceiling,
        rules=np.stack([centre, give, least, (ceiling - centre) / give], -1),
        ratios=tuple(temperature for temperature in spec.temperatures if temperature != 1.0),
    )


def rice_bits(count: int, vocabulary: int) -> int:
    """Return the raw bits of a Rice code for the gaps of `count` sorted ids out of `vocabulary`.

    The best choice for geometric gaps of mean `m = (V - k) / (k + 1)` is the greatest b with `2 ** b <= 0.9624 m`
    (Kiely, "Selecting the Golomb parameter in Rice coding", 2004); 0 where there is none.
    """
    bits = 0
    while (1 << (bits + 1)) * 10000 * (count + 1) <= 9624 * (vocabulary - count):
        bits += 1
    return bits


def ratio_spans(temperatures: tuple[float, ...], rest_N: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return `[N, S]`, the greatest `log tail_T - log(tail) / T` that a tail of `rest_N` tokens can have.

    `tail_T` is the sum of `p ** (1 / T)` over the tail. By convexity the difference lies between 0 (one token has all)
    and `(1 - 1 / T) * log(rest)` (all are equal), which is negative for T below 1.
    """
    log_rest = np.log(np.maximum(rest_N, 1).astype(np.float64))
    return np.stack([(1 - 1 / t) * log_rest for t in temperatures], -1) if temperatures else np.zeros((len(rest_N), 0))


@lru_cache(maxsize=1)
def tail_table() -> TailTable:
    """Return the masses that the codes of a tail stand for."""

    def log_mass(offset: float) -> NDArray[np.float64]:
        odds = (np.arange(TAIL_CODES) + offset - TAIL_CENTRE) / TAIL_STEPS * math.log(2)
        return np.where(np.arange(TAIL_CODES) > 0, -np.logaddexp(0, -odds), -np.inf)

    return TailTable(log_mass(0), np.exp(log_mass(0)), np.exp(log_mass(-TAIL_REACH)), np.exp(log_mass(TAIL_REACH)))
