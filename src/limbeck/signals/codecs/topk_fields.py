"""The numbers of a group of positions, each kind together: what they start from, how they are written, the numbers.

A field is the counts of entries of a group's positions, or their base levels, their tails, their ratios at one
temperature. Its least number comes first, then a mode, then what each number is above the least: in the Exp-Golomb code
of that order, or in a fixed number of bits. The writer takes the cheapest mode, the first of those that tie.
"""

from collections.abc import Sequence

from limbeck.signals.codecs.topk_layout import GOLOMB_MODES

MOST_ZEROS = 17  # before an Exp-Golomb code's number: no number of a field needs more
MODES = GOLOMB_MODES + MOST_ZEROS + 1


def cheapest_mode(above: Sequence[int]) -> int:
    """Return the mode for these numbers, from 0 up."""
    width = max(above).bit_length()
    costs = [sum(exp_golomb_bits(number, order) for number in above) for order in range(GOLOMB_MODES)]
    best = min(range(GOLOMB_MODES), key=costs.__getitem__)
    return best if costs[best] <= width * len(above) else GOLOMB_MODES + width


def exp_golomb_bits(number: int, order: int) -> int:
    """Return the length of a number in the Exp-Golomb code of this order."""
    return 2 * (number + (1 << order)).bit_length() - order - 1
