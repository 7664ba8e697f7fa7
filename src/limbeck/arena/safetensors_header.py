"""Read a safetensors file's header, and nothing else of it, without trusting a byte.

Format: 8 bytes little-endian length N; N bytes of JSON, an object of `name: {"dtype", "shape", "data_offsets"}` and
perhaps `"__metadata__"`; then the data, which the offsets (relative to its start) must cover without hole or overlap
(https://github.com/huggingface/safetensors#format). Memory is bounded by `MAX_HEADER_BYTES`.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

MAX_HEADER_BYTES = 8 << 20
MAX_DIMENSIONS = 8

BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip


class HeaderError(ValueError):
    """The bytes are not a sound safetensors file; the message says where they are wrong."""


@dataclass(frozen=True)
class TensorInfo:
    """One tensor as its header describes it; `start` and `stop` are absolute positions in the file, in bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def elements(self) -> int:
        """Number of elements."""
        return prod(self.shape)


def read_header(read: Callable[[int, int], bytes], size: int) -> tuple[TensorInfo, ...]:
    """Return the tensors of a file, by position.

    Args:
        read: returns `length` bytes from `start`: a file's or an HTTP range's.
        size: the file's size in bytes.

    Raises:
        HeaderError: the header is absurd, is no JSON, or its tensors overlap, leave holes or lie outside the file.
    """
    if size < 8:
        raise HeaderError(f"the file has {size} bytes, too few for a safetensors header")
    length = int.from_bytes(read(0, 8), "little")
    if length > MAX_HEADER_BYTES:
        raise HeaderError(f"the header claims {length:,} bytes; at most {MAX_HEADER_BYTES:,} are read")
    if 8 + length > size:
        raise HeaderError(f"the header claims {length:,} bytes, and the file has {size:,}")
    try:
        header = json.loads(read(8, length), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise HeaderError(f"the header is not JSON ({error})") from error
    if not isinstance(header, dict):
        raise HeaderError("the header is not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise HeaderError("__metadata__ is not an object of strings")
    tensors = sorted(
        (_tensor(name, entry, 8 + length) for name, entry in header.items()), key=lambda t: (t.start, t.stop)
    )
    _check_cover(tensors, 8 + length, size)
    return tuple(tensors)


def _tensor(name: str, entry: Any, data_start: int) -> TensorInfo:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise HeaderError(f"tensor {name[:100]!r} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise HeaderError(f"tensor {name[:100]!r} has the unknown dtype {str(dtype)[:40]!r}")
    if not _are_sizes(shape) or len(shape) > MAX_DIMENSIONS:
        raise HeaderError(f"tensor {name[:100]!r} has no sound shape")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise HeaderError(f"tensor {name[:100]!r} has no sound data_offsets")
    tensor = TensorInfo(name, dtype, tuple(shape), data_start + offsets[0], data_start + offsets[1])
    if tensor.elements * BITS[dtype] != 8 * (tensor.stop - tensor.start):
        raise HeaderError(f"tensor {name[:100]!r} has {tensor.stop - tensor.start:,} bytes, and its shape needs others")
    return tensor


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**48 for value in values)


def _check_cover(tensors: list[TensorInfo], data_start: int, size: int) -> None:
    position = data_start
    for tensor in tensors:
        if tensor.start != position:
            what = "overlaps the tensor before it" if tensor.start < position else "leaves a hole before it"
            raise HeaderError(f"tensor {tensor.name[:100]!r} {what}")
        position = tensor.stop
        if position > size:
            raise HeaderError(f"tensor {tensor.name[:100]!r} ends at byte {position:,}, and the file has {size:,}")
    if position != size:
        raise HeaderError(f"{size - position:,} bytes at the end belong to no tensor")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = dict(pairs)
    if len(keys) != len(pairs):
        raise HeaderError("a name stands twice in the header")
    return keys
