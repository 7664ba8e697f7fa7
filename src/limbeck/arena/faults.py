"""Whose fault a failure is. Only a candidate's own counts against it; every other voids the attempt."""

from enum import StrEnum

from limbeck.errors import LimbeckError


class Fault(StrEnum):
    """The party that a failure is laid to."""

    CANDIDATE = "candidate"
    POD = "pod"
    TEACHER = "teacher"
    PROVIDER = "provider"
    CHAIN = "chain"
    HOST = "host"


class CandidateError(LimbeckError):
    """The candidate's own files or model are to blame: it cannot be loaded, or answers what is no distribution."""

    fault = Fault.CANDIDATE


class ForeignError(LimbeckError):
    """A failure that is not the candidate's: its attempt is void, and can be made again.

    Args:
        message: one line.
        fault: whose failure it is; never the candidate's.
    """

    def __init__(self, message: str, fault: Fault = Fault.HOST) -> None:
        if fault is Fault.CANDIDATE:
            raise ValueError("a candidate's fault is a CandidateError")
        super().__init__(message)
        self.fault = fault
