"""The bytes of codecs `distillkit` and `distillkit_legacy` against vectors made with plain integers and `struct`."""

import math
import struct
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.signals.codecs.bit_packing import (
    bits_for,
    pack_bits,
    pack_words,
    packed_bytes,
    packed_words,
    unpack_bits,
    unpack_words,
)
from limbeck.signals.codecs.columns import Column, Columns
from limbeck.signals.codecs.distillkit import IDS, VALUES, DistillkitCodec
from limbeck.signals.codecs.distillkit_legacy import DistillkitLegacyCodec
from limbeck.signals.codecs.distillkit_spec import DistillkitLegacySpec, DistillkitSpec
from limbeck.signals.types import TopkSignal


def one(logprobs: list[float], ids: list[int] | None = None) -> TopkSignal:
    return TopkSignal(
        ids=torch.tensor([ids if ids is not None else list(range(len(logprobs)))]),
        logprobs=torch.tensor([logprobs]),
        log_tail_mass=torch.zeros(1),
        log_normalisers=torch.zeros(1, 1),
        temperatures=(1.0,),
        mask=torch.ones(1, dtype=torch.bool),
    )


def spec_of(**changes: Any) -> DistillkitSpec:
    plain: dict[str, Any] = {"d": 64, "delta_encoding": False, "residual_bins": ()}
    return DistillkitSpec(**{**plain, **changes})


def bytes_of(spec: DistillkitSpec, logprobs: list[float]) -> bytes:
    return DistillkitCodec(spec, 64).encode(one(logprobs), [1])[VALUES].data.tobytes()


def values_of(spec: DistillkitSpec, data: bytes) -> list[float]:
    """Log-probabilities by id: ids count up."""
    packed = msb_first(range(spec.k), spec.id_bits)
    decoded = DistillkitCodec(spec, 64).decode({VALUES: row(data), IDS: row(packed)}, [1])
    found = dict(zip(decoded.ids[0].tolist(), decoded.logprobs[0].tolist(), strict=True))
    return [found[token] for token in range(spec.k)]


def row(data: bytes) -> Column:
    return Column(np.frombuffer(data, dtype=np.uint8), np.array([0, len(data)]))


def msb_first(values: Any, bits: int) -> bytes:
    values = list(values)
    total = 0
    for value in values:
        total = (total << bits) | value
    spare = -len(values) * bits % 8
    return (total << spare).to_bytes((len(values) * bits + spare) // 8, "big")


def bfloat16(value: float) -> bytes:
    """Round to nearest, ties to even, on the bits of the float32."""
    bits = struct.unpack("<I", struct.pack("<f", value))[0]
    return struct.pack("<H", (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16)


@pytest.mark.parametrize(("d", "bits"), [(2, 1), (3, 2), (32_000, 15), (128_256, 17), (151_936, 18), (1 << 21, 21)])
def test_ids_are_as_wide_as_the_vocabulary_needs(d: int, bits: int) -> None:
    assert bits_for(d) == bits == math.ceil(math.log2(d))


@pytest.mark.parametrize(("d", "ids"), [(151_936, [151_935, 0, 77, 131_072]), (64, [63, 1, 2]), (2, [1, 0])])
def test_ids_are_packed_most_significant_bit_first(d: int, ids: list[int]) -> None:
    spec = spec_of(d=d, k=len(ids), exact_k=len(ids))
    codec = DistillkitCodec(spec, d)
    signal = one([-1.0 - index for index in range(len(ids))], ids)
    columns = codec.encode(signal, [1])
    assert columns[IDS].data.tobytes() == msb_first(ids, bits_for(d))
    assert codec.decode(columns, [1]).ids.tolist() == [ids]


def test_two_ids_of_four_bits_are_one_byte() -> None:
    columns = DistillkitCodec(spec_of(d=16, k=2, exact_k=2), 16).encode(one([-1.0, -2.0], [0b1010, 0b0101]), [1])
    assert columns[IDS].data.tobytes() == bytes([0b10100101])


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 64), st.integers(1, 40), st.data())
def test_any_width_packs_like_one_big_integer(bits: int, count: int, data: st.DataObject) -> None:
    numbers = st.lists(st.integers(0, (1 << bits) - 1), min_size=count, max_size=count)
    rows = data.draw(st.lists(numbers, min_size=1, max_size=3))
    values = np.array(rows, dtype=np.uint64)
    packed = pack_bits(values, bits)
    assert packed.shape == (len(rows), packed_bytes(count, bits))
    assert [line.tobytes() for line in packed] == [msb_first(line, bits) for line in rows]
    assert unpack_bits(packed, count, bits).tolist() == rows

    each = 64 // bits
    words = pack_words(values, bits)
    expected = [
        [
            sum(value << (bits * place) for place, value in enumerate(line[at : at + each]))
            for at in range(0, count, each)
        ]
        for line in rows
    ]
    assert words.shape[1] == packed_words(count, bits)
    assert words.tolist() == expected
    assert unpack_words(words, count, bits).tolist() == rows


@pytest.mark.parametrize(
    ("dtype", "pack"),
    [
        ("float16", lambda x: struct.pack("<e", x)),
        ("bfloat16", bfloat16),
        ("float32", lambda x: struct.pack("<f", x)),
        ("float64", lambda x: struct.pack("<d", struct.unpack("<f", struct.pack("<f", x))[0])),
    ],
)
def test_exact_numbers_and_coefficients_in_each_dtype(dtype: str, pack: Any) -> None:
    spec = spec_of(k=3, exact_k=3, exact_dtype=dtype)
    assert bytes_of(spec, [-0.3, -1.7, -3.1]) == pack(-0.3) + pack(-1.7) + pack(-3.1)
    # a line through -2, -2.5, -3, -3.5: coefficients -2 and -0.5 in every dtype
    spec = spec_of(k=5, exact_k=1, exact_dtype=dtype, polynomial_terms=[0, 1], term_dtype=dtype)
    data = bytes_of(spec, [-1.0, -2.0, -2.5, -3.0, -3.5])
    if dtype == "float64":  # the solution itself, not what it rounds to
        assert struct.unpack("<3d", data) == pytest.approx((-1.0, -2.0, -0.5), rel=1e-14)
    else:
        assert data == pack(-1.0) + pack(-2.0) + pack(-0.5)
    assert values_of(spec, data) == [-1.0, -2.0, -2.5, -3.0, -3.5]


def test_the_polynomial_is_evaluated_term_by_term() -> None:
    spec = spec_of(k=5, exact_k=0, polynomial_terms=[0, 2, "sqrt", "exp"])
    values = values_of(spec, struct.pack("<4f", -3.0, -0.25, -0.5, -0.01))
    for t, value in enumerate(values):
        assert value == pytest.approx(-3 - 0.25 * t**2 - 0.5 * math.sqrt(t) - 0.01 * math.exp(t), rel=1e-6)
    spec = spec_of(k=5, exact_k=0, polynomial_terms=[1, 0], normalize_t=True)
    assert values_of(spec, struct.pack("<2f", -1.0, -2.0)) == [-2.0, -2.25, -2.5, -2.75, -3.0]


def test_delta_encoding_stores_differences() -> None:
    spec = spec_of(k=4, exact_k=4, delta_encoding=True)
    data = bytes_of(spec, [-1.0, -1.75, -1.75, -4.5])
    assert data == struct.pack("<4f", -1.0, -0.75, 0.0, -2.75)
    assert values_of(spec, data) == [-1.0, -1.75, -1.75, -4.5]
    spec = spec_of(k=4, exact_k=1, delta_encoding=True, polynomial_terms=[0])
    data = bytes_of(spec, [-1.5, -2.0, -2.5, -3.0])
    assert data == struct.pack("<2f", -1.5, -0.5)
    assert values_of(spec, data) == [-1.5, -2.0, -2.5, -3.0]


def test_residual_bins_are_a_scale_and_packed_elements() -> None:
    """Around a constant of -4: residuals 1, 0.5, -1, -0.5 at 3 bits, then 0.25, -0.25 at 1 bit; the last has none."""
    bins = [
        {"scale_dtype": "float16", "element_bits": 3, "num_elements": 4},
        {"scale_dtype": "bfloat16", "element_bits": 1, "num_elements": 2},
    ]
    tail = [-3.0, -3.5, -5.0, -4.5, -3.75, -4.25, -4.0]
    spec = spec_of(k=7, exact_k=0, polynomial_terms=[0], residual_bins=bins)
    coded = struct.pack("<f", -4.0)
    coded += struct.pack("<e", 0.25) + msb_first([7, 6, 0, 2], 3)  # 1 is 4 steps, clipped to 3; half is added
    coded += bfloat16(0.25) + msb_first([1, 0], 1)
    assert values_of(spec, coded) == [-3.25, -3.5, -5.0, -4.5, -3.75, -4.25, -4.0]

    found = values_of(spec, coded[:4] + struct.pack("<e", 0.5) + msb_first([7, 4, 3, 0], 3) + bfloat16(0.5) + b"\x40")
    assert found == [-2.5, -4.0, -4.5, -6.0, -4.5, -3.5, -4.0]
    # writing: entries have to fall, so the constant's residuals do, too
    falling = sorted(tail, reverse=True)  # -3 -3.5 -3.75 -4 -4.25 -4.5 -5, mean -4
    data = bytes_of(spec, falling)
    assert data == coded[:4] + struct.pack("<e", 0.25) + msb_first([7, 6, 5, 4], 3) + bfloat16(0.375) + msb_first(
        [0, 0], 1
    )


@pytest.mark.parametrize("bits", [2, 8, 17, 31, 53, 64])
def test_elements_of_many_bits(bits: int) -> None:
    """The scale is a power of two, so that every element is a whole number of steps."""
    bins = [{"scale_dtype": "float64", "element_bits": bits, "num_elements": 3}]
    spec = spec_of(k=3, exact_k=0, residual_bins=bins)
    half = 1 << (bits - 1)
    expected = struct.pack("<d", 4.0 / half) + msb_first([half // 2, half // 4 if bits > 2 else 0, 0], bits)
    tail = [-2.0, -3.0, -4.0]
    if bits == 2:  # a scale of 2: -1, -1.5 (to even: -2) and -2 steps
        expected = struct.pack("<d", 2.0) + msb_first([1, 0, 0], 2)
    data = bytes_of(spec, tail)
    assert data == expected
    assert values_of(spec, data) == (tail if bits > 2 else [-2.0, -4.0, -4.0])


def test_residuals_of_nothing_have_a_scale_of_one() -> None:
    bins = [{"scale_dtype": "float32", "element_bits": 4, "num_elements": 2}]
    spec = spec_of(k=3, exact_k=1, polynomial_terms=[0], residual_bins=bins)
    assert bytes_of(spec, [-1.0, -2.0, -2.0]) == struct.pack("<3f", -1.0, -2.0, 1.0) + msb_first([8, 8], 4)


def test_error_diffusion_hands_the_error_on_in_nats() -> None:
    bins = [
        {"scale_dtype": "float32", "element_bits": 2, "num_elements": 2},
        {"scale_dtype": "float32", "element_bits": 2, "num_elements": 2},
    ]
    plain = spec_of(k=4, exact_k=0, residual_bins=bins)
    # first bin: scale 2; -3 is -1.5 steps -> -2, error 1; -4 + 1 = -3 -> -2 steps, error 1
    # second: scale 4; -7 + 1 = -6 is -1.5 steps -> -2, error 2; -8 + 2 = -6 -> -2 steps
    logprobs = [-3.0, -4.0, -7.0, -8.0]
    assert bytes_of(plain, logprobs) == struct.pack("<fBfB", 2.0, 0, 4.0, 0)
    logprobs = [-2.6, -4.0, -6.6, -8.0]
    # -1.3 steps -> -1, error -0.6; -4.6 -> -2 steps (the least), error -0.6; -7.2 is -1.8 steps, -2 rather than -1.65
    assert bytes_of(plain, logprobs) == struct.pack("<fBfB", 2.0, 0b01000000, 4.0, 0b00000000)
    diffused = plain.model_copy(update={"error_diffusion": True})
    assert bytes_of(diffused, logprobs) == struct.pack("<fBfB", 2.0, 0b01000000, 4.0, 0b00000000)
    logprobs = [-2.6, -4.0, -5.6, -8.0]
    assert bytes_of(plain, logprobs) == struct.pack("<fBfB", 2.0, 0b01000000, 4.0, 0b01000000)  # -1.4 steps -> -1
    assert bytes_of(diffused, logprobs) == struct.pack("<fBfB", 2.0, 0b01000000, 4.0, 0b00000000)  # -1.55 -> -2


def test_error_diffusion_keeps_the_sums_of_differences_right() -> None:
    """In bfloat16 a difference of -0.501 is -0.5; the lost thousandths add up unless they are handed on."""
    logprobs = [-1.0 - 0.501 * index for index in range(40)]
    spec = spec_of(k=40, exact_k=40, exact_dtype="bfloat16", delta_encoding=True)
    assert abs(values_of(spec, bytes_of(spec, logprobs))[-1] - logprobs[-1]) > 0.03
    spec = spec.model_copy(update={"error_diffusion": True})
    assert abs(values_of(spec, bytes_of(spec, logprobs))[-1] - logprobs[-1]) < 0.003


def test_absent_entries_are_minus_infinity_or_nan() -> None:
    spec = spec_of(k=4, exact_k=2, polynomial_terms=[0, 1])
    codec = DistillkitCodec(spec, 64)
    short = one([-0.75, -1.0, -2.0, float("-inf")])
    columns = codec.encode(short, [1])
    stored = struct.unpack("<4f", columns[VALUES].data.tobytes())
    assert stored[:2] == (-0.75, -1.0) and all(math.isnan(value) for value in stored[2:])
    decoded = codec.decode(columns, [1])
    assert decoded.logprobs.tolist() == [[-0.75, -1.0, float("-inf"), float("-inf")]]
    assert decoded.mask.tolist() == [True]
    assert decoded.log_tail_mass.item() == pytest.approx(math.log(1 - math.exp(-0.75) - math.exp(-1)), abs=1e-5)


LEGACY_VALUES = [-0.5, -1.5]


@pytest.mark.parametrize("invert", [True, False])
def test_legacy_fields(invert: bool) -> None:
    """k = 5 of 151,936: three ids of 18 bits a word; ranks 1, 2, 3 of -2 - 1 / a (or -2 - a)."""
    tail = [-2 - 1 / a for a in (1, 2, 3)][::-1] if invert else [-2.0 - a for a in (1, 2, 3)]
    coefficients = (-2.0, -1.0)
    spec = DistillkitLegacySpec(vocab_size=151_936, k=5, exact_k=2, polynomial_degree=1, invert_polynomial=invert)
    codec = DistillkitLegacyCodec(spec, 151_936)
    ids = [151_935, 3, 70_000, 12, 0]
    words = struct.pack("<2Q", ids[0] | ids[1] << 18 | ids[2] << 36, ids[3] | ids[4] << 18)
    columns: Columns = {
        "exact_values": row(struct.pack("<2e", *LEGACY_VALUES)),
        "coeffs": row(struct.pack("<2f", *coefficients)),
        "packed_indices": row(words),
    }
    decoded = codec.decode(columns, [1])
    if not invert:
        assert decoded.ids.tolist() == [ids]
        assert decoded.logprobs[0].tolist() == [*LEGACY_VALUES, *tail]
        written = codec.encode(one([*LEGACY_VALUES, *tail], ids), [1])
        assert {name: column.data.tobytes() for name, column in written.items()} == {
            name: column.data.tobytes() for name, column in columns.items()
        }
    else:  # -2 - 1 / a rises: each id keeps its value, and entries are put in order
        assert decoded.ids.tolist() == [[*ids[:2], *ids[:1:-1]]]
        assert decoded.logprobs[0].tolist() == pytest.approx([*LEGACY_VALUES, *tail], rel=1e-6)


def test_legacy_inverse_powers_and_the_root_come_in_order() -> None:
    spec = DistillkitLegacySpec(vocab_size=64, k=3, exact_k=0, polynomial_degree=2, with_sqrt_term=True)
    columns = {
        "exact_values": row(b""),
        "coeffs": row(struct.pack("<4f", -4.0, 1.0, 0.5, -0.25)),
        "packed_indices": row(struct.pack("<Q", 0 | 1 << 6 | 2 << 12)),
    }
    found = DistillkitLegacyCodec(spec, 64).decode(columns, [1])
    assert found.ids.tolist() == [[0, 1, 2]]
    assert found.logprobs[0].tolist() == pytest.approx(
        [-4 + 1 / a + 0.5 / a**2 - 0.25 * math.sqrt(a) for a in (1, 2, 3)], rel=1e-6
    )
