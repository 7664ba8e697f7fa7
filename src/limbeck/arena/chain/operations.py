"""Signed operations of the embedded ledger: the bytes that are signed, and the rules that say which are taken.

An operation is the canonical JSON of `{"body", "genesis", "kind", "nonce", "signer"}`. `genesis` is the hash of the
ledger's first block, so that an operation of one ledger is worth nothing on another; `nonce` counts the signer's
operations from 0, so that none can be played twice. The signature (sr25519, by the signer, over those bytes) stands
beside the operation and is no part of its hash: sr25519 signatures are randomised, and block hashes must not be.

| kind | signed by | body |
|---|---|---|
| `register` | coldkey | `{"hotkey"}` |
| `publish` | hotkey | `{"data"}`, hexadecimal |
| `set_weights` | hotkey | `{"version_key", "weights": [[uid, u16], …]}`, sorted by uid |

`State` is the fold of all operations. The same `refusal` guards new writes and the walk over old blocks.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from limbeck.arena.chain.interface import (
    MAX_WEIGHT,
    ChainCommitment,
    CommitmentKind,
    ErrorCode,
    Neuron,
    Receipt,
    SubnetParams,
)
from limbeck.arena.identity import BlockNumber, Coldkey, Hotkey, Uid
from limbeck.arena.wallet import is_address
from limbeck.files import canonical_json

Body = dict[str, Any]


@dataclass(frozen=True)
class Operation:
    """One operation before it is signed."""

    kind: str
    genesis: str
    signer: str
    nonce: int
    body: Body

    @property
    def message(self) -> bytes:
        """The bytes that are signed."""
        return canonical_json(
            {
                "body": self.body,
                "genesis": self.genesis,
                "kind": self.kind,
                "nonce": self.nonce,
                "signer": self.signer,
            }
        )

    @property
    def hash(self) -> str:
        """`0x` and the SHA-256 of the signed bytes."""
        return "0x" + hashlib.sha256(self.message).hexdigest()


@dataclass
class State:
    """What all operations up to a block amount to, with enough history to answer for any earlier block."""

    genesis: str
    params: SubnetParams
    validators: frozenset[str]
    nonces: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    neurons: dict[Hotkey, Neuron] = field(default_factory=dict)
    published: dict[Hotkey, list[tuple[BlockNumber, bytes]]] = field(default_factory=lambda: defaultdict(list))
    weights: dict[Hotkey, list[tuple[BlockNumber, dict[Uid, int]]]] = field(default_factory=lambda: defaultdict(list))

    def refusal(self, operation: Operation, block: BlockNumber) -> Receipt | None:
        """Return why `operation` can't stand in `block`, or None when it can. The signature is checked elsewhere."""
        if operation.genesis != self.genesis:
            return _rejected("WrongLedger")
        if operation.nonce != self.nonces[operation.signer]:
            return _rejected(f"BadNonce, expected {self.nonces[operation.signer]}, got {operation.nonce}")
        rule = _RULES.get(operation.kind)
        if rule is None:
            return _rejected(f"UnknownKind {operation.kind!r}")
        try:
            return rule(self, operation, block)
        except (KeyError, TypeError, ValueError) as error:
            return _rejected(f"MalformedBody ({error})")

    def apply(self, operation: Operation, block: BlockNumber) -> None:
        """Take in an operation that `refusal` has let pass."""
        self.nonces[operation.signer] += 1
        body = operation.body
        if operation.kind == "register":
            hotkey = Hotkey(body["hotkey"])
            self.neurons[hotkey] = Neuron(
                uid=Uid(len(self.neurons)),
                hotkey=hotkey,
                coldkey=Coldkey(operation.signer),
                stake_rao=0,
                validator_permit=hotkey in self.validators,
                active=True,
                last_update=block,
                registered_at=block,
            )
        elif operation.kind == "publish":
            self.published[Hotkey(operation.signer)].append((block, bytes.fromhex(body["data"])))
        else:
            hotkey = Hotkey(operation.signer)
            self.weights[hotkey].append((block, {Uid(uid): weight for uid, weight in body["weights"]}))
            self.neurons[hotkey] = replace(self.neurons[hotkey], last_update=block)

    def neurons_at(self, block: BlockNumber) -> list[Neuron]:
        """Return the neurons registered up to `block`."""
        return [neuron for neuron in self.neurons.values() if neuron.registered_at <= block]

    def commitments_at(self, block: BlockNumber) -> list[ChainCommitment]:
        """Return each hotkey's newest commitment up to `block`, by block of writing."""
        return sorted(
            (
                ChainCommitment(hotkey, written, data, CommitmentKind.RAW)
                for hotkey, history in self.published.items()
                for written, data in _latest(history, block)
            ),
            key=lambda commitment: (commitment.block, commitment.hotkey),
        )

    def weights_at(self, block: BlockNumber) -> dict[Uid, dict[Uid, int]]:
        """Return each validator's newest weights up to `block`."""
        return {
            self.neurons[hotkey].uid: dict(weights)
            for hotkey, history in self.weights.items()
            for _, weights in _latest(history, block)
        }


def _latest(history: list[tuple[BlockNumber, Any]], block: BlockNumber) -> Iterator[tuple[BlockNumber, Any]]:
    """Yield the newest entry that is not later than `block`, if there is one."""
    yield from [entry for entry in history if entry[0] <= block][-1:]


def _may_register(state: State, operation: Operation, block: BlockNumber) -> Receipt | None:
    hotkey = operation.body["hotkey"]
    if not isinstance(hotkey, str) or not is_address(hotkey) or hotkey == operation.signer:
        return _rejected("InvalidHotkey")
    if hotkey in state.neurons:
        return _rejected("HotkeyAlreadyRegistered")
    return None


def _may_publish(state: State, operation: Operation, block: BlockNumber) -> Receipt | None:
    data, rules = bytes.fromhex(operation.body["data"]), state.params
    hotkey = Hotkey(operation.signer)
    if hotkey not in state.neurons:
        return _not_registered(hotkey)
    if len(data) > rules.max_commit_bytes:
        return Receipt(
            ok=False, error_code=ErrorCode.TOO_LARGE, detail=f"{len(data)} bytes, at most {rules.max_commit_bytes}"
        )
    epoch = block // rules.tempo
    written = [entry for at, entry in state.published[hotkey] if at // rules.tempo == epoch]
    used = sum(max(rules.min_commit_charge, len(entry)) for entry in (*written, data))
    if used > rules.commit_window_bytes:
        return Receipt(
            ok=False,
            error_code=ErrorCode.SPACE_LIMIT_EXCEEDED,
            detail=f"{used} bytes in one epoch, at most {rules.commit_window_bytes}",
            retryable=True,
            retry_blocks=rules.tempo - block % rules.tempo,
        )
    return None


def _may_set_weights(state: State, operation: Operation, block: BlockNumber) -> Receipt | None:
    hotkey, rules = Hotkey(operation.signer), state.params
    weights = operation.body["weights"]
    uids = [uid for uid, _ in weights]
    if hotkey not in state.neurons:
        return _not_registered(hotkey)
    if not state.neurons[hotkey].validator_permit:
        return _rejected("NoValidatorPermit")
    if rules.commit_reveal:
        return Receipt(ok=False, error_code=ErrorCode.COMMIT_REVEAL_ENABLED, detail="weights must be committed first")
    if uids != sorted(set(uids)) or any(type(uid) is not int or not 0 <= uid < len(state.neurons) for uid in uids):
        return _rejected("InvalidUids")
    if any(type(weight) is not int or not 0 <= weight <= MAX_WEIGHT for _, weight in weights):
        return _rejected("InvalidWeights")
    if len(uids) < rules.min_allowed_weights:
        return _rejected(f"WeightVecLengthIsLow, at least {rules.min_allowed_weights}")
    history = state.weights[hotkey]
    if history and (early := history[-1][0] + rules.weights_rate_limit - block) > 0:
        return Receipt(
            ok=False,
            error_code=ErrorCode.RATE_LIMITED,
            detail=f"{early} blocks too early",
            retryable=True,
            retry_blocks=early,
        )
    return None


_RULES = {"register": _may_register, "publish": _may_publish, "set_weights": _may_set_weights}


def _rejected(name: str) -> Receipt:
    return Receipt(ok=False, error_code=ErrorCode.REJECTED, detail=name)


def _not_registered(hotkey: Hotkey) -> Receipt:
    return Receipt(ok=False, error_code=ErrorCode.NOT_REGISTERED, detail=f"{hotkey} has no UID")
