"""A student together with its losses, as one module.

The losses run inside the module's own forward, because that is the call that data-parallel and sharded wrappers see:
gradients are reduced, and sharded parameters gathered, exactly there.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from transformers import PreTrainedModel

from limbeck.distill.executor import Positions, Term, total_loss
from limbeck.engines.transformers import final_hidden, output_head
from limbeck.signals.loader import SignalBatch
from limbeck.signals.types import at


class DistilledStudent(nn.Module):
    """Computes the configured losses of `student` on a batch of rows with signals.

    Args:
        student: the model that is trained.
        terms: the configured losses.
        needs_teacher: whether any of them reads the teacher's signal.
    """

    def __init__(self, student: PreTrainedModel, terms: Sequence[Term], *, needs_teacher: bool) -> None:
        super().__init__()
        self.student = student
        self.terms = tuple(terms)
        self.needs_teacher = needs_teacher

    def forward(self, batch: SignalBatch, denominator: Tensor | float) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and each term's mean, both over `denominator` tokens; see `executor.total_loss`."""
        counted_BT = batch.counted
        hidden_BTD = final_hidden(self.student, batch.input_ids, batch.attention_mask)
        teacher = at(batch.signal, counted_BT) if self.needs_teacher and batch.signal is not None else None
        positions = Positions(hidden_BTD[counted_BT], batch.targets[counted_BT], teacher)
        return total_loss(positions, output_head(self.student), self.terms, denominator)

    def gradient_checkpointing_enable(self, **settings: object) -> None:
        """Trade computation for memory in the student's layers."""
        self.student.gradient_checkpointing_enable(**settings)
