"""The registry of policies: settings with a name, and the pure function that decides by them."""

from collections.abc import Callable
from typing import Any, TypeVar

from limbeck.arena.decision.evidence import RoundEvidence
from limbeck.arena.decision.verdict import Verdict
from limbeck.errors import UserError
from limbeck.files import digest_of
from limbeck.settings import Settings, nearest, validate_settings


class Policy(Settings):
    """Base of every policy's settings; `name` says which policy they are for."""

    name: str

    @property
    def digest(self) -> str:
        """SHA-256 of the settings' canonical JSON."""
        return digest_of(self.model_dump(mode="json"))


P = TypeVar("P", bound=Policy)
Decider = Callable[[RoundEvidence, P], Verdict]

_POLICIES: dict[str, tuple[type[Policy], Callable[[RoundEvidence, Any], Verdict]]] = {}


def policy(settings: type[P]) -> Callable[[Decider[P]], Decider[P]]:
    """Register the decorated function as the policy that `settings`' default name says."""

    def register(decider: Decider[P]) -> Decider[P]:
        name = settings.model_fields["name"].default
        if name in _POLICIES:
            raise ValueError(f"policy {name} is registered twice")
        _POLICIES[name] = (settings, decider)
        return decider

    return register


def parse_policy(data: dict[str, Any]) -> Policy:
    """Return the settings that `data` states, by the `name` in it.

    Raises:
        UserError: no policy has that name, or a key or value is wrong; the message names it.
    """
    name = data.get("name")
    if name not in _POLICIES:
        raise UserError(f"policy: no policy is called {name!r}.{nearest(str(name), list(_POLICIES))}")
    return validate_settings(data, _POLICIES[name][0], "policy")


def decide(evidence: RoundEvidence, settings: Policy) -> Verdict:
    """Decide a round: the same evidence and settings give the same verdict, to the bit.

    Raises:
        UserError: no policy has the settings' name.
    """
    if settings.name not in _POLICIES:
        raise UserError(f"policy: no policy is called {settings.name!r}.{nearest(settings.name, list(_POLICIES))}")
    return _POLICIES[settings.name][1](evidence, settings)
