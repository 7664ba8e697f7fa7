"""The chunked executor against the same losses on whole logits, and against the three matrix products alone."""

import torch

from benchmarks.timing import Row, in_turn
from limbeck.distill.executor import Positions, Term, teacher_chunk, total_loss
from limbeck.distill.losses import StudentChunk, get_loss
from limbeck.signals.codecs.topk_spec import TopkSpec
from limbeck.signals.sparse import topk_of_logits
from limbeck.signals.types import OutputHead

TITLE = "Losses from hidden states, forward and backward: N = 1,024, V = 32,768, H = 256, k = 128, float32"
N, V, H = 1024, 32_768, 256


def run() -> list[Row]:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(N, H, generator=generator).requires_grad_()
    weight = (torch.randn(V, H, generator=generator) / H**0.5).requires_grad_()
    targets = torch.randint(V, (N,), generator=generator)
    logits = 3 * torch.randn(N, V, generator=generator)
    teacher = topk_of_logits(logits, TopkSpec(select="count", cap=128))
    kl, cross_entropy = Term.of(get_loss("kl")), Term.of(get_loss("cross_entropy"))

    def fused(*terms: Term) -> None:
        total_loss(Positions(hidden, targets, teacher), OutputHead(weight), terms, N)[0].backward()

    def whole(*terms: Term) -> None:
        student = StudentChunk(torch.log_softmax(hidden @ weight.T, -1))
        chunk = teacher_chunk(teacher, targets, 1.0)
        sum(term.function(student, chunk).sum() for term in terms).div(N).backward()

    def products() -> None:
        scores = hidden.detach() @ weight.detach().T
        _ = scores @ weight.detach(), scores.T @ hidden.detach()

    return [
        Row("sparse KL", *in_turn(lambda: fused(kl), lambda: whole(kl)), "whole logits, autograd"),
        Row("sparse KL", *in_turn(lambda: fused(kl), products), "its three matrix products alone"),
        Row(
            "sparse KL and cross-entropy together",
            *in_turn(lambda: fused(kl, cross_entropy), lambda: fused(kl)),
            "sparse KL alone",
        ),
    ]
