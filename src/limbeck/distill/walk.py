"""The walk over N positions: chunks that share a buffer of logits, and the blocks that losses are computed on."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from limbeck.distill.block import Known
from limbeck.distill.head import apply_head
from limbeck.distill.teacher import Listing
from limbeck.distill.term import Term
from limbeck.signals.types import (
    DenseSignal,
    HiddenSignal,
    OutputHead,
    SampledSignal,
    TeacherSignal,
    TokenSignal,
    TopkSignal,
    at,
)

CHUNK_LOGITS = 26 << 20  # logits in a chunk: 104 MiB of float32
BLOCK_LOGITS = 1 << 20  # logits in a block: 4 MiB of float32, so that what losses make of it stays in a cache
SMALLEST_CHUNK = 16  # positions
DEVICE_CHUNKS, DEVICE_BLOCKS = 5, 48  # how many times larger both are where a device needs larger work to be busy


@dataclass(frozen=True)
class Positions:
    """N positions to walk: the student's hidden states and what is known of the next token at each.

    Attributes:
        hidden: `[N, D]`, the student's final hidden states.
        targets: `[N]`, ids of the tokens that follow.
        teacher: the teacher's signal at the same positions, leading dimension N; None when no loss needs one.
        weights: `[N]`, how much each position counts; None: 1. What stands at a weight of 0 may be NaN.
    """

    hidden: Tensor
    targets: Tensor
    teacher: TeacherSignal | None = None
    weights: Tensor | None = None

    def counted(self) -> "Positions":
        """Return the positions whose weight is not 0."""
        if self.weights is None:
            return self
        kept = self.weights != 0
        teacher = None if self.teacher is None else at(self.teacher, kept)
        return Positions(self.hidden[kept], self.targets[kept], teacher, self.weights[kept])


@dataclass(frozen=True)
class Chunk:
    """Consecutive positions with their logits, which stand in a buffer that the next chunk overwrites.

    Attributes:
        part: which positions.
        logits: `[n, V]`, the student's.
        blocks: slices of the chunk's rows, with what is known there besides the student.
    """

    part: slice
    logits: Tensor
    blocks: Iterator[tuple[slice, Known]]


def walk(positions: Positions, head: OutputHead, terms: Sequence[Term]) -> Iterator[Chunk]:
    """Yield chunks of equal length (but the last), in order.

    Args:
        positions: the positions that count.
        head: the student's, in the dtype of its products.
        terms: losses on next-token distributions.
    """
    vocabulary, device = head.weight.shape[0], head.weight.device
    teacher = positions.teacher if any(term.loss.signals for term in terms) else None
    chunks, blocks = (1, 1) if device.type == "cpu" else (DEVICE_CHUNKS, DEVICE_BLOCKS)
    wider = max(vocabulary, _entries(teacher))
    most = max(SMALLEST_CHUNK, chunks * CHUNK_LOGITS // wider)
    pairs = teacher.ids.shape[-1] ** 2 if isinstance(teacher, TopkSignal | SampledSignal) else 0
    widest = max(wider, pairs if any(term.loss.pairwise for term in terms) else 0)
    rows = max(1, blocks * BLOCK_LOGITS // widest)
    students, teachers = _Buffer(head), _Buffer(teacher.head.to(device)) if isinstance(teacher, HiddenSignal) else None
    for part in _parts(0, len(positions.targets), most):
        logits = students.logits(positions.hidden[part].detach())
        scores = None
        if isinstance(teacher, HiddenSignal) and teachers is not None:
            scores = teachers.logits(teacher.hidden[part]).to(logits.dtype)
        elif isinstance(teacher, DenseSignal):
            scores = teacher.logprobs[part].to(logits.dtype)
        yield Chunk(part, logits, _blocks(positions, teacher, part, rows, scores, vocabulary))


def _entries(teacher: TeacherSignal | None) -> int:
    """Return the vocabulary of a teacher that knows all of its own, which may be larger than the student's."""
    if isinstance(teacher, HiddenSignal):
        return teacher.head.weight.shape[0]
    return teacher.logprobs.shape[-1] if isinstance(teacher, DenseSignal) else 0


class _Buffer:
    """Makes logits of one head, all of them in the same memory; the first chunk is the longest."""

    def __init__(self, head: OutputHead) -> None:
        self.head = head
        self.memory: Tensor | None = None

    def logits(self, hidden_nD: Tensor) -> Tensor:
        made = apply_head(hidden_nD, self.head, self.memory)
        self.memory = made if self.memory is None else self.memory
        return made


def _parts(start: int, stop: int, most: int) -> Iterator[slice]:
    """Yield slices from `start` to `stop`, as equal as they can be, the longest first, none above `most`."""
    count = stop - start
    parts = -(-count // most)
    for index in range(parts):
        yield slice(start + -(-count * index // parts), start + -(-count * (index + 1) // parts))


def _blocks(
    positions: Positions, teacher: TeacherSignal | None, part: slice, rows: int, scores: Tensor | None, vocabulary: int
) -> Iterator[tuple[slice, Known]]:
    for block in _parts(part.start, part.stop, rows):
        within = slice(block.start - part.start, block.stop - part.start)
        listed = at(teacher, block) if isinstance(teacher, TopkSignal | SampledSignal) else None
        yield (
            within,
            Known(
                targets=positions.targets[block],
                scores=None if scores is None else scores[within],
                listing=None if listed is None else Listing.of(listed, vocabulary),
                token_logprobs=teacher.logprobs[block] if isinstance(teacher, TokenSignal) else None,
                weights=None if positions.weights is None else positions.weights[block].unsqueeze(-1),
                scores_are_free=isinstance(teacher, HiddenSignal),
            ),
        )
