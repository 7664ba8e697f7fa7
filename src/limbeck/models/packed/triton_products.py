"""The arithmetic of packed students on a GPU: 2-bit weights times 8-bit inputs, in Triton.

A program of the decode kernel takes some rows of weights and one token, and sums products; one of the prefill kernel
takes a tile of rows and one of tokens, and leaves the sums to the GPU's integer matrix units. Both read the packed
bytes as they lie in the file, each once, and sum 32-bit integers: what comes out is exact before it is scaled, and
scaled in the order of PyTorch's products.

Rounding divides and rounds as IEEE says (to even), so that a token's numbers are PyTorch's; where an RMSNorm goes
before, its sum may differ in the last digit, and a number by one.

With TRITON_INTERPRET=1 the kernels run on a CPU, slowly: that is how tests hold them to sums of integers. They have not
been measured on a GPU.
"""

from typing import Any

import torch
import triton  # type: ignore[import-not-found, import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, import-untyped, unused-ignore]
from torch import Tensor

from limbeck.models.bitnet.linear import LEAST_SCALE
from limbeck.models.packed.layout import BLOCK, BYTES, padded
from limbeck.models.packed.products import PackedLayer, Rounded, TorchProducts

DECODE_ROWS = 16
TILE_ROWS, TILE_TOKENS = 64, 32
FEW = 4  # tokens up to which weights are summed token by token: a tile would be filled up with zeros
INTEGERS = 12582912.0  # 1.5 * 2 ** 23: adding it rounds a float32 below 2 ** 22 to an integer, ties to even


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _decode_kernel(
    codes: Any, numbers: Any, sums: Any, scales: Any, gamma: Any, outputs: Any, rows: Any, blocks: Any,
    gamma_stride: Any, BLOCK: tl.constexpr, BYTES: tl.constexpr, ROWS: tl.constexpr,
) -> None:  # fmt: skip
    """Write outputs of some rows of weights for one token."""
    row_R = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token = tl.program_id(1).to(tl.int64)
    inside_R = row_R < rows
    byte_B = tl.arange(0, BYTES)
    total_R = tl.zeros((ROWS,), tl.int32)
    for block in range(blocks):
        places_RB = row_R[:, None].to(tl.int64) * (blocks * BYTES) + block * BYTES + byte_B[None, :]
        packed_RB = tl.load(codes + places_RB, mask=inside_R[:, None], other=0).to(tl.int32)
        for part in tl.static_range(4):
            x_B = tl.load(numbers + token * (blocks * BLOCK) + block * BLOCK + part * BYTES + byte_B).to(tl.int32)
            total_R += tl.sum(((packed_RB >> (2 * part)) & 3) * x_B[None, :], 1)
    total_R -= tl.load(sums + token)  # a code is its weight + 1
    scaled_R = total_R.to(tl.float32) * tl.load(scales + token)
    scaled_R *= tl.load(gamma + row_R * gamma_stride, mask=inside_R, other=0.0)
    tl.store(outputs + token * rows + row_R, scaled_R, mask=inside_R)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _tile_kernel(
    codes: Any, numbers: Any, sums: Any, scales: Any, gamma: Any, outputs: Any, rows: Any, blocks: Any, tokens: Any,
    gamma_stride: Any, BLOCK: tl.constexpr, BYTES: tl.constexpr, ROWS: tl.constexpr, TOKENS: tl.constexpr,
) -> None:  # fmt: skip
    """Write outputs of a tile of rows of weights for a tile of tokens."""
    row_R = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token_N = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    inside_R, inside_N = row_R < rows, token_N < tokens
    byte_B = tl.arange(0, BYTES)
    total_NR = tl.zeros((TOKENS, ROWS), tl.int32)
    for block in range(blocks):
        places_BR = row_R[None, :].to(tl.int64) * (blocks * BYTES) + block * BYTES + byte_B[:, None]
        packed_BR = tl.load(codes + places_BR, mask=inside_R[None, :], other=0)
        for part in tl.static_range(4):
            weights_BR = ((packed_BR >> (2 * part)) & 3).to(tl.int8)
            first = block * BLOCK + part * BYTES
            places_NB = token_N[:, None].to(tl.int64) * (blocks * BLOCK) + first + byte_B[None, :]
            x_NB = tl.load(numbers + places_NB, mask=inside_N[:, None], other=0)
            total_NR = tl.dot(x_NB, weights_BR, total_NR, out_dtype=tl.int32)
    total_NR -= tl.load(sums + token_N, mask=inside_N, other=0)[:, None]
    scaled_NR = total_NR.to(tl.float32) * tl.load(scales + token_N, mask=inside_N, other=0.0)[:, None]
    scaled_NR *= tl.load(gamma + row_R * gamma_stride, mask=inside_R, other=0.0)[None, :]
    places_NR = token_N[:, None].to(tl.int64) * rows + row_R[None, :]
    tl.store(outputs + places_NR, scaled_NR, mask=inside_N[:, None] & inside_R[None, :])


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _round_kernel(
    inputs: Any, gain: Any, numbers: Any, scales: Any, sums: Any, width: Any, whole: Any, eps: Any, least: Any,
    integers: Any, NORM: tl.constexpr, WIDTH: tl.constexpr,
) -> None:  # fmt: skip
    """Write a token's numbers, their scale and their sum, after an RMSNorm if there is a gain."""
    token = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, WIDTH)
    inside = place < width
    x = tl.load(inputs + token * width + place, mask=inside, other=0.0)
    if NORM:
        mean = tl.sum(x * x, 0) / width + eps
        x = x * tl.math.div_rn(1.0, tl.math.sqrt_rn(mean)) * tl.load(gain + place, mask=inside, other=0.0)
    scale = tl.math.div_rn(tl.maximum(tl.max(tl.abs(x), 0), least), 127.0)
    rounded = tl.math.div_rn(x, tl.zeros_like(x) + scale) + integers - integers
    rounded = tl.minimum(tl.maximum(rounded, -128.0), 127.0).to(tl.int32)
    tl.store(numbers + token * whole + place, rounded.to(tl.int8), mask=place < whole)
    tl.store(scales + token, scale)
    tl.store(sums + token, tl.sum(rounded, 0))


class TritonProducts(TorchProducts):
    """Products of tensors on a GPU; tables and attention are PyTorch's.

    Everything that is given lies on one device, and comes back on it.
    """

    name = "triton"
    half = True

    def rounded(self, inputs_nd: Tensor, gain: Tensor | None = None, eps: float = 0.0) -> Rounded:
        """See `Products`."""
        tokens, width = inputs_nd.shape
        device, whole = inputs_nd.device, padded(width)
        numbers = torch.empty((tokens, whole), dtype=torch.int8, device=device)
        scales, sums = torch.empty(tokens, device=device), torch.empty(tokens, dtype=torch.int32, device=device)
        inputs_nd = inputs_nd.contiguous()
        _round_kernel[(tokens,)](
            inputs_nd, inputs_nd if gain is None else gain, numbers, scales, sums, width, whole, eps, LEAST_SCALE,
            INTEGERS, NORM=gain is not None, WIDTH=triton.next_power_of_2(whole),
        )  # fmt: skip
        return Rounded(numbers, scales, sums)

    def ternary(self, layer: PackedLayer, inputs: Rounded) -> Tensor:
        """See `Products`."""
        tokens, rows, blocks = len(inputs.sums), len(layer.codes), inputs.numbers.shape[1] // BLOCK
        if layer.codes.shape[1] != blocks * BYTES:
            raise ValueError(f"weights of {layer.codes.shape[1] // BYTES} blocks, inputs of {blocks}")
        outputs = torch.empty((tokens, rows), device=inputs.numbers.device)
        stride = int(len(layer.gamma) > 1)
        given = layer.codes, inputs.numbers, inputs.sums, inputs.scales, layer.gamma, outputs, rows, blocks
        if tokens <= FEW:
            _decode_kernel[(triton.cdiv(rows, DECODE_ROWS), tokens)](
                *given, stride, BLOCK=BLOCK, BYTES=BYTES, ROWS=DECODE_ROWS
            )
        else:
            _tile_kernel[(triton.cdiv(rows, TILE_ROWS), triton.cdiv(tokens, TILE_TOKENS))](
                *given, tokens, stride, BLOCK=BLOCK, BYTES=BYTES, ROWS=TILE_ROWS, TOKENS=TILE_TOKENS
            )
        return outputs
