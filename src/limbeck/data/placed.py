"""What every source of text gives: records, each with the place that it is from."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from limbeck.data.shapes import Record

Chosen = NDArray[np.bool_]
"""For each record, whether it is to be read."""
Placed = tuple[str, Record]
"""A record and where it is from."""


@dataclass(frozen=True)
class Records:
    """Records that can be read again and again, in the same order.

    Attributes:
        name: what messages call them.
        count: how many there are.
        read: yields those that are chosen, each with its place.
    """

    name: str
    count: Callable[[], int]
    read: Callable[[Chosen], Iterator[Placed]]
