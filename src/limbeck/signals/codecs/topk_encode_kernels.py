"""Codec `topk` compiled by numba, the writing half: the same bits as `topk_reference`, many groups at a time.

The kernel works on a range of groups and lets go of Python's lock, so that threads can share the work.

Bits are written through a *word* whose upper `used` bits belong to a byte and those behind it: each time all of it is
stored, and what fills whole bytes is done with.
"""

from typing import Any

import numpy as np

from limbeck.signals.codecs.compiling import compiled
from limbeck.signals.codecs.topk_bits import store_word
from limbeck.signals.codecs.topk_field_kernels import put, put_fields, symbol_of
from limbeck.signals.codecs.topk_layout import CODE_BITS, GROUP
from limbeck.signals.codecs.topk_prefix import CODES, SPELT, SPELT_BITS, SYMBOLS

TALLIED = 7  # levels below are counted in one word
PACKED = 255  # the most entries that are
_I: Any = np.int64
_U: Any = np.uint64
_MOST = _U(56)  # bits that a word takes beside those of a byte begun


@compiled()
def _begin(out: Any, at: int) -> tuple[int, Any, Any]:
    """Return the byte of bit `at`, the word that begins there, and how much of it is used."""
    used = _U(at & 7)
    return at >> 3, (_U(out[at >> 3]) & _U(0xFF00) >> used) << _U(56), used


@compiled()
def _append(out: Any, byte: int, word: Any, used: Any, coded: Any, size: Any) -> tuple[int, Any, Any]:
    """Write 1 to 56 bits behind what a word holds."""
    word |= coded << (_U(64) - size) >> used
    used += size
    store_word(out, byte, word)
    return byte + _I(used >> _U(3)), word << (used & _U(56)), used & _U(7)


@compiled()
def _put_ids(out: Any, at: int, keys: Any, index_bits: int, count: int, raw: int) -> int:
    """Write the gaps of rising ids, two at a time where they are short; return where they end, or -1 on twins."""
    byte, word, used = _begin(out, at)
    one, bits = _U(1) << _U(raw), _U(raw + 1)
    below = one - _U(1)
    previous, entry = _I(-1), 0
    while entry < count:
        token = _I(keys[entry]) >> index_bits
        gap = _U(token - previous - 1)
        if token <= previous:
            return -1
        coded, size = one | gap & below, (gap >> _U(raw)) + bits
        previous = token
        entry += 1
        if entry < count:
            token = _I(keys[entry]) >> index_bits
            gap = _U(token - previous - 1)
            both = size + (gap >> _U(raw)) + bits
            if both <= _MOST and token > previous:
                coded = coded << (both - size) | one | gap & below
                size, previous = both, token
                entry += 1
        while size > _MOST:  # zeros in front
            byte, word, used = _append(out, byte, word, used, _U(0), _U(32))
            size -= _U(32)
        byte, word, used = _append(out, byte, word, used, coded, size)
    return 8 * byte + _I(used)


@compiled()
def _put_levels(
    out: Any, at: int, keys: Any, index_mask: int, levels: Any, count: int, spelt: Any, lengths: Any, words: Any,
    raw_bits: Any, first_level: Any,
) -> int:  # fmt: skip
    """Write levels in the order of keys, three at a time where all are in the table; return where they end."""
    byte, word, used = _begin(out, at)
    entry = 0
    while entry < count:
        several = min(3, count - entry)
        coded, size, long = _U(0), _U(0), False
        for place in range(several):
            level = levels[_U(keys[entry + place] & index_mask)]
            long |= level >= SPELT
            one = spelt[level & (SPELT - 1)]
            more = _U(one) & _U((1 << SPELT_BITS) - 1)
            coded = coded << more | _U(one) >> _U(SPELT_BITS)
            size += more
        if long:
            several = 1
            level = _I(levels[_U(keys[entry] & index_mask)])
            symbol = symbol_of(level)
            more = _U(raw_bits[symbol])
            coded = _U(words[symbol]) << more | _U(level - first_level[symbol])
            size = _U(lengths[symbol]) + more
        byte, word, used = _append(out, byte, word, used, coded, size)
        entry += several
    return 8 * byte + _I(used)


@compiled()
def _tally(levels: Any, count: int, symbols: Any) -> None:
    """Count the symbols of levels that fall."""
    symbols[:] = 0
    high = 0
    while high < count and (levels[high] >= TALLIED or count - high > PACKED):
        symbols[symbol_of(_I(levels[high]))] += 1
        high += 1
    packed = _U(0)
    for entry in range(high, count):
        packed += _U(1) << _U(8) * _U(levels[entry])
    for level in range(TALLIED):
        symbols[level] += _I(packed >> _U(8 * level) & _U(255))


@compiled()
def _cost(symbols: Any, lengths: Any, costs: Any) -> int:
    """Fill `costs` `[64]` with the bits that symbols take in each code, raw bits aside; return the least."""
    costs[:] = 0
    for symbol in range(SYMBOLS):
        if symbols[symbol]:
            times = np.int32(symbols[symbol])
            for code in range(CODES):
                costs[code] += times * lengths[symbol, code]
    return _I(costs.min())


@compiled()
def encode_groups(
    counts: Any, keys: Any, index_bits: int, levels: Any, bases: Any, tails: Any, ratios: Any,
    groups: Any, first: int, last: int, with_base: bool, rice: Any,
    lengths: Any, by_symbol: Any, words: Any, spelt: Any, raw_bits: Any, first_level: Any,
    begins: Any, out: Any, sizes: Any,
) -> int:  # fmt: skip
    """Write groups `first..last`; return -1, or a position that names a token twice.

    Args:
        counts: `[N]`, entries of each position.
        keys: `[N, K]`, sorted: the id of an entry above `index_bits` of its place in `levels`.
        index_bits: see `keys`.
        levels: uint16 `[N, K]`, falling.
        bases: `[N]`.
        tails: `[N]`.
        ratios: `[N, S]`.
        groups: `[G + 1]`; group g is positions `groups[g]..groups[g + 1]`.
        first: a group.
        last: the one behind the last.
        with_base: see `Layout`.
        rice: see `Layout`.
        lengths: see `PrefixCodes`, as are those that follow.
        by_symbol: see `PrefixCodes`.
        words: see `PrefixCodes`.
        spelt: see `PrefixCodes`.
        raw_bits: see `PrefixCodes`.
        first_level: see `PrefixCodes`.
        begins: the byte where each group begins in `out`, with room behind it for all that it can take.
        out: uint8, to be filled.
        sizes: `[G]`, to be filled with the bytes of each group.
    """
    costs = np.empty((GROUP, CODES), dtype=np.int32)
    own = np.empty(GROUP, dtype=np.int32)
    total = np.empty(CODES, dtype=np.int32)
    symbols = np.zeros(SYMBOLS, dtype=np.int64)
    index_mask = (1 << index_bits) - 1
    for group in range(first, last):
        here, end = groups[group], groups[group + 1]
        at = put_fields(out, begins[group] * 8, counts, bases, tails, ratios, here, end, with_base)
        total[:] = 0
        said = False
        for position in range(here, end):
            row = position - here
            if counts[position] == 0:
                continue
            said = True
            _tally(levels[position], counts[position], symbols)
            own[row] = _cost(symbols, by_symbol, costs[row]) + CODE_BITS
            for code in range(CODES):
                total[code] += min(costs[row, code], own[row])
        if said:
            usual = _I(np.argmin(total))
            at = put(out, at, usual, CODE_BITS)
            for position in range(here, end):
                row, count = position - here, counts[position]
                if count == 0:
                    continue
                code = usual if costs[row, usual] <= own[row] else _I(np.argmin(costs[row]))
                at = put(out, at, 1, 1) if code == usual else put(out, at, code, 1 + CODE_BITS)
                at = _put_ids(out, at, keys[position], index_bits, count, rice[count])
                if at < 0:
                    return position
                at = _put_levels(
                    out, at, keys[position], index_mask, levels[position], count, spelt[code], lengths[code],
                    words[code], raw_bits, first_level,
                )  # fmt: skip
        sizes[group] = ((at + 7) >> 3) - begins[group]
    return -1
