"""A student together with its losses, as one module.

The losses run inside the module's own forward, because that is the call that data-parallel and sharded wrappers see:
gradients are reduced, and sharded parameters gathered, exactly there. Whoever trains calls the wrapper, never the
module inside it.

Embeddings, output head, final norm and alignment belong to the module itself, not to a part of it, when a wrapper
shards it block by block: they are whole for as long as the forward runs, which is what the executor needs.
"""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from limbeck.distill.adapted_head import head_of
from limbeck.distill.alignment import Alignment
from limbeck.distill.executor import Positions, Term, total_loss
from limbeck.distill.isolation import final_states, flat_states, is_flash, padded
from limbeck.distill.ranks import total_loss_of_two_tokenizers
from limbeck.distill.taps import Seen, taps
from limbeck.distill.view import Relations, TeacherView
from limbeck.errors import LimbeckError, UserError
from limbeck.signals.loader import SignalBatch
from limbeck.signals.types import OutputHead, at


class DistilledStudent(nn.Module):
    """Computes the configured losses of `student` on a batch of rows with signals.

    Args:
        student: the model that is trained.
        terms: the losses on next-token distributions and final states.
        needs_teacher: whether any of them reads the teacher's signal.
        alignment: the losses on inner layers.
        evaluated: what is computed instead of `terms` and `alignment` in evaluation mode; None: the same.
        compiled: whether losses over a whole vocabulary go through `torch.compile`.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        terms: Sequence[Term],
        *,
        needs_teacher: bool,
        alignment: Alignment | None = None,
        evaluated: Sequence[Term] | None = None,
        compiled: bool = False,
    ) -> None:
        super().__init__()
        self.student = student
        self.alignment = alignment
        self.terms = tuple(terms)
        self.evaluated = None if evaluated is None else tuple(evaluated)
        self.needs_teacher = needs_teacher
        self.compiled = compiled

    def forward(
        self, batch: SignalBatch, denominator: Tensor | float, view: TeacherView | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss, and each term's unweighted mean by name, detached; both over `denominator` tokens.

        Args:
            batch: on the student's device.
            denominator: tokens that count in the whole optimisation step, over ranks and micro-batches.
            view: what an online teacher shows of the same batch besides its signal.

        Raises:
            UserError: the signal can't feed a loss, or the head's weights are sharded apart from this module.
            LimbeckError: losses on inner layers have no view of the teacher.
        """
        measuring = not self.training and self.evaluated is not None
        terms = self.terms if self.evaluated is None or not measuring else self.evaluated
        alignment = None if measuring else self.alignment
        hidden_BTD, seen = self._run(batch, alignment)
        loss, parts = self._on_distributions(hidden_BTD, batch, denominator, terms, view)
        if alignment is not None:
            if view is None or seen is None:
                raise LimbeckError("losses on inner layers need a teacher in process, and there is no view of one.")
            aligned, means = alignment(seen, view, batch, denominator)
            loss, parts = loss + aligned, {**parts, **means}
        return loss, parts

    def _run(self, batch: SignalBatch, alignment: Alignment | None) -> tuple[Tensor, Seen | None]:
        """Run the decoder once; return its final states, and what `alignment` looks at."""
        if alignment is None:
            return final_states(self.student, batch), None
        flat = batch.documents is not None and is_flash(self.student)
        with taps(self.student, alignment.student_layers, alignment.student_relations) as seen:
            states = flat_states(self.student, batch) if flat else final_states(self.student, batch)
        return (
            (padded(states, batch.attention_mask), _padded_view(seen, batch.attention_mask)) if flat else (states, seen)
        )

    def _on_distributions(
        self,
        hidden_BTD: Tensor,
        batch: SignalBatch,
        denominator: Tensor | float,
        terms: Sequence[Term],
        view: TeacherView | None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return what the executor makes of the positions that count, and of those that another tokenizer shares."""
        head = _whole(head_of(self.student))
        if view is not None and view.other is not None:
            return total_loss_of_two_tokenizers(hidden_BTD, batch, view.other, head, terms, denominator)
        counted_BT = batch.counted
        teacher = at(batch.signal, counted_BT) if self.needs_teacher and batch.signal is not None else None
        positions = Positions(hidden_BTD[counted_BT], batch.targets[counted_BT], teacher)
        return total_loss(positions, head, terms, denominator, compiled=self.compiled)

    @property
    def _no_split_modules(self) -> list[str]:
        """The blocks that a sharding wrapper takes one by one."""
        return list(getattr(self.student, "_no_split_modules", None) or ())

    def tie_weights(self) -> None:
        """Tie the student's weights again, for wrappers that move parameters."""
        self.student.tie_weights()

    def activation_checkpointing_enable(self, **settings: object) -> None:
        """Compute the blocks' activations again in the backward pass instead of keeping them."""
        self.student.activation_checkpointing_enable(**settings)


def _whole(head: OutputHead) -> OutputHead:
    if isinstance(head.weight, DTensor):
        raise UserError(
            "fsdp_config: the output head is sharded as a unit of its own, and the losses need it whole. "
            "Use auto_wrap_policy: TRANSFORMER_BASED_WRAP, which shards block by block."
        )
    return head


def _padded_view(seen: Seen, present_BT: Tensor) -> Seen:
    """Return what was seen of tokens laid end to end in their places in the batch."""

    def heads(flat_1HNd: Tensor) -> Tensor:
        one, count, tokens, width = flat_1HNd.shape
        rows_BTD = padded(flat_1HNd.transpose(1, 2).reshape(one, tokens, count * width), present_BT)
        return rows_BTD.unflatten(-1, (count, width)).transpose(1, 2)

    return replace(
        seen,
        layers={index: padded(states, present_BT) for index, states in seen.layers.items()},
        relations={
            index: Relations(heads(part.queries), heads(part.keys), heads(part.values))
            for index, part in seen.relations.items()
        },
    )
