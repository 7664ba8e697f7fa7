"""Rows of signals end to end and side by side."""

import pickle
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


def test_a_head_is_moved_once_and_copied_again_only_where_it_changed() -> None:
    head = OutputHead(torch.randn(9, 4), torch.zeros(9), 30.0)
    signal = HiddenSignal(torch.randn(5, 4), head, torch.ones(5).bool())
    assert to_device(signal, "cpu").head is head
    there = to_device(signal, "meta").head
    assert to_device(at(signal, slice(2)), torch.device("meta")).head is there
    assert there.soft_cap == 30.0 and there.to("meta") is there
    assert OutputHead(head.weight, head.bias).to("meta") is not there
    head.weight[0] += 1.0
    again = to_device(signal, "meta").head
    assert again is not there and to_device(signal, "meta").head is again
    assert head.bias is not None
    head.bias.zero_()
    assert to_device(signal, "meta").head is not again


def test_a_head_in_training_is_never_read_from_a_copy() -> None:
    head = OutputHead(torch.randn(9, 4, requires_grad=True))
    assert head.to("meta") is not head.to("meta")
    with torch.inference_mode():
        assert OutputHead(torch.randn(9, 4)).to("meta").weight.device.type == "meta"


def test_copies_of_a_head_stay_behind_where_it_is_pickled() -> None:
    head = OutputHead(torch.randn(9, 4), None, 5.0)
    alone = len(pickle.dumps(head))
    head.to("meta")
    assert len(pickle.dumps(head)) == alone
    copied = pickle.loads(pickle.dumps(head))
    assert torch.equal(copied.weight, head.weight) and (copied.bias, copied.soft_cap) == (None, 5.0)
    assert replace(head, soft_cap=None).to("meta").soft_cap is None
