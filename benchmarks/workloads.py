"""Next-token distributions over V = 151,936 tokens to measure codecs on: `flat` and `peaked`.

Both are Zipf laws with noise; ids are a fresh random permutation at every position, so that nothing about them can be
guessed and the bytes that they take are a bound for text. They stand for what a language model says on open and on
nearly decided positions; they are no language model.

| | most probable token (median) | mass of the first 128 |
|---|---|---|
| flat | .11 | .57 |
| peaked | .57 | .98 |
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from limbeck.seeds import derive_seed

V = 151_936
CHUNK = 32
NAMES = ("flat", "peaked")


def logits_of(name: str, positions: int, seed: int = 1) -> Iterator[Tensor]:
    """Yield logits `[n, V]`, float32, in chunks of up to 32 positions.

    With r the rank, from 1, and z standard normal: flat is `2 z - log r`; peaked is `s (0.65 z - 1.3 log r)` with a
    sharpness s between 1 and 2.5 that is spread evenly over the positions, in random order.
    """
    ranks_V = torch.arange(1, V + 1).log()
    order = torch.randperm(positions, generator=_generator(seed, name, "sharpness"))
    sharpness_N = 1 + 1.5 * (order + 0.5) / positions
    for first in range(0, positions, CHUNK):
        generator = _generator(seed, name, str(first))
        sharpness = sharpness_N[first : first + CHUNK, None]
        noise = torch.randn(len(sharpness), V, generator=generator)
        logits = 2 * noise - ranks_V if name == "flat" else sharpness * (0.65 * noise - 1.3 * ranks_V)
        yield torch.stack([row[torch.randperm(V, generator=generator)] for row in logits])


def _generator(seed: int, *labels: str) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(seed, *labels) % (1 << 63))
