"""Cross-entropy with the token that the text goes on with: the hard label.

    CE = -log q(target)                            q: student

Not here: temperature (hard labels have none; the executor hands over T = 1 unless a recipe insists).
"""

from torch import Tensor

from limbeck.distill.losses.registry import StudentChunk, TeacherChunk, loss


@loss("cross_entropy", scales_with_temperature=False)
def cross_entropy(student: StudentChunk, teacher: TeacherChunk) -> Tensor:
    """Return `-log q(target)` for each token of a chunk, `[N]`, in nats."""
    return -student.logprobs.gather(-1, teacher.targets.unsqueeze(-1)).squeeze(-1)
