"""The bits of codec `topk` against its published description: built by hand here, not by the encoder's own code."""

import hashlib
import itertools
import math

import numpy as np
import pytest
import torch

from limbeck.signals.codecs.topk import COLUMN, TopkCodec
from limbeck.signals.codecs.topk_layout import rice_bits
from limbeck.signals.codecs.topk_prefix import (
    CODES,
    LONGEST,
    SYMBOLS,
    canonical_words,
    prefix_codes,
    shortest_lengths,
    symbol_start,
)
from limbeck.signals.codecs.topk_reference import symbol_of
from limbeck.signals.codecs.topk_spec import TopkSpec
from limbeck.signals.types import TopkSignal


def of_two(p: list[float], ids: list[int], mask: bool = True, normaliser_at_2: float = 0.0) -> TopkSignal:
    return TopkSignal(
        ids=torch.tensor([ids]),
        logprobs=torch.tensor([p]).log(),
        log_tail_mass=torch.tensor([1 - sum(p)]).log(),
        log_normalisers=torch.tensor([[0.0, normaliser_at_2]]),
        temperatures=(1.0, 2.0),
        mask=torch.tensor([mask]),
    )


@pytest.mark.parametrize("path", ["compiled", "reference"])
def test_one_position_bit_by_bit(path: str) -> None:
    """p = .5 and .25, tail .25 over 14 other tokens, at threshold .1 and steps of .1 in p."""
    spec = TopkSpec(threshold=0.1, power=1.0, step=0.1, cap=4)
    tail_at_2 = 1.5  # any sum of square roots between sqrt(.25) and sqrt(.25 * 14)
    normaliser = math.log(math.sqrt(0.5) + math.sqrt(0.25) + tail_at_2)
    codec = TopkCodec(spec, 16, path)  # type: ignore[arg-type]
    column = codec.encode(of_two([0.5, 0.25], [11, 3], normaliser_at_2=normaliser), [1])[COLUMN]

    codes = prefix_codes()
    levels = [1, 4]  # floor((p - .1) / .1), by rising id: .25 -> 1, .5 -> 4 (3.99... would be 3)
    if np.float64(np.exp(np.float32(np.log(np.float32(0.5))).astype(np.float64))) < 0.5:
        levels[1] = 3
    best = min(range(CODES), key=lambda code: sum(int(codes.lengths[code, level]) for level in levels))
    tail = round(64 * math.log2(0.25 / 0.75)) + 2048
    log_tail = -math.log(1 + 2 ** ((2048 - tail) / 64))
    ratio = round((math.log(tail_at_2) - log_tail / 2) / (0.5 * math.log(14)) * 1023)
    rice = 2  # mean gap 14 / 3; 0.9624 * 4.67 = 4.49 >= 4
    assert rice_bits(2, 16) == rice
    bits = "0"  # not as many as the cap of 4
    bits += "0" * 0 + f"{2 + 8:b}"  # 2 entries, Exp-Golomb of order 3
    bits += f"{best:06b}" + f"{tail:012b}" + f"{ratio:010b}"
    for gap in (3, 7):  # ids 3 and 11: 11 - 3 - 1
        bits += "0" * (gap >> rice) + "1" + f"{gap & 3:02b}"
    for level in levels:
        bits += f"{int(codes.words[best, level]):0{int(codes.lengths[best, level])}b}"
    bits += "0" * (-len(bits) % 8)
    payload = bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))
    assert column.data.tobytes() == bytes([2, len(payload)]) + payload


def test_a_position_that_says_nothing_is_five_bits() -> None:
    column = TopkCodec(TopkSpec(cap=4), 16).encode(of_two([0.5, 0.25], [1, 2], mask=False), [1])[COLUMN]
    assert column.data.tobytes() == bytes([0, 1, 0b01000000])


def test_rows_are_cut_into_groups_of_32() -> None:
    spec = TopkSpec(threshold=0.01, cap=8)
    one = of_two([0.5, 0.25], [1, 2], normaliser_at_2=0.9)
    signal = TopkSignal(
        **{
            name: getattr(one, name).repeat(70, *[1] * (getattr(one, name).dim() - 1))
            for name in ("ids", "logprobs", "log_tail_mass", "log_normalisers", "mask")
        },
        temperatures=one.temperatures,
    )
    codec = TopkCodec(spec, 16)
    data = codec.encode(signal, [70])[COLUMN].data.tobytes()
    assert data[0] == 2  # the most entries
    sizes = []
    at = 1
    for _ in range(3):  # 32, 32 and 6 positions
        size = shift = 0
        while True:
            size |= (data[at] & 0x7F) << shift
            shift += 7
            at += 1
            if data[at - 1] < 0x80:
                break
        sizes.append(size)
    assert at + sum(sizes) == len(data)
    assert sizes[0] == sizes[1] > sizes[2]


def test_prefix_codes_are_complete_prefix_free_and_pinned() -> None:
    codes = prefix_codes()
    assert codes.lengths.shape == (CODES, SYMBOLS)
    assert codes.lengths.min() >= 1 and codes.lengths.max() <= LONGEST
    for lengths, words in zip(codes.lengths.tolist(), codes.words.tolist(), strict=True):
        assert sum(2.0**-length for length in lengths) == 1.0
        texts = sorted(f"{word:0{length}b}" for word, length in zip(words, lengths, strict=True))
        assert not any(b.startswith(a) for a, b in itertools.pairwise(texts))
    assert hashlib.sha256(codes.lengths.astype(np.uint8).tobytes()).hexdigest() == GOLDEN_LENGTHS


GOLDEN_LENGTHS = "0c56c019c70ebbb880808ff26dd6919e42d02fb5d30d091df5e6fbb6bb9be8f7"


def test_package_merge_is_optimal() -> None:
    """Against Huffman's own optimum where the limit does not bind, and by exhaustion where it does."""
    assert sorted(shortest_lengths([1, 1, 2, 3, 5, 8], 12)) == [1, 2, 3, 4, 5, 5]
    weights = [1, 2, 4, 8, 16]
    best = min(
        sum(w * n for w, n in zip(weights, lengths, strict=True))
        for lengths in [
            (a, b, c, d, e)
            for a in (1, 2, 3)
            for b in (1, 2, 3)
            for c in (1, 2, 3)
            for d in (1, 2, 3)
            for e in (1, 2, 3)
        ]
        if sum(2.0**-n for n in lengths) <= 1
    )
    assert sum(w * n for w, n in zip(weights, shortest_lengths(weights, 3), strict=True)) == best
    assert canonical_words([2, 1, 3, 3]) == [0b10, 0b0, 0b110, 0b111]


def test_symbols_cover_every_level_once() -> None:
    edges = [symbol_start(symbol) for symbol in range(SYMBOLS + 1)]
    assert edges == sorted(set(edges)) and edges[-1] == 1 << 16
    for level in [*range(300), *range(300, 1 << 16, 37), (1 << 16) - 1]:
        symbol = symbol_of(level)
        assert edges[symbol] <= level < edges[symbol + 1]


@pytest.mark.parametrize("count", [1, 2, 8, 50, 128, 1000])
def test_the_rice_parameter_is_the_best_one(count: int) -> None:
    """Its expected cost on random sets is within 1 % of the cheapest parameter's."""
    vocabulary = 151_936
    rng = np.random.default_rng(0)
    costs = np.zeros(20)
    for _ in range(200):
        ids = np.sort(rng.choice(vocabulary, count, replace=False))
        gaps = np.diff(ids, prepend=-1) - 1
        costs += [((gaps >> bits) + 1 + bits).sum() for bits in range(20)]
    assert costs[rice_bits(count, vocabulary)] <= 1.01 * costs.min()
