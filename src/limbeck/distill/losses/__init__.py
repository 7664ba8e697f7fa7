"""Losses: small functions of the next token's outcomes, run by `limbeck.distill.executor`."""

from limbeck.distill.losses import (
    attention_relation,
    cross_entropy,
    entropy_aware_kl,
    forward_kl,
    hidden_states,
    jensen_shannon,
    ranking,
    reverse_kl,
    sampled_token,
    skew_kl,
    total_variation,
    uld,
)
from limbeck.distill.losses.outcomes import Outcomes
from limbeck.distill.losses.registry import Loss, all_losses, get_loss, loss

__all__ = [
    "Loss", "Outcomes", "all_losses", "attention_relation", "cross_entropy", "entropy_aware_kl", "forward_kl",
    "get_loss", "hidden_states", "jensen_shannon", "loss", "ranking", "reverse_kl", "sampled_token", "skew_kl",
    "total_variation", "uld",
]  # fmt: skip
