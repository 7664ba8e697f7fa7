"""The trigram yardstick: proper distributions, the published formula, and better than knowing nothing."""

import math
from collections import Counter

import numpy as np
import pytest

from limbeck.pocket.trigram import Trigram, bits_per_byte

V = 7


def draw_stream(length: int, seed: int) -> np.ndarray:
    """Tokens that follow each other by habit: mostly the sum of the last two."""
    rng = np.random.default_rng(seed)
    tokens = [0, 1]
    for _ in range(length):
        tokens.append(int(rng.integers(V)) if rng.random() < 0.3 else (tokens[-1] + tokens[-2]) % (V - 1))
    return np.array(tokens)


TRAIN, VALIDATION, TEXT = (draw_stream(length, seed) for seed, length in ((1, 800), (2, 300), (3, 300)))
MODEL = Trigram(TRAIN, VALIDATION, V)


def distribution(model: Trigram, context: tuple[int, int]) -> np.ndarray:
    """The probability of every next token, each scored by itself."""
    return np.array([math.exp(-model.nats(np.array([*context, token]))) for token in range(model.vocabulary)])


@pytest.mark.parametrize("context", [(0, 1), (1, 2), (5, 5), (6, 6), (6, 0), (0, 6)])
def test_probabilities_over_the_whole_vocabulary_sum_to_one(context: tuple[int, int]) -> None:
    """Contexts that are frequent, rare, and never seen."""
    probabilities = distribution(MODEL, context)
    assert probabilities.sum() == pytest.approx(1, abs=1e-12)
    assert (probabilities > 0).all()


def test_a_context_that_was_never_seen_falls_back() -> None:
    model = Trigram(np.array([0, 1, 2] * 20), np.array([0, 1, 2] * 5 + [2, 1, 0]), V)
    assert distribution(model, (4, 5)).sum() == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(distribution(model, (4, 5)), distribution(model, (5, 6)))
    assert distribution(model, (4, 5))[4] > 0


def plain_probability(train: list[int], weights: np.ndarray, context: tuple[int, int], token: int, v: int) -> float:
    """The module's formula with plain counting, over the same positions: from the third token on."""
    result = 1 / v
    for order in range(3):
        places = range(2, len(train))
        seen = Counter(tuple(train[i - order : i]) for i in places)
        grams = Counter((*train[i - order : i], train[i]) for i in places)
        before = context[2 - order :]
        if count := seen[before]:
            weight = weights[order, min(15, math.ceil(math.log2(count + 1)))]
            result = weight * grams[(*before, token)] / count + (1 - weight) * result
    return result


def test_the_formula_with_plain_counting() -> None:
    for context in ((0, 1), (3, 4), (6, 6), (2, 5)):
        expected = [plain_probability(TRAIN.tolist(), MODEL._weights, context, token, V) for token in range(V)]
        np.testing.assert_allclose(distribution(MODEL, context), expected, rtol=1e-12)


def test_a_tiny_case_by_hand() -> None:
    """Counted are the third and fourth token of 0 1 0 1: a 0 and a 1. Validation is as short, and says 1 after 0 0.

    Unigram: both seen once, so 1/2 each whatever its weight is against the uniform 1/2. Bigram: after 0 comes 1, after
    1 comes 0, each seen once. Trigram: the context (0, 0) was never seen. So the weight of the bigram decides, which
    the one validation token, right every time, drives up from 1/2 by w <- w / (w + (1 - w) / 2): odds double each time.
    """
    model = Trigram(np.array([0, 1, 0, 1]), np.array([0, 0, 1]), 2)
    weight = 2**20 / (2**20 + 1)
    np.testing.assert_allclose(distribution(model, (0, 0)), [(1 - weight) / 2, (1 + weight) / 2], rtol=1e-6)


def test_it_beats_knowing_nothing_and_knowing_one_token_back() -> None:
    predicted = len(TEXT) - 2
    unigram = Counter(TRAIN.tolist())
    by_frequency = -sum(math.log(unigram[token] / len(TRAIN)) for token in TEXT[2:].tolist())
    assert MODEL.nats(TEXT) < 0.9 * by_frequency < predicted * math.log(V)


def test_a_text_is_the_sum_of_its_tokens() -> None:
    single = sum(MODEL.nats(TEXT[i : i + 3]) for i in range(len(TEXT) - 2))
    assert MODEL.nats(TEXT) == pytest.approx(single)


def test_nothing_is_ever_impossible() -> None:
    model = Trigram(np.array([5] * 100), np.array([5] * 100), 4096)
    assert math.isfinite(model.nats(np.array([5, 5, 6])))


def test_bits_per_byte() -> None:
    assert bits_per_byte(8 * math.log(2), 4) == pytest.approx(2.0)
