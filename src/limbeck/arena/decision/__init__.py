"""The decision: pure functions from recorded evidence to a verdict. No I/O, no clock, no randomness.

A policy comes in by `registry.policy`; built-ins are registered when this package is imported.
"""

from limbeck.arena.decision import kl_duel as _kl_duel  # noqa: F401 - registers the policy
from limbeck.arena.decision.evidence import CandidateEvidence, PromptEvidence, Role, RoundEvidence
from limbeck.arena.decision.registry import Policy, decide, parse_policy
from limbeck.arena.decision.verdict import Difference, Outcome, Standing, Verdict

__all__ = [
    "CandidateEvidence",
    "Difference",
    "Outcome",
    "Policy",
    "PromptEvidence",
    "Role",
    "RoundEvidence",
    "Standing",
    "Verdict",
    "decide",
    "parse_policy",
]
