"""The arithmetic of packed students, twice: compiled kernels, and PyTorch with the same integers.

    products = best_products(threads=2)
    rounded = products.rounded(states, gain, eps)        # RMSNorm, then 8 bits a number
    outputs = products.ternary(layer, rounded)           # [n, out]
    logits = products.table(table, scales, states[-1])   # [V]

Both sum integers exactly: PyTorch's products run in float32 over integers whose sums stay below 2 ** 24.
"""

import ctypes
import os
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.errors import UserError
from limbeck.models.bitnet.linear import rounded_inputs
from limbeck.models.packed.build import library
from limbeck.models.packed.layout import BLOCK, padded, unpack_codes

ENVIRONMENT = "LIMBECK_PACKED"


@dataclass
class PackedLayer:
    """A ternary layer: codes `[out, padded(in) / 4]`, gamma `[1]` or `[out]`, and its width of inputs."""

    codes: Tensor
    gamma: Tensor
    width: int
    unpacked: Tensor | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Rounded:
    """Inputs of n tokens in 8 bits: `[n, padded(in)]` int8, scales `[n]` float32, sums `[n]` int32."""

    numbers: Tensor
    scales: Tensor
    sums: Tensor


class Products(Protocol):
    """What a runtime needs beyond PyTorch.

    Attributes:
        name: the instruction set, or `torch`.
        half: whether `attend` reads caches of 16-bit floats.
    """

    name: str
    half: bool

    def rounded(self, inputs_nd: Tensor, gain: Tensor | None = None, eps: float = 0.0) -> Rounded:
        """Return inputs in 8 bits, after an RMSNorm if a gain is given; the inputs' memory may be taken over."""
        ...

    def ternary(self, layer: PackedLayer, inputs: Rounded) -> Tensor:
        """Return outputs `[n, out]`, float32."""
        ...

    def table(self, table_vd: Tensor, scales_v: Tensor, state_d: Tensor) -> Tensor:
        """Return `scale_v * table_v @ state`, `[V]`, float32."""
        ...

    def attend(self, queries_hd: Tensor, keys: Tensor, values: Tensor, length: int, scale: float, cap: float) -> Tensor:
        """Return attention of one token over the first `length` positions of a cache, `[H, d]`.

        Args:
            queries_hd: float32 `[H, d]`.
            keys: `[kept heads, capacity, d]`.
            values: the same.
            length: positions that are filled.
            scale: of the scores.
            cap: soft-cap of the scores; 0: none.
        """
        ...


class CompiledProducts:
    """Products by the compiled kernels."""

    half: bool

    def __init__(self, kernels: ctypes.CDLL, name: str, threads: int) -> None:
        self.name = name
        self._kernels = kernels
        self._threads = threads
        self.half = bool(kernels.limbeck_has_half())

    def rounded(self, inputs_nd: Tensor, gain: Tensor | None = None, eps: float = 0.0) -> Rounded:
        """See `Products`."""
        tokens, width = inputs_nd.shape
        whole = padded(width)
        numbers = torch.empty((tokens, whole), dtype=torch.int8)
        scales, sums = torch.empty(tokens), torch.empty(tokens, dtype=torch.int32)
        self._kernels.limbeck_round(
            _at(inputs_nd), _at(gain), ctypes.c_float(eps), _at(numbers), _at(scales), _at(sums), width, whole, tokens
        )
        return Rounded(numbers, scales, sums)

    def ternary(self, layer: PackedLayer, inputs: Rounded) -> Tensor:
        """See `Products`."""
        tokens, rows = len(inputs.sums), len(layer.codes)
        outputs = torch.empty((tokens, rows))
        self._kernels.limbeck_ternary(
            _at(layer.codes), _at(layer.gamma), int(len(layer.gamma) > 1), _at(inputs.numbers), _at(inputs.scales),
            _at(inputs.sums), _at(outputs), rows, inputs.numbers.shape[1] // BLOCK, tokens, self._threads,
        )  # fmt: skip
        return outputs

    def sums(self, layer: PackedLayer, inputs: Rounded) -> Tensor:
        """Return the integers `sum_i code_i x_i`, int32 `[n, out]`, before any scale."""
        tokens, rows = len(inputs.sums), len(layer.codes)
        found = torch.empty((tokens, rows), dtype=torch.int32)
        self._kernels.limbeck_ternary_sums(
            _at(layer.codes), _at(inputs.numbers), _at(inputs.sums), _at(found), rows,
            inputs.numbers.shape[1] // BLOCK, tokens,
        )  # fmt: skip
        return found

    def table(self, table_vd: Tensor, scales_v: Tensor, state_d: Tensor) -> Tensor:
        """See `Products`."""
        rows, width = table_vd.shape
        logits = torch.empty(rows)
        self._kernels.limbeck_table(_at(table_vd), _at(scales_v), _at(state_d), _at(logits), rows, width, self._threads)
        return logits

    def attend(self, queries_hd: Tensor, keys: Tensor, values: Tensor, length: int, scale: float, cap: float) -> Tensor:
        """See `Products`."""
        (heads, width), (kept, capacity, _) = queries_hd.shape, keys.shape
        found, scores = torch.empty((heads, width)), torch.empty((heads, capacity))
        self._kernels.limbeck_attend(
            _at(queries_hd), _at(keys), _at(values), int(keys.dtype == torch.float16), _at(scores), _at(found), heads,
            kept, width, length, capacity, ctypes.c_float(scale), ctypes.c_float(cap), self._threads,
        )  # fmt: skip
        return found


class TorchProducts:
    """The same products in PyTorch alone; weights are unpacked once, to 32 bits each."""

    name = "torch"
    half = True

    def rounded(self, inputs_nd: Tensor, gain: Tensor | None = None, eps: float = 0.0) -> Rounded:
        """See `Products`."""
        if gain is not None:
            inputs_nd = F.rms_norm(inputs_nd, gain.shape, gain, eps)
        numbers, scales = rounded_inputs(inputs_nd)
        return Rounded(numbers.to(torch.int8), scales[:, 0], numbers.sum(1).to(torch.int32))

    def ternary(self, layer: PackedLayer, inputs: Rounded) -> Tensor:
        """See `Products`."""
        if layer.unpacked is None:
            layer.unpacked = unpack_codes(layer.codes, layer.width).float()
        return (inputs.numbers.float() @ layer.unpacked.T) * inputs.scales[:, None] * layer.gamma

    def table(self, table_vd: Tensor, scales_v: Tensor, state_d: Tensor) -> Tensor:
        """See `Products`."""
        found = [(part.float() @ state_d) for part in table_vd.split(4096)]
        return torch.cat(found) * scales_v

    def attend(self, queries_hd: Tensor, keys: Tensor, values: Tensor, length: int, scale: float, cap: float) -> Tensor:
        """See `Products`."""
        heads, width = queries_hd.shape
        grouped = queries_hd.view(len(keys), -1, width)
        scores = torch.einsum("kgd,kld->kgl", grouped, keys[:, :length].float()) * scale
        scores = cap * torch.tanh(scores / cap) if cap else scores
        return torch.einsum("kgl,kld->kgd", scores.softmax(-1), values[:, :length].float()).reshape(heads, width)


def best_products(threads: int | None = None) -> Products:
    """Return the fastest products that this machine has, or those that `LIMBECK_PACKED` names.

    Args:
        threads: None: as many as PyTorch uses.

    Raises:
        UserError: the environment names an instruction set that is not there.
    """
    wanted = os.environ.get(ENVIRONMENT, "")
    if wanted == "torch":
        return TorchProducts()
    kernels = _load()
    if kernels is None:
        if wanted:
            raise UserError(f"{ENVIRONMENT}={wanted}: the kernels could not be compiled. Install a C compiler (cc).")
        return TorchProducts()
    name = kernels.limbeck_use(wanted.encode() or None)
    if name is None:
        raise UserError(
            f"{ENVIRONMENT}={wanted}: this machine has no such instructions. Leave it out for the best there is, or "
            "name torch, plain, avx2, avx512vnni or neon."
        )
    return CompiledProducts(kernels, name.decode(), threads or torch.get_num_threads())


@lru_cache(maxsize=1)
def _load() -> ctypes.CDLL | None:
    path = library()
    if path is None:
        return None
    kernels = ctypes.CDLL(str(path))
    kernels.limbeck_use.restype = ctypes.c_char_p
    kernels.limbeck_use.argtypes = [ctypes.c_char_p]
    return kernels


def _at(tensor: Tensor | None) -> ctypes.c_void_p | None:
    return None if tensor is None else ctypes.c_void_p(tensor.data_ptr())
