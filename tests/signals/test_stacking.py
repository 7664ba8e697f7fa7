"""Rows of signals end to end and side by side."""

from dataclasses import replace

import pytest
import torch

from limbeck.errors import LimbeckError
from limbeck.signals.codecs.topk_spec import TopkSpec
from limbeck.signals.sparse import topk_of_logits
from limbeck.signals.stacking import concatenate, pad_rows, split
from limbeck.signals.types import HiddenSignal, OutputHead, TokenSignal, TopkSignal, at, kind_of, to_device
from tests.signals.making import draw_logits

INF = float("inf")


def rows() -> list[TopkSignal]:
    return [topk_of_logits(draw_logits(n, n), TopkSpec(select="count", cap=cap)) for n, cap in [(3, 4), (5, 2), (1, 7)]]


def test_concatenation_and_splitting_are_inverse_up_to_absent_entries() -> None:
    parts = split(concatenate(rows()), [3, 5, 1])
    for part, row in zip(parts, rows(), strict=True):
        width = row.ids.shape[1]
        assert part.ids.shape[1] == 7
        assert torch.equal(part.ids[:, :width], row.ids)
        assert torch.equal(part.logprobs[:, :width], row.logprobs)
        assert (part.logprobs[:, width:] == -INF).all()


def test_padding_is_masked_and_holds_no_nan() -> None:
    batch = pad_rows(concatenate(rows()), [3, 5, 1])
    assert batch.logprobs.shape == (3, 5, 7)
    assert batch.mask.sum(1).tolist() == [3, 5, 1]
    assert torch.equal(batch.ids[1, :, :2], rows()[1].ids)
    assert not batch.logprobs.isnan().any() and not batch.log_normalisers.isnan().any()


def test_unlike_signals_are_refused() -> None:
    topk = rows()[0]
    with pytest.raises(LimbeckError, match="TokenSignal, TopkSignal"):
        concatenate([topk, TokenSignal(torch.zeros(1), torch.ones(1).bool())])
    with pytest.raises(LimbeckError, match="temperatures"):
        concatenate([topk, replace(topk, temperatures=(1.0, 3.0))])


def test_a_head_goes_along_untouched() -> None:
    head = OutputHead(torch.randn(9, 4), torch.zeros(9))
    signal = HiddenSignal(torch.randn(5, 4), head, torch.ones(5).bool())
    assert kind_of(signal) == "hidden"
    assert at(signal, slice(1, 3)).head is head
    moved = to_device(signal, "meta")
    assert moved.hidden.device.type == moved.head.weight.device.type == "meta"
    assert moved.head.bias is not None and moved.head.bias.device.type == "meta"
