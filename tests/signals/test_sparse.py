"""`topk_of_logits` against the plain formulas in float64."""

import pytest
import torch

from limbeck.signals.codecs.topk_spec import TopkSpec
from limbeck.signals.sparse import topk_of_logits
from tests.signals.making import draw_logits

INF = float("inf")


@pytest.mark.parametrize("select", ["threshold", "mass", "count"])
def test_everything_said_is_exact(select: str) -> None:
    logits = draw_logits(40, seed=1, vocabulary=300)
    spec = TopkSpec(select=select, threshold=5e-3, mass=0.9, cap=40)  # type: ignore[arg-type]
    signal = topk_of_logits(logits, spec, temperatures=(0.5, 1.0, 4.0))
    exact = logits.double().log_softmax(-1)
    for position in range(40):
        kept = signal.logprobs[position] > -INF
        ids = signal.ids[position][kept]
        assert len(set(ids.tolist())) == len(ids) >= 1
        assert torch.allclose(signal.logprobs[position][kept].double(), exact[position][ids], atol=1e-5)
        rest = torch.ones(300, dtype=torch.bool)
        rest[ids] = False
        assert signal.log_tail_mass[position].item() == pytest.approx(
            exact[position][rest].logsumexp(0).item(), abs=1e-5
        )
    for index, temperature in enumerate((0.5, 1.0, 4.0)):
        assert torch.allclose(signal.log_normalisers[:, index].double(), (exact / temperature).logsumexp(-1), atol=1e-5)
    assert (signal.logprobs[:, 1:] <= signal.logprobs[:, :-1]).all()


def test_selection_keeps_what_it_says() -> None:
    logits = draw_logits(200, seed=2, vocabulary=300)
    p = logits.double().softmax(-1).sort(-1, descending=True).values
    by_threshold = topk_of_logits(logits, TopkSpec(threshold=5e-3, cap=300))
    assert torch.equal((by_threshold.logprobs > -INF).sum(1), (p >= 5e-3).sum(1))
    by_mass = topk_of_logits(logits, TopkSpec(select="mass", mass=0.9, cap=300))
    assert torch.equal((by_mass.logprobs > -INF).sum(1), (p.cumsum(1) < 0.9).sum(1) + 1)
    capped = topk_of_logits(logits, TopkSpec(select="mass", mass=1.0, cap=7))
    assert capped.ids.shape[1] == 7


def test_a_tiny_tail_keeps_its_digits() -> None:
    logits = torch.full((1, 1000), -30.0)
    logits[0, 5] = 0.0
    signal = topk_of_logits(logits, TopkSpec(threshold=0.1))
    assert signal.ids.tolist() == [[5]]
    assert signal.log_tail_mass.item() == pytest.approx(torch.tensor(999.0).log().item() - 30.0, abs=1e-4)


def test_half_precision_logits_and_a_whole_vocabulary() -> None:
    signal = topk_of_logits(draw_logits(3, seed=3, vocabulary=8).bfloat16(), TopkSpec(select="count", cap=50))
    assert signal.ids.shape == (3, 8)
    assert signal.logprobs.dtype == torch.float32
    assert (signal.log_tail_mass == -INF).all()
