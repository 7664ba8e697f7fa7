"""The 64 prefix codes for levels, made in integer arithmetic, the same on every machine.

A level `x >= 0` is written as a symbol and some raw bits. Symbols 0..7 are the levels 0..7; above that each octave has
four symbols: with `s = 8 + 4 * o + m`, the levels `(4 + m) << (o + 1)` and on, `o + 1` raw bits.

Sorted probabilities of language models fall like a power law, so the number of a position's entries at level `x` falls
like a Lomax density. Code `c < 63` is the best prefix code of at most 12 bits for levels drawn with
`P(level >= x) = (b / (b + x)) ** a`; its scale and shape stand in `SCALES` and `SHAPES` (doubled, as integers).
Code 63 gives all symbols equal weight. An encoder tries all 64 on a position and writes which was shortest.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import isqrt

import numpy as np
from numpy.typing import NDArray

SYMBOLS = 60
LONGEST = 12
CODES = 64
SCALES = (2, 3, 4, 6, 9, 14, 24, 48, 100)  # 2 * b
SHAPES = (1, 2, 3, 4, 6, 10, 20)  # 2 * a
PRECISION = 40
LEAST_WEIGHT = 14  # a symbol weighs at least 2 ** -14 of all
SPELT = 256  # levels below are in a table, whole
SPELT_BITS = 5


@dataclass(frozen=True)
class PrefixCodes:
    """All codes, as arrays.

    Attributes:
        lengths: int64 `[64, 60]`, bits of each symbol's codeword.
        by_symbol: int32 `[60, 64]`, the same the other way round.
        words: int64 `[64, 60]`, the codewords (canonical: by length, then by symbol).
        table: uint16 `[64, 4096]`, for the next 12 bits of a stream: symbol * 16 + length.
        raw_bits: int64 `[60]`, how many raw bits follow a symbol.
        first_level: int64 `[60]`, the lowest level of a symbol.
        spelt: uint32 `[64, 256]`, of each level below 256 its codeword and its raw bits, and in the lowest five bits
            how many these are.
    """

    lengths: NDArray[np.int64]
    by_symbol: NDArray[np.int32]
    words: NDArray[np.int64]
    table: NDArray[np.uint16]
    raw_bits: NDArray[np.int64]
    first_level: NDArray[np.int64]
    spelt: NDArray[np.uint32]


@lru_cache(maxsize=1)
def prefix_codes() -> PrefixCodes:
    """Return the codes; they are made once."""
    first_level = [symbol_start(symbol) for symbol in range(SYMBOLS + 1)]
    laws = [(scale, shape) for scale in SCALES for shape in SHAPES]
    all_weights = [_lomax_weights(scale, shape, first_level) for scale, shape in laws] + [[1] * SYMBOLS]
    lengths = np.array([shortest_lengths(weights, LONGEST) for weights in all_weights], dtype=np.int64)
    words = np.array([canonical_words(row.tolist()) for row in lengths], dtype=np.int64)
    table = np.zeros((CODES, 1 << LONGEST), dtype=np.uint16)
    for code in range(CODES):
        for symbol in range(SYMBOLS):
            length, free = int(lengths[code, symbol]), LONGEST - int(lengths[code, symbol])
            start = int(words[code, symbol]) << free
            table[code, start : start + (1 << free)] = symbol * 16 + length
    raw_bits = np.array([0 if symbol < 8 else (symbol - 8) // 4 + 1 for symbol in range(SYMBOLS)], dtype=np.int64)
    starts = np.array(first_level[:SYMBOLS], dtype=np.int64)
    symbols = np.searchsorted(starts, np.arange(SPELT), side="right") - 1
    more = raw_bits[symbols]
    spelt = (words[:, symbols] << more | np.arange(SPELT) - starts[symbols]) << SPELT_BITS | lengths[:, symbols] + more
    by_symbol = np.ascontiguousarray(lengths.T.astype(np.int32))
    return PrefixCodes(lengths, by_symbol, words, table, raw_bits, starts, spelt.astype(np.uint32))


def symbol_start(symbol: int) -> int:
    """Return the lowest level of a symbol."""
    return symbol if symbol < 8 else (4 + symbol % 4) << ((symbol - 8) // 4 + 1)


def _lomax_weights(scale: int, shape: int, first_level: list[int]) -> list[int]:
    """Return each symbol's share of `2 ** 40`, at least `2 ** -14` of the sum, from exact integer square roots."""
    above = [isqrt((scale**shape << (2 * PRECISION)) // (scale + 2 * level) ** shape) for level in first_level]
    weights = [above[symbol] - above[symbol + 1] for symbol in range(SYMBOLS)]
    least = sum(weights) >> LEAST_WEIGHT
    return [max(weight, least) for weight in weights]


def shortest_lengths(weights: list[int], longest: int) -> list[int]:
    """Return the codeword lengths of a best prefix code with at most `longest` bits a word, by package-merge.

    After Larmore and Hirschberg, "A fast algorithm for optimal length-limited Huffman codes" (1990). Among equal
    weights single symbols come before packages, and each in the order of symbols or of making.
    """
    singles: list[tuple[int, tuple[int, ...]]] = [(weight, (symbol,)) for symbol, weight in enumerate(weights)]
    singles.sort(key=lambda item: item[0])
    level = singles
    for _ in range(longest - 1):
        packages = [(level[i][0] + level[i + 1][0], level[i][1] + level[i + 1][1]) for i in range(0, len(level) - 1, 2)]
        level = sorted(singles + packages, key=lambda item: item[0])
    lengths = [0] * len(weights)
    for _, symbols in level[: 2 * len(weights) - 2]:
        for symbol in symbols:
            lengths[symbol] += 1
    return lengths


def canonical_words(lengths: list[int]) -> list[int]:
    """Return the canonical codewords for these lengths: counting up by length, then by symbol."""
    words = [0] * len(lengths)
    word, previous = 0, 0
    for length, symbol in sorted((length, symbol) for symbol, length in enumerate(lengths)):
        word <<= length - previous
        words[symbol] = word
        word, previous = word + 1, length
    return words
