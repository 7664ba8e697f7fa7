"""Codec `topk` by compiled kernels: signals and bytes are laid out for them, and groups are shared among threads.

Importing this module takes half a second, as it imports numba, and compiles nothing; the first call does (once for an
installation: the result is kept on disk).
"""

from collections.abc import Sequence

import numpy as np
import torch

from limbeck.errors import IntegrityError
from limbeck.signals.codecs.columns import Column, Integers
from limbeck.signals.codecs.registry import positions_of
from limbeck.signals.codecs.topk_bits import PADDING
from limbeck.signals.codecs.topk_choice_kernels import BY_COUNT, BY_MASS, BY_THRESHOLD, choose
from limbeck.signals.codecs.topk_decode_kernels import decode_groups
from limbeck.signals.codecs.topk_encode_kernels import encode_groups
from limbeck.signals.codecs.topk_layout import Layout, tail_table
from limbeck.signals.codecs.topk_reference import DuplicateIdError
from limbeck.signals.codecs.topk_rows import in_threads
from limbeck.signals.codecs.topk_spec import TopkSpec
from limbeck.signals.codecs.topk_values import Values
from limbeck.signals.codecs.topk_windows import windows
from limbeck.signals.types import TopkSignal

SELECT = {"threshold": BY_THRESHOLD, "mass": BY_MASS, "count": BY_COUNT}
BYTES_A_GROUP, BYTES_A_POSITION, BYTES_A_FIELD, BYTES_AN_ENTRY = 80, 32, 8, 7  # more than any of them takes


def encode(
    signal: TopkSignal, groups: Integers, spec: TopkSpec, layout: Layout
) -> tuple[list[memoryview], Integers] | None:
    """Return the bytes of each group and the counts of entries `[N]`; None if something is wrong with the signal.

    Args:
        signal: `[N, K]`.
        groups: `[G + 1]`; group g is positions `groups[g]..groups[g + 1]`.
        spec: what is kept.
        layout: the shared tables.

    Raises:
        DuplicateIdError: a position names a token twice.
    """
    total, wide = int(groups[-1]), signal.logprobs.shape[-1]
    known = [signal.temperatures.index(t) for t in layout.ratios if t in signal.temperatures]
    if len(signal.mask) != total or signal.ids.shape != (total, wide) or len(known) < len(layout.ratios) or not wide:
        return None
    exact = torch.float64 if signal.logprobs.dtype == torch.float64 else torch.float32
    ids = signal.ids.detach().to("cpu", torch.int64).contiguous().numpy()
    logprobs = signal.logprobs.detach().to("cpu", exact).contiguous().numpy()
    log_tails = signal.log_tail_mass.detach().to("cpu", torch.float64).numpy()
    normalisers = signal.log_normalisers.detach().to("cpu", torch.float64)[:, known].contiguous().numpy()
    mask = signal.mask.detach().cpu().contiguous().numpy()

    index_bits = (wide - 1).bit_length()
    narrow = (layout.vocabulary - 1).bit_length() + index_bits <= 31
    keys = np.empty((total, wide), dtype=np.int32 if narrow else np.int64)
    levels = np.empty((total, wide), dtype=np.uint16)
    counts, bases, tails = (np.empty(total, dtype=np.int64) for _ in range(3))
    ratios = np.empty((total, len(known)), dtype=np.int64)
    fields = BYTES_A_FIELD * (3 + len(known))
    room = BYTES_A_POSITION + fields + BYTES_AN_ENTRY * min(wide, layout.cap)
    begins = groups[:-1] * room + np.arange(len(groups) - 1) * (BYTES_A_GROUP + fields)
    out = np.empty(total * room + len(groups) * (BYTES_A_GROUP + fields), dtype=np.uint8)
    sizes = np.zeros(len(groups) - 1, dtype=np.int64)
    temperatures, table, codes = np.array(layout.ratios, dtype=np.float64), tail_table().log, layout.codes

    def work(first: int, last: int) -> tuple[int, int]:
        here, end = int(groups[first]), int(groups[last])
        fault: int = choose(
            ids, logprobs, log_tails, normalisers, mask, here, end,
            layout.vocabulary, SELECT[spec.select], spec.threshold, spec.mass, layout.cap,
            spec.origin, spec.width, spec.power, len(layout.low) - 1, layout.with_base, temperatures, table, index_bits,
            counts, keys, levels, bases, tails, ratios,
        )  # fmt: skip
        if fault >= 0:
            return fault, -1
        keys[here:end].sort(axis=1)
        twin: int = encode_groups(
            counts, keys, index_bits, levels, bases, tails, ratios,
            groups, first, last, layout.with_base, layout.rice,
            codes.lengths, codes.by_symbol, codes.words, codes.spelt, codes.raw_bits, codes.first_level,
            begins, out, sizes,
        )  # fmt: skip
        return -1, twin

    found = in_threads(work, len(sizes))
    if any(fault >= 0 for fault, _ in found):
        return None
    if twins := [twin for _, twin in found if twin >= 0]:
        raise DuplicateIdError(min(twins))
    data = out.data
    return [data[at : at + size] for at, size in zip(begins.tolist(), sizes.tolist(), strict=True)], counts


def decode(
    column: Column, begins: Integers, ends: Integers, groups: Integers, width: int, layout: Layout,
    lengths: Sequence[int],
) -> tuple[Integers, Integers, Values]:  # fmt: skip
    """Return the counts of entries `[N]`, the ids `[N, K]`, and what `topk_values.rebuild` returns.

    Args:
        column: the bytes.
        begins: `[G]`, where each group begins in them.
        ends: `[G]`.
        groups: `[G + 1]`; group g is positions `groups[g]..groups[g + 1]`.
        width: K, no less than the entries of any position.
        layout: the shared tables.
        lengths: positions of each row.

    Raises:
        IntegrityError: the bytes are not what `encode` writes; row and position are named.
    """
    codes, tails, several = layout.codes, tail_table(), windows()
    data = np.empty(len(column.data) + PADDING, dtype=np.uint8)
    data[: len(column.data)], data[len(column.data) :] = column.data, 0
    total, spare = int(groups[-1]), len(layout.ratios)
    counts, ids = np.empty(total, dtype=np.int64), np.empty((total, width), dtype=np.int64)
    logprobs, log_tail, normalisers = (
        np.empty(shape, dtype=np.float32) for shape in ((total, width), total, (total, spare))
    )
    bases, codes_of_tails = np.zeros(total, dtype=np.int64), np.zeros(total, dtype=np.int64)
    codes_of_ratios = np.zeros((total, spare), dtype=np.int64)
    temperatures = np.array(layout.ratios, dtype=np.float64)

    def work(first: int, last: int) -> int:
        bad: int = decode_groups(
            data, begins, ends, groups, first, last, layout.cap, layout.vocabulary, layout.with_base,
            layout.rice, several.found, several.ends, codes.table, codes.raw_bits, codes.first_level,
            tails.log, tails.mass, tails.least, tails.most,
            layout.high, layout.floor, layout.ceiling, layout.rules,
            temperatures, bases, codes_of_tails, codes_of_ratios,
            counts, ids, logprobs, log_tail, normalisers,
        )  # fmt: skip
        return bad

    if bad := [position for position in in_threads(work, len(begins)) if position >= 0]:
        raise IntegrityError(f"codec topk: {positions_of(lengths, min(bad))}: these are not the bits of a position.")
    return counts, ids, (logprobs, log_tail, normalisers)
