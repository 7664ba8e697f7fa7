"""What codec `topk`'s kernels need of the machine and numba does not offer: words at any byte, leading zeros, bits.

Each is an instruction or two. None checks where it reads or writes: who calls it has checked. The machine's own order
of bytes is little-endian, as it is wherever numba runs.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic

from limbeck.signals.codecs.compiling import compiled

PADDING = 40  # bytes that must follow what is read, so that a look ahead never leaves it
LANES = 16
LOOK = 57  # bits that `look` returns at least
_WORD, _FLOAT = ir.IntType(64), ir.DoubleType()
_LANES = ir.VectorType(ir.FloatType(), LANES)


def _emitted(define: Callable[..., Any]) -> Any:
    """Register a function that numba compiles to what `define` emits."""
    return intrinsic(define)


def _place(context: Any, builder: Any, kind: Any, array: Any, at: Any, to: Any) -> Any:
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [at], inbounds=True), to.as_pointer())


@_emitted
def load_word(typing: Any, data: Any, at: Any) -> Any:
    """Return eight bytes of a uint8 array, from byte `at` on, as a uint64: the first byte on top."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        place = _place(context, builder, signature.args[0], given[0], given[1], _WORD)
        return builder.bswap(builder.load(place, align=1))

    return types.uint64(data, types.int64), generate


@_emitted
def store_word(typing: Any, data: Any, at: Any, word: Any) -> Any:
    """Write a uint64 into eight bytes of a uint8 array, from byte `at` on, the top byte first."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        place = _place(context, builder, signature.args[0], given[0], given[1], _WORD)
        builder.store(builder.bswap(given[2]), place, align=1)
        return context.get_dummy_value()

    return types.void(data, types.int64, types.uint64), generate


@_emitted
def store_low_first(typing: Any, data: Any, at: Any, word: Any) -> Any:
    """Write a uint64 into eight bytes of a uint8 array, from byte `at` on, the lowest byte first."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        place = _place(context, builder, signature.args[0], given[0], given[1], _WORD)
        builder.store(given[2], place, align=1)
        return context.get_dummy_value()

    return types.void(data, types.int64, types.uint64), generate


@_emitted
def store_lanes(typing: Any, data: Any, at: Any, value: Any) -> Any:
    """Write a float32 into `LANES` places of an array of them, from `at` on."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        place = _place(context, builder, signature.args[0], given[0], given[1], _LANES)
        nothing = ir.Constant(_LANES, ir.Undefined)
        one = builder.insert_element(nothing, given[2], ir.Constant(ir.IntType(32), 0))
        every = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        builder.store(builder.shuffle_vector(one, nothing, every), place, align=4)
        return context.get_dummy_value()

    return types.void(data, types.int64, types.float32), generate


@_emitted
def leading_zeros(typing: Any, word: Any) -> Any:
    """Return how many zeros are on top of a uint64, as a uint64; 64 of none other."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return builder.ctlz(given[0], ir.Constant(ir.IntType(1), 0))

    return types.uint64(types.uint64), generate


@_emitted
def bits_of(typing: Any, number: Any) -> Any:
    """Return the bits of a float64 as an int64."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return builder.bitcast(given[0], _WORD)

    return types.int64(types.float64), generate


@_emitted
def float_of(typing: Any, bits: Any) -> Any:
    """Return the float64 that has the bits of an int64."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return builder.bitcast(given[0], _FLOAT)

    return types.float64(types.int64), generate


@compiled()
def look(data: Any, at: int) -> Any:
    """Return the bits of `data` from bit `at` on, the first on top: 57 of them, and whatever else there is."""
    return load_word(data, at >> 3) << np.uint64(at & 7)


@compiled()
def top(word: Any, bits: int) -> Any:
    """Return the first `bits` bits, up to 63, as a number."""
    return np.int64(word >> np.uint64(1) >> np.uint64(63 - bits))
