"""Losses between the inside of a student and of its teacher: states behind mapped blocks, and relations of positions.

`hs_mse` and `hs_cosine` compare the states of mapped blocks, and are means over the pairs. Where the two widths differ
(or where it is asked for) the student's states first go through a learned projection, a matrix without bias that is
trained along and belongs to training alone: it stands in checkpoints and never in the student that comes out. It
begins with orthonormal columns (rows, where it narrows; the identity where the widths are equal), which keeps lengths
and angles as far as a linear map can.

`attention_relation` compares queries, keys and values; see `losses.attention_relation`.

Sums are over the positions that count, and are divided by the tokens of the whole optimisation step: splitting a batch
differently gives the same gradient. What stands at positions that don't count, NaN included, reaches neither.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from limbeck.distill.layers import AttentionRelationSettings, Pairs
from limbeck.distill.losses.attention_relation import Sight, regroup
from limbeck.distill.taps import Seen
from limbeck.distill.term import Term
from limbeck.distill.view import Relations, TeacherView
from limbeck.errors import LimbeckError
from limbeck.seeds import derive_seed
from limbeck.signals.loader import SignalBatch

Shown = TypeVar("Shown")


def split_terms(terms: Sequence[Term], *, mapped: bool) -> tuple[tuple[Term, ...], tuple[Term, ...]]:
    """Return the terms that the executor computes, and those that `Alignment` does.

    Args:
        terms: the configured losses.
        mapped: whether the recipe has a `layer_mapping`: losses on states compare mapped blocks then.
    """
    aligned = {"relations", "states"} if mapped else {"relations"}
    inside = tuple(term for term in terms if term.loss.over in aligned)
    return tuple(term for term in terms if term not in inside), inside


class Alignment(nn.Module):
    """Computes the losses on inner layers. Call the module (`alignment(...)`), so that sharding wrappers see it.

    Args:
        terms: losses on states or relations; the second part of `split_terms`.
        layers: pairs of blocks whose states are compared (`resolve_layers`).
        widths: of the student's states, and of the teacher's (`state_width` of their configurations).
        relations: pairs of blocks whose relations are compared (`resolve_relations`).
        settings: of `attention_relation`.
        force_projection: project where the widths are equal, too (`force_hidden_state_projection`).
        seed: the projections are drawn from it, each from its own.

    Attributes:
        student_layers: the student's blocks to look at: `taps(student, a.student_layers, a.student_relations)`.
        student_relations: the same, for relations.
        teacher_layers: the teacher's blocks that have to be in `TeacherView.layers`.
        teacher_relations: the teacher's blocks that have to be in `TeacherView.relations`.
    """

    def __init__(
        self,
        terms: Sequence[Term],
        layers: Pairs = (),
        widths: tuple[int, int] = (0, 0),
        *,
        relations: Pairs = (),
        settings: AttentionRelationSettings | None = None,
        force_projection: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.terms = tuple(terms)
        self.settings = settings or AttentionRelationSettings()
        self.layers = layers if any(term.loss.over == "states" for term in terms) else ()
        self.relations = relations if any(term.loss.over == "relations" for term in terms) else ()
        self.student_layers, self.teacher_layers = _sides(self.layers)
        self.student_relations, self.teacher_relations = _sides(self.relations)
        self.projections = nn.ModuleDict()
        if widths[0] != widths[1] or force_projection:
            for pair in self.layers:
                self.projections[_name(pair)] = _projection(*widths, derive_seed(seed, "projection", *pair))

    def forward(
        self, seen: Seen, view: TeacherView, batch: SignalBatch, denominator: Tensor | float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted sum of all terms, and each term's unweighted mean, detached, by name.

        Args:
            seen: of the student, from the forward pass over this batch.
            view: of the teacher, over the same batch, on any device.
            batch: its `counted`, `attention_mask` and `documents` say which positions are looked at.
            denominator: number of tokens that count in the whole optimisation step, over ranks and micro-batches.

        Raises:
            LimbeckError: the teacher doesn't show a block that is needed.
        """
        sums = {
            **self._state_sums(seen.layers, view.layers, batch.counted),
            **self._relation_sums(seen.relations, view.relations, batch),
        }
        total = torch.stack([term.weight * sums[term.name] for term in self.terms]).sum()
        return total / denominator, {term.name: sums[term.name].detach() / denominator for term in self.terms}

    def _state_sums(
        self, ours: Mapping[int, Tensor], theirs: Mapping[int, Tensor], counted_BT: Tensor
    ) -> dict[str, Tensor]:
        """Return each term on states, summed over positions, a mean over pairs."""
        terms = [term for term in self.terms if term.loss.over == "states"]
        if not terms:
            return {}
        rows_N = counted_BT.flatten().nonzero().squeeze(1)

        def compared(pair: tuple[int, int], student_BTD: Tensor, teacher_BTD: Tensor) -> Tensor:
            student_ND = student_BTD.flatten(0, 1)[rows_N]
            teacher_ND = teacher_BTD.flatten(0, 1)[rows_N]
            if (name := _name(pair)) in self.projections:
                projection = cast(nn.Linear, self.projections[name])
                student_ND = projection(student_ND.to(projection.weight.dtype))
            return torch.stack([
                term.loss.contributions(student_ND, teacher_ND, **term.loss.parameters).sum() for term in terms
            ])  # fmt: skip

        parts = []
        for pair in self.layers:
            student_BTD = ours[pair[0]]
            teacher_BTD = _shown(theirs, pair[1]).detach().to(student_BTD.device)
            # nothing of a pair is kept for the backward pass but the two states, which are there anyway
            parts.append(
                checkpoint(compared, pair, student_BTD, teacher_BTD, use_reentrant=False, preserve_rng_state=False)
            )
        means = torch.stack(parts).mean(0)
        return {term.name: mean for term, mean in zip(terms, means.unbind(), strict=True)}

    def _relation_sums(
        self, ours: Mapping[int, Relations], theirs: Mapping[int, Relations], batch: SignalBatch
    ) -> dict[str, Tensor]:
        """Return each term on relations, summed over positions and kinds of relation, a mean over pairs."""
        terms = [term for term in self.terms if term.loss.over == "relations"]
        sight = Sight(batch.counted, batch.attention_mask.bool(), batch.documents)
        found = {}
        for term in terms:
            values = []
            for student_block, teacher_block in self.relations:
                for part in self.settings.of:
                    student: Tensor = getattr(ours[student_block], part)
                    teacher: Tensor = getattr(_shown(theirs, teacher_block), part).to(student.device)
                    heads = self.settings.relation_heads or math.gcd(student.shape[1], teacher.shape[1])
                    values.append(term.loss.contributions(regroup(student, heads), regroup(teacher, heads), sight))
            found[term.name] = torch.stack(values).sum() / len(self.relations)
        return found


def _sides(pairs: Pairs) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the student's and the teacher's blocks of pairs, each once, in order."""
    return tuple(sorted({s for s, _ in pairs})), tuple(sorted({t for _, t in pairs}))


def _name(pair: tuple[int, int]) -> str:
    return f"{pair[0]}_to_{pair[1]}"


def _projection(student_width: int, teacher_width: int, seed: int) -> nn.Linear:
    projection = nn.Linear(student_width, teacher_width, bias=False)
    if student_width == teacher_width:
        nn.init.eye_(projection.weight)
    else:
        nn.init.orthogonal_(projection.weight, generator=torch.Generator().manual_seed(seed % 2**63))
    return projection


def _shown(of_blocks: Mapping[int, Shown], block: int) -> Shown:
    if block not in of_blocks:
        raise LimbeckError(f"the teacher's view lacks block {block}, which a loss on inner layers compares with.")
    return of_blocks[block]
