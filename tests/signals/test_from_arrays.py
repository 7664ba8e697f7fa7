"""From arrays of the most probable tokens to signals: nothing lost, nothing shifted, the tail what is left."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limbeck.errors import LimbeckError
from limbeck.signals.codecs.topk import TopkCodec
from limbeck.signals.codecs.topk_spec import TopkSpec
from limbeck.signals.from_arrays import padded, topk_of_arrays
from tests.signals.making import VOCABULARY, draw_logits


@given(positions=st.integers(1, 6), entries=st.integers(1, VOCABULARY), seed=st.integers(0, 999))
def test_entries_in_any_order_become_a_sorted_signal(positions: int, entries: int, seed: int) -> None:
    logprobs, ids = draw_logits(positions, seed).double().log_softmax(-1).topk(entries)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(entries))
    given_ids, given_logprobs = ids[:, order].numpy(), logprobs[:, order].numpy()
    before = given_ids.copy()
    signal = topk_of_arrays(given_ids, given_logprobs, VOCABULARY)
    assert torch.equal(signal.ids, ids) and torch.equal(signal.logprobs, logprobs.float())
    assert np.array_equal(given_ids, before)
    tail = 1 - logprobs.exp().sum(1)
    assert torch.allclose(signal.log_tail_mass.double().exp(), tail.clamp(min=0), atol=1e-6)
    assert (entries == VOCABULARY) == bool((signal.log_tail_mass == -np.inf).all())
    TopkCodec(TopkSpec(select="count", cap=entries, temperatures=(1.0,)), VOCABULARY).encode(signal, [positions])


def test_absent_entries_and_masks() -> None:
    ids, logprobs = padded(np.array([7, 3, 9, 1, 2]), np.log([0.5, 0.3, 0.7, 0.2, 0.1]), np.array([0, 2, 2, 5]), 2)
    assert ids.tolist() == [[7, 3], [0, 0], [9, 1]]
    signal = topk_of_arrays(ids, logprobs, VOCABULARY)
    assert signal.mask.tolist() == [True, False, True]
    assert torch.allclose(signal.log_tail_mass.exp()[[0, 2]], torch.tensor([0.2, 0.1]), atol=1e-6)
    assert topk_of_arrays(ids, logprobs, VOCABULARY, np.array([True, False, False])).mask.tolist() == [
        True,
        False,
        False,
    ]
    with pytest.raises(LimbeckError, match=r"token ids \[3, 2\], but log-probabilities \[3, 1\]"):
        topk_of_arrays(ids, logprobs[:, :1], VOCABULARY)
