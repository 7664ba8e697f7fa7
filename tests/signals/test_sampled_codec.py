"""Codec `sampled` and the drawing: unbiased, exactly stored, and refused where it can't be."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.errors import IntegrityError, LimbeckError, UserError
from limbeck.seeds import derive_seed
from limbeck.signals.codecs.columns import Column
from limbeck.signals.codecs.registry import make_codec, parse_spec
from limbeck.signals.codecs.sampled import COLUMN, SampledCodec, _rice_widths
from limbeck.signals.codecs.sampled_draw import sample_logits
from limbeck.signals.codecs.sampled_random import Keys, numbers_at, position_keys
from limbeck.signals.codecs.sampled_spec import SampledSpec, entry_weights, head_weights, round_at_random, unit_weights
from limbeck.signals.codecs.topk_layout import rice_bits
from limbeck.signals.types import SampledSignal
from tests.signals.making import draw_logits

V = 300
SPECS = [
    SampledSpec(threshold=0.02),
    SampledSpec(threshold=0.1, tail_logprob_bits=4),
    SampledSpec(threshold=0.05, draws=12),
    SampledSpec(threshold=1.0, draws=20, tail_logprob_bits=6),
    SampledSpec(threshold=0.05, draws=16, proposal_temperature=2.0),
    SampledSpec(threshold=1.0, draws=16, proposal_temperature=1.5, tail_logprob_bits=5),
]


def keys(count: int, seed: int = 0) -> Keys:
    return position_keys(derive_seed(seed, "test"), count)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def dense_of(signal: SampledSignal, vocabulary: int = V) -> torch.Tensor:
    """Return `[N, V]`, the weight of each token."""
    return torch.zeros(len(signal.ids), vocabulary, dtype=torch.float64).scatter_add(
        1, signal.ids, signal.weights.double()
    )


@pytest.mark.parametrize("spec", SPECS)
def test_the_mean_of_many_drawings_is_the_distribution(spec: SampledSpec) -> None:
    """Each token's mean weight, and the mean of a function of the token, within 4.5 of their own standard errors."""
    drawings = 2500
    logits = draw_logits(1, 5, V, sharpness=2.0)
    p = logits[0].double().softmax(-1)
    weights = dense_of(sample_logits(logits.expand(drawings, V), spec, keys(drawings, 1)))
    mean, error = weights.mean(0), weights.std(0) / math.sqrt(drawings)
    seldom = p < 2e-3  # drawn too seldom for a standard error: held to the sum of all of them
    assert ((mean - p).abs() <= 4.5 * error + 1e-6)[~seldom].all()
    assert (
        abs(float((mean - p)[seldom].sum()))
        <= 4.5 * float(weights[:, seldom].sum(1).std()) / math.sqrt(drawings) + 1e-6
    )
    values = torch.randn(V, generator=generator(2), dtype=torch.float64)
    estimates = weights @ values
    assert abs(float(estimates.mean() - p @ values)) <= 4.5 * float(estimates.std()) / math.sqrt(drawings)


@pytest.mark.parametrize("spec", SPECS)
def test_what_is_drawn_comes_back_exactly(spec: SampledSpec) -> None:
    mask = torch.arange(70) % 7 != 2
    signal = sample_logits(draw_logits(70, 3, V), spec, keys(70), mask)
    codec = make_codec(spec, V)
    lengths = [30, 0, 1, 39]
    columns = codec.encode(signal, lengths)
    decoded = codec.decode(columns, lengths)
    assert isinstance(decoded, SampledSignal)
    assert torch.equal(decoded.mask, mask)
    assert torch.equal(decoded.ids, signal.ids)
    assert torch.equal(decoded.weights, signal.weights)
    again = codec.encode(decoded, lengths)
    assert again[COLUMN].data.tobytes() == columns[COLUMN].data.tobytes()
    twice = codec.decode(again, lengths)
    assert all(torch.equal(getattr(twice, name), getattr(decoded, name)) for name in ("ids", "weights", "logprobs"))


@settings(max_examples=40, deadline=None)
@given(
    spec=st.sampled_from(SPECS),
    vocabulary=st.integers(1, 400),
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=5),
    sharpness=st.floats(0, 30),
    seed=st.integers(0, 2**32),
)
def test_any_drawing_comes_back(
    spec: SampledSpec, vocabulary: int, lengths: list[int], sharpness: float, seed: int
) -> None:
    logits = torch.randn(sum(lengths), vocabulary, generator=generator(seed)) * sharpness
    signal = sample_logits(logits, spec, keys(len(logits), seed))
    codec = SampledCodec(spec, vocabulary)
    decoded = codec.decode(codec.encode(signal, lengths), lengths)
    for name in ("ids", "weights", "mask"):
        assert torch.equal(getattr(decoded, name), getattr(signal, name))
    assert ((decoded.logprobs > -math.inf) == (decoded.weights > 0)).all()


def test_the_head_is_kept_for_certain_and_draws_merge() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.1, 0.06, 0.04]]).log()
    signal = sample_logits(logits, SampledSpec(threshold=0.25, draws=10), keys(1))
    assert signal.ids[0, :2].tolist() == [0, 1]  # at .25 and .3 of the distribution: above the threshold
    tail = signal.weights[0, 2:]
    assert tail.sum().item() == pytest.approx(0.2, rel=1e-3)
    counts = tail / 0.02
    assert counts.round().tolist() == pytest.approx(counts.tolist(), rel=1e-3)
    assert counts.round().tolist() == [5, 3, 2]  # 10 draws at shares of .5, .3 and .2, evenly spread
    plain = sample_logits(logits, SampledSpec(threshold=1.0, draws=100), keys(1))
    assert plain.weights[0].tolist() == pytest.approx([0.5, 0.3, 0.1, 0.06, 0.04], abs=0.011)


def test_log_probabilities_are_the_teachers_as_far_as_bits_go() -> None:
    logits = draw_logits(40, 8, V)
    exact = logits.log_softmax(-1)
    spec = SampledSpec(threshold=0.02, tail_logprob_bits=6)
    codec = SampledCodec(spec, V)
    decoded = codec.decode(codec.encode(sample_logits(logits, spec, keys(len(logits))), [40]), [40])
    drawn = decoded.weights > 0
    off = (decoded.logprobs - exact.gather(1, decoded.ids))[drawn]
    in_head = decoded.logprobs[drawn] >= spec.edge
    assert in_head.any() and not in_head.all()
    assert off[in_head].abs().max() < 0.5 and off[~in_head].abs().max() <= math.log(2) / 4 + 1e-5
    coarse = SampledCodec(SampledSpec(threshold=0.02), V)
    decoded = coarse.decode(coarse.encode(sample_logits(logits, coarse.spec, keys(40)), [40]), [40])
    tail = (decoded.weights > 0) & (decoded.logprobs < spec.edge)
    assert decoded.logprobs[tail].tolist() == pytest.approx([math.log(0.02)] * int(tail.sum()), rel=1e-6)


def test_the_error_of_pooled_positions_falls_without_a_floor() -> None:
    """The squared error of a mean over n positions is 1/n of one position's, to within its own scatter."""
    spec = SampledSpec(threshold=0.02)
    logits = draw_logits(4096, 9, V, sharpness=2.0)
    error = dense_of(sample_logits(logits, spec, keys(len(logits)))) - logits.double().softmax(-1)
    one = error.square().sum(1).mean()
    for pool in (16, 256, 4096):
        pooled = error.view(4096 // pool, pool, V).mean(1).square().sum(1).mean()
        assert 0.5 < float(pooled * pool / one) < 1.6


def test_rounding_at_random_hits_neighbours_with_the_right_odds() -> None:
    numbers = numbers_at(keys(20_000), 0)
    for grid in (head_weights(SPECS[0]), unit_weights(), entry_weights()):
        values = np.full(20_000, grid[20] * 0.3 + grid[21] * 0.7)
        index = round_at_random(values, grid, numbers)
        assert sorted(set(index.tolist())) == [20, 21]
        assert float((index == 21).mean()) == pytest.approx(0.7, abs=0.02)
        assert round_at_random(grid[[3, 20]], grid, numbers[:2]).tolist() == [3, 20]


@pytest.mark.parametrize("spec", SPECS)
def test_a_position_draws_the_same_whatever_it_is_drawn_with(spec: SampledSpec) -> None:
    """Bits don't change with the positions before it, with masks, or with the number of threads."""
    logits, all_keys = draw_logits(40, 5, V), keys(40)
    whole = sample_logits(logits, spec, all_keys)
    chosen = torch.tensor([31, 7, 8, 0])
    alone = sample_logits(logits[chosen], spec, all_keys[chosen.numpy()])
    masked = sample_logits(logits, spec, all_keys, torch.arange(40) > 20)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    shared = sample_logits(logits, spec, all_keys)
    torch.set_num_threads(threads)
    for name in ("ids", "weights", "logprobs"):
        expected, width = getattr(whole, name), alone.ids.shape[1]
        assert torch.equal(getattr(alone, name), expected[chosen][:, :width])
        assert torch.equal(getattr(masked, name)[21:], expected[21:, : masked.ids.shape[1]])
        assert torch.equal(getattr(shared, name), expected)
    assert not torch.equal(dense_of(sample_logits(logits, spec, keys(40, 1))), dense_of(whole))


@settings(max_examples=60, deadline=None)
@given(
    spec=st.sampled_from([*SPECS, SampledSpec(threshold=1e-3), SampledSpec(threshold=1e-9, draws=3)]),
    vocabulary=st.integers(1, 700),
    sharpness=st.floats(0, 30),
    absent=st.floats(0, 0.9),
    seed=st.integers(0, 2**32),
)
def test_the_compiled_walk_is_the_plain_one(
    spec: SampledSpec, vocabulary: int, sharpness: float, absent: float, seed: int
) -> None:
    """In float64 they take the same tokens, with the same weights; absent tokens (`-inf`) are never taken."""
    logits = torch.randn(5, vocabulary, generator=generator(seed), dtype=torch.float64) * sharpness
    gone = torch.rand(5, vocabulary, generator=generator(seed + 1)) < absent
    gone[:, vocabulary // 2] = False
    logits = logits.masked_fill(gone, -math.inf)
    plain = sample_logits(logits, spec, keys(5, seed), path="plain")
    compiled = sample_logits(logits, spec, keys(5, seed), path="compiled")
    for name in ("ids", "weights", "mask"):
        assert torch.equal(getattr(plain, name), getattr(compiled, name))
    drawn = plain.weights > 0
    torch.testing.assert_close(compiled.logprobs[drawn], plain.logprobs[drawn], atol=1e-6, rtol=1e-6)
    assert not gone.gather(1, plain.ids)[drawn].any()


def test_random_numbers_are_uniform_and_looked_up() -> None:
    """SplitMix64's first outputs from seed 1234567, as its reference implementation prints them; and their spread."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert position_keys(1234567, 4).tolist() == published
    assert position_keys(1234567, 2).tolist() == published[:2]
    one = numbers_at(keys(20_000), 5)
    assert one.min() >= 0 and one.max() < 1
    assert np.histogram(one, 10, (0, 1))[0] == pytest.approx([2000] * 10, abs=200)
    other = numbers_at(keys(20_000), 6)
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.03
    assert abs(np.corrcoef(one[1:], one[:-1])[0, 1]) < 0.03


def test_one_row_byte_by_byte() -> None:
    """Two positions of 16 tokens: one masked; one with token 5 at .25 (level 0) and, drawn, token 9 at .25."""
    spec = SampledSpec(threshold=0.25)
    signal = SampledSignal(
        ids=torch.tensor([[0, 0], [5, 9]]),
        weights=torch.tensor([[0.0, 0.0], [0.25, 0.25]]),
        logprobs=torch.tensor([[-math.inf] * 2, [spec.edge, -3.0]]),
        mask=torch.tensor([False, True]),
    )
    # ids: one of 16 has a mean gap of 7.5, and 0.9624 * 7.5 = 7.2 is at least 4: two low bits
    expected = bytes([0, 1, 0b10010000])  # head counts 0 (masked) and 1 + 1, width 0: "1", "001"
    expected += bytes([0, 1, 0b01000000])  # one drawn: "01"
    expected += bytes([1, 0b01000000, 0b01000000])  # gap 5: 5 >> 2 = 1 is "01", low bits "01"
    expected += bytes([0, 1, 0b10000000])  # level 0: "1"
    expected += bytes([1, 0b00100000, 0b01000000])  # gap 9: "001", "01"
    column = SampledCodec(spec, 16).encode(signal, [2])[COLUMN]
    assert column.data.tobytes() == expected


@pytest.mark.parametrize("vocabulary", [1, 2, 300, 32_768])
def test_widths_of_gaps_are_those_of_topk(vocabulary: int) -> None:
    counts = sorted({*range(0, vocabulary + 1, 1 + vocabulary // 50), 1, vocabulary})
    widths = SampledCodec(SPECS[0], vocabulary)._gap_widths(np.ones(1, dtype=np.int64))
    assert widths.tolist() == [rice_bits(1, vocabulary)]
    assert _rice_widths(vocabulary)[counts].tolist() == [rice_bits(count, vocabulary) for count in counts]


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("weights", math.nan, "a weight of nan"),
        ("weights", math.inf, "a weight of inf"),
        ("weights", -0.5, "a weight of -0.5"),
        ("weights", 0.0333, "has the weight 0.0333, which these settings do not make"),
        ("logprobs", math.nan, "a log-probability of nan"),
        ("logprobs", 0.1, "a log-probability of 0.1"),
        ("ids", V, f"token id {V} is outside the vocabulary"),
        ("ids", -1, "token id -1 is outside"),
        ("ids", None, "given twice"),
    ],
)
@pytest.mark.parametrize("spec", SPECS)
def test_what_cannot_be_stored_is_refused_by_row_and_position(
    name: str, value: float | None, complaint: str, spec: SampledSpec
) -> None:
    signal = sample_logits(draw_logits(12, 7, V, sharpness=1.0), spec, keys(12))
    changed = getattr(signal, name).clone()
    changed[7, 0] = int(signal.ids[7, 1]) if value is None else value
    broken: Any = replace(signal, **{name: changed})
    with pytest.raises(LimbeckError, match=f"row 1, position 2: .*{complaint}"):
        SampledCodec(spec, V).encode(broken, [5, 7])
    SampledCodec(spec, V).encode(replace(broken, mask=torch.arange(12) != 7), [5, 7])


@pytest.mark.parametrize("spec", SPECS)
def test_damaged_bytes_are_refused_or_stay_within_bounds(spec: SampledSpec) -> None:
    codec = SampledCodec(spec, V)
    column = codec.encode(sample_logits(draw_logits(20, 9, V), spec, keys(20)), [20])[COLUMN]
    refused = 0
    for index in range(len(column.data)):
        data = column.data.copy()
        data[index] ^= 0x40
        try:
            decoded = codec.decode({COLUMN: Column(data, column.offsets)}, [20])
        except IntegrityError as error:
            refused += 1
            assert "row 0" in str(error)
            continue
        assert int(decoded.ids.min()) >= 0 and int(decoded.ids.max()) < V
    assert refused > 0
    for length in range(len(column.data)):
        with pytest.raises(IntegrityError, match="row 0"):
            codec.decode({COLUMN: Column(column.data[:length], np.array([0, length]))}, [20])


def test_nonsense_is_refused() -> None:
    for wrong in (
        {"threshold": 0}, {"threshold": 1.0}, {"draws": 0}, {"proposal_temperature": 2.0}, {"threshold": 1e-9},
        {"draws": 4, "proposal_temperature": 0.5}, {"tail_logprob_bits": 9},
        {"threshold": 1e-7, "head_step": 1e-4, "draws": 3},
    ):  # fmt: skip
        with pytest.raises(ValueError):
            SampledSpec(**wrong)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"threshhold.*threshold"):
        parse_spec({"codec": "sampled", "threshhold": 0.1})
    bad = torch.tensor([[0.0, 1.0], [math.nan, 0.0]])
    for worst in (math.nan, math.inf):
        bad[1, 0] = worst
        for path in ("compiled", "plain"):
            with pytest.raises(LimbeckError, match="position 1: its logits make no distribution"):
                sample_logits(bad, SPECS[0], keys(2), path=path)  # type: ignore[arg-type]
        sample_logits(bad, SPECS[0], keys(2), torch.tensor([True, False]))
    with pytest.raises(LimbeckError, match="position 0: its logits make no distribution"):
        sample_logits(torch.full((1, 3), -math.inf), SPECS[0], keys(1))
    with pytest.raises(UserError, match="vocabulary of 4000000"):
        SampledCodec(SPECS[0], 4_000_000)
