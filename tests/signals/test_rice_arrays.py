"""Arrays in Rice codes: the bits that are specified, read back as they were, and refused where they end too early."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.errors import IntegrityError
from limbeck.signals.codecs.rice_arrays import ArrayReader, write_array, write_fields, write_fitted, write_varint


def bytes_of(bits: str) -> bytes:
    """Return a string of zeros and ones as bytes, filled up with zeros."""
    padded = bits + "0" * (-len(bits) % 8)
    return bytes(int(padded[first : first + 8], 2) for first in range(0, len(padded), 8))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 20)), max_size=50))
def test_arrays_come_back(pairs: list[tuple[int, int]]) -> None:
    values = np.array([value for value, _ in pairs], dtype=np.int64)
    widths = np.array([width for _, width in pairs], dtype=np.int64)
    low = values & ((1 << widths) - 1)
    unary = "".join("0" * (value >> width) + "1" for value, width in pairs)
    binary = "".join(f"{value & ((1 << width) - 1):0{width}b}" for value, width in pairs if width)
    quotients, fields = bytes_of(unary), bytes_of(binary)
    assert write_array(values, widths) == write_varint(len(quotients)) + quotients + fields
    assert write_fields(values, widths) == fields
    bits = [int((values >> width).sum()) + (1 + width) * len(values) for width in range(24)]
    assert bits[write_fitted(values)[0]] == min(bits)
    data = write_array(values, widths) + write_fitted(values) + write_fields(low, widths)
    reader = ArrayReader(np.frombuffer(data, dtype=np.uint8), "test")
    assert reader.array(widths).tolist() == values.tolist()
    assert reader.fitted(len(values)).tolist() == values.tolist()
    assert reader.fields(widths).tolist() == low.tolist()
    reader.finish()


@pytest.mark.parametrize(("number", "written"), [(0, "00"), (127, "7f"), (128, "8001"), (300, "ac02")])
def test_varints_have_seven_bits_a_byte(number: int, written: str) -> None:
    assert write_varint(number).hex() == written
    assert ArrayReader(np.frombuffer(bytes.fromhex(written), dtype=np.uint8), "test").varint() == number


def test_too_few_or_too_many_bytes_are_refused_by_name() -> None:
    values = np.array([3, 900, 41], dtype=np.int64)
    widths = np.array([2, 5, 0], dtype=np.int64)
    data = np.frombuffer(write_array(values, widths), dtype=np.uint8)
    for wrong in (data[:-1], data[:1], data[:0], np.concatenate([data, data[:1]])):
        with pytest.raises(IntegrityError, match="row 7: these are not the bytes of a row"):
            reader = ArrayReader(wrong, "row 7")
            reader.array(widths)
            reader.finish()
    for count in (2, 4):
        with pytest.raises(IntegrityError, match="row 7"):
            ArrayReader(data, "row 7").array(np.zeros(count, dtype=np.int64))
    with pytest.raises(IntegrityError, match="row 7"):
        ArrayReader(np.array([24, 0], dtype=np.uint8), "row 7").fitted(0)
