"""The registry of losses, and the two chunks that a loss is a function of.

A loss is a function of one chunk of N tokens: `(student, teacher) -> per-token values [N]`. Everything else
(temperature, masks, averaging, chunking, gradients) is the executor's.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor

from limbeck.errors import UserError
from limbeck.settings import nearest


@dataclass(frozen=True)
class StudentChunk:
    """The student's next-token distributions for N positions.

    Attributes:
        logprobs: log-probabilities `[N, V]` at the loss's temperature, float32.
    """

    logprobs: Tensor


@dataclass(frozen=True)
class SparseChunk:
    """A teacher known at K tokens a position, at the loss's temperature.

    Attributes:
        ids: `[N, K]` token ids.
        logprobs: `[N, K]` log-probabilities; `-inf` where absent.
        weights: `[N, K]` what each token weighs in an expectation under the teacher: its probability (`topk`), or
            its importance weight (`sampled`).
        log_tail_mass: `[N]`, log of the mass of all other tokens; `-inf` where there is none (`sampled`: always).
    """

    ids: Tensor
    logprobs: Tensor
    weights: Tensor
    log_tail_mass: Tensor


@dataclass(frozen=True)
class TeacherChunk:
    """What is known of the same N positions besides the student: the next tokens, and the teacher if there is one.

    Attributes:
        targets: `[N]`, the ids of the tokens that the text goes on with.
        dense: log-probabilities `[N, V]` at the loss's temperature, or None.
        sparse: the K known tokens, or None.
    """

    targets: Tensor
    dense: Tensor | None = None
    sparse: SparseChunk | None = None

    def known_sparse(self) -> SparseChunk:
        """Return the sparse part.

        Raises:
            ValueError: there is no teacher in this chunk.
        """
        if self.sparse is None:
            raise ValueError("this chunk carries neither a dense nor a sparse teacher")
        return self.sparse


LossFunction = Callable[[StudentChunk, TeacherChunk], Tensor]


@dataclass(frozen=True)
class Loss:
    """A registered loss.

    Attributes:
        name: as recipes spell it.
        function: the per-token values.
        signals: the kinds of signal on which it is defined; empty for a loss that needs no teacher.
        scales_with_temperature: multiply by T squared, so that gradients keep their size (Hinton et al.).
    """

    name: str
    function: LossFunction
    signals: tuple[str, ...]
    scales_with_temperature: bool


_LOSSES: dict[str, Loss] = {}


def loss(
    name: str, *, signals: Iterable[str] = (), scales_with_temperature: bool = True
) -> Callable[[LossFunction], LossFunction]:
    """Register the decorated function as the loss `name`."""

    def register(function: LossFunction) -> LossFunction:
        if name in _LOSSES:
            raise ValueError(f"loss {name} is registered twice")
        _LOSSES[name] = Loss(name, function, tuple(signals), scales_with_temperature)
        return function

    return register


def get_loss(name: str) -> Loss:
    """Return a registered loss.

    Raises:
        UserError: there is none of that name.
    """
    if name not in _LOSSES:
        raise UserError(f"no loss is called {name!r}.{nearest(name, list(_LOSSES))}")
    return _LOSSES[name]


def all_losses() -> list[Loss]:
    """Return the registered losses, sorted by name."""
    return [_LOSSES[name] for name in sorted(_LOSSES)]
