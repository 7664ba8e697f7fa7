"""Chooses the sandbox: the one that works here, or a refusal that says what to install."""

from limbeck.errors import UserError
from limbeck.sandbox.bubblewrap import BubblewrapSandbox, why_unavailable
from limbeck.sandbox.contract import Sandbox
from limbeck.sandbox.local import UnsafeLocal


def available() -> list[str]:
    """Return the names of the sandboxes that work on this machine."""
    return [] if why_unavailable() else [BubblewrapSandbox.name]


def open_sandbox(unsafe_local: bool = False) -> Sandbox:
    """Return a sandbox for untrusted programs.

    Args:
        unsafe_local: where no sandbox works, run programs with this user's rights instead of refusing. The arena
            never sets it.

    Raises:
        UserError: no sandbox works here, saying why and what to install.
    """
    reason = why_unavailable()
    if reason is None:
        return BubblewrapSandbox()
    if unsafe_local:
        return UnsafeLocal()
    raise UserError(f"sandbox: {reason} Untrusted programs are not run without one.")
