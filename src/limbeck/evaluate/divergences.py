"""How far a student is from its teacher on given text: exact, over the full vocabulary, with intervals by document.

The functions are the losses of `distill`, run by the same executor without gradients: the teacher's distribution is
made from its final hidden states chunk by chunk, so `[T, V]` never exists for more than a chunk.

Per token: forward KL(teacher || student), reverse KL, whether both put the same token first, and the negative
log-likelihood of the text under both models. Position 0 of a row predicts its second token; the first token of a row
is given, never predicted.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from limbeck.distill.executor import Positions, Term, token_values
from limbeck.distill.losses import Loss, Outcomes, get_loss
from limbeck.engines.transformers import final_hidden, output_head
from limbeck.errors import UserError
from limbeck.evaluate.statistics import Estimate, by_cluster, clustered_ratio
from limbeck.signals.types import HiddenSignal


@dataclass(frozen=True)
class TextRow:
    """One row of text to measure on.

    Attributes:
        document: the name of the document it is from: the cluster.
        ids: its token ids.
        predicted_bytes: length in bytes of the text of all tokens but the first.
    """

    document: str
    ids: tuple[int, ...]
    predicted_bytes: int


@dataclass(frozen=True)
class RowDivergence:
    """What was measured on one row: arrays `[T - 1]`, in nats; `agreement` is 0 or 1."""

    document: str
    predicted_bytes: int
    kl: NDArray[np.float64]
    reverse_kl: NDArray[np.float64]
    agreement: NDArray[np.float64]
    student_nll: NDArray[np.float64]
    teacher_nll: NDArray[np.float64]


@dataclass(frozen=True)
class DivergenceSummary:
    """Means over all tokens with 95 % intervals clustered by document; bits per byte are of the student."""

    kl: Estimate
    reverse_kl: Estimate
    agreement: Estimate
    bits_per_byte: Estimate
    tokens: int
    documents: int


def _agreement(outcomes: Outcomes) -> Tensor:
    return (outcomes.log_q.argmax(-1, keepdim=True) == outcomes.log_p.argmax(-1, keepdim=True)).float()


def _teacher_nll(outcomes: Outcomes) -> Tensor:
    return -outcomes.log_p


WHOLE = ("dense", "hidden")  # kinds of signal that tell of the whole vocabulary
MEASURES = (
    Term.of(get_loss("kl")),
    Term.of(get_loss("reverse_kl")),
    Term.of(Loss("agreement", _agreement, WHOLE)),
    Term.of(get_loss("cross_entropy")),
    Term.of(Loss("teacher_nll", _teacher_nll, WHOLE, over="target")),
)


def measure(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    rows: Sequence[TextRow],
    *,
    batch_size: int = 8,
    on_row: Callable[[], None] = lambda: None,
) -> list[RowDivergence]:
    """Measure a student against its teacher on rows of text.

    Args:
        student: in evaluation mode; may be the teacher itself (then every divergence is 0).
        teacher: with the same vocabulary; may stand on another device.
        rows: at least two tokens each.
        batch_size: rows scored at a time, padded on the right.
        on_row: called after each row, for progress.

    Raises:
        UserError: the two vocabularies differ in size.
    """
    heads = output_head(student), output_head(teacher)
    if heads[0].weight.shape[0] != heads[1].weight.shape[0]:
        raise UserError(
            f"student and teacher have different vocabularies ({heads[0].weight.shape[0]} and "
            f"{heads[1].weight.shape[0]} entries): their distributions can't be compared."
        )
    return list(_measured(student, teacher, rows, batch_size, on_row))


@torch.no_grad()
def _measured(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    rows: Sequence[TextRow],
    batch_size: int,
    on_row: Callable[[], None],
) -> Iterator[RowDivergence]:
    student_head, teacher_head = output_head(student), output_head(teacher)
    for first in range(0, len(rows), batch_size):
        batch = rows[first : first + batch_size]
        width = max(len(row.ids) for row in batch)
        ids = torch.zeros((len(batch), width), dtype=torch.long)
        for index, row in enumerate(batch):
            ids[index, : len(row.ids)] = torch.tensor(row.ids)
        student_BTD = final_hidden(student, ids.to(student.device))
        teacher_BTD = final_hidden(teacher, ids.to(teacher.device)).to(student.device)
        for index, row in enumerate(batch):
            length = len(row.ids) - 1
            signal = HiddenSignal(teacher_BTD[index, :length], teacher_head, torch.ones(length, dtype=torch.bool))
            positions = Positions(student_BTD[index, :length], ids[index, 1 : length + 1].to(student.device), signal)
            values = {
                name: value.double().cpu().numpy()
                for name, value in token_values(positions, student_head, MEASURES).items()
            }
            on_row()
            yield RowDivergence(
                row.document, row.predicted_bytes, values["kl"], values["reverse_kl"], values["agreement"],
                values["cross_entropy"], values["teacher_nll"],
            )  # fmt: skip


def summarise(rows: Sequence[RowDivergence]) -> DivergenceSummary:
    """Return the token-weighted means of all rows, each with a 95 % interval clustered by document.

    Raises:
        UserError: there are no rows.
    """
    if not rows:
        raise UserError("there is nothing to summarise: no rows were measured.")
    documents = [row.document for row in rows]
    names, tokens_G = by_cluster([len(row.kl) for row in rows], documents)
    _, bytes_G = by_cluster([row.predicted_bytes for row in rows], documents)

    def mean(totals: list[float], sizes: NDArray[np.float64]) -> Estimate:
        return clustered_ratio(by_cluster(totals, documents)[1], sizes)

    return DivergenceSummary(
        kl=mean([float(row.kl.sum()) for row in rows], tokens_G),
        reverse_kl=mean([float(row.reverse_kl.sum()) for row in rows], tokens_G),
        agreement=mean([float(row.agreement.sum()) for row in rows], tokens_G),
        bits_per_byte=mean([float(row.student_nll.sum()) / math.log(2) for row in rows], bytes_G),
        tokens=int(tokens_G.sum()),
        documents=len(names),
    )
