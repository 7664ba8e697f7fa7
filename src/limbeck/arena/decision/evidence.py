"""What a decision reads: the measurements of one round, complete and in canonical order.

The same evidence in any order has the same bytes and the same digest. Numbers that can't be a divergence (not finite,
negative beyond rounding, absurd) are turned into a stated failure when they come in: no comparison ever meets a NaN.
"""

import math
from enum import StrEnum
from typing import Any

from pydantic import Field, field_validator, model_validator

from limbeck.arena.faults import Fault
from limbeck.files import digest_of
from limbeck.settings import Settings

ROUNDING_NATS = 1e-3
ABSURD_NATS = 1e6


class Role(StrEnum):
    """What a model is in a round."""

    KING = "king"
    CHALLENGER = "challenger"


class PromptEvidence(Settings):
    """One model's measurement on one prompt.

    Attributes:
        prompt: index of the prompt in the round.
        tokens: how many predictions were compared.
        kl: mean over those of KL(teacher || student), in nats.
        reverse_kl: mean over those of KL(student || teacher), in nats.
        top1: share of positions at which both rank the same token first.
        error: why there is no measurement; None when there is one.
        fault: whose failure that is.
    """

    prompt: int = Field(ge=0)
    tokens: int = Field(ge=0)
    kl: float | None = None
    reverse_kl: float | None = None
    top1: float | None = None
    error: str | None = None
    fault: Fault | None = None

    @model_validator(mode="before")
    @classmethod
    def _no_number_is_a_failure(cls, data: Any) -> Any:
        """A divergence that is missing or impossible, or that no token stands behind, is a failure with a reason."""
        if not isinstance(data, dict):
            return data
        data = dict(data)
        for name in ("reverse_kl", "top1"):
            if isinstance(data.get(name), float) and not math.isfinite(data[name]):
                data[name] = None
        kl = data.get("kl")
        if data.get("error") is None:
            if kl is None:
                data["error"] = "no divergence was measured"
            elif data.get("tokens") == 0:
                data["error"] = "no token was compared"
            elif isinstance(kl, float | int) and not -ROUNDING_NATS <= kl <= ABSURD_NATS:
                data["error"] = f"the divergence is {kl}, which none can be"
        if data.get("error") is not None:
            data |= {"kl": None, "reverse_kl": None, "top1": None, "fault": data.get("fault") or Fault.CANDIDATE}
        return data


class CandidateEvidence(Settings):
    """Everything that was measured of one model.

    Attributes:
        commitment: `hotkey:block`.
        hotkey: who committed it.
        block: the block of the commitment: the earlier one wins a tie.
        role: king or challenger.
        prompts: one entry a prompt, sorted.
        failure: why the model as a whole has no part in the round (it is gone, it can't be loaded); None otherwise.
        fault: whose failure that is.
    """

    commitment: str
    hotkey: str
    block: int = Field(ge=0)
    role: Role
    prompts: tuple[PromptEvidence, ...] = ()
    failure: str | None = None
    fault: Fault | None = None

    @field_validator("prompts")
    @classmethod
    def _sorted(cls, prompts: tuple[PromptEvidence, ...]) -> tuple[PromptEvidence, ...]:
        ordered = tuple(sorted(prompts, key=lambda evidence: evidence.prompt))
        if len({evidence.prompt for evidence in ordered}) != len(ordered):
            raise ValueError("a prompt is measured twice")
        return ordered

    @model_validator(mode="after")
    def _a_failure_has_a_fault(self) -> "CandidateEvidence":
        if (self.failure is None) != (self.fault is None):
            raise ValueError("a failure states whose fault it is, and a fault states the failure")
        return self


class RoundEvidence(Settings):
    """The evidence of one round: what `decide` reads, and all that it reads."""

    round_id: int = Field(ge=0)
    block_hash: str
    prompts: tuple[int, ...]
    candidates: tuple[CandidateEvidence, ...]

    @field_validator("prompts")
    @classmethod
    def _sorted_prompts(cls, prompts: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(prompts)) != len(prompts):
            raise ValueError("a prompt stands twice in the round")
        return tuple(sorted(prompts))

    @field_validator("candidates")
    @classmethod
    def _sorted_candidates(cls, candidates: tuple[CandidateEvidence, ...]) -> tuple[CandidateEvidence, ...]:
        ordered = tuple(sorted(candidates, key=lambda candidate: (candidate.block, candidate.commitment)))
        if len({candidate.commitment for candidate in ordered}) != len(ordered):
            raise ValueError("a commitment stands twice in the round")
        if sum(candidate.role is Role.KING for candidate in ordered) > 1:
            raise ValueError("a round has at most one king")
        return ordered

    @model_validator(mode="after")
    def _nothing_outside_the_round(self) -> "RoundEvidence":
        known = set(self.prompts)
        for candidate in self.candidates:
            if strangers := [entry.prompt for entry in candidate.prompts if entry.prompt not in known]:
                raise ValueError(
                    f"{candidate.commitment} was measured on prompt {strangers[0]}, which is not the round's"
                )
        return self

    @property
    def king(self) -> CandidateEvidence | None:
        """The reigning model, when there is one."""
        return next((candidate for candidate in self.candidates if candidate.role is Role.KING), None)

    @property
    def digest(self) -> str:
        """SHA-256 of the evidence's canonical JSON."""
        return digest_of(self.model_dump(mode="json"))
