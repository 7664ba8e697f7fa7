"""How a packed student's numbers lie in memory: ternary weights in 2 bits, embeddings in 8.

A row of ternary weights is cut into blocks of 128, filled up with zeros. A block takes 32 bytes: byte j holds weights
j, j + 32, j + 64 and j + 96 in bits 0-1, 2-3, 4-5 and 6-7, each as weight + 1 (so 3 never occurs). A row of an
embedding is rounded to 8 bits with one scale, its largest magnitude over 127.
"""

import torch
from torch import Tensor

from limbeck.errors import IntegrityError

BLOCK, BYTES = 128, 32


def padded(width: int) -> int:
    """Return a width filled up to whole blocks."""
    return -(-width // BLOCK) * BLOCK


def pack_codes(codes_oi: Tensor) -> Tensor:
    """Return codes in {-1, 0, 1}, `[out, in]`, as bytes `[out, padded(in) / 4]`, uint8."""
    rows, width = codes_oi.shape
    whole = torch.ones((rows, padded(width)), dtype=torch.uint8, device=codes_oi.device)
    whole[:, :width] = (codes_oi + 1).to(torch.uint8)
    parts = whole.view(rows, -1, 4, BYTES).unbind(2)
    return (parts[0] | parts[1] << 2 | parts[2] << 4 | parts[3] << 6).reshape(rows, -1)


def unpack_codes(packed_ob: Tensor, width: int) -> Tensor:
    """Return the codes, int8 `[out, width]`, of bytes as `pack_codes` makes them.

    Raises:
        IntegrityError: the value 3 occurs, or the filling is not zeros.
    """
    blocks = packed_ob.view(len(packed_ob), -1, 1, BYTES)
    shifts = torch.arange(0, 8, 2, dtype=torch.uint8, device=packed_ob.device).view(1, 1, 4, 1)
    codes = ((blocks >> shifts) & 3).reshape(len(packed_ob), -1)
    if bool((codes == 3).any()) or bool((codes[:, width:] != 1).any()):
        raise IntegrityError("packed codes hold a value that no weight has.")
    return codes[:, :width].to(torch.int8) - 1


def round_table(table_vd: Tensor) -> tuple[Tensor, Tensor]:
    """Return an embedding `[V, D]` in 8 bits, int8, and the scale of each row, float32 `[V]`."""
    scales = (table_vd.float().abs().amax(1) / 127).clamp(min=torch.finfo(torch.float32).tiny)
    return (table_vd.float() / scales[:, None]).round_().clamp_(-127, 127).to(torch.int8), scales
