"""Packed codes come back as they were, and are laid out as documented."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limbeck.errors import IntegrityError
from limbeck.models.packed.layout import pack_codes, padded, round_table, unpack_codes


def drawn_codes(rows: int, width: int, seed: int) -> torch.Tensor:
    return torch.randint(-1, 2, (rows, width), generator=torch.Generator().manual_seed(seed))


@given(st.integers(1, 5), st.integers(1, 300), st.integers(0, 99))
def test_codes_come_back(rows: int, width: int, seed: int) -> None:
    codes = drawn_codes(rows, width, seed)
    packed = pack_codes(codes)
    assert packed.shape == (rows, padded(width) // 4)
    assert torch.equal(unpack_codes(packed, width), codes.to(torch.int8))


def test_a_byte_holds_four_weights_32_apart() -> None:
    codes = torch.zeros((1, 256), dtype=torch.int64)
    codes[0, 5], codes[0, 37], codes[0, 69], codes[0, 101] = 1, -1, 0, 1
    codes[0, 128 + 31] = -1
    packed = pack_codes(codes)
    assert packed[0, 5] == 2 | 0 << 2 | 1 << 4 | 2 << 6
    assert packed[0, 32 + 31] == 0 | 1 << 2 | 1 << 4 | 1 << 6
    assert packed[0, 0] == 0b01010101


def test_a_value_that_no_weight_has_is_found() -> None:
    packed = pack_codes(drawn_codes(2, 100, 0))
    wrong = packed.clone()
    wrong[1, 3] |= 3
    with pytest.raises(IntegrityError, match="no weight has"):
        unpack_codes(wrong, 100)
    filling = packed.clone()
    filling[0, 31] = 0  # weights 31, 63, 95, and the filling 127
    with pytest.raises(IntegrityError, match="no weight has"):
        unpack_codes(filling, 100)


def test_tables_are_off_by_half_a_step_at_most_and_round_trip() -> None:
    table = torch.randn(20, 30, generator=torch.Generator().manual_seed(0))
    table[3] = 0
    values, scales = round_table(table)
    back = values.float() * scales[:, None]
    assert ((back - table).abs() <= scales[:, None] / 2 * (1 + 1e-6)).all()
    again, same = round_table(back)
    assert torch.equal(again, values) and torch.allclose(same, scales, rtol=1e-6)
