"""The body of a block through `torch.compile`: for teachers over the whole vocabulary, in fewer passes over memory.

The losses are the same functions, run without buffers of ours, so that the compiler can fuse them. Shapes of blocks
may change from call to call without being compiled again. Sparse teachers gain nothing (three passes are all they
make), and losses without a derivative of their own can't be compiled with the rest: both run as they do without.
"""

import shutil
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from os import environ

import torch
from torch import Tensor

from limbeck.distill.block import BlockTeacher, Known, group_gradient, groups
from limbeck.distill.softmax import WholeSoftmax
from limbeck.distill.term import Term
from limbeck.progress import say

Body = Callable[[Tensor, Tensor, Tensor, Tensor | None], tuple[list[Tensor], Tensor]]

_bodies: dict[tuple[object, ...], Body] = {}
_told: set[str] = set()


def compiled_gradient(
    logits_nV: Tensor, known: Known, terms: Sequence[Term], soft_cap: float | None
) -> list[Tensor] | None:
    """Return what `block.block_gradient` does, and overwrite the logits as it does; None where it has to do it.

    That is so for terms and teachers that are not compiled, and where no compiler is found (which is told once).
    """
    if known.scores is None or not all(_fuses(term) for term in terms) or not _has_compiler(logits_nV.device.type):
        return None
    key = (soft_cap, *((term.loss.contributions, *sorted(term.loss.parameters.items()), term.weight, term.temperature)
                       for term in terms))  # fmt: skip
    if key not in _bodies:
        _bodies[key] = torch.compile(_body(terms, soft_cap), dynamic=True)
    values, gradient_nV = _bodies[key](logits_nV, known.scores, known.targets, known.weights)
    logits_nV.copy_(gradient_nV)
    return values


def _fuses(term: Term) -> bool:
    return term.loss.derivative is not None and term.loss.over in ("teacher", "target")


def _has_compiler(device: str) -> bool:
    found = (
        any(shutil.which(name) for name in (environ.get("CXX", ""), "g++", "clang++") if name)
        if device == "cpu"
        else find_spec("triton") is not None
    )
    if not found and device not in _told:
        _told.add(device)
        missing = "no C++ compiler (set CXX, or install g++)" if device == "cpu" else "Triton is not installed"
        say(f"compile: {missing}; losses run without it.")
    return found


def _body(terms: Sequence[Term], soft_cap: float | None) -> Body:
    """Return a function of tensors alone: the terms are part of its code."""
    by_temperature = groups(terms)

    def body(
        logits_nV: Tensor, scores_nV: Tensor, targets_n: Tensor, weights_n1: Tensor | None
    ) -> tuple[list[Tensor], Tensor]:
        known = Known(targets_n, scores=scores_nV, weights=weights_n1)
        values: dict[int, Tensor] = {}
        gradient_nV = torch.zeros_like(logits_nV)
        for temperature, group in by_temperature:
            softmax = WholeSoftmax.of(logits_nV, temperature, targets_n, None, in_place=False)
            teacher = BlockTeacher(known, temperature, None, in_place=False)
            gradient_nV = gradient_nV + group_gradient(teacher, softmax, group, values)
        if soft_cap is not None:
            gradient_nV = gradient_nV * (1 - (logits_nV / soft_cap).square())
        return [values[index] for index in range(len(terms))], gradient_nV

    return body
