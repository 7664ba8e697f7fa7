"""The bodies of the API's answers, as pydantic models: what the OpenAPI schema shows."""

from collections.abc import Sequence

from pydantic import BaseModel

from limbeck.serve.reader import Commitment, King, Neuron, Reign, Round, Score


class Health(BaseModel):
    """Whether the arena can be read, and where it stands."""

    status: str
    version: str
    arena: str
    policy: str
    teacher: str
    config_version: int
    block: int
    king: str | None
    open_round: int | None
    open_round_state: str | None


class MetagraphAnswer(BaseModel):
    """The subnet at its newest block."""

    netuid: int
    block: int
    block_hash: str
    n: int
    neurons: Sequence[Neuron]


class CommitmentsAnswer(BaseModel):
    """All commitments, first committed first."""

    commitments: Sequence[Commitment]


class ScoresAnswer(BaseModel):
    """Each measured commitment's newest standing, best first."""

    king: str | None
    scores: Sequence[Score]


class KingAnswer(BaseModel):
    """Who reigns (null for an empty throne), and who did before, newest first."""

    king: King | None
    reigns: Sequence[Reign]


class RoundsAnswer(BaseModel):
    """Rounds, newest first."""

    rounds: Sequence[Round]


class Problem(BaseModel):
    """What went wrong, without a word about how the server is built."""

    code: str
    message: str


class ErrorAnswer(BaseModel):
    """The body of every answer that is an error."""

    error: Problem
