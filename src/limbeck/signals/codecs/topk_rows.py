"""A row of codec `topk` as one string of bytes: a short header, then its groups of positions.

    varint: the most entries that any position of the row has
    varint for each group of up to 32 positions: its bytes
    the groups, one after the other

A varint holds seven bits a byte, the lowest first; the top bit says that another byte follows.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import numpy as np
import torch

from limbeck.errors import IntegrityError
from limbeck.signals.codecs.columns import Column, Integers, offsets_of
from limbeck.signals.codecs.topk_layout import GROUP

GROUPS_A_THREAD = 32

T = TypeVar("T")


@dataclass(frozen=True)
class Groups:
    """How rows are cut into groups.

    Attributes:
        positions: int64 `[G + 1]`; group g is positions `positions[g]..positions[g + 1]`.
        rows: int64 `[R + 1]`; row r is groups `rows[r]..rows[r + 1]`.
    """

    positions: Integers
    rows: Integers


def groups_of(lengths: Sequence[int]) -> Groups:
    """Return the groups of rows of these lengths."""
    sizes: list[int] = []
    rows = [0]
    for length in lengths:
        whole, part = divmod(length, GROUP)
        sizes += [GROUP] * whole + [part] * (part > 0)
        rows.append(len(sizes))
    return Groups(offsets_of(sizes), np.array(rows, dtype=np.int64))


def join_rows(encoded: Sequence[bytes | memoryview], groups: Groups, counts_N: Integers) -> Column:
    """Return the column of rows whose groups are `encoded` and whose positions have `counts_N` entries."""
    strings = []
    for first, last in zip(groups.rows[:-1].tolist(), groups.rows[1:].tolist(), strict=True):
        most = counts_N[groups.positions[first] : groups.positions[last]].max(initial=0)
        parts = encoded[first:last]
        strings.append(b"".join([_varint(int(most)), *(_varint(len(part)) for part in parts), *parts]))
    data = np.frombuffer(b"".join(strings), dtype=np.uint8)
    return Column(data, offsets_of([len(string) for string in strings]))


def find_groups(column: Column, groups: Groups, cap: int) -> tuple[Integers, Integers, Integers]:
    """Return where in `column.data` each group begins and ends, and the most entries of any position of each row.

    Raises:
        IntegrityError: a header does not fit its row; the row is named.
    """
    begins: list[int] = []
    ends: list[int] = []
    widths: list[int] = []
    for row, (first, last) in enumerate(zip(groups.rows[:-1].tolist(), groups.rows[1:].tolist(), strict=True)):
        start, stop = int(column.offsets[row]), int(column.offsets[row + 1])
        numbers = _varints(column.data[start:stop].data)
        most, at = next(numbers, (cap + 1, 0))
        sizes = []
        for _ in range(last - first):
            size, at = next(numbers, (stop, at))
            sizes.append(size)
        if most > cap or at + sum(sizes) != stop - start:
            raise IntegrityError(
                f"codec topk: row {row}: {stop - start} bytes do not hold {last - first} groups of positions."
            )
        widths.append(most)
        for size in sizes:
            begins.append(start + at)
            at += size
            ends.append(start + at)
    begins_G, ends_G, widths_R = (np.array(found, dtype=np.int64) for found in (begins, ends, widths))
    return begins_G, ends_G, widths_R


def check_widths(counts_N: Integers, widths_R: Integers, groups: Groups) -> None:
    """Refuse rows whose header says another number of entries than their positions have.

    Raises:
        IntegrityError: the row is named.
    """
    for row, width in enumerate(widths_R.tolist()):
        first, last = groups.positions[groups.rows[row]], groups.positions[groups.rows[row + 1]]
        if (most := int(counts_N[first:last].max(initial=0))) != width:
            raise IntegrityError(
                f"codec topk: row {row}: positions of up to {most} entries, but {width} are announced."
            )


def in_threads(work: Callable[[int, int], T], groups: int) -> list[T]:
    """Call `work(first, last)` on ranges that make up all groups, in torch's number of threads; return its answers.

    The calling thread is one of them.
    """
    threads = max(1, min(torch.get_num_threads(), groups // GROUPS_A_THREAD))
    edges = [groups * part // threads for part in range(threads + 1)]
    if threads == 1:
        return [work(0, groups)]
    with ThreadPoolExecutor(threads - 1) as pool:
        others = [pool.submit(work, *pair) for pair in pairwise(edges[1:])]
        return [work(0, edges[1]), *(other.result() for other in others)]


def _varint(number: int) -> bytes:
    low: list[int] = []
    while number >= 0x80:
        low.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*low, number])


def _varints(data: memoryview) -> Iterator[tuple[int, int]]:
    """Yield the numbers at the start of `data`, each with where the next one begins."""
    number, shift = 0, 0
    for index, byte in enumerate(data):
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            yield number, index + 1
            number, shift = 0, 0
