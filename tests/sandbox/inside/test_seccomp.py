"""The filter of system calls, run by an interpreter of its instructions: what is on the list passes, all else fails."""

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.sandbox.inside.seccomp import ALLOWED, CLONE3, MACHINES, NAMESPACE_FLAGS, NEWEST, bpf

ALLOW, KILL = 0x7FFF0000, 0x80000000
REFUSED, UNKNOWN = 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS


def verdict(machine: str, number: int, *arguments: int, audit: int | None = None) -> int:
    """Run the filter as the kernel does: an accumulator, jumps forward, and a value at the end."""
    code = bpf(MACHINES[machine])
    lines = [struct.unpack_from("<HBBI", code, at) for at in range(0, len(code), 8)]
    arguments += (0,) * (6 - len(arguments))
    data = struct.pack("<IIQ6Q", number, MACHINES[machine].audit if audit is None else audit, 0, *arguments)
    at = accumulator = 0
    while True:
        kind, if_true, if_false, value = lines[at]
        at += 1
        if kind == 0x06:
            return value
        if kind == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, value)
            continue
        tests = {0x15: accumulator == value, 0x35: accumulator >= value, 0x25: accumulator > value}
        at += if_true if (tests | {0x45: bool(accumulator & value)})[kind] else if_false


def listed(machine: str) -> set[int]:
    column = MACHINES[machine].column
    return {numbers[column] for numbers in ALLOWED.values() if numbers[column] is not None}


def special(machine: str) -> set[int]:
    found = MACHINES[machine]
    return {found.clone, found.socketpair, found.ioctl, found.prctl, CLONE3}


@pytest.mark.parametrize("machine", MACHINES)
def test_every_number_gets_what_the_list_says(machine: str) -> None:
    for number in set(range(NEWEST + 1)) - special(machine):
        assert verdict(machine, number) == (ALLOW if number in listed(machine) else REFUSED), number
    assert not listed(machine) & special(machine)


@pytest.mark.parametrize("machine", MACHINES)
@given(number=st.integers(NEWEST + 1, 2**32 - 1))
def test_numbers_beyond_the_table_are_unknown(machine: str, number: int) -> None:
    assert verdict(machine, number) == UNKNOWN
    assert verdict(machine, CLONE3) == UNKNOWN


@pytest.mark.parametrize("machine", MACHINES)
@given(audit=st.integers(0, 2**32 - 1), number=st.integers(0, 2**32 - 1))
def test_another_architecture_ends_the_process(machine: str, audit: int, number: int) -> None:
    if audit != MACHINES[machine].audit:
        assert verdict(machine, number, audit=audit) == KILL


@pytest.mark.parametrize("machine", MACHINES)
@given(flags=st.integers(0, 2**64 - 1))
def test_threads_and_children_but_no_namespaces(machine: str, flags: int) -> None:
    expected = REFUSED if flags & NAMESPACE_FLAGS else ALLOW
    assert verdict(machine, MACHINES[machine].clone, flags) == expected


@pytest.mark.parametrize("machine", MACHINES)
def test_arguments_that_matter_are_looked_at(machine: str) -> None:
    found = MACHINES[machine]
    assert [verdict(machine, found.socketpair, family) for family in (1, 2, 16, 17, 40)] == [ALLOW] + [REFUSED] * 4
    assert [verdict(machine, found.ioctl, 0, kind) for kind in (0x5401, 0x5451, 0x5412, 0x541C)] == [
        ALLOW, ALLOW, REFUSED, REFUSED,
    ]  # fmt: skip
    assert [verdict(machine, found.prctl, kind) for kind in (15, 16, 1, 4, 8, 22, 23, 38)] == [ALLOW] * 2 + [
        REFUSED
    ] * 6


def test_the_tables_agree_on_what_is_dangerous() -> None:
    """Names that have no business on the list, whatever their numbers."""
    dangerous = {
        "socket", "connect", "bind", "execve", "execveat", "ptrace", "mount", "unshare", "setns", "bpf", "keyctl",
        "io_uring_setup", "perf_event_open", "userfaultfd", "memfd_create", "process_vm_readv", "sendmsg", "recvmsg",
        "shmget", "setuid", "clone", "clone3", "ioctl", "prctl", "socketpair", "pidfd_getfd", "personality",
    }  # fmt: skip
    assert not dangerous & set(ALLOWED)
