"""Losses of a batch whose teacher reads the same text in tokens of its own.

Such a teacher has something to say only at the positions where both tokenizations have said the same text (see
`limbeck.distill.spans`), and only to losses that ask for the order of its probabilities (`over="ranks"`: `uld`). All
other losses see the batch as ever: every position that counts, and the teacher of the student's own tokens if there is
one. Every sum is divided by the same number, the tokens that count in the whole optimisation step: a loss over ranks is
the sum over the positions where it is defined, over the number of all, so that no cut of a batch changes the gradient.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from limbeck.distill.executor import Positions, Term, total_loss
from limbeck.distill.view import OtherTokens
from limbeck.signals.loader import SignalBatch
from limbeck.signals.types import OutputHead, at

ALIGNED = "aligned"  # the name under which the share of positions with a teacher is logged


def total_loss_of_two_tokenizers(
    hidden_BTD: Tensor,
    batch: SignalBatch,
    other: OtherTokens,
    head: OutputHead,
    terms: Sequence[Term],
    denominator: Tensor | float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return what `executor.total_loss` returns, with the terms over ranks at the positions of `other`.

    Where no other loss reads a teacher, the student's logits are made once at each position.

    Args:
        hidden_BTD: the student's final states.
        batch: the rows; its signal feeds the losses that are not over ranks.
        other: the other teacher's states; positions that don't count are left out.
        head: the student's.
        terms: the configured losses.
        denominator: number of tokens that count in the whole optimisation step.

    Returns:
        the loss, and each term's mean over `denominator` by name, with the share of positions that had a teacher as
        `aligned` where a loss looked at it.
    """
    ranked = [term for term in terms if term.loss.over == "ranks"]
    plain = [term for term in terms if term.loss.over != "ranks"]
    if not ranked:
        return total_loss(_counted(hidden_BTD, batch, batch.counted), head, plain, denominator)
    kept = batch.counted[other.rows, other.positions]
    rows, positions, signal = other.rows[kept], other.positions[kept], at(other.signal, kept)
    shared = Positions(hidden_BTD[rows, positions], batch.targets[rows, positions], signal)
    if any(term.loss.signals for term in plain):
        passes = [(_counted(hidden_BTD, batch, batch.counted), plain), (shared, ranked)]
    else:
        rest_BT = batch.counted.clone()
        rest_BT[rows, positions] = False
        passes = [(_counted(hidden_BTD, batch, rest_BT), plain), (shared, list(terms))]
    found = [total_loss(each, head, some, denominator) for each, some in passes if some]
    total = torch.stack([loss for loss, _ in found]).sum()
    parts = {term.name: torch.zeros_like(total, requires_grad=False) for term in terms}
    for _, means in found:
        for name, mean in means.items():
            parts[name] += mean
    return total, {**parts, ALIGNED: total.new_tensor(len(rows)) / denominator}


def _counted(hidden_BTD: Tensor, batch: SignalBatch, mask_BT: Tensor) -> Positions:
    teacher = None if batch.signal is None else at(batch.signal, mask_BT)
    return Positions(hidden_BTD[mask_BT], batch.targets[mask_BT], teacher)
