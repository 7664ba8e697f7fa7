"""Numbers in Rice codes, compiled by numba: what `rice_arrays` writes and reads, one bit string at a time."""

from typing import Any

import numpy as np

from limbeck.signals.codecs.compiling import compiled


@compiled()
def best_width(values: Any, widest: int) -> int:
    """Return the first width below `widest` in which the values take the fewest bits."""
    best, fewest = 0, np.int64(-1)
    for width in range(widest):
        bits = np.int64(width * len(values))
        for value in values:
            bits += value >> width
        if fewest < 0 or bits < fewest:
            best, fewest = width, bits
    return best


@compiled()
def write_unary(values: Any, widths: Any, out: Any) -> None:
    """Write the quotients `values >> widths` into zero bits: as many zeros, then a one."""
    at = 0
    for index in range(len(values)):
        at += values[index] >> widths[index]
        out[at >> 3] |= np.uint8(128 >> (at & 7))
        at += 1


@compiled()
def write_bits(values: Any, widths: Any, out: Any) -> None:
    """Write the low `widths` bits of `values` into zero bits, end to end, most significant first."""
    at = 0
    for index in range(len(values)):
        left = widths[index]
        while left > 0:
            room = 8 - (at & 7)
            step = min(room, left)
            piece = (values[index] >> (left - step)) & ((1 << step) - 1)
            out[at >> 3] |= np.uint8(piece << (room - step))
            at += step
            left -= step


@compiled()
def read_unary(data: Any, out: Any) -> bool:
    """Fill `out` with the runs of zeros before each one; say whether there are exactly as many ones."""
    found, run = 0, 0
    for index in range(len(data)):
        byte = data[index]
        if byte == 0:
            run += 8
            continue
        for bit in range(8):
            if byte & (128 >> bit):
                if found == len(out):
                    return False
                out[found] = run
                found += 1
                run = 0
            else:
                run += 1
    return found == len(out)


@compiled()
def read_bits(data: Any, widths: Any, out: Any) -> None:
    """Put the next `widths` bits of `data` behind each number of `out`."""
    at = 0
    for index in range(len(widths)):
        value, left = out[index], widths[index]
        while left > 0:
            room = 8 - (at & 7)
            step = min(room, left)
            piece = (np.int64(data[at >> 3]) >> (room - step)) & ((1 << step) - 1)
            value = value << step | piece
            at += step
            left -= step
        out[index] = value
