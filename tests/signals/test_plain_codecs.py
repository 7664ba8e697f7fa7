"""Codecs `dense` and `token`, the registry, and columns."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from limbeck.errors import IntegrityError, LimbeckError, UserError
from limbeck.signals.codecs.columns import Column
from limbeck.signals.codecs.dense import DenseCodec, DenseSpec
from limbeck.signals.codecs.registry import codec, codec_names, make_codec, parse_spec, spec_digest
from limbeck.signals.codecs.token import TokenCodec, TokenSpec
from limbeck.signals.codecs.topk_spec import TopkSpec
from limbeck.signals.types import DenseSignal, TokenSignal
from tests.signals.making import VOCABULARY, draw_logits


def dense(positions: int) -> DenseSignal:
    logprobs = draw_logits(positions, 1).log_softmax(-1)
    logprobs[0, 3] = float("-inf")
    return DenseSignal(logprobs, torch.arange(positions) % 4 != 1)


def test_float32_comes_back_bit_for_bit_and_bfloat16_rounded() -> None:
    signal = dense(9)
    exact = DenseCodec(DenseSpec(dtype="float32"), VOCABULARY)
    decoded = exact.decode(exact.encode(signal, [4, 5]), [4, 5])
    assert torch.equal(decoded.mask, signal.mask)
    assert torch.equal(decoded.logprobs[signal.mask], signal.logprobs[signal.mask])
    rounded = DenseCodec(DenseSpec(), VOCABULARY)
    columns = rounded.encode(signal, [4, 5])
    assert columns["logprobs"].offsets.tolist() == [0, 4 * VOCABULARY * 2, 9 * VOCABULARY * 2]
    decoded = rounded.decode(columns, [4, 5])
    assert torch.equal(decoded.logprobs[signal.mask], signal.logprobs.bfloat16().float()[signal.mask])


def test_token_comes_back_bit_for_bit() -> None:
    signal = TokenSignal(draw_logits(6, 2).log_softmax(-1)[:, 0], torch.arange(6) != 2)
    plain = TokenCodec(TokenSpec(), VOCABULARY)
    decoded = plain.decode(plain.encode(signal, [2, 0, 4]), [2, 0, 4])
    assert torch.equal(decoded.mask, signal.mask)
    assert torch.equal(decoded.logprobs[signal.mask], signal.logprobs[signal.mask])


def test_bytes_are_little_endian_numbers() -> None:
    signal = TokenSignal(torch.tensor([-1.5, 0.0]), torch.tensor([True, True]))
    data = TokenCodec(TokenSpec(), 10).encode(signal, [2])["logprobs"].data
    assert data.tobytes() == np.array([-1.5, 0.0], dtype="<f4").tobytes()


@pytest.mark.parametrize("value", [float("nan"), 0.5, float("inf")])
def test_what_is_no_log_probability_is_refused_by_place(value: float) -> None:
    signal = dense(9)
    signal.logprobs[6, 7] = value
    with pytest.raises(LimbeckError, match=r"row 1, position 2: token 7"):
        DenseCodec(DenseSpec(), VOCABULARY).encode(signal, [4, 5])
    with pytest.raises(LimbeckError, match=r"row 1, position 1"):
        TokenCodec(TokenSpec(), 10).encode(TokenSignal(torch.tensor([-1.0, -1.0, value]), torch.ones(3).bool()), [1, 2])
    signal = replace(signal, mask=signal.mask & (torch.arange(9) != 6))
    DenseCodec(DenseSpec(), VOCABULARY).encode(signal, [4, 5])


def test_a_wrong_shape_or_a_cut_column_is_refused() -> None:
    plain = DenseCodec(DenseSpec(), VOCABULARY)
    with pytest.raises(LimbeckError, match=r"expected \[9, 51\], got \[9, 50\]"):
        DenseCodec(DenseSpec(), 51).encode(dense(9), [9])
    column = plain.encode(dense(9), [9])["logprobs"]
    cut = Column(column.data[:-1], np.array([0, len(column.data) - 1]))
    with pytest.raises(IntegrityError, match="row 0 of logprobs has 899 bytes, 9 positions need 900"):
        plain.decode({"logprobs": cut}, [9])


def test_specs_go_through_the_registry_by_their_tag() -> None:
    assert {"topk", "dense", "token"} <= set(codec_names())
    spec = parse_spec({"codec": "topk", "version": 2, "cap": 7})
    assert spec == TopkSpec(cap=7)
    assert make_codec(spec, 100).kind == "topk"
    assert parse_spec(spec.model_dump(mode="json")) == spec
    assert spec_digest(spec) != spec_digest(TopkSpec(cap=8))


def test_unknown_codecs_keys_and_versions_are_named() -> None:
    with pytest.raises(UserError, match=r"no codec is called 'topl'. Did you mean 'topk'?"):
        parse_spec({"codec": "topl"})
    with pytest.raises(UserError, match=r"recipe.yaml: unknown key 'treshold'. Did you mean 'threshold'?"):
        parse_spec({"codec": "topk", "treshold": 1}, "recipe.yaml")
    with pytest.raises(UserError, match="version"):
        parse_spec({"codec": "topk", "version": 99})


def test_a_name_is_taken_once() -> None:
    codec_names()
    with pytest.raises(ValueError, match="token is registered twice"):
        codec("token", TokenSpec)(TokenCodec)
