"""The bits of codec `topk` against its published description: built by hand here, not by the encoder's own code."""

import hashlib
import itertools
import math

import numpy as np
import pytest
import torch

from limbeck.signals.codecs.topk import COLUMN, TopkCodec
from limbeck.signals.codecs.topk_fields import cheapest_mode
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
    """p = .42 and .23, tail .35 over 14 other tokens, at threshold .1 and steps of .1 in p."""
    spec = TopkSpec(threshold=0.1, power=1.0, step=0.1, cap=4)
    tail_at_2 = 1.5  # any sum of square roots between sqrt(.35) and sqrt(.35 * 14)
    normaliser = math.log(math.sqrt(0.42) + math.sqrt(0.23) + tail_at_2)
    codec = TopkCodec(spec, 16, path)  # type: ignore[arg-type]
    column = codec.encode(of_two([0.42, 0.23], [11, 3], normaliser_at_2=normaliser), [1])[COLUMN]

    codes = prefix_codes()
    levels = [1, 3]  # floor((p - .1) / .1), by rising id
    usual = min(range(CODES), key=lambda code: sum(int(codes.lengths[code, level]) for level in levels))
    tail = round(64 * math.log2(0.35 / 0.65)) + 4096
    log_tail = -math.log(1 + 2 ** ((4096 - tail) / 64))
    ratio = round((math.log(tail_at_2) - log_tail / 2) / (0.5 * math.log(14)) * 1023)
    rice = 2  # mean gap 14 / 3; 0.9624 * 4.67 = 4.49 >= 4
    assert rice_bits(2, 16) == rice
    bits = f"{2 + 16:05b}" + ALL_ALIKE  # one count, 2: Exp-Golomb of order 4; one number needs no bits above the least
    bits += "0" + f"{tail + 2048:013b}" + ALL_ALIKE  # order 11: 13 bits, so 13 - 12 zeros before them
    bits += "0" * (ratio >= 256) + f"{ratio + 256:b}" + ALL_ALIKE  # order 8
    bits += f"{usual:06b}" + "1"  # the position takes the group's usual code
    for gap in (3, 7):  # ids 3 and 11: 11 - 3 - 1
        bits += "0" * (gap >> rice) + "1" + f"{gap & 3:02b}"
    for level in levels:
        bits += f"{int(codes.words[usual, level]):0{int(codes.lengths[usual, level])}b}"
    assert column.data.tobytes() == row_of(2, bits)

    decoded = codec.decode({COLUMN: column}, [1])
    tail_mass = math.exp(log_tail)
    assert decoded.ids.tolist() == [[11, 3]]
    p, q = decoded.logprobs[0].double().exp().tolist()
    centre = [math.log(b / a) / (1 / a - 1 / b) for a, b in ((0.4, 0.5), (0.2, 0.3))]
    missing = (1 - tail_mass - sum(centre)) / 2  # equal widths share it equally; both stay within their levels
    assert (p, q) == pytest.approx((centre[0] + missing, centre[1] + missing), abs=1e-6)
    assert decoded.log_tail_mass.item() == pytest.approx(log_tail, abs=1e-6)
    known = math.log(math.sqrt(p) + math.sqrt(q) + math.exp(log_tail / 2 + ratio / 1023 * 0.5 * math.log(14)))
    assert decoded.log_normalisers[0].tolist() == pytest.approx([0.0, known], abs=1e-5)


ALL_ALIKE = f"{14:05b}"  # the mode of a field whose numbers are all the least: no bits each


def row_of(most: int, bits: str) -> bytes:
    """A row of one group."""
    bits += "0" * (-len(bits) % 8)
    payload = bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))
    return bytes([most, len(payload)]) + payload


@pytest.mark.parametrize("path", ["compiled", "reference"])
def test_a_group_with_bases_and_two_codes_bit_by_bit(path: str) -> None:
    """Two positions and a masked one between them; levels are counted from a base, and every code is looked for."""
    spec = TopkSpec(select="count", cap=2, power=1.0, step=1 / 1024, temperatures=(1.0,))
    signal = TopkSignal(
        ids=torch.tensor([[5, 6], [0, 0], [2, 1]]),
        logprobs=torch.tensor([[644.5, 56.5], [1.0, 1.0], [313.5, 311.5]]).div(1024).log(),
        log_tail_mass=torch.tensor([323.0, 1.0, 399.0]).div(1024).log(),
        log_normalisers=torch.zeros(3, 1),
        temperatures=(1.0,),
        mask=torch.tensor([True, False, True]),
    )
    codes = prefix_codes()

    def bits_of(code: int, level: int) -> str:
        symbol = symbol_of(level)
        raw = int(codes.raw_bits[symbol])
        word = f"{int(codes.words[code, symbol]):0{int(codes.lengths[code, symbol])}b}"
        return word + (f"{level - int(codes.first_level[symbol]):0{raw}b}" if raw else "")

    levels = ([588, 0], [0, 2])  # above the bases 56 and 311, by rising id
    costs = [[sum(len(bits_of(code, level)) for level in one) for code in range(CODES)] for one in levels]
    own = [min(cost) + 6 for cost in costs]
    totals = [sum(min(cost[code], least) for cost, least in zip(costs, own, strict=True)) for code in range(CODES)]
    usual = totals.index(min(totals))
    tails = [round(64 * math.log2(t / (1024 - t))) + 4096 for t in (323, 399)]
    assert tails[1] - tails[0] == 31
    bits = f"{0 + 16:05b}" + f"{14 + 2:05b}" + "10" + "00" + "10"  # counts 2, 0, 2: from 0 on, in 2 bits each
    bits += "00" + f"{56 + 16:07b}" + f"{14 + 8:05b}" + f"{0:08b}" + f"{255:08b}"  # bases 56 and 311
    bits += "0" + f"{tails[0] + 2048:013b}" + f"{14 + 5:05b}" + "00000" + "11111"
    bits += f"{usual:06b}"
    for one, cost, least, ids in zip(levels, costs, own, ((5, 6), (1, 2)), strict=True):
        code = usual if cost[usual] <= least else cost.index(min(cost))
        bits += "1" if code == usual else "0" + f"{code:06b}"
        rice = rice_bits(2, 40)
        assert rice == 3
        for gap in (ids[0], ids[1] - ids[0] - 1):
            bits += "0" * (gap >> rice) + "1" + f"{gap & 7:03b}"
        bits += "".join(bits_of(code, level) for level in one)
    column = TopkCodec(spec, 40, path).encode(signal, [3])[COLUMN]  # type: ignore[arg-type]
    assert column.data.tobytes() == row_of(2, bits)


def test_positions_that_say_nothing_are_two_bytes_a_group() -> None:
    column = TopkCodec(TopkSpec(cap=4), 16).encode(of_two([0.5, 0.25], [1, 2], mask=False), [1])[COLUMN]
    assert column.data.tobytes() == bytes([0, 2]) + int("10000" + ALL_ALIKE + "000000", 2).to_bytes(2, "big")


@pytest.mark.parametrize(
    ("above", "mode"),
    [
        ([0, 0, 0], 14),  # no bits
        ([0, 1, 1, 0], 15),  # one bit each beats 1, 3, 3, 1
        ([0] * 9 + [5], 0),  # 9 + 5 bits
        ([3, 5, 2, 7, 60], 3),  # 4, 4, 4, 4 and 10, against 6 each
        ([1 << 16], 14 + 17),
    ],
)
def test_a_field_takes_its_cheapest_mode(above: list[int], mode: int) -> None:
    assert cheapest_mode(above) == mode


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
