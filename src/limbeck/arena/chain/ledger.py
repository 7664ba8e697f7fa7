"""The embedded ledger: a subnet's chain in one SQLite file, for a single machine, without a network.

The file holds blocks and signed operations and nothing derived from them: neurons, commitments and weights are folded
from the operations when they are read, so there is no second copy that could disagree. Every read first takes in the
blocks that are new, and holds each to its parent, its hash, its signatures and the rules; a block that fails is named.

    block hash = "0x" + SHA-256(canonical JSON {"number", "operations", "parent", "time_ms"})

`operations` is the SHA-256 of the canonical JSON of the list of operation hashes. Block 0 has the parent `0x00…00`
and, in place of operations, the digest of the genesis record (format, netuid, parameters, validators).

Blocks are sealed on demand: each operation is sealed alone, in one transaction, and `wait_block` seals empty ones.
Time is a function of the block number (12 s a block from 0 unless another clock is handed in), so equal operations
give equal hashes.

What it does not do: it needs no one's agreement. Whoever owns the file can write another history from any block on;
the walk finds changes, not a rewrite by the owner, and its hashes are no randomness against him. Registration is free.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sqlalchemy import Column, Connection, ForeignKey, Integer, MetaData, Row, String, Table, Text, select

from limbeck.arena.chain.interface import (
    Block,
    ChainCommitment,
    ChainError,
    ErrorCode,
    Neuron,
    Receipt,
    SubnetParams,
    WeightCommit,
)
from limbeck.arena.chain.operations import Body, Operation, State
from limbeck.arena.database import Database
from limbeck.arena.identity import BlockNumber, Hotkey, Uid
from limbeck.arena.wallet import Key, signature_holds
from limbeck.errors import IntegrityError, UserError
from limbeck.files import canonical_json, digest_of

FORMAT = "limbeck-ledger-1"
ROOT_HASH = "0x" + "0" * 64
Clock = Callable[[int], int]

_METADATA = MetaData()
_BLOCKS = Table(
    "blocks",
    _METADATA,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("parent", String(66), nullable=False),
    Column("time_ms", Integer, nullable=False),
    Column("hash", String(66), nullable=False, unique=True),
    Column("genesis", Text),
)
_OPERATIONS = Table(
    "operations",
    _METADATA,
    Column("block", ForeignKey("blocks.number"), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("kind", String(32), nullable=False),
    Column("signer", String(64), nullable=False),
    Column("nonce", Integer, nullable=False),
    Column("body", Text, nullable=False),
    Column("signature", String(128), nullable=False),
)


def twelve_seconds_a_block(number: int) -> int:
    """Return the time of block `number` in milliseconds: the main network's pace, from 0."""
    return number * 12_000


class Ledger:
    """A subnet on the embedded ledger; satisfies `limbeck.arena.chain.interface.Chain`.

    Args:
        path: the SQLite file; made, with a genesis block, when it is not there.
        validators: hotkeys that may set weights. They and `params` are part of the genesis block, and are ignored
            when the file exists.
        finality_blocks: how many blocks must follow a block before it is final.
        clock: time of a block by its number, in milliseconds.

    Raises:
        UserError: the file is no ledger.
        IntegrityError: a block in it is not what its hash or its signatures say.
    """

    def __init__(
        self,
        path: Path,
        *,
        netuid: int = 0,
        validators: Sequence[Hotkey] = (),
        params: SubnetParams | None = None,
        finality_blocks: int = 2,
        clock: Clock = twelve_seconds_a_block,
    ) -> None:
        self.path = path
        self._clock = clock
        self._finality_blocks = finality_blocks
        self._database = Database(path, _METADATA)
        with self._database.write() as connection:
            if connection.execute(select(_BLOCKS.c.number).limit(1)).first() is None:
                genesis = {
                    "format": FORMAT,
                    "netuid": netuid,
                    "params": asdict(params or SubnetParams()),
                    "validators": sorted(validators),
                }
                _append(connection, 0, ROOT_HASH, clock(0), digest_of(genesis), canonical_json(genesis).decode())
        self._refold()

    # Reads

    def head(self, *, finalized: bool = True) -> Block:
        """Return the newest block, or the newest with `finality_blocks` after it (block 0 is final at once)."""
        self._sync()
        number = max(0, self._head.number - self._finality_blocks) if finalized else self._head.number
        return self._block(BlockNumber(number))

    def block_hash(self, number: BlockNumber) -> str:
        """Return a block's hash; raise `ChainError` NotYet for one that is not there."""
        self._sync()
        return self._block(number).hash

    def params(self, block: BlockNumber | None = None) -> SubnetParams:
        """Return the rules that the genesis block fixed."""
        return self._state.params

    def neurons(self, block: BlockNumber | None = None) -> list[Neuron]:
        """Return the registered hotkeys by UID."""
        return self._state.neurons_at(self._at(block))

    def commitments(self, block: BlockNumber | None = None) -> list[ChainCommitment]:
        """Return each hotkey's live commitment, by block of writing."""
        return self._state.commitments_at(self._at(block))

    def weights(self, block: BlockNumber | None = None) -> dict[Uid, dict[Uid, int]]:
        """Return the weights in force."""
        return self._state.weights_at(self._at(block))

    def pending_weights(self, hotkey: Hotkey) -> list[WeightCommit]:
        """Return nothing: the ledger sets weights in the open."""
        return []

    def blocks_until_epoch(self) -> int:
        """Return how many blocks there are until the next epoch begins."""
        return self._state.params.tempo - self.head(finalized=False).number % self._state.params.tempo

    @property
    def netuid(self) -> int:
        """The subnet's number, from the genesis block."""
        return self._netuid

    @property
    def genesis_hash(self) -> str:
        """The hash of block 0: what tells one ledger from another."""
        return self._state.genesis

    # Writes

    def register(self, cold: Key, hot: Hotkey, max_cost_rao: int = 0) -> Receipt:
        """Give `hot` a UID, owned by `cold`; it costs nothing here."""
        return self._write(cold, "register", {"hotkey": hot})

    def publish(self, hot: Key, data: bytes) -> Receipt:
        """Commit `data` in place of what the hotkey committed before; the history stays readable by block."""
        return self._write(hot, "publish", {"data": data.hex()})

    def set_weights(self, hot: Key, weights: Mapping[Uid, int], version_key: int = 0) -> Receipt:
        """Set weights; setting the same ones again in the same epoch returns the receipt of the first time."""
        self._sync()
        history = self._state.weights[hot.address]
        if history and history[-1][1] == dict(weights):
            block = history[-1][0]
            if block // self._state.params.tempo == (self._head.number + 1) // self._state.params.tempo:
                with self._database.read() as connection:
                    operation, _ = next(self._operations(connection, block))
                return Receipt(True, block, self._block(block).hash, operation.hash)
        return self._write(hot, "set_weights", {"version_key": version_key, "weights": sorted(weights.items())})

    def submit(self, operation: Operation, signature: bytes) -> Receipt:
        """Seal a signed operation in a block of its own, as one transaction, or refuse it.

        Raises:
            LimbeckError: the file can't be written to.
        """
        if not signature_holds(operation.signer, operation.message, signature):
            return Receipt(ok=False, error_code=ErrorCode.BAD_SIGNATURE, detail=f"not signed by {operation.signer}")
        with self._database.write() as connection:
            self._take_in(connection)
            number = BlockNumber(self._head.number + 1)
            if (refused := self._state.refusal(operation, number)) is not None:
                return refused
            hashed = _append(connection, number, self._head.hash, self._clock(number), _operations_digest([operation]))
            connection.execute(
                _OPERATIONS.insert().values(
                    block=number,
                    position=0,
                    kind=operation.kind,
                    signer=operation.signer,
                    nonce=operation.nonce,
                    body=canonical_json(operation.body).decode(),
                    signature=signature.hex(),
                )
            )
        self._sync()
        return Receipt(True, number, hashed, operation.hash)

    def wait_block(self, number: BlockNumber, timeout_s: float = 0.0) -> Block:
        """Seal empty blocks, a transaction each, until block `number` is there. Never waits."""
        while self.head(finalized=False).number < number:
            with self._database.write() as connection:
                self._take_in(connection)
                if self._head.number < number:
                    following = self._head.number + 1
                    _append(connection, following, self._head.hash, self._clock(following), _operations_digest([]))
        return self._block(number)

    # Integrity

    def verify(self) -> int:
        """Walk the whole chain anew and return the number of blocks.

        Raises:
            IntegrityError: naming the first block whose link, hash, signature or operation is wrong.
        """
        self._refold()
        return self._head.number + 1

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def _write(self, key: Key, kind: str, body: Body) -> Receipt:
        self._sync()
        operation = Operation(kind, self._state.genesis, key.address, self._state.nonces[key.address], body)
        return self.submit(operation, key.sign(operation.message))

    def _at(self, block: BlockNumber | None) -> BlockNumber:
        self._sync()
        return self._head.number if block is None else self._block(block).number

    def _block(self, number: BlockNumber) -> Block:
        if not 0 <= number < len(self._chain):
            raise ChainError(
                ErrorCode.NOT_YET, f"block {number} is not there: the head is {self._head.number}.", retryable=True
            )
        return self._chain[number]

    @property
    def _head(self) -> Block:
        return self._chain[-1]

    def _refold(self) -> None:
        self._chain: list[Block] = []
        self._state: State
        self._sync()
        if not self._chain:
            raise IntegrityError(f"{self.path}: the ledger has no genesis block.")

    def _sync(self) -> None:
        with self._database.read() as connection:
            self._take_in(connection)

    def _take_in(self, connection: Connection) -> None:
        """Check and fold the blocks after the newest one known."""
        rows = connection.execute(
            select(_BLOCKS).where(_BLOCKS.c.number >= len(self._chain)).order_by(_BLOCKS.c.number)
        )
        for row in rows.all():
            operations = list(self._operations(connection, row.number))
            self._check_block(row, [operation for operation, _ in operations])
            if row.number == 0:
                self._start(row)
            for operation, signature in operations:
                if not signature_holds(operation.signer, operation.message, signature):
                    raise self._tampered(row.number, f"an operation is not signed by {operation.signer}")
                if (refused := self._state.refusal(operation, row.number)) is not None:
                    raise self._tampered(row.number, f"an operation breaks a rule ({refused.detail})")
                self._state.apply(operation, row.number)
            self._chain.append(Block(BlockNumber(row.number), row.hash, row.time_ms))

    def _check_block(self, row: Row[Any], operations: list[Operation]) -> None:
        expected = len(self._chain)
        if row.number != expected:
            raise self._tampered(expected, "it is missing")
        parent = self._head.hash if self._chain else ROOT_HASH
        if row.parent != parent:
            raise self._tampered(row.number, "its parent is not the block before it")
        content = _operations_digest(operations)
        if row.number == 0:
            content = hashlib.sha256(str(row.genesis).encode()).hexdigest()
            if operations:
                raise self._tampered(0, "the genesis block holds operations")
        if row.hash != _block_hash(row.number, row.parent, row.time_ms, content):
            raise self._tampered(row.number, "its contents do not have its hash")

    def _start(self, row: Row[Any]) -> None:
        genesis = _parsed(row.genesis)
        if genesis.get("format") != FORMAT:
            raise UserError(f"{self.path}: not a ledger of format {FORMAT}.")
        self._netuid = int(genesis["netuid"])
        self._state = State(row.hash, SubnetParams(**genesis["params"]), frozenset(genesis["validators"]))

    def _operations(self, connection: Connection, number: int) -> Iterator[tuple[Operation, bytes]]:
        rows = connection.execute(
            select(_OPERATIONS).where(_OPERATIONS.c.block == number).order_by(_OPERATIONS.c.position)
        )
        for row in rows.all():
            try:
                body, signature = _parsed(row.body), bytes.fromhex(row.signature)
            except (ValueError, TypeError) as error:
                raise self._tampered(number, f"an operation cannot be read ({error})") from error
            genesis = self._chain[0].hash if self._chain else ""
            yield Operation(row.kind, genesis, row.signer, row.nonce, body), signature

    def _tampered(self, number: int, what: str) -> IntegrityError:
        return IntegrityError(f"{self.path}: block {number} was tampered with: {what}. Restore the file from a backup.")


def _append(
    connection: Connection, number: int, parent: str, time_ms: int, content: str, genesis: str | None = None
) -> str:
    """Write a block's row and return its hash."""
    hashed = _block_hash(number, parent, time_ms, content)
    connection.execute(
        _BLOCKS.insert().values(number=number, parent=parent, time_ms=time_ms, hash=hashed, genesis=genesis)
    )
    return hashed


def _block_hash(number: int, parent: str, time_ms: int, content: str) -> str:
    return "0x" + digest_of({"number": number, "operations": content, "parent": parent, "time_ms": time_ms})


def _operations_digest(operations: Sequence[Operation]) -> str:
    return digest_of([operation.hash for operation in operations])


def _parsed(text: str) -> Body:
    """Parse a JSON object; raises ValueError for anything else."""
    value = json.loads(text, parse_constant=_no_constant)
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")
