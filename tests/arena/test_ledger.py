"""The embedded ledger: imitates the chain's limits, refuses forgeries, and names a block that was tampered with."""

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from limbeck.arena.chain.interface import ChainError, CommitmentKind, ErrorCode, SubnetParams
from limbeck.arena.chain.ledger import Ledger
from limbeck.arena.chain.operations import Operation
from limbeck.arena.wallet import Key, key_from_seed
from limbeck.errors import IntegrityError, UserError

COLD, HOT, VALIDATOR, STRANGER = (key_from_seed(5, name) for name in ("cold", "hot", "validator", "stranger"))


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return new_ledger(tmp_path / "ledger.sqlite")


def new_ledger(path: Path, **params: int) -> Ledger:
    ledger = Ledger(path, validators=[VALIDATOR.address], params=SubnetParams(**params))
    for hot in (VALIDATOR, HOT):
        assert ledger.register(COLD, hot.address).ok
    return ledger


def signed(ledger: Ledger, key: Key, **changes: object) -> tuple[Operation, bytes]:
    operation = replace(Operation("publish", ledger.genesis_hash, key.address, 0, {"data": "00"}), **changes)
    return operation, key.sign(operation.message)


def test_a_forged_signature_is_refused(ledger: Ledger) -> None:
    operation, _ = signed(ledger, HOT)
    for signature in (STRANGER.sign(operation.message), HOT.sign(b"another message"), b"\0" * 64, b""):
        receipt = ledger.submit(operation, signature)
        assert (receipt.ok, receipt.error_code) == (False, ErrorCode.BAD_SIGNATURE)
    assert ledger.commitments() == []
    assert ledger.head(finalized=False).number == 2


def test_an_operation_counts_once_and_on_its_own_ledger(ledger: Ledger, tmp_path: Path) -> None:
    operation, signature = signed(ledger, HOT)
    assert ledger.submit(operation, signature).ok
    assert "BadNonce" in ledger.submit(operation, signature).detail
    other = new_ledger(tmp_path / "other.sqlite", tempo=7)
    assert other.submit(operation, signature).detail == "WrongLedger"


def test_one_uid_a_hotkey(ledger: Ledger) -> None:
    assert ledger.register(COLD, HOT.address).detail == "HotkeyAlreadyRegistered"
    assert [(neuron.uid, neuron.hotkey) for neuron in ledger.neurons()] == [(0, VALIDATOR.address), (1, HOT.address)]
    assert ledger.register(COLD, "not an address").detail == "InvalidHotkey"  # type: ignore[arg-type]


def test_a_commitment_overwrites_in_place_and_its_history_stays(ledger: Ledger) -> None:
    first, second = ledger.publish(HOT, b"one"), ledger.publish(HOT, b"\xff\x00two")
    assert first.block is not None
    (now,) = ledger.commitments()
    assert (now.data, now.block, now.kind) == (b"\xff\x00two", second.block, CommitmentKind.RAW)
    (then,) = ledger.commitments(first.block)
    assert (then.data, then.block) == (b"one", first.block)
    assert ledger.commitments(first.block - 1) == []


def test_limits_of_a_commitment(ledger: Ledger) -> None:
    assert ledger.publish(STRANGER, b"x").error_code is ErrorCode.NOT_REGISTERED
    assert ledger.publish(HOT, b"x" * 129).error_code is ErrorCode.TOO_LARGE
    assert ledger.publish(HOT, b"x" * 128).ok


def test_3100_bytes_an_epoch_and_at_least_100_a_write(ledger: Ledger) -> None:
    receipts = [ledger.publish(HOT, bytes([index])) for index in range(32)]
    assert [receipt.ok for receipt in receipts] == [True] * 31 + [False]
    assert receipts[-1].error_code is ErrorCode.SPACE_LIMIT_EXCEEDED
    assert receipts[-1].retryable
    ledger.wait_block(ledger.head(finalized=False).number + receipts[-1].retry_blocks)
    assert ledger.publish(HOT, b"next epoch").ok


def test_weights_are_the_validators_to_set(ledger: Ledger) -> None:
    assert ledger.set_weights(HOT, {1: 65_535}).detail == "NoValidatorPermit"
    assert ledger.set_weights(VALIDATOR, {7: 1}).detail == "InvalidUids"
    assert ledger.set_weights(VALIDATOR, {1: 65_536}).detail == "InvalidWeights"
    first = ledger.set_weights(VALIDATOR, {1: 65_535})
    assert ledger.set_weights(VALIDATOR, {1: 65_535}) == first
    assert ledger.weights() == {0: {1: 65_535}}
    assert ledger.weights(2) == {}


def test_the_rate_of_weights_is_limited(tmp_path: Path) -> None:
    ledger = new_ledger(tmp_path / "slow.sqlite", weights_rate_limit=5)
    assert ledger.set_weights(VALIDATOR, {1: 1}).ok
    refused = ledger.set_weights(VALIDATOR, {1: 2})
    assert (refused.error_code, refused.retry_blocks) == (ErrorCode.RATE_LIMITED, 4)
    ledger.wait_block(ledger.head(finalized=False).number + refused.retry_blocks)
    assert ledger.set_weights(VALIDATOR, {1: 2}).ok


def test_finality_follows_the_head(ledger: Ledger) -> None:
    assert ledger.head(finalized=False).number == 2
    assert ledger.head().number == 0
    ledger.wait_block(9)
    assert ledger.head().number == 7
    assert ledger.blocks_until_epoch() == 351


def test_a_block_that_is_not_there_has_no_hash(ledger: Ledger) -> None:
    with pytest.raises(ChainError, match="block 99") as caught:
        ledger.block_hash(99)  # type: ignore[arg-type]
    assert caught.value.code is ErrorCode.NOT_YET


def test_equal_operations_give_equal_hashes(tmp_path: Path) -> None:
    hashes = []
    for name in ("a", "b"):
        ledger = new_ledger(tmp_path / name)
        ledger.publish(HOT, b"model")
        hashes.append(ledger.head(finalized=False).hash)
    assert hashes[0] == hashes[1]


def test_two_processes_see_one_chain(ledger: Ledger) -> None:
    other = Ledger(ledger.path)
    assert other.publish(HOT, b"from the other").ok
    assert ledger.publish(HOT, b"from this one").ok
    assert [entry.data for entry in other.commitments()] == [b"from this one"]
    assert other.verify() == ledger.verify() == 5


@pytest.mark.parametrize(
    ("sql", "block"),
    [
        ("UPDATE operations SET body = replace(body, '6f6e65', '74776f') WHERE block = 3", 3),
        ("UPDATE operations SET signature = (SELECT signature FROM operations WHERE block = 2) WHERE block = 3", 3),
        ("UPDATE operations SET signature = 'no hexadecimal' WHERE block = 3", 3),
        ("UPDATE operations SET body = 'no JSON' WHERE block = 3", 3),
        ("UPDATE operations SET signer = (SELECT signer FROM operations WHERE block = 1) WHERE block = 3", 3),
        ("DELETE FROM operations WHERE block = 3", 3),
        ("UPDATE blocks SET time_ms = time_ms + 1 WHERE number = 2", 2),
        ("UPDATE blocks SET hash = replace(hash, '0x', '0y') WHERE number = 2", 2),
        ("UPDATE blocks SET parent = (SELECT parent FROM blocks WHERE number = 1) WHERE number = 2", 2),
        ("DELETE FROM operations WHERE block = 2; DELETE FROM blocks WHERE number = 2", 2),
        ("UPDATE blocks SET genesis = replace(genesis, '360', '361') WHERE number = 0", 0),
        ("UPDATE operations SET block = 0 WHERE block = 1", 0),
    ],
)  # fmt: skip
def test_a_tampered_block_is_named(ledger: Ledger, sql: str, block: int) -> None:
    ledger.publish(HOT, b"one")
    ledger.publish(HOT, b"three")
    with sqlite3.connect(ledger.path) as connection:
        connection.executescript(sql)
    with pytest.raises(IntegrityError, match=f"block {block} was tampered"):
        ledger.verify()
    with pytest.raises(IntegrityError, match=f"block {block} was tampered"):
        Ledger(ledger.path)


def test_a_rule_broken_with_a_good_signature_and_hash_is_found(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever owns the file can reseal a block; the rules still hold when it is walked."""
    monkeypatch.setattr("limbeck.arena.chain.operations.State.refusal", lambda *_: None)
    assert ledger.publish(STRANGER, b"never registered").ok
    monkeypatch.undo()
    with pytest.raises(IntegrityError, match="block 3 was tampered with: an operation breaks a rule"):
        ledger.verify()


def test_a_file_that_is_no_ledger(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a database, by any means" * 100)
    with pytest.raises(UserError, match="cannot be used as a database"):
        Ledger(tmp_path / "notes.txt")
