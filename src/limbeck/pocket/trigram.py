"""The yardstick for the pocket teacher: an interpolated trigram model over the same tokens.

    p_n(w | context) = l * count(context w) / count(context) + (1 - l) * p_(n-1)(w | shorter context)

down to the uniform distribution (Jelinek and Mercer, 1980). The weight `l` of each order depends on how often the
context was seen, in buckets by powers of two, and is fitted by expectation-maximisation on validation text.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int64]
Probabilities = NDArray[np.float64]

BUCKETS = 16
ITERATIONS = 20
MOST = 1 - 1e-9  # a weight of exactly 1 would leave nothing for what was never seen


@dataclass(frozen=True)
class _Order:
    """Counts of one order: sorted keys of contexts and of contexts with their next token."""

    contexts: Tokens
    context_counts: Tokens
    grams: Tokens
    gram_counts: Tokens


class Trigram:
    """An interpolated trigram model.

    Args:
        train: `[N]`, token ids to count.
        validation: `[M]`, token ids to fit the weights on.
        vocabulary: number of different tokens.
    """

    def __init__(self, train: Tokens, validation: Tokens, vocabulary: int) -> None:
        self.vocabulary = vocabulary
        self._orders = [self._count(train, length) for length in range(3)]
        self._weights = np.full((3, BUCKETS), 0.5)
        parts = self._parts(validation)
        for order in range(3):
            lower = self._interpolated(parts, order - 1)
            likelihood, bucket = parts[order]
            for _ in range(ITERATIONS):
                mixed = self._weights[order, bucket] * likelihood
                share = mixed / (mixed + (1 - self._weights[order, bucket]) * lower)
                seen = np.bincount(bucket, minlength=BUCKETS)
                fitted = np.bincount(bucket, weights=share, minlength=BUCKETS) / np.maximum(seen, 1)
                self._weights[order] = np.minimum(fitted, MOST)

    def nats(self, tokens: Tokens) -> float:
        """Return the negative log-likelihood of `tokens` from the third on, in nats."""
        return float(-np.log(self._interpolated(self._parts(tokens), 2)).sum())

    def _keys(self, tokens: Tokens, length: int) -> tuple[Tokens, Tokens]:
        """Return keys of the contexts of `length` tokens before each token from the third on, and of both together."""
        context = np.zeros(len(tokens) - 2, dtype=np.int64)
        for back in range(length, 0, -1):
            context = context * self.vocabulary + tokens[2 - back : len(tokens) - back]
        return context, context * self.vocabulary + tokens[2:]

    def _count(self, tokens: Tokens, length: int) -> _Order:
        context, gram = self._keys(tokens, length)
        return _Order(*np.unique(context, return_counts=True), *np.unique(gram, return_counts=True))

    def _parts(self, tokens: Tokens) -> list[tuple[Probabilities, Tokens]]:
        """Return for each order the maximum-likelihood probability of each token, and its context's bucket."""
        parts = []
        for length, order in enumerate(self._orders):
            context, gram = self._keys(tokens, length)
            seen = _look_up(order.contexts, order.context_counts, context)
            likelihood = _look_up(order.grams, order.gram_counts, gram) / np.maximum(seen, 1)
            bucket = np.minimum(np.ceil(np.log2(seen + 1)).astype(np.int64), BUCKETS - 1)
            parts.append((likelihood, bucket))
        return parts

    def _interpolated(self, parts: list[tuple[Probabilities, Tokens]], highest: int) -> Probabilities:
        result = np.full(len(parts[0][0]), 1 / self.vocabulary)
        for order in range(highest + 1):
            likelihood, bucket = parts[order]
            weight = np.where(bucket == 0, 0.0, self._weights[order, bucket])
            result = weight * likelihood + (1 - weight) * result
        return result


def _look_up(keys: Tokens, counts: Tokens, wanted: Tokens) -> Tokens:
    """Return the count of each wanted key, 0 where it was never seen."""
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, counts[place], 0)


def bits_per_byte(nats: float, length: int) -> float:
    """Return nats over a text of `length` bytes as bits per byte."""
    return nats / math.log(2) / length
