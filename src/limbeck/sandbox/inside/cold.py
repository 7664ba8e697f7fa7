"""Runs inside where there is no warm server (nsjail, docker): the filter of system calls, then one job.

Standard library only: this runs inside. The sandbox that starts it has made the namespaces and the folder.
"""

import ctypes

from limbeck.sandbox.inside.candidate import main as carry_out
from limbeck.sandbox.inside.seccomp import bpf, install, this_machine


def main(descriptor: int) -> None:
    """Carry out the job on standard input, under the filter, and answer on `descriptor`.

    Raises:
        OSError: there is no filter for this machine, or the kernel refuses it; nothing has been run then.
    """
    machine = this_machine()
    if machine is None:
        raise OSError("there is no table of system calls for this machine")
    install(ctypes.CDLL(None, use_errno=True), bpf(machine))
    carry_out(descriptor)
