"""The system calls that a program may make: a list of what is allowed, as a filter the kernel runs (seccomp).

The list holds what ordinary Python needs: memory, files, pipes, threads, child processes, clocks. Everything else fails
with EPERM: sockets (but pairs of local ones, which `asyncio` needs), starting other programs, tracing, mounting, keys,
`bpf`, `io_uring`, performance counters, System V memory, new namespaces. Calls newer than the table fail with ENOSYS,
so that a C library falls back to older ones; so does `clone3`, whose flags a filter can't see. A call made for another
architecture ends the process.

Standard library only: this runs inside. The instructions are those of `linux/filter.h` and `linux/bpf_common.h`; the
numbers are those of the kernel's tables for x86-64 and of `asm-generic/unistd.h`, which 64-bit ARM uses.
"""

import ctypes
import errno
import platform
import struct
from dataclasses import dataclass

# name: (x86-64, 64-bit ARM); None where there is no such call
ALLOWED: dict[str, tuple[int | None, int | None]] = {
    # memory
    "brk": (12, 214), "mmap": (9, 222), "munmap": (11, 215), "mremap": (25, 216), "mprotect": (10, 226),
    "madvise": (28, 233), "msync": (26, 227), "mincore": (27, 232), "membarrier": (324, 283),
    # files and folders
    "read": (0, 63), "write": (1, 64), "readv": (19, 65), "writev": (20, 66), "pread64": (17, 67),
    "pwrite64": (18, 68), "preadv": (295, 69), "pwritev": (296, 70), "open": (2, None), "openat": (257, 56),
    "close": (3, 57), "close_range": (436, 436), "creat": (85, None), "lseek": (8, 62), "stat": (4, None),
    "fstat": (5, 80), "lstat": (6, None), "newfstatat": (262, 79), "statx": (332, 291), "access": (21, None),
    "faccessat": (269, 48), "faccessat2": (439, 439), "readlink": (89, None), "readlinkat": (267, 78),
    "getdents": (78, None), "getdents64": (217, 61), "getcwd": (79, 17), "chdir": (80, 49), "fchdir": (81, 50),
    "mkdir": (83, None), "mkdirat": (258, 34), "rmdir": (84, None), "unlink": (87, None), "unlinkat": (263, 35),
    "rename": (82, None), "renameat": (264, 38), "renameat2": (316, 276), "link": (86, None), "linkat": (265, 37),
    "symlink": (88, None), "symlinkat": (266, 36), "truncate": (76, 45), "ftruncate": (77, 46),
    "fallocate": (285, 47), "fsync": (74, 82), "fdatasync": (75, 83), "chmod": (90, None), "fchmod": (91, 52),
    "fchmodat": (268, 53), "umask": (95, 166), "utimensat": (280, 88), "utimes": (235, None), "utime": (132, None),
    "sendfile": (40, 71), "copy_file_range": (326, 285), "statfs": (137, 43), "fstatfs": (138, 44), "flock": (73, 32),
    "fadvise64": (221, 223), "dup": (32, 23), "dup2": (33, None), "dup3": (292, 24), "fcntl": (72, 25),
    "pipe": (22, None), "pipe2": (293, 59),
    # waiting
    "poll": (7, None), "ppoll": (271, 73), "select": (23, None), "pselect6": (270, 72), "epoll_create": (213, None),
    "epoll_create1": (291, 20), "epoll_ctl": (233, 21), "epoll_wait": (232, None), "epoll_pwait": (281, 22),
    "eventfd": (284, None), "eventfd2": (290, 19), "futex": (202, 98), "pause": (34, None), "nanosleep": (35, 101),
    "clock_nanosleep": (230, 115), "restart_syscall": (219, 128),
    # clocks and timers
    "clock_gettime": (228, 113), "clock_getres": (229, 114), "gettimeofday": (96, 169), "time": (201, None),
    "times": (100, 153), "alarm": (37, None), "setitimer": (38, 103), "getitimer": (36, 102),
    "timerfd_create": (283, 85), "timerfd_settime": (286, 86), "timerfd_gettime": (287, 87),
    # signals
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "rt_sigpending": (127, 136),
    "rt_sigtimedwait": (128, 137), "rt_sigsuspend": (130, 133), "sigaltstack": (131, 132), "kill": (62, 129),
    "tkill": (200, 130), "tgkill": (234, 131), "signalfd4": (289, 74),
    # threads and processes
    "fork": (57, None), "vfork": (58, None), "wait4": (61, 260), "waitid": (247, 95), "exit": (60, 93),
    "exit_group": (231, 94), "set_robust_list": (273, 99), "get_robust_list": (274, 100),
    "set_tid_address": (218, 96), "rseq": (334, 293), "arch_prctl": (158, None), "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123), "sched_getscheduler": (145, 120), "sched_getparam": (143, 121),
    "sched_get_priority_max": (146, 125), "sched_get_priority_min": (147, 126), "getcpu": (309, 168),
    # what it is told about itself
    "getpid": (39, 172), "getppid": (110, 173), "gettid": (186, 178), "getuid": (102, 174), "geteuid": (107, 175),
    "getgid": (104, 176), "getegid": (108, 177), "getresuid": (118, 148), "getresgid": (120, 150),
    "getgroups": (115, 158), "getpgrp": (111, None), "getpgid": (121, 155), "setpgid": (109, 154),
    "getsid": (124, 156), "setsid": (112, 157), "getpriority": (140, 141), "getrusage": (98, 165),
    "getrlimit": (97, 163), "setrlimit": (160, 164), "prlimit64": (302, 261), "uname": (63, 160),
    "sysinfo": (99, 179), "getrandom": (318, 278),
    # a pair of local sockets, made by `socketpair` below
    "sendto": (44, 206), "recvfrom": (45, 207), "shutdown": (48, 210), "getsockopt": (55, 209),
    "getsockname": (51, 204), "getpeername": (52, 205),
}  # fmt: skip

NAMESPACE_FLAGS = 0x7E020000  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
TERMINAL_AND_DESCRIPTOR = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # TCGETS … FIONREAD FIONBIO FIO(N)CLEX
NAMING = (15, 16)  # PR_SET_NAME, PR_GET_NAME
LOCAL = (1,)  # AF_UNIX
CLONE3 = 435
NEWEST = 450

_KILL_PROCESS, _ERROR, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
_LOAD, _EQUAL, _AT_LEAST, _ABOVE, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x25, 0x45, 0x06
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16  # in struct seccomp_data; arguments are 64 bits, low half first
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _MODE_FILTER = 38, 22, 2


@dataclass(frozen=True)
class Machine:
    """What a filter has to know of an architecture: its audit number, its column in `ALLOWED`, four special calls."""

    audit: int
    column: int
    clone: int
    socketpair: int
    ioctl: int
    prctl: int


MACHINES = {
    "x86_64": Machine(0xC000003E, 0, clone=56, socketpair=53, ioctl=16, prctl=157),
    "aarch64": Machine(0xC00000B7, 1, clone=220, socketpair=199, ioctl=29, prctl=167),
}


def bpf(machine: Machine) -> bytes:
    """Return the filter's instructions, 8 bytes each."""
    lines = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_EQUAL, 1, 0, machine.audit),
        (_RETURN, 0, 0, _KILL_PROCESS),
        (_LOAD, 0, 0, _NUMBER_AT),
        (_ABOVE, 1, 0, NEWEST),  # also every call of the x32 interface, whose numbers start at 2³⁰
        (_EQUAL, 0, 1, CLONE3),
        (_RETURN, 0, 0, _ERROR | errno.ENOSYS),
        *_ranges(sorted(numbers[machine.column] or 0 for numbers in _calls(machine))),
        (_EQUAL, 0, 4, machine.clone),
        (_LOAD, 0, 0, _ARGUMENTS_AT),
        (_ANY_BIT, 1, 0, NAMESPACE_FLAGS),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _ERROR | errno.EPERM),
    ]
    for number, argument, values in (
        (machine.socketpair, 0, LOCAL),
        (machine.ioctl, 1, TERMINAL_AND_DESCRIPTOR),
        (machine.prctl, 0, NAMING),
    ):
        lines += [(_EQUAL, 0, 2 * len(values) + 2, number), (_LOAD, 0, 0, _ARGUMENTS_AT + 8 * argument)]
        for value in values:
            lines += [(_EQUAL, 0, 1, value), (_RETURN, 0, 0, _ALLOW)]
        lines += [(_RETURN, 0, 0, _ERROR | errno.EPERM)]
    lines += [(_RETURN, 0, 0, _ERROR | errno.EPERM)]
    return b"".join(struct.pack("<HBBI", *line) for line in lines)


def install(libc: ctypes.CDLL, instructions: bytes) -> None:
    """Put this process, and every one it starts, under the filter, for good.

    Raises:
        OSError: the kernel refuses it.
    """
    held = ctypes.create_string_buffer(instructions, len(instructions))
    program = struct.pack("HxxxxxxP", len(instructions) // 8, ctypes.addressof(held))
    for arguments in ((_PR_SET_NO_NEW_PRIVS, 1, 0), (_PR_SET_SECCOMP, _MODE_FILTER, program)):
        if libc.prctl(*arguments, 0, 0):
            raise OSError(ctypes.get_errno(), "seccomp: the kernel refuses the filter")


def this_machine() -> Machine | None:
    """Return the architecture of this machine, or None when there is no table for it."""
    return MACHINES.get(platform.machine())


def _calls(machine: Machine) -> list[tuple[int | None, int | None]]:
    return [numbers for numbers in ALLOWED.values() if numbers[machine.column] is not None]


def _ranges(numbers: list[int]) -> list[tuple[int, int, int, int]]:
    """Return instructions that allow `numbers` (ascending), one test for every run of neighbours."""
    lines: list[tuple[int, int, int, int]] = []
    first = 0
    for index, number in enumerate(numbers):
        if index + 1 < len(numbers) and numbers[index + 1] == number + 1:
            continue
        lines += [(_AT_LEAST, 0, 2, numbers[first]), (_ABOVE, 1, 0, number), (_RETURN, 0, 0, _ALLOW)]
        first = index + 1
    return lines
