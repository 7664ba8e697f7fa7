"""What codecs `distillkit` and `distillkit_legacy` do for every position, in threads and by compiled code where it is.

Where numba can't be imported, and where something is wrong with an entry, the plain functions do the same.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limbeck.signals.codecs.bit_packing import pack_bits, packed_bytes, unpack_bits
from limbeck.signals.codecs.columns import Bytes, Integers
from limbeck.signals.codecs.topk_entries import ABSENT, fixed_entries, signal_of_entries
from limbeck.signals.types import TopkSignal

Path = Literal["auto", "compiled", "plain"]
AT_ONCE = 512  # positions whose numbers fit into a processor's cache
WIDEST = 56  # bits that the compiled packing can shift by bytes


def load_kernels(path: Path) -> ModuleType | None:
    """Return the compiled functions; None where they are not to be used, or can't be."""
    if path == "plain":
        return None
    try:
        from limbeck.signals.codecs import distillkit_kernels  # numba takes half a second to import
    except ImportError:
        if path == "compiled":
            raise
        return None
    return distillkit_kernels


def in_parts(work: Callable[[int, int], Any], positions: int) -> list[Any]:
    """Call `work(first, last)` on stretches of positions, in torch's number of threads; return its answers in order."""
    edges = [*range(0, positions, AT_ONCE), positions]
    threads = min(torch.get_num_threads(), len(edges) - 1)
    if threads <= 1:
        return list(map(work, edges[:-1], edges[1:]))
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, edges[:-1], edges[1:]))


def take_entries(
    signal: TopkSignal, lengths: Sequence[int], count: int, vocabulary: int, codec: str, kernels: ModuleType | None
) -> tuple[Integers, Tensor]:
    """Return the first `count` entries of a signal; see `topk_entries.fixed_entries`."""
    total = sum(lengths)
    if kernels is not None and signal.ids.shape == signal.logprobs.shape and signal.ids.shape[:1] == (total,):
        logprobs_NK = signal.logprobs.detach().cpu()
        if logprobs_NK.dtype not in (torch.float32, torch.float64):
            logprobs_NK = logprobs_NK.float()
        given = (signal.ids.detach().cpu().long().numpy(), logprobs_NK.numpy(), signal.mask.detach().cpu().numpy())
        ids = np.zeros((total, count), dtype=np.int64)
        values = np.full((total, count), ABSENT)

        def work(first: int, last: int) -> bool:
            seen = np.full(vocabulary, -1, dtype=np.int64)
            return bool(kernels.take(*given, vocabulary, first, last, seen, ids, values))

        if all(in_parts(work, total)):
            return ids, torch.from_numpy(values)
    return fixed_entries(signal, lengths, count, vocabulary, codec)


def pack_ids(ids_NK: Integers, bits: int, kernels: ModuleType | None) -> Bytes:
    """Return `[N, packed_bytes(K, bits)]`; see `bit_packing.pack_bits`."""
    if kernels is None or bits > WIDEST:
        return pack_bits(ids_NK.astype(np.uint64), bits)
    out = np.empty((len(ids_NK), packed_bytes(ids_NK.shape[1], bits)), dtype=np.uint8)
    in_parts(lambda first, last: kernels.pack(ids_NK, bits, first, last, out), len(ids_NK))
    return out


def unpack_ids(data_NW: Bytes, count: int, bits: int, kernels: ModuleType | None) -> Integers:
    """Return `[N, count]`; see `bit_packing.unpack_bits`."""
    if kernels is None or bits > WIDEST:
        return unpack_bits(data_NW, count, bits).astype(np.int64)
    out = np.empty((len(data_NW), count), dtype=np.int64)
    in_parts(lambda first, last: kernels.unpack(data_NW, bits, first, last, out), len(data_NW))
    return out


def signal_of_values(
    ids_NK: Integers,
    values_of: Callable[[slice], Tensor],
    lengths: Sequence[int],
    vocabulary: int,
    codec: str,
    kernels: ModuleType | None,
) -> TopkSignal:
    """Return the signal that decoded entries are; see `topk_entries.signal_of_entries`.

    Args:
        ids_NK: as stored.
        values_of: returns the log-probabilities, float64 `[n, K]`, of a stretch of positions.
        lengths: positions of each row.
        vocabulary: V.
        codec: its name, for messages.
        kernels: the compiled functions.
    """
    total = len(ids_NK)
    if kernels is not None:
        ids = ids_NK.copy()
        logprobs: NDArray[np.float32] = np.empty(ids.shape, dtype=np.float32)
        log_tail: NDArray[np.float32] = np.empty(total, dtype=np.float32)
        mask = np.empty(total, dtype=np.bool_)

        def work(first: int, last: int) -> bool:
            values = np.ascontiguousarray(values_of(slice(first, last)).numpy())
            seen = np.full(vocabulary, -1, dtype=np.int64)
            return bool(kernels.arrange(values, first, vocabulary, seen, ids, logprobs, log_tail, mask))

        if all(in_parts(work, total)):
            return TopkSignal(
                ids=torch.from_numpy(ids),
                logprobs=torch.from_numpy(logprobs),
                log_tail_mass=torch.from_numpy(log_tail),
                log_normalisers=torch.zeros(total, 1),
                temperatures=(1.0,),
                mask=torch.from_numpy(mask),
            )
    parts = in_parts(lambda first, last: values_of(slice(first, last)), total)
    values_NK = torch.cat(parts) if parts else torch.zeros(ids_NK.shape, dtype=torch.float64)
    return signal_of_entries(ids_NK, values_NK, lengths, vocabulary, codec)
