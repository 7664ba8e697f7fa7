"""The entries of `loss_functions:` in a training recipe."""

from typing import Literal

from pydantic import Field

from limbeck.settings import Settings

PARAMETERS = ("beta", "alpha", "threshold", "width", "margin")


class LossSettings(Settings):
    """One loss and its share of the sum; weights are used as given.

    Attributes:
        function: the loss, by its registered name.
        weight: its share.
        temperature: of both distributions; 1 when absent.
        missing_probability_handling: how mass that a `topk` signal does not list is accounted for; absent: as well as
            the signal allows.
        beta: of `jsd`.
        alpha: of `skew_kl` and `skew_reverse_kl`.
        threshold: of `entropy_aware_kl`.
        width: of `entropy_aware_kl`.
        margin: of `hinge`.
        parameters: of losses that other packages register, by name.
        sparse_chunk_length: accepted from DistillKit's recipes; the executor chooses its chunks itself.
    """

    function: str
    weight: float = Field(1.0, ge=0)
    temperature: float | None = None
    missing_probability_handling: Literal["zero", "uniform", "symmetric_uniform", "tail", "bounded"] | None = None
    beta: float | None = None
    alpha: float | None = None
    threshold: float | None = None
    width: float | None = None
    margin: float | None = None
    parameters: dict[str, float] = Field(default_factory=dict)
    sparse_chunk_length: int | None = Field(None, gt=0)

    @property
    def given(self) -> dict[str, float]:
        """Return the parameters that are given."""
        named = {name: getattr(self, name) for name in PARAMETERS}
        return {name: value for name, value in named.items() if value is not None} | self.parameters
