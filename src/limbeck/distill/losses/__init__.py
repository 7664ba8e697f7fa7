"""Losses: small functions of one chunk of tokens, in nats, run by `limbeck.distill.executor`."""

from limbeck.distill.losses import cross_entropy, forward_kl, jensen_shannon, reverse_kl
from limbeck.distill.losses.registry import Loss, SparseChunk, StudentChunk, TeacherChunk, all_losses, get_loss, loss

__all__ = [
    "Loss", "SparseChunk", "StudentChunk", "TeacherChunk", "all_losses", "cross_entropy", "forward_kl", "get_loss",
    "jensen_shannon", "loss", "reverse_kl",
]  # fmt: skip
