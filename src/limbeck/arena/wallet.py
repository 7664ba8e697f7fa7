"""Keys of the embedded arena: sr25519 pairs in files that only their owner can read.

A key file is the JSON that Bittensor's own unencrypted keyfiles hold (`secretPhrase` or `secretSeed`, `publicKey`,
`ss58Address`), in the same folders: `<wallet>/coldkey` and `<wallet>/hotkeys/<name>`. A secret is never printed, logged
or shown by `repr`. Not here: encrypted keyfiles, and hardware wallets.
"""

import hashlib
import json
import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path

from bittensor_core import Keypair

from limbeck.arena.identity import Hotkey
from limbeck.errors import UserError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Key:
    """A key pair that can sign. `address` is its SS58 address."""

    address: Hotkey
    pair: Keypair = field(repr=False, compare=False)

    def sign(self, message: bytes) -> bytes:
        """Return a 64-byte sr25519 signature; two signatures of one message differ, and both hold."""
        return bytes(self.pair.sign(message))


def signature_holds(address: str, message: bytes, signature: bytes) -> bool:
    """Say whether `signature` is `address`'s over `message`; malformed input is no signature."""
    try:
        return bool(Keypair(ss58_address=address).verify(message, signature))
    except ValueError:
        return False


def is_address(text: str) -> bool:
    """Say whether `text` is an SS58 address."""
    try:
        Keypair(ss58_address=text)
    except ValueError:
        return False
    return True


def key_from_seed(seed: int, label: str) -> Key:
    """Return the key that belongs to a run's seed and a label: for demonstrations and tests, never for value."""
    return _key(_pair(_seeded_secret(seed, label)))


@dataclass(frozen=True)
class Wallets:
    """A folder of wallets.

    Attributes:
        root: the folder.
        seed: when given, keys are derived from it and their names instead of fresh entropy, so that a demonstration
            ends with the same addresses twice.
    """

    root: Path
    seed: int | None = None

    def hotkey(self, wallet: str, name: str, *, create: bool = False) -> Key:
        """Return a hotkey; with `create`, make it when there is none.

        Raises:
            UserError: there is none, its file is no key file, or others can read it.
        """
        return self._key(self.root / _name(wallet) / "hotkeys" / _name(name), f"{wallet}/{name}", create)

    def coldkey(self, wallet: str, *, create: bool = False) -> Key:
        """Return a wallet's coldkey; otherwise as `hotkey`."""
        return self._key(self.root / _name(wallet) / "coldkey", wallet, create)

    def _key(self, path: Path, label: str, create: bool) -> Key:
        if path.exists():
            return load_key(path)
        if not create:
            raise UserError(f"{path}: there is no such key. Check the wallet's and the hotkey's name.")
        return create_key(path) if self.seed is None else _write(path, _seeded_secret(self.seed, label))


def create_key(path: Path) -> Key:
    """Make a fresh key and write its file with permissions 0600; never overwrites one.

    Raises:
        UserError: the file exists.
    """
    return _write(path, {"secretPhrase": str(Keypair.generate_mnemonic())})


def load_key(path: Path) -> Key:
    """Read a key file.

    Raises:
        UserError: it is missing, others can read it, or it is no key file; the message never holds its contents.
    """
    try:
        mode = path.stat().st_mode
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such key file.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: the key file cannot be read ({type(error).__name__}).") from error
    if stat.S_IMODE(mode) & 0o077:
        raise UserError(f"{path}: others can read this key. Run `chmod 600 {path}`; if it holds value, use a new key.")
    try:
        return _key(_pair(json.loads(text)))
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: not a key file (expected JSON with secretPhrase or secretSeed).") from None


def _seeded_secret(seed: int, label: str) -> dict[str, str]:
    material = hashlib.sha256("\0".join(["limbeck key", str(seed), label]).encode()).digest()
    return {"secretSeed": "0x" + material.hex()}


def _write(path: Path, secret: dict[str, str]) -> Key:
    key = _key(_pair(secret))
    public = "0x" + bytes(key.pair.public_key).hex()
    content = {"accountId": public, "publicKey": public, "ss58Address": key.address, **secret}
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)  # unlike a rename, it refuses to take another key's place
    except FileExistsError as error:
        raise UserError(f"{path}: a key is there already, and keys are never overwritten.") from error
    finally:
        temporary.unlink(missing_ok=True)
    return key


def _pair(secret: dict[str, str]) -> Keypair:
    if "secretPhrase" in secret:
        return Keypair.create_from_mnemonic(secret["secretPhrase"])
    return Keypair.create_from_seed(bytes.fromhex(secret["secretSeed"].removeprefix("0x")))


def _key(pair: Keypair) -> Key:
    return Key(Hotkey(str(pair.ss58_address)), pair)


def _name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise UserError(f"{text!r} is not a wallet's or hotkey's name: use letters, digits, . _ and -.")
    return text
