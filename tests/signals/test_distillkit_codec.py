"""Codecs `distillkit` and `distillkit_legacy`: how well they fit, what they refuse, and which settings they take."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.errors import IntegrityError, LimbeckError, UserError
from limbeck.settings import Settings
from limbeck.signals.codecs.bit_packing import pack_bits
from limbeck.signals.codecs.columns import Column
from limbeck.signals.codecs.distillkit import IDS, VALUES, DistillkitCodec
from limbeck.signals.codecs.distillkit_legacy import DistillkitLegacyCodec
from limbeck.signals.codecs.distillkit_rows import load_kernels, pack_ids, unpack_ids
from limbeck.signals.codecs.distillkit_spec import DistillkitLegacySpec, DistillkitSpec, read_config
from limbeck.signals.codecs.registry import make_codec, parse_spec
from limbeck.signals.codecs.topk_spec import TopkSpec
from limbeck.signals.dataset import SignalDataset, SignalRow
from limbeck.signals.sparse import topk_of_logits
from limbeck.signals.types import TopkSignal, at
from limbeck.signals.writer import DatasetWriter
from tests.signals.making import draw_logits, header_of

INF = float("inf")
VOCABULARY = 4000
RECOMMENDED: dict[str, Any] = {
    "d": VOCABULARY, "k": 128, "exact_k": 16, "exact_dtype": "bfloat16", "term_dtype": "float32",
    "polynomial_terms": [0, 1, 2, 3, 4, "sqrt"], "residual_bins": [], "delta_encoding": False,
    "error_diffusion": False,
}  # fmt: skip
BIN = {"scale_dtype": "float16", "element_bits": 6, "num_elements": 40}
LEGACY = {"vocab_size": VOCABULARY, "k": 64, "exact_k": 16, "polynomial_degree": 3}


def signal_of(positions: int, seed: int = 1, k: int = 128) -> TopkSignal:
    return topk_of_logits(draw_logits(positions, seed, VOCABULARY), TopkSpec(select="count", cap=k))


def errors_of(codec: Any, signal: TopkSignal) -> torch.Tensor:
    """Return `[N, K]`, what each stored id's log-probability is off by."""
    n = len(signal.mask)
    decoded = codec.decode(codec.encode(signal, [n]), [n])
    dense = torch.full((n, VOCABULARY), float("nan")).scatter(1, signal.ids, signal.logprobs)
    return decoded.logprobs - dense.gather(1, decoded.ids)


SPECS: list[Settings] = [
    DistillkitSpec(**RECOMMENDED),
    DistillkitSpec(**{**RECOMMENDED, "normalize_t": True, "delta_encoding": True}),
    DistillkitSpec(**{**RECOMMENDED, "residual_bins": [BIN, {**BIN, "num_elements": 72}], "error_diffusion": True}),
    DistillkitSpec(d=VOCABULARY, k=20, exact_k=20, residual_bins=[]),
    DistillkitLegacySpec(**LEGACY),
    DistillkitLegacySpec(**{**LEGACY, "exact_k": 64, "polynomial_degree": 0}),
]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), spec=st.sampled_from(SPECS), lengths=st.lists(st.integers(0, 300), max_size=3))
def test_the_compiled_path_is_the_plain_one(seed: int, spec: Any, lengths: list[int]) -> None:
    """Absent entries, masked positions, and polynomials that rise are among them."""
    total = sum(lengths)
    generator = torch.Generator().manual_seed(seed)
    few = torch.randn(min(total, 40), VOCABULARY, generator=generator) * 3
    logits = few[torch.randint(len(few), (total,), generator=generator)] if total else few
    signal = topk_of_logits(logits, TopkSpec(select="count", cap=128)) if total else signal_of(1)
    if not total:
        signal = at(signal, slice(0, 0))
    cut = torch.randint(1, 200, (total, 1), generator=generator)
    absent = torch.arange(signal.logprobs.shape[-1]) >= cut
    logprobs = signal.logprobs.masked_fill(absent, -INF)
    signal = replace(signal, logprobs=logprobs, mask=torch.rand(total, generator=generator) < 0.8)
    compiled, plain = (type(make_codec(spec, VOCABULARY))(spec, VOCABULARY, path) for path in ("compiled", "plain"))
    columns, expected = compiled.encode(signal, lengths), plain.encode(signal, lengths)
    for name, column in expected.items():
        assert column.data.tobytes() == columns[name].data.tobytes()
    one, two = compiled.decode(columns, lengths), plain.decode(columns, lengths)
    for name in ("ids", "logprobs", "mask", "log_normalisers"):
        assert torch.equal(getattr(one, name), getattr(two, name)), name
    assert torch.allclose(one.log_tail_mass.exp(), two.log_tail_mass.exp(), rtol=1e-5, atol=1e-12)


@given(bits=st.integers(1, 56), count=st.integers(1, 40), rows=st.integers(0, 5), seed=st.integers(0, 99))
def test_compiled_packing_is_plain_packing(bits: int, count: int, rows: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 1 << bits, (rows, count), dtype=np.int64)
    kernels = load_kernels("compiled")
    packed = pack_ids(values, bits, kernels)
    assert packed.tobytes() == pack_bits(values.astype(np.uint64), bits).tobytes()
    assert np.array_equal(unpack_ids(packed, count, bits, kernels), values)


@pytest.mark.parametrize("spec", SPECS)
def test_what_is_read_is_a_sound_signal(spec: Any) -> None:
    signal = replace(signal_of(40), mask=torch.arange(40) % 5 != 3)
    codec = make_codec(spec, VOCABULARY)
    lengths = [7, 0, 33]
    columns = codec.encode(signal, lengths)
    assert set(columns) == set(codec.columns)
    assert sum(len(column.data) for column in columns.values()) == 40 * codec.bytes_per_position  # type: ignore[attr-defined]
    decoded = codec.decode(columns, lengths)
    assert isinstance(decoded, TopkSignal)
    assert torch.equal(decoded.mask, signal.mask)
    said = signal.mask
    assert torch.equal(decoded.ids[said].sort(1).values, signal.ids[said][:, : spec.k].sort(1).values)
    assert torch.equal(decoded.ids[said][:, : spec.exact_k // 2], signal.ids[said][:, : spec.exact_k // 2])
    assert (decoded.logprobs[:, 1:] <= decoded.logprobs[:, :-1]).all() and (decoded.logprobs <= 0).all()
    mass = decoded.logprobs[said].double().exp().sum(1) + decoded.log_tail_mass[said].double().exp()
    assert torch.allclose(mass, torch.ones_like(mass), atol=1e-6)
    assert decoded.temperatures == (1.0,) and not decoded.log_normalisers.any()
    assert torch.equal(codec.decode(columns, lengths).logprobs, decoded.logprobs)


@pytest.mark.parametrize("normalize_t", [False, True])
def test_the_recommended_settings_work(normalize_t: bool) -> None:
    """Within a hundredth of the best fit there is, which numpy finds in float64 on its own."""
    spec = DistillkitSpec(**{**RECOMMENDED, "normalize_t": normalize_t})
    signal = signal_of(200)
    errors = errors_of(DistillkitCodec(spec, VOCABULARY), signal)[:, 16:].double()
    t = np.linspace(0, 1, 112)
    basis = np.stack([np.ones(112), t, t**2, t**3, t**4, np.sqrt(t)], 1)
    tail = signal.logprobs[:, 16:].double().numpy().T
    best = tail - basis @ np.linalg.lstsq(basis, tail, rcond=None)[0]
    assert errors.square().mean().sqrt().item() < 1.01 * float(np.sqrt((best**2).mean()))
    assert errors.abs().max() < 0.5


def test_bytes_a_position_are_the_published_ones() -> None:
    """Value bytes and id bytes of the two configurations at three vocabularies."""
    budget = {"k": 50, "exact_k": 1, "polynomial_terms": [0, 1, "sqrt"]}
    for d, recommended, small in ((128_256, 328, 121), (151_936, 344, 127), (32_000, 296, 108)):
        settings = {**RECOMMENDED, "d": d}
        assert DistillkitCodec(DistillkitSpec(**settings), d).bytes_per_position == recommended
        assert DistillkitCodec(DistillkitSpec(**{**settings, **budget}), d).bytes_per_position == small


def test_exact_only_is_lossless() -> None:
    signal = signal_of(30, k=20)
    spec = DistillkitSpec(d=VOCABULARY, k=20, exact_k=20, residual_bins=(), delta_encoding=False)
    assert not errors_of(DistillkitCodec(spec, VOCABULARY), signal).any()


def test_finer_residuals_err_less_and_one_bit_beats_none() -> None:
    signal = signal_of(100)
    found = []
    for bits in (0, 1, 2, 3, 4, 8, 12):
        bins = [{"scale_dtype": "float32", "element_bits": bits, "num_elements": 112}] if bits else []
        spec = DistillkitSpec(**{**RECOMMENDED, "residual_bins": bins, "exact_dtype": "float32"})
        found.append(errors_of(DistillkitCodec(spec, VOCABULARY), signal)[:, 16:].square().mean().sqrt().item())
    assert found == sorted(found, reverse=True) and found[-1] < 1e-3 * found[0] + 1e-5


def test_legacy_fits_as_well_as_its_basis_can() -> None:
    signal = signal_of(100, k=64)
    errors = errors_of(DistillkitLegacyCodec(DistillkitLegacySpec(**LEGACY), VOCABULARY), signal)[:, 16:]
    a = np.arange(1, 49.0)
    basis = np.stack([a**-i for i in range(4)], 1)
    tail = signal.logprobs[:, 16:].double().numpy().T
    best = tail - basis @ np.linalg.lstsq(basis, tail, rcond=None)[0]
    assert errors.square().mean().sqrt().item() < 1.01 * float(np.sqrt((best**2).mean())) + 1e-5


@pytest.mark.parametrize(
    ("name", "where", "value", "complaint"),
    [
        ("logprobs", (7, 3), float("nan"), "entry 3 is not a number"),
        ("logprobs", (7, 0), INF, "entry 0 is inf, above 0"),
        ("logprobs", (7, 0), 0.5, "entry 0 is 0.5, above 0"),
        ("logprobs", (7, 4), -1e-4, "entry 4 is more probable than the one before"),
        ("logprobs", (7, slice(None)), -INF, "no entry"),
        ("logprobs", (7, slice(None)), -1.0, "a mass of .*, more than 1"),
        ("logprobs", (7, slice(10, None)), -70_000.0, "out of the range of (exact_dtype )?float16"),
        ("ids", (7, 1), VOCABULARY, f"token id {VOCABULARY} of entry 1 is outside the vocabulary of {VOCABULARY}"),
        ("ids", (7, 1), -1, "token id -1 of entry 1 is outside"),
        ("ids", (7, 1), None, r"token id \d+ is given twice"),
    ],
)
@pytest.mark.parametrize(
    "spec", [DistillkitSpec(**{**RECOMMENDED, "exact_dtype": "float16", "k": 64}), DistillkitLegacySpec(**LEGACY)]
)
def test_what_cannot_be_represented_is_refused_by_row_and_position(
    name: str, where: Any, value: float | None, complaint: str, spec: Any
) -> None:
    signal = signal_of(12)
    changed = getattr(signal, name).clone()
    changed[where] = int(signal.ids[7, 0]) if value is None else value
    codec = make_codec(spec, VOCABULARY)
    with pytest.raises(LimbeckError, match=rf"codec {spec.codec}: row 1, position 2: .*{complaint}"):
        codec.encode(replace(signal, **{name: changed}), [5, 7])
    mask = torch.arange(12) != 7
    codec.encode(replace(signal, **{name: changed}, mask=mask), [5, 7])


def test_scales_and_coefficients_out_of_range_are_refused() -> None:
    signal = TopkSignal(
        ids=torch.arange(8)[None],
        logprobs=torch.tensor([[-1.0, -2.0, -3.0, -4.0, -1e6, -2e6, -3e6, -4e6]]),
        log_tail_mass=torch.zeros(1),
        log_normalisers=torch.zeros(1, 1),
        temperatures=(1.0,),
        mask=torch.ones(1, dtype=torch.bool),
    )
    common: dict[str, Any] = {"d": 8, "k": 8, "exact_k": 2, "delta_encoding": False}
    bins = [{"scale_dtype": "float16", "element_bits": 2, "num_elements": 6}]
    with pytest.raises(LimbeckError, match="row 0, position 0: the scale of a residual bin"):
        DistillkitCodec(DistillkitSpec(**common, residual_bins=bins), 8).encode(signal, [1])
    with pytest.raises(LimbeckError, match=r"row 0, position 0: the fitted polynomial is out of .* float16"):
        spec = DistillkitSpec(**common, residual_bins=(), polynomial_terms=[0, 1], term_dtype="float16")
        DistillkitCodec(spec, 8).encode(signal, [1])


def test_ids_are_held_to_both_vocabularies() -> None:
    signal = signal_of(2)
    signal.ids[1, 2] = 3999
    small = DistillkitSpec(**{**RECOMMENDED, "d": 3999})
    with pytest.raises(LimbeckError, match=r"row 0, position 1: .*outside the vocabulary of 3999"):
        DistillkitCodec(small, VOCABULARY).encode(signal, [2])
    with pytest.raises(UserError, match="k = 128 entries out of a vocabulary of 100"):
        DistillkitCodec(DistillkitSpec(**RECOMMENDED), 100)
    columns = DistillkitCodec(DistillkitSpec(**RECOMMENDED), VOCABULARY).encode(signal_of(3), [3])
    with pytest.raises(IntegrityError, match="row 0, position 0: a token id is outside the vocabulary of 200"):
        DistillkitCodec(DistillkitSpec(**RECOMMENDED), 200).decode(columns, [3])


@pytest.mark.parametrize("spec", SPECS)
def test_cut_columns_and_repeated_ids_are_refused(spec: Any) -> None:
    codec = make_codec(spec, VOCABULARY)
    columns = codec.encode(signal_of(6), [2, 4])
    for name, column in columns.items():
        if not len(column.data):
            continue
        offsets = column.offsets.copy()
        offsets[-1] -= 1
        with pytest.raises(IntegrityError, match=f"row 1 of {name} has"):
            codec.decode({**columns, name: Column(column.data[:-1], offsets)}, [2, 4])
    name = codec.columns[-1]
    zeros = Column(np.zeros_like(columns[name].data), columns[name].offsets)
    with pytest.raises(IntegrityError, match="row 0, position 0: a token id is there twice"):
        codec.decode({**columns, name: zeros}, [2, 4])


def test_an_infinite_value_is_damage() -> None:
    spec = DistillkitSpec(d=VOCABULARY, k=3, exact_k=3, residual_bins=())
    codec = DistillkitCodec(spec, VOCABULARY)
    columns = codec.encode(signal_of(1), [1])
    values = np.array([-1.0, INF, 0.0], dtype="<f4").view(np.uint8)
    with pytest.raises(IntegrityError, match="row 0, position 0: a stored log-probability is"):
        codec.decode({**columns, VALUES: Column(values, columns[VALUES].offsets)}, [1])
    assert len(columns[IDS].data) == 5


def test_a_whole_vocabulary_leaves_no_tail_and_an_overfull_one_a_tiny_one() -> None:
    spec = DistillkitSpec(d=4, k=3, exact_k=3, residual_bins=(), delta_encoding=False)
    codec = DistillkitCodec(spec, 4)
    columns = {
        VALUES: Column(np.array([-0.1, -0.2, -3.0], dtype="<f4").view(np.uint8), np.array([0, 12])),
        IDS: Column(np.array([0b10010000], dtype=np.uint8), np.array([0, 1])),
    }
    decoded = codec.decode(columns, [1])
    assert decoded.ids.tolist() == [[2, 1, 0]]
    assert math.isfinite(decoded.log_tail_mass.item()) and decoded.log_tail_mass.item() < -50
    assert DistillkitCodec(spec, 3).decode(columns, [1]).log_tail_mass.item() == -INF


def test_configuration_files_are_taken_as_they_are(tmp_path: Path) -> None:
    flat = read_config(yaml.safe_load(yaml.safe_dump(RECOMMENDED)))
    assert flat == DistillkitSpec(**RECOMMENDED)
    assert read_config({"logprob_compressor": RECOMMENDED}) == flat
    assert read_config({"legacy_logit_compression": LEGACY}) == DistillkitLegacySpec(**LEGACY) == read_config(LEGACY)
    defaults = read_config({"d": 9, "k": 3, "exact_k": 3, "residual_bins": []})
    assert isinstance(defaults, DistillkitSpec)
    assert (defaults.exact_dtype, defaults.term_dtype, defaults.delta_encoding) == ("float32", "float32", True)
    assert (defaults.polynomial_terms, defaults.error_diffusion, defaults.normalize_t) == (None, False, False)
    assert parse_spec(flat.model_dump(mode="json")) == flat
    legacy = DistillkitLegacySpec(**LEGACY)
    assert (legacy.invert_polynomial, legacy.with_sqrt_term, legacy.term_dtype) == (True, False, "float32")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"exact_kk": 3}, "unknown key 'exact_kk'. Did you mean 'exact_k'"),
        ({"k": 15}, "exact_k = 16 is more than k = 15"),
        ({"k": VOCABULARY + 1}, "out of a vocabulary of d"),
        ({"polynomial_terms": []}, "neither polynomial_terms nor residual_bins"),
        ({"polynomial_terms": ["cube"]}, "polynomial_terms"),
        ({"residual_bins": [{**BIN, "num_elements": 113}]}, "cover 113 entries"),
        ({"residual_bins": [{**BIN, "element_bits": 65}]}, "element_bits"),
        ({"residual_bins": [BIN], "polynomial_terms": None}, "72 entries have neither"),
        ({"exact_dtype": "int8"}, "exact_dtype"),
        ({"d": (1 << 21) + 1}, "recipe.yaml: d"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        read_config({**RECOMMENDED, **change}, "recipe.yaml")


def test_sections_and_terms_that_cannot_be_are_refused() -> None:
    with pytest.raises(UserError, match="holds both"):
        read_config({"logprob_compressor": RECOMMENDED, "legacy_logit_compression": LEGACY})
    with pytest.raises(UserError, match="a value, not a section"):
        read_config({"logprob_compressor": 3})
    with pytest.raises(UserError, match=r"polynomial term 3 is not finite in float16 for t up to 111.*normalize_t"):
        DistillkitCodec(DistillkitSpec(**{**RECOMMENDED, "term_dtype": "float16"}), VOCABULARY)
    with pytest.raises(UserError, match="polynomial term 'exp' is not finite in float32"):
        DistillkitCodec(DistillkitSpec(**{**RECOMMENDED, "polynomial_terms": ["exp"]}), VOCABULARY)


def test_a_dataset_of_it_reads_back(tmp_path: Path) -> None:
    spec = DistillkitSpec(**RECOMMENDED)
    header = header_of(samples=3, samples_per_shard=2, codec=spec, vocabulary=VOCABULARY)
    rows = [SignalRow(torch.arange(5), torch.ones(5, dtype=torch.bool), signal_of(5, seed)) for seed in range(3)]
    with DatasetWriter(tmp_path / "d", header) as writer:
        for samples in writer.missing_ranges():
            writer.write_shard(samples, [rows[sample] for sample in samples])
        writer.finish()
    dataset = SignalDataset.open(tmp_path / "d")
    assert dataset.kind == "topk"
    read = dataset.row(2).signal
    assert isinstance(read, TopkSignal) and torch.equal(read.ids[:, :8], rows[2].signal.ids[:, :8])  # type: ignore[union-attr]
