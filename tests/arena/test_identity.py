"""Commit payloads: 128 bytes at most, one byte string each, and nothing else is one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.arena.identity import CommitmentId, CommitPayload, Hotkey, ModelRef, PayloadError
from limbeck.errors import UserError

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,25}", fullmatch=True).filter(lambda name: ".." not in name)
payloads = st.builds(
    lambda owner, name, revision, manifest: CommitPayload(ModelRef(f"{owner}/{name}", revision.hex()), manifest.hex()),
    names, names, st.binary(min_size=20, max_size=20), st.binary(min_size=32, max_size=32),
)  # fmt: skip


@given(payloads)
def test_a_payload_reads_back(payload: CommitPayload) -> None:
    data = payload.encode()
    assert len(data) <= 128
    assert data.isascii()
    assert CommitPayload.decode(data) == payload


@given(st.binary(max_size=140))
def test_other_bytes_are_refused_with_a_reason(data: bytes) -> None:
    with pytest.raises(UserError, match="payload"):
        CommitPayload.decode(data)


@given(payloads, st.integers(0, 127), st.integers(1, 255))
def test_no_two_byte_strings_are_one_payload(payload: CommitPayload, position: int, flip: int) -> None:
    data = bytearray(payload.encode())
    data[position % len(data)] ^= flip
    try:
        other = CommitPayload.decode(bytes(data))
    except UserError:
        return
    assert other != payload


def test_a_name_too_long_for_the_chain_is_refused() -> None:
    with pytest.raises(PayloadError, match="room for 53"):
        CommitPayload(ModelRef("o/" + "n" * 52, "0" * 40), "0" * 64).encode()
    assert len(CommitPayload(ModelRef("o/" + "n" * 51, "0" * 40), "0" * 64).encode()) == 128


@pytest.mark.parametrize("repo", ["name", "a/b/c", "../x", "a/..", "a/b..c", "a b/c", ""])
def test_names_that_are_paths_are_refused(repo: str) -> None:
    with pytest.raises(UserError, match="owner/name"):
        ModelRef(repo, "0" * 40)


def test_a_branch_is_no_revision() -> None:
    with pytest.raises(UserError, match="not pinned"):
        ModelRef("a/b", "main")


def test_commitments_are_ordered_by_block() -> None:
    early, late = CommitmentId(Hotkey("z"), 9), CommitmentId(Hotkey("a"), 10)
    assert sorted([late, early]) == [early, late]
    assert CommitmentId.parse(str(late)) == late
    with pytest.raises(UserError, match="HOTKEY:BLOCK"):
        CommitmentId.parse("abc")
