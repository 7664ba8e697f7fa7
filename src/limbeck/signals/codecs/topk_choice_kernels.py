"""What codec `topk` writes of a position, compiled by numba: checked, chosen, rounded, as in `topk_prepare`.

Nothing is explained here: of a signal with a fault the first bad position is returned, and `topk_prepare` says what is
wrong with it. Rounding errors differ from there by a few units in the last place of a float64, so that the two can
differ where a number lies that close to the edge of a step.
"""

import math
from typing import Any

import numpy as np

from limbeck.signals.codecs.compiling import compiled
from limbeck.signals.codecs.topk_bits import bits_of, float_of
from limbeck.signals.codecs.topk_layout import RATIO_TOP, TAIL_CENTRE, TAIL_CODES, TAIL_STEPS
from limbeck.signals.codecs.topk_prepare import LOGPROB_TOLERANCE, MASS_TOLERANCE, NOISE
from limbeck.signals.codecs.topk_spec import TOP_LEVEL

BY_THRESHOLD, BY_MASS, BY_COUNT = 0, 1, 2
ROOM = 8  # what buffers have beyond the number of entries
_LOWEST = -700.0  # e to this power is nothing beside a probability that is kept
_LOG2_E = 1 / math.log(2)
_LN_2_HIGH = float.fromhex("0x1.62e42fee00000p-1")
_LN_2_LOW = float.fromhex("0x1.a39ef35793c76p-33")
_ROUND = 1.5 * 2.0**52  # added to a number, it leaves the nearest integer in the lowest bits


@compiled()
def exponentials(values: Any, scale: float, shift: float, count: int, into: Any) -> None:
    """Fill `into` with `exp(scale * (values - shift))`, at least exp(-700), to about a unit in the last place.

    With x = n log 2 + r and |r| <= log(2) / 2: exp(x) = 2^n (1 + r + r^2/2! + ... + r^13/13!). `into` must have room
    for the next multiple of eight, and `values` something to read there.
    """
    for index in range((count + 7) >> 3 << 3):
        x = scale * (values[index] - shift)
        x = x if x > _LOWEST else _LOWEST
        rounded = x * _LOG2_E + _ROUND
        octaves = rounded - _ROUND
        r = (x - octaves * _LN_2_HIGH) - octaves * _LN_2_LOW
        series = 1 / 362880 + r * (1 / 3628800 + r * (1 / 39916800 + r * (1 / 479001600 + r * (1 / 6227020800))))
        series = 1 / 120 + r * (1 / 720 + r * (1 / 5040 + r * (1 / 40320 + r * series)))
        series = 1.0 + r * (1.0 + r * (0.5 + r * (1 / 6 + r * (1 / 24 + r * series))))
        into[index] = float_of(bits_of(series) + (bits_of(rounded) << 52))


@compiled()
def _faults(ids: Any, logprobs: Any, vocabulary: int) -> tuple[int, int]:
    """Return how many entries of a position are present, and how many faults there are."""
    present, wrong = 0, 0
    for entry in range(len(logprobs)):
        present += logprobs[entry] > -np.inf
    if not logprobs[0] <= LOGPROB_TOLERANCE:
        wrong += 1
    for entry in range(1, len(logprobs)):
        wrong += not logprobs[entry] <= logprobs[entry - 1]
    for entry in range(present):
        wrong += not 0 <= ids[entry] < vocabulary
    return present, wrong + (present > vocabulary) + (present == 0)


@compiled("reassoc", "nsz")
def _sum(values: Any, first: int, last: int) -> float:
    total = 0.0
    for index in range(first, last):
        total += values[index]
    return total


@compiled()
def _kept(probabilities: Any, present: int, select: int, threshold: float, mass: float, cap: int) -> int:
    count = 0
    if select == BY_THRESHOLD:
        for entry in range(present):
            count += probabilities[entry] >= threshold
    elif select == BY_MASS:
        sum_so_far = 0.0
        while count < present and (count == 0 or sum_so_far < mass):
            sum_so_far += probabilities[count]
            count += 1
    else:
        count = present
    return min(max(count, 1), cap)


@compiled()
def _levels(
    values: Any, probabilities: Any, total: float, count: int, origin: float, width: float, power: float, highest: int,
    raised: Any, levels: Any,
) -> None:  # fmt: skip
    """Fill `levels` with those of the shares that entries have of `total`."""
    if power == 0.5:
        for entry in range(count):
            raised[entry] = math.sqrt(probabilities[entry] / total)
    elif power == 1.0:
        for entry in range(count):
            raised[entry] = probabilities[entry] / total
    else:
        exponentials(values, power, math.log(total), count, raised)
    for entry in range(count):
        level = np.int32((raised[entry] - origin) / width)  # cut off, and what was below 0 is 0 in any case
        levels[entry] = min(max(level, np.int32(0)), np.int32(highest))


@compiled()
def _tail_code(head: float, tail: float) -> int:
    code = int(np.rint(math.log2(tail / head) * TAIL_STEPS)) + TAIL_CENTRE if head > 0 else TAIL_CODES
    return min(max(code, 1), TAIL_CODES - 1)


@compiled()
def _ratio_code(known: float, head: float, log_tail: float, temperature: float, rest: int) -> int:
    """Return the code of the tail at a temperature, where entries and tail make `exp(known)` and the entries `head`."""
    span = (1 - 1 / temperature) * math.log(float(max(rest, 1)))
    tail = math.exp(known) - head
    if span == 0.0 or not math.isfinite(tail):
        return 0
    base = log_tail / temperature
    least = math.exp(base + min(span, 0.0))
    if tail > NOISE * math.exp(known):
        least = max(least, tail)
    share = (math.log(least) - base) / span
    return int(min(max(np.rint(share * RATIO_TOP), 0.0), float(RATIO_TOP)))


@compiled()
def choose(
    ids: Any, logprobs: Any, log_tails: Any, normalisers: Any, mask: Any, first: int, last: int,
    vocabulary: int, select: int, threshold: float, mass: float, cap: int, origin: float, width: float, power: float,
    highest: int, with_base: bool, temperatures: Any, log_tail_table: Any, index_bits: int,
    counts: Any, keys: Any, levels: Any, bases: Any, tails: Any, ratios: Any,
) -> int:  # fmt: skip
    """Choose and round the entries of positions `first..last`; return -1, or the first position with a fault.

    Args:
        ids: `[N, K]`.
        logprobs: float32 or float64 `[N, K]`, falling.
        log_tails: float64 `[N]`.
        normalisers: float64 `[N, S]`, at the temperatures.
        mask: `[N]`.
        first: a position.
        last: the one behind the last.
        vocabulary: V.
        select: one of the three above; what follows is of the description, and `highest` the highest level.
        threshold: see `TopkSpec`.
        mass: see `TopkSpec`.
        cap: see `Layout`.
        origin: see `TopkSpec`.
        width: see `TopkSpec`.
        power: see `TopkSpec`.
        highest: see `select`.
        with_base: see `Layout`.
        temperatures: `[S]`, other than 1.
        log_tail_table: see `TailTable`.
        index_bits: as many as K - 1 has.
        counts: `[N]`, to be filled: how many entries are kept.
        keys: `[N, K]`, to be filled: of each entry that is kept its id above `index_bits` of its place among the
            entries; behind those the greatest number there is.
        levels: uint16 `[N, K]`, to be filled, above the base, by place.
        bases: `[N]`, to be filled; `tails` and `ratios` `[N, S]` likewise.
        tails: see `bases`.
        ratios: see `bases`.
    """
    room = logprobs.shape[1] + ROOM
    values, probabilities = np.zeros(room, dtype=np.float64), np.zeros(room, dtype=np.float64)
    raised, steps = np.zeros(room, dtype=np.float64), np.zeros(room, dtype=np.int32)
    nothing = np.iinfo(keys.dtype).max
    for position in range(first, last):
        counts[position], bases[position], tails[position] = 0, 0, 0
        ratios[position] = 0
        row = keys[position]
        if not mask[position]:
            row[:] = nothing
            continue
        present, wrong = _faults(ids[position], logprobs[position], vocabulary)
        if wrong:
            return position
        for entry in range(present):
            values[entry] = logprobs[position, entry]
        exponentials(values, 1.0, 0.0, present, probabilities)
        count = _kept(probabilities, present, select, threshold, mass, cap)
        head = _sum(probabilities, 0, count)
        tail = _sum(probabilities, count, present) + math.exp(log_tails[position])
        total = head + tail
        if not abs(total - 1) < MASS_TOLERANCE:
            return position
        counts[position] = count
        if count < vocabulary and tail > 0:
            tails[position] = _tail_code(head, tail)

        _levels(values, probabilities, total, count, origin, width, power, highest, raised, steps)
        base = steps[count - 1] if with_base else np.int32(0)
        bases[position] = base
        to_levels, from_ids = levels[position], ids[position]
        for entry in range(count):
            to_levels[entry] = min(steps[entry] - base, np.int32(TOP_LEVEL))
        for entry in range(count):
            row[entry] = from_ids[entry] << index_bits | entry
        row[count:] = nothing

        for index in range(len(temperatures)):
            if tails[position]:
                temperature = temperatures[index]
                if temperature == 2.0:
                    for entry in range(count):
                        raised[entry] = math.sqrt(probabilities[entry])
                else:
                    exponentials(values, 1 / temperature, 0.0, count, raised)
                head = _sum(raised, 0, count)
                ratios[position, index] = _ratio_code(
                    normalisers[position, index], head, log_tail_table[tails[position]], temperature, vocabulary - count
                )
    return -1
