"""What shuts a program in, beyond the walls that it shares with the server: its own namespaces, folder and limits.

`enter_namespaces` gives the calling process a user, mount, IPC and UTS namespace of its own and its next child a
process namespace, puts a fresh folder in memory over `/tmp`, and hides `/proc`. `give_up_rights` is for that child:
limits, no capabilities, the system-call filter. It needs no privilege, only a kernel that lets users make user
namespaces.

Standard library only: this runs inside. Numbers are those of `linux/sched.h`, `linux/mount.h`, `linux/capability.h`.
"""

import ctypes
import os
import resource
import struct

from limbeck.sandbox.inside.seccomp import bpf, install, this_machine

NOBODY = 65534
HIDDEN, NOTHING = b"/proc", b"/empty"
INODES = 4096

_NEW_MOUNT, _NEW_UTS, _NEW_IPC, _NEW_USER, _NEW_PROCESS = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000
_NO_SUID, _NO_DEVICES, _BIND = 2, 4, 4096
_CAPABILITIES_VERSION = 0x20080522
_PR_SET_DUMPABLE = 4

LIBC = ctypes.CDLL(None, use_errno=True)
_machine = this_machine()
FILTER = b"" if _machine is None else bpf(_machine)


def become_nobody() -> None:
    """Leave root, when this process has it, for good."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        _checked(LIBC.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0), "prctl")  # else its own /proc files belong to root


def enter_namespaces(folder_bytes: int) -> None:
    """Give this process namespaces of its own, an empty `/tmp` of `folder_bytes`, and no `/proc`.

    Raises:
        OSError: the kernel does not allow it.
    """
    user, group = os.geteuid(), os.getegid()
    flags = _NEW_USER | _NEW_MOUNT | _NEW_PROCESS | _NEW_IPC | _NEW_UTS
    _checked(LIBC.unshare(flags), "unshare")
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        descriptor = os.open(f"/proc/self/{name}", os.O_WRONLY)
        os.write(descriptor, text.encode("ascii"))
        os.close(descriptor)
    options = f"size={folder_bytes},nr_inodes={INODES},mode=700".encode("ascii")
    _checked(LIBC.mount(b"tmpfs", b"/tmp", b"tmpfs", _NO_SUID | _NO_DEVICES, options), "mount /tmp")
    _checked(LIBC.mount(NOTHING, HIDDEN, None, _BIND, None), "hide /proc")


def give_up_rights(limits: dict[str, int]) -> None:
    """Take the limits, drop every capability, and go under the filter of system calls.

    Raises:
        OSError: the kernel does not allow it.
        ValueError: a limit is out of range.
    """
    os.setsid()
    os.chdir("/tmp")  # noqa: S108 - its own
    limit_resources(limits)
    nothing = struct.pack("6I", *([0] * 6))
    _checked(LIBC.capset(struct.pack("Ii", _CAPABILITIES_VERSION, 0), nothing), "capset")
    install(LIBC, FILTER)


def limit_resources(limits: dict[str, int]) -> None:
    """Set each named limit, never above what already holds."""
    for name, value in limits.items():
        kind = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        ceiling = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (ceiling, ceiling))


def _checked(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
