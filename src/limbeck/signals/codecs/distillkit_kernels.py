"""Codecs with a fixed number of entries, compiled by numba: packing ids, checking entries, putting them in order.

Every kernel works on a range of positions and lets go of Python's lock, so that threads can share the work. None says
what is wrong with an entry: whoever is told that something is asks the plain functions in `topk_entries`, which do.
"""

import math
from typing import Any

import numpy as np

from limbeck.signals.codecs.compiling import compiled
from limbeck.signals.codecs.topk_entries import LOGPROB_TOLERANCE, MASS_TOLERANCE

LOG_TINY = math.log(np.finfo(np.float64).tiny)
MOST, ABOVE = 1 + MASS_TOLERANCE, LOGPROB_TOLERANCE


@compiled()
def pack(values: Any, bits: int, first: int, last: int, out: Any) -> None:
    """Write rows `first` to `last` of `values` `[N, K]` into `out` `[N, W]`, as `bit_packing.pack_bits` does."""
    for row in range(first, last):
        held, room, at = np.uint64(0), 0, 0
        for index in range(values.shape[1]):
            held = (held << np.uint64(bits)) | np.uint64(values[row, index])
            room += bits
            while room >= 8:
                room -= 8
                out[row, at] = np.uint8((held >> np.uint64(room)) & np.uint64(255))
                at += 1
        if room:
            out[row, at] = np.uint8((held << np.uint64(8 - room)) & np.uint64(255))


@compiled()
def unpack(data: Any, bits: int, first: int, last: int, out: Any) -> None:
    """Read rows `first` to `last` of `data` `[N, W]` into `out` `[N, K]`, as `bit_packing.unpack_bits` does."""
    mask = np.uint64((1 << bits) - 1)
    for row in range(first, last):
        held, there, at = np.uint64(0), 0, 0
        for index in range(out.shape[1]):
            while there < bits:
                held = (held << np.uint64(8)) | np.uint64(data[row, at])
                there += 8
                at += 1
            there -= bits
            out[row, index] = np.int64((held >> np.uint64(there)) & mask)


@compiled()
def take(
    ids: Any, logprobs: Any, mask: Any, vocabulary: int, first: int, last: int, seen: Any, out_ids: Any, out: Any
) -> bool:
    """Copy the leading entries of positions `first` to `last`, and return whether all of them can be represented.

    Args:
        ids: `[N, K]`.
        logprobs: `[N, K]`, falling.
        mask: `[N]`.
        vocabulary: V.
        first: position.
        last: position.
        seen: `[V]`, -1; scratch.
        out_ids: `[N, count]`, zeros; filled.
        out: `[N, count]`, `-inf`; filled.
    """
    width = min(ids.shape[1], out.shape[1])
    for position in range(first, last):
        if not mask[position]:
            continue
        mass, before = 0.0, np.inf
        for entry in range(width):
            value = np.float64(logprobs[position, entry])
            if not value <= ABOVE or value > before:
                return False
            before = value
            if value == -np.inf:
                continue
            token = ids[position, entry]
            if token < 0 or token >= vocabulary or seen[token] == position:
                return False
            seen[token] = position
            mass += math.exp(value)
            out_ids[position, entry], out[position, entry] = token, value
        if width == 0 or out[position, 0] == -np.inf or mass > MOST:
            return False
    return True


@compiled()
def arrange(
    values: Any, first: int, vocabulary: int, seen: Any, ids: Any, logprobs: Any, log_tail: Any, mask: Any
) -> bool:
    """Put decoded entries in falling order, and return whether all of them make sense.

    Args:
        values: float64 `[n, K]`, of the positions from `first` on.
        first: position.
        vocabulary: V.
        seen: `[V]`, -1; scratch.
        ids: `[N, K]`, as stored; put in order, 0 where absent.
        logprobs: float32 `[N, K]`; filled.
        log_tail: float32 `[N]`; filled.
        mask: `[N]`; filled.
    """
    for row in range(len(values)):
        position = first + row
        mass, present = 0.0, 0
        for entry in range(values.shape[1]):
            value = values[row, entry]
            token = ids[position, entry]
            if value == np.inf:
                return False
            if not value > -np.inf:
                value, token = -np.inf, 0
            else:
                if token >= vocabulary or seen[token] == position:
                    return False
                seen[token] = position
                present += 1
            rounded = np.float32(min(value, 0.0))
            mass += math.exp(np.float64(rounded))
            spot = entry
            while spot > 0 and logprobs[position, spot - 1] < rounded:
                logprobs[position, spot], ids[position, spot] = logprobs[position, spot - 1], ids[position, spot - 1]
                spot -= 1
            logprobs[position, spot], ids[position, spot] = rounded, token
        mask[position] = present > 0
        if present == vocabulary:
            log_tail[position] = -np.inf
        else:
            log_tail[position] = math.log1p(-mass) if mass < 1 else LOG_TINY
    return True
