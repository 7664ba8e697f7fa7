"""From logits to the signal that a codec stores: what each codec asks for, and what is refused."""

import pytest
import torch

from limbeck.errors import UserError
from limbeck.settings import Settings
from limbeck.signals.codecs.distillkit_spec import DistillkitLegacySpec
from limbeck.signals.codecs.hidden_head import hidden_spec
from limbeck.signals.codecs.sampled_random import position_keys
from limbeck.signals.codecs.topk_spec import TopkSpec
from limbeck.signals.from_logits import LogitsChunk, logits_of, maker_of, selection_of
from limbeck.signals.types import OutputHead, TopkSignal
from tests.signals.making import VOCABULARY, draw_logits


def test_a_plug_in_says_which_entries_it_needs() -> None:
    class Mine(Settings):
        codec: str = "mine"

        def selection(self) -> TopkSpec:
            return TopkSpec(select="count", cap=3)

    class Silent(Settings):
        codec: str = "silent"

    assert selection_of(Mine()).cap == 3
    with pytest.raises(UserError, match=r"codec 'silent': .*method `selection`"):
        selection_of(Silent())
    many = DistillkitLegacySpec(vocab_size=200_000, k=70_000, exact_k=70_000, polynomial_degree=0)
    with pytest.raises(UserError, match="k = 70000 entries; at most 65536"):
        selection_of(many)


def test_distillkits_legacy_codec_gets_its_k_entries() -> None:
    spec = DistillkitLegacySpec(vocab_size=VOCABULARY, k=7, exact_k=2, polynomial_degree=1)
    logits = draw_logits(4, 1)
    signal = maker_of(spec, VOCABULARY)(LogitsChunk(logits, torch.zeros(4).long(), position_keys(1, 4)))
    assert isinstance(signal, TopkSignal)
    assert torch.equal(signal.ids, logits.topk(7).indices) and signal.temperatures == (1.0,)


def test_states_are_not_made_of_logits() -> None:
    head = OutputHead(torch.randn(VOCABULARY, 8))
    with pytest.raises(UserError, match="codec 'hidden': it stores a 'hidden' signal, which can't be made of logits"):
        maker_of(hidden_spec(head), VOCABULARY)


@pytest.mark.parametrize("soft_cap", [None, 5.0])
def test_logits_are_weight_bias_and_cap(soft_cap: float | None) -> None:
    weight, bias, states = (torch.randn(shape).double() for shape in ((9, 4), (9,), (3, 4)))
    logits = logits_of(states, OutputHead(weight, bias, soft_cap))
    expected = states @ weight.T + bias
    torch.testing.assert_close(logits, expected if soft_cap is None else 5 * (expected / 5).tanh())
    assert logits_of(states.float(), OutputHead(weight.bfloat16())).dtype == torch.float32
