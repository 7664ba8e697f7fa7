"""Keys: in files that only their owner reads, never shown, never overwritten."""

import stat
from pathlib import Path

import pytest
from bittensor_core import deserialize_keypair_from_keyfile_data

from limbeck.arena.wallet import Wallets, create_key, load_key, signature_holds
from limbeck.errors import UserError


def test_a_fresh_key_is_private_and_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "wallet" / "key"
    key = create_key(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_key(path).address == key.address
    assert create_key(tmp_path / "other").address != key.address
    assert list(path.parent.iterdir()) == [path]


def test_a_key_file_is_what_bittensor_reads(tmp_path: Path) -> None:
    key = create_key(tmp_path / "key")
    assert deserialize_keypair_from_keyfile_data((tmp_path / "key").read_bytes()).ss58_address == key.address


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    key = create_key(tmp_path / "key")
    with pytest.raises(UserError, match="never overwritten"):
        create_key(tmp_path / "key")
    assert load_key(tmp_path / "key").address == key.address


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    create_key(tmp_path / "key")
    (tmp_path / "key").chmod(0o644)
    with pytest.raises(UserError, match="chmod 600"):
        load_key(tmp_path / "key")


def test_neither_repr_nor_an_error_shows_the_secret(tmp_path: Path) -> None:
    path = tmp_path / "key"
    key = create_key(path)
    assert "pair" not in repr(key)
    path.write_text('{"secretPhrase": "very secret words"}')
    with pytest.raises(UserError) as caught:
        load_key(path)
    assert "very secret" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_seed_gives_the_same_keys_and_names_give_others(tmp_path: Path) -> None:
    one, two = Wallets(tmp_path / "1", seed=7), Wallets(tmp_path / "2", seed=7)
    assert one.hotkey("w", "a", create=True).address == two.hotkey("w", "a", create=True).address
    assert one.hotkey("w", "b", create=True).address != one.hotkey("w", "a").address
    assert one.coldkey("w", create=True).address != one.hotkey("w", "a").address


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such key"):
        Wallets(tmp_path).hotkey("w", "a")
    with pytest.raises(UserError, match="not a wallet"):
        Wallets(tmp_path).hotkey("../w", "a")


def test_signatures(tmp_path: Path) -> None:
    key = create_key(tmp_path / "key")
    signature = key.sign(b"message")
    assert signature_holds(key.address, b"message", signature)
    assert not signature_holds(key.address, b"massage", signature)
    assert not signature_holds(key.address, b"message", b"short")
    assert not signature_holds("nobody", b"message", signature)
