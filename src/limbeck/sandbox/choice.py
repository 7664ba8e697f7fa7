"""Chooses the sandbox: the first that works here, or a refusal that says what to install."""

from collections.abc import Callable

from limbeck.errors import UserError
from limbeck.sandbox import bubblewrap, docker, nsjail
from limbeck.sandbox.bubblewrap import BubblewrapSandbox
from limbeck.sandbox.contract import Sandbox
from limbeck.sandbox.docker import DockerSandbox
from limbeck.sandbox.local import UnsafeLocal
from limbeck.sandbox.nsjail import NsjailSandbox

# best first: how each is made, and what keeps it from working here
KNOWN: dict[str, tuple[Callable[[], Sandbox], Callable[[], str | None]]] = {
    "bubblewrap": (BubblewrapSandbox, lambda: bubblewrap.why_unavailable()),
    "nsjail": (NsjailSandbox, lambda: nsjail.why_unavailable()),
    "docker": (DockerSandbox, lambda: docker.why_unavailable()),
}


def available() -> list[str]:
    """Return the names of the sandboxes that work on this machine, best first."""
    return [name for name, (_, reason) in KNOWN.items() if reason() is None]


def open_sandbox(unsafe_local: bool = False, name: str | None = None) -> Sandbox:
    """Return a sandbox for untrusted programs.

    Args:
        unsafe_local: where no sandbox works, run programs with this user's rights instead of refusing. The arena
            never sets it.
        name: take this one of `KNOWN`, or refuse; the first that works unless given.

    Raises:
        UserError: no sandbox works here, saying why and what to install.
    """
    if name is not None and name not in KNOWN:
        raise UserError(f"sandbox: there is none called {name!r}; there are {', '.join(KNOWN)}.")
    reasons = []
    for candidate in KNOWN if name is None else [name]:
        make, why_unavailable = KNOWN[candidate]
        reason = why_unavailable()
        if reason is None:
            return make()
        reasons.append(f"{candidate}: {reason}")
    if unsafe_local:
        return UnsafeLocal()
    raise UserError(f"sandbox: untrusted programs are not run without one. {' '.join(reasons)}")
