"""NOT a sandbox: runs programs as a child process with this user's rights. For your own programs on your own machine.

There are resource limits, a time limit, an empty environment and a fresh folder; there is no wall. A program can read
and delete this user's files, use the network, and leave processes behind. It exists so that Limbeck can be tried where
bubblewrap is not to be had; nothing that judges a stranger's model uses it.
"""

import sys
import tempfile
from collections.abc import Sequence

from limbeck.sandbox.contract import Call, Limits, Outcome
from limbeck.sandbox.interpreter import ENVIRONMENT
from limbeck.sandbox.process import CANDIDATE, resource_limits, run_candidate


class UnsafeLocal:
    """Runs each program in a child process of this user."""

    name = "unsafe-local"

    def run(self, program: str, calls: Sequence[Call], limits: Limits = Limits()) -> list[Outcome]:  # noqa: B008 - frozen
        """Run `program` and make `calls`; see `Sandbox.run`."""
        with tempfile.TemporaryDirectory(prefix="limbeck-") as folder:
            resources = resource_limits(limits, processes=False)
            return run_candidate(_command, program, calls, limits, resources, folder, environment=ENVIRONMENT)


def _command(answers: int) -> list[str]:
    return [sys.executable, "-s", "-P", "-S", "-B", str(CANDIDATE), str(answers)]
