"""Codec `topk`: what comes back is what went in, within its steps; what can't be represented is refused by name."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.errors import IntegrityError, LimbeckError, UserError
from limbeck.signals.codecs.columns import Column
from limbeck.signals.codecs.topk import COLUMN, TopkCodec
from limbeck.signals.codecs.topk_spec import TopkSpec
from limbeck.signals.sparse import topk_of_logits
from limbeck.signals.types import TopkSignal
from tests.signals.making import VOCABULARY, draw_logits

INF = float("inf")

specs = st.builds(
    TopkSpec,
    select=st.sampled_from(["threshold", "mass", "count"]),
    threshold=st.sampled_from([1e-4, 1e-3, 2e-2, 0.3]),
    mass=st.sampled_from([0.5, 0.95, 1.0]),
    cap=st.sampled_from([1, 2, 7, 40, 1000]),
    power=st.sampled_from([0.3, 0.5, 1.0]),
    step=st.sampled_from([None, 1e-3, 0.05]),
    temperatures=st.sampled_from([(1.0,), (1.0, 2.0), (0.5, 1.0, 3.0)]),
)


@st.composite
def cases(draw: Any) -> tuple[TopkSpec, int, TopkSignal, list[int]]:
    spec = draw(specs)
    vocabulary = draw(st.sampled_from([1, 2, 9, 300, 20_000]))
    lengths = draw(st.lists(st.integers(0, 40), min_size=1, max_size=3))
    seed, sharpness = draw(st.integers(0, 2**32)), draw(st.sampled_from([0.01, 1.0, 4.0, 30.0]))
    logits = draw_logits(sum(lengths), seed, vocabulary, sharpness)
    mask = torch.rand(sum(lengths), generator=torch.Generator().manual_seed(seed)) < draw(
        st.sampled_from([0.0, 0.7, 1.0])
    )
    return spec, vocabulary, topk_of_logits(logits, spec, mask_N=mask), lengths


@settings(max_examples=60, deadline=None)
@given(cases())
def test_round_trip(case: tuple[TopkSpec, int, TopkSignal, list[int]]) -> None:
    spec, vocabulary, signal, lengths = case
    codec = TopkCodec(spec, vocabulary)
    decoded = codec.decode(codec.encode(signal, lengths), lengths)
    assert torch.equal(decoded.mask, signal.mask)
    assert decoded.temperatures == spec.temperatures
    for position in signal.mask.nonzero()[:, 0].tolist():
        said = signal.logprobs[position] > -INF
        kept = decoded.logprobs[position] > -INF
        ids = decoded.ids[position][kept].tolist()
        assert sorted(ids) == sorted(signal.ids[position][said].tolist())
        logprobs = decoded.logprobs[position][kept].double()
        assert (logprobs[1:] <= logprobs[:-1]).all()

        tail = decoded.log_tail_mass[position].double().exp()
        assert (logprobs.exp().sum() + tail).item() == pytest.approx(1.0, abs=1e-5)
        true_tail = signal.log_tail_mass[position].double().exp()
        if true_tail > 1e-9 and len(ids) < vocabulary:
            odds = (tail / (1 - tail)) / (true_tail / signal.logprobs[position][said].double().exp().sum())
            assert 0.994 < odds.item() < 1.006

        # each probability is within the step that it was put in
        probabilities = signal.logprobs[position][said].double().exp()
        whole = (probabilities.sum() + true_tail).item()
        truth = dict(zip(signal.ids[position][said].tolist(), (probabilities / whole).tolist(), strict=True))
        for token, logprob in zip(ids, logprobs.tolist(), strict=True):
            lower, upper = (level_at(codec.layout.low, truth[token] * (1 + edge)) for edge in (-1e-7, 1e-7))
            below = len(ids) == 1 and lower == 0
            assert codec.layout.low[lower] * (not below) - 1e-6 <= np.exp(logprob) <= codec.layout.high[upper] + 1e-6


def level_at(low: Any, p: float) -> int:
    return max(int(np.searchsorted(low, p, side="right")) - 1, 0)


@settings(max_examples=40, deadline=None)
@given(cases())
def test_the_compiled_path_writes_and_reads_the_same_bytes(case: tuple[TopkSpec, int, TopkSignal, list[int]]) -> None:
    spec, vocabulary, signal, lengths = case
    fast, plain = TopkCodec(spec, vocabulary, "compiled"), TopkCodec(spec, vocabulary, "reference")
    columns = fast.encode(signal, lengths)
    expected = plain.encode(signal, lengths)
    assert columns[COLUMN].data.tobytes() == expected[COLUMN].data.tobytes()
    assert columns[COLUMN].offsets.tolist() == expected[COLUMN].offsets.tolist()
    one, two = fast.decode(columns, lengths), plain.decode(columns, lengths)
    assert torch.equal(one.mask, two.mask)
    assert torch.equal(one.ids, two.ids)
    for name in ("logprobs", "log_tail_mass", "log_normalisers"):
        a, b = getattr(one, name)[one.mask], getattr(two, name)[one.mask]
        assert torch.allclose(a, b, atol=1e-6, rtol=1e-6)


@settings(max_examples=40, deadline=None)
@given(cases())
def test_encoding_again_what_was_decoded_changes_nothing(case: tuple[TopkSpec, int, TopkSignal, list[int]]) -> None:
    """Byte for byte where a threshold selects, but for other temperatures: these move by a float32's last place."""
    spec, vocabulary, signal, lengths = case
    spec = spec.model_copy(update={"select": "threshold"})
    codec = TopkCodec(spec, vocabulary)
    columns = codec.encode(signal, lengths)
    decoded = codec.decode(columns, lengths)
    again = codec.encode(decoded, lengths)
    if spec.temperatures == (1.0,):
        assert again[COLUMN].data.tobytes() == columns[COLUMN].data.tobytes()
    twice = codec.decode(again, lengths)
    for name in ("ids", "logprobs", "log_tail_mass", "mask"):
        assert torch.equal(getattr(twice, name), getattr(decoded, name))
    assert torch.allclose(twice.log_normalisers, decoded.log_normalisers, atol=1e-6)


def test_the_compiled_path_is_taken_wherever_nothing_is_wrong() -> None:
    """It leaves signals with faults to the plain one; these have none."""
    from limbeck.signals.codecs import topk_compiled

    for select in ("threshold", "mass", "count"):
        spec = TopkSpec(select=select, threshold=1e-5, cap=300, temperatures=(0.5, 1.0, 2.0))  # type: ignore[arg-type]
        signal = topk_of_logits(draw_logits(3, 1, 5000, 0.5), spec)
        assert topk_compiled.encode(signal, np.array([0, 3]), spec, TopkCodec(spec, 5000).layout) is not None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_and_layouts_of_tensors_are_written_alike(dtype: torch.dtype) -> None:
    spec = TopkSpec(select="count", cap=20, temperatures=(1.0,))
    wide = topk_of_logits(draw_logits(40, 2), spec.model_copy(update={"cap": 40}))
    logprobs = wide.logprobs.to(dtype)
    signal = replace(wide, ids=wide.ids.int()[:, :30], logprobs=logprobs[:, :30])
    tail = torch.log1p(-signal.logprobs.double().exp().sum(1).clamp(max=1 - 1e-6))
    signal = replace(signal, log_tail_mass=tail)
    written = [TopkCodec(spec, VOCABULARY, path).encode(signal, [40])[COLUMN] for path in ("compiled", "reference")]
    assert written[0].data.tobytes() == written[1].data.tobytes()


@pytest.mark.parametrize("temperature", [0.5, 2.0, 4.0])
def test_the_tail_bucket_is_right_at_the_stored_temperatures(temperature: float) -> None:
    spec = TopkSpec(threshold=5e-3, cap=64, step=1e-3, temperatures=tuple(sorted({1.0, temperature})))
    logits = draw_logits(300, 4, 2000, sharpness=2.0)
    codec = TopkCodec(spec, 2000)
    decoded = codec.decode(codec.encode(topk_of_logits(logits, spec), [300]), [300])
    at = decoded.temperatures.index(temperature)
    head = (decoded.logprobs.double() / temperature - decoded.log_normalisers[:, at : at + 1].double()).exp().sum(1)
    exact = (logits.double() / temperature).softmax(-1)
    kept = torch.zeros_like(exact).scatter_add(1, decoded.ids, (decoded.logprobs > -INF).double())
    assert torch.allclose(1 - head, (exact * (1 - kept)).sum(1), atol=2e-3)


def test_finer_steps_cost_more_and_err_less() -> None:
    signal_spec = TopkSpec(select="count", cap=128)
    logits = draw_logits(200, 5, 20_000)
    exact = logits.log_softmax(-1)
    sizes, errors = [], []
    for step in (0.1, 0.03, 0.01, 0.003):
        codec = TopkCodec(signal_spec.model_copy(update={"step": step}), 20_000)
        columns = codec.encode(topk_of_logits(logits, signal_spec), [200])
        decoded = codec.decode(columns, [200])
        sizes.append(len(columns[COLUMN].data))
        p = exact.gather(1, decoded.ids).exp()
        errors.append((p * (p.log() - decoded.logprobs)).sum(1).abs().mean().item())
    assert sizes == sorted(sizes)
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-3


def test_ids_take_less_than_a_bit_more_than_the_entropy_of_the_set() -> None:
    """128 of 151,936 in any order are log2(C(V, k)) = 1485 bits; see how near the whole record comes."""
    spec = TopkSpec(select="count", cap=128, temperatures=(1.0,), step=0.5)
    codec = TopkCodec(spec, 151_936)
    columns = codec.encode(topk_of_logits(draw_logits(64, 6, 151_936, 1.0), spec), [64])
    assert len(columns[COLUMN].data) / 64 < 1.02 * 1485 / 8 + 5 + 128 * 1.1 / 8


def edit(signal: TopkSignal, name: str, where: tuple[int, ...], value: float) -> TopkSignal:
    changed = getattr(signal, name).clone()
    changed[where] = value
    return replace(signal, **{name: changed})


@pytest.mark.parametrize(
    ("name", "where", "value", "complaint"),
    [
        ("logprobs", (7, 1), float("nan"), "not a number"),
        ("logprobs", (7, 0), float("inf"), "above 0"),
        ("logprobs", (7, 0), 0.5, "above 0"),
        ("logprobs", (7, 2), -0.0001, "not sorted"),
        ("log_tail_mass", (7,), -0.001, "mass of"),
        ("log_tail_mass", (7,), float("nan"), "mass of"),
        ("ids", (7, 1), VOCABULARY, f"token id {VOCABULARY} is outside the vocabulary of {VOCABULARY}"),
        ("ids", (7, 1), -1, "token id -1 is outside"),
        ("ids", (7, 1), None, "given twice"),
    ],
)
@pytest.mark.parametrize("path", ["compiled", "reference"])
def test_what_cannot_be_represented_is_refused_by_row_and_position(
    name: str, where: tuple[int, ...], value: float | None, complaint: str, path: Any
) -> None:
    spec = TopkSpec(select="count", cap=10)
    signal = topk_of_logits(draw_logits(12, 7, sharpness=1.0), spec)
    if value is None:
        value = int(signal.ids[7, 0])
    with pytest.raises(LimbeckError, match=rf"row 1, position 2: .*{complaint}"):
        TopkCodec(spec, VOCABULARY, path).encode(edit(signal, name, where, value), [5, 7])


def test_what_is_masked_may_be_anything() -> None:
    spec = TopkSpec(select="count", cap=10)
    signal = edit(topk_of_logits(draw_logits(12, 7), spec), "logprobs", (7, 1), float("nan"))
    mask = torch.ones(12, dtype=torch.bool)
    mask[7] = False
    codec = TopkCodec(spec, VOCABULARY)
    decoded = codec.decode(codec.encode(replace(signal, mask=mask), [12]), [12])
    assert torch.equal(decoded.mask, mask)


def test_absent_entries_are_legal_and_more_than_the_vocabulary_are_not() -> None:
    spec = TopkSpec(select="count", cap=10, temperatures=(1.0,))
    signal = topk_of_logits(draw_logits(4, 8), spec)
    fewer = edit(signal, "logprobs", (1, slice(6, 10)), -INF)  # type: ignore[arg-type]
    fewer = edit(fewer, "log_tail_mass", (1,), float(torch.log1p(-fewer.logprobs[1].exp().sum())))
    codec = TopkCodec(spec, VOCABULARY)
    decoded = codec.decode(codec.encode(fewer, [4]), [4])
    assert (decoded.logprobs > -INF).sum(1).tolist() == [10, 6, 10, 10]
    with pytest.raises(LimbeckError, match=r"row 0, position 0: .*10 entries out of a vocabulary of 9"):
        TopkCodec(spec, 9).encode(signal, [4])
    nothing = edit(signal, "logprobs", (2, slice(None)), -INF)  # type: ignore[arg-type]
    with pytest.raises(LimbeckError, match="row 0, position 2: no entry"):
        codec.encode(nothing, [4])


def test_a_missing_temperature_is_named() -> None:
    signal = topk_of_logits(draw_logits(4, 8), TopkSpec(), temperatures=(1.0,))
    with pytest.raises(UserError, match=r"\(1\.0,\).*\(1\.0, 2\.0\)"):
        TopkCodec(TopkSpec(), VOCABULARY).encode(signal, [4])


def test_crowded_levels_do_not_move_large_probabilities() -> None:
    """A thousand entries at the bottom of a coarse level: its centre is far above them, and the excess stays there."""
    p = torch.cat([torch.tensor([0.36, 0.2]), torch.full((1000,), 4e-4)]).double()
    signal = TopkSignal(
        ids=torch.arange(1002)[None],
        logprobs=p.log()[None],
        log_tail_mass=(1 - p.sum()).log()[None],
        log_normalisers=torch.zeros(1, 1),
        temperatures=(1.0,),
        mask=torch.ones(1, dtype=torch.bool),
    )
    codec = TopkCodec(TopkSpec(threshold=3.9e-4, cap=2000, step=0.02, temperatures=(1.0,)), 5000)
    decoded = codec.decode(codec.encode(signal, [1]), [1]).logprobs[0].double().exp()
    steps = 0.02 * 2 * p[:2].sqrt()  # of p, where p ** 0.5 has steps of 0.02
    assert ((decoded[:2] - p[:2]).abs() <= 1.05 * steps).all()
    assert torch.allclose(decoded[2:], p[2:], rtol=0.06)


def test_a_teacher_whose_masses_do_not_quite_make_one() -> None:
    """Entries and tail that were rounded to 3 digits: the odds are kept, and the probabilities made to fit them."""
    p = torch.tensor([[0.702, 0.2, 0.1]])
    signal = TopkSignal(
        torch.tensor([[3, 1, 2]]), p.log(), torch.tensor([0.003]).log(), torch.zeros(1, 1), (1.0,),
        torch.ones(1, dtype=torch.bool),
    )  # fmt: skip
    codec = TopkCodec(TopkSpec(threshold=0.01, power=1.0, step=1e-4, temperatures=(1.0,)), 100)
    decoded = codec.decode(codec.encode(signal, [1]), [1])
    assert torch.allclose(decoded.logprobs.exp(), p / 1.005, atol=1e-4)
    assert decoded.log_tail_mass.exp().item() == pytest.approx(0.003 / 1.005, rel=0.01)


def check_valid(signal: TopkSignal, vocabulary: int) -> None:
    """Whatever was read: distinct ids of the vocabulary, falling probabilities, a mass of 1."""
    for ids, logprobs, tail in zip(
        signal.ids[signal.mask], signal.logprobs[signal.mask], signal.log_tail_mass[signal.mask], strict=True
    ):
        kept = ids[logprobs > -INF].tolist()
        assert kept and len(set(kept)) == len(kept)
        assert min(kept) >= 0 and max(kept) < vocabulary
        assert (logprobs[1:] <= logprobs[:-1]).all()
        assert (logprobs.double().exp().sum() + tail.double().exp()).item() == pytest.approx(1.0, abs=1e-5)
    assert not signal.log_normalisers[signal.mask].isnan().any()


@pytest.mark.parametrize("select", ["threshold", "count"])
def test_any_bit_flipped_is_refused_or_decodes_to_a_valid_signal(select: Any) -> None:
    """Hashes catch damage; should they be skipped, both paths agree on what is left, and it is a distribution."""
    spec = TopkSpec(select=select, threshold=1e-2, cap=20)
    compiled, reference = (TopkCodec(spec, VOCABULARY, path) for path in ("compiled", "reference"))
    column = compiled.encode(topk_of_logits(draw_logits(10, 9), spec), [10])[COLUMN]
    refused = 0
    for bit in range(8 * len(column.data)):
        data = column.data.copy()
        data[bit // 8] ^= 1 << bit % 8
        flipped = {COLUMN: Column(data, column.offsets)}
        try:
            decoded = compiled.decode(flipped, [10])
        except IntegrityError as error:
            refused += 1
            assert "row 0" in str(error)
            with pytest.raises(IntegrityError, match="row 0"):
                reference.decode(flipped, [10])
            continue
        check_valid(decoded, VOCABULARY)
        if bit % 7 == 0:
            again = reference.decode(flipped, [10])
            assert torch.equal(again.ids, decoded.ids)
            assert torch.allclose(again.logprobs.exp(), decoded.logprobs.exp(), atol=1e-6)
    assert refused > 0


@pytest.mark.parametrize("path", ["compiled", "reference"])
def test_bytes_that_end_early_are_refused(path: Any) -> None:
    spec = TopkSpec(threshold=1e-2, cap=20)
    codec = TopkCodec(spec, VOCABULARY, path)
    column = codec.encode(topk_of_logits(draw_logits(40, 9), spec), [40])[COLUMN]
    for length in range(len(column.data)):
        with pytest.raises(IntegrityError):
            codec.decode({COLUMN: Column(column.data[:length], np.array([0, length]))}, [40])


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 40), st.sampled_from(["threshold", "count"]))
def test_arbitrary_bytes_are_refused_or_decode_to_a_valid_signal(data: bytes, length: int, select: Any) -> None:
    codec = TopkCodec(TopkSpec(select=select, threshold=1e-2, cap=20), VOCABULARY)
    row = bytes([20, *([len(data) & 127] if length and length <= 32 else [])]) + data
    column = Column(np.frombuffer(row, dtype=np.uint8), np.array([0, len(row)]))
    try:
        decoded = codec.decode({COLUMN: column}, [length])
    except IntegrityError:
        return
    check_valid(decoded, VOCABULARY)


def test_nonsense_settings_are_refused() -> None:
    for wrong in ({"step": 1e-6}, {"temperatures": (2.0,)}, {"temperatures": (2.0, 1.0)}, {"cap": 0}, {"threshold": 0}):
        with pytest.raises(ValueError):
            TopkSpec(**wrong)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="vocabulary of 4000000"):
        TopkCodec(TopkSpec(), 4_000_000)
