"""Reads the embedded ledger's file without ever writing to it: who is registered, and which weights are in force.

It folds the ledger's operations as the ledger does, taking in only blocks that are new. It believes the file: whether
links, hashes and signatures hold is what the validator and `limbeck verify` check.
"""

import json
import threading
from pathlib import Path
from typing import Any

from sqlalchemy import MetaData, text

from limbeck.arena.chain.interface import SubnetParams
from limbeck.arena.chain.operations import Operation, State
from limbeck.arena.database import Database
from limbeck.arena.identity import BlockNumber
from limbeck.errors import IntegrityError
from limbeck.serve.reader import Metagraph, Neuron

BLOCKS = text("SELECT number, hash, genesis FROM blocks WHERE number > :after ORDER BY number")
OPERATIONS = text(
    "SELECT block, kind, signer, nonce, body FROM operations WHERE block > :after AND block <= :head"
    " ORDER BY block, position"
)


class LedgerReader:
    """The ledger's file, open for reading. Safe to use from several threads.

    Raises:
        UserError: the file is missing or no database.
    """

    def __init__(self, path: Path) -> None:
        self._database = Database(path, MetaData(), read_only=True)
        self._folding = threading.Lock()
        self._head = -1
        self._head_hash = ""
        self._netuid = 0
        self._state: State | None = None

    def metagraph(self) -> Metagraph:
        """Return the registered hotkeys at the newest block.

        Raises:
            IntegrityError: the file has no genesis block.
        """
        with self._folding:
            state = self._fold()
            at = BlockNumber(self._head)
            shares = _shares(list(state.weights_at(at).values()))
            neurons = [
                Neuron(
                    uid=neuron.uid,
                    hotkey=neuron.hotkey,
                    coldkey=neuron.coldkey,
                    stake_rao=neuron.stake_rao,
                    validator_permit=neuron.validator_permit,
                    active=neuron.active,
                    last_update=neuron.last_update,
                    incentive=shares.get(neuron.uid, 0.0),
                )
                for neuron in state.neurons_at(at)
            ]
            return Metagraph(self._netuid, self._head, self._head_hash, neurons)

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def _fold(self) -> State:
        with self._database.read() as connection:
            blocks = connection.execute(BLOCKS, {"after": self._head}).all()
            head = blocks[-1].number if blocks else self._head
            operations = connection.execute(OPERATIONS, {"after": self._head, "head": head}).all()
        if self._state is None:
            if not blocks or blocks[0].genesis is None:
                raise IntegrityError("ledger: there is no genesis block. Restore the file from a backup.")
            self._state = self._begin(blocks[0].hash, json.loads(blocks[0].genesis))
        for row in operations:
            operation = Operation(row.kind, self._state.genesis, row.signer, row.nonce, json.loads(row.body))
            self._state.apply(operation, row.block)
        if blocks:
            self._head, self._head_hash = blocks[-1].number, blocks[-1].hash
        return self._state

    def _begin(self, genesis_hash: str, genesis: dict[str, Any]) -> State:
        self._netuid = int(genesis["netuid"])
        return State(genesis_hash, SubnetParams(**genesis["params"]), frozenset(genesis["validators"]))


def _shares(settings: list[Any]) -> dict[int, float]:
    """Return each target's mean share of the weights over the validators that set any."""
    shares: dict[int, float] = {}
    set_by = [weights for weights in settings if sum(weights.values()) > 0]
    for weights in set_by:
        total = sum(weights.values())
        for uid, weight in weights.items():
            shares[uid] = shares.get(uid, 0.0) + weight / total / len(set_by)
    return shares
