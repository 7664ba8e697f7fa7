"""A validator killed before any of its transactions goes on, and ends as if it had not been killed."""

import os
import shutil
import signal
from collections import Counter
from pathlib import Path

import pytest
from sqlalchemy import Connection, Engine, event

from limbeck.arena.local import LocalArena
from tests.arena.world import FakeEvaluator, arena_with, make_model


def run_until_killed(folder: Path, log: Path, transaction: int | None) -> int:
    """Run a round in a child process that kills itself with SIGKILL before its n-th commit; return its wait status.

    Commits of the ledger and of the store count alike. With None nothing is killed, and each commit leaves a dot.
    """
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    seen = 0

    def on_commit(connection: Connection) -> None:
        nonlocal seen
        if connection.get_execution_options().get("limbeck_begin") != "BEGIN IMMEDIATE":
            return  # a read: nothing to lose
        seen += 1
        if seen == transaction:
            os.kill(os.getpid(), signal.SIGKILL)
        if transaction is None:
            with (log.parent / "commits").open("a") as file:
                file.write(".")

    code = 1
    try:
        event.listen(Engine, "commit", on_commit)
        LocalArena.open(folder).run_round(FakeEvaluator(log))
        code = 0
    finally:
        os._exit(code)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, teacher: Path) -> Path:
    """An arena with three commitments, one of them a copy, and no round yet."""
    root = tmp_path_factory.mktemp("prepared")
    one = make_model(root / "one", teacher, kl=0.5, seed=1)
    two = make_model(root / "two", teacher, kl=0.4, seed=2)
    arena_with(root / "arena", teacher, {"a": one, "b": two, "copy": one}).close()
    return root / "arena"


def outcome(folder: Path) -> tuple[object, ...]:
    """Everything that a round leaves behind that must not depend on a crash."""
    arena = LocalArena.open(folder)
    number = arena.last_round()
    assert number is not None
    found = (
        arena.store.rounds.verdict_text(number),
        arena.store.rounds.weights(number),
        [(event.kind, event.body) for event in arena.store.events()],
        arena.ledger.weights(),
        arena.ledger.head(finalized=False),
        arena.store.rounds.reigns(),
        arena.verify(number).identical,
    )
    arena.close()
    return found


def test_killed_before_every_transaction(prepared: Path, tmp_path: Path) -> None:
    undisturbed = Path(shutil.copytree(prepared, tmp_path / "undisturbed"))
    assert run_until_killed(undisturbed, tmp_path / "undisturbed.log", None) == 0
    commits = len((tmp_path / "commits").read_text())
    expected = outcome(undisturbed)
    assert commits >= 15  # opening, sealing, commitments, admissions, plan, prompts, evidence, verdict, crown, weights
    reached: Counter[int] = Counter()

    for transaction in range(1, commits + 1):
        folder = Path(shutil.copytree(prepared, tmp_path / f"kill-{transaction}"))
        status = run_until_killed(folder, tmp_path / f"{transaction}.log", transaction)
        assert os.WIFSIGNALED(status), f"transaction {transaction} was never reached"
        arena = LocalArena.open(folder)
        begun = arena.store.rounds.open_round()
        recorded = set()
        if begun is not None:
            recorded = {
                arena.store.commitments.get(entry.commitment).payload.model.revision  # type: ignore[union-attr]
                for entry in arena.store.rounds.participants(begun.id)
                if entry.evaluated
            }
        reached[len(recorded)] += 1
        arena.run_round(FakeEvaluator(tmp_path / f"{transaction}.resumed.log"))
        arena.close()
        measured = read(tmp_path / f"{transaction}.resumed.log")
        # The log holds revisions: a model whose evidence was recorded is not measured again.
        assert not recorded & set(measured), f"transaction {transaction}"
        assert max(Counter(measured).values(), default=0) <= 1
        assert outcome(folder) == expected, f"transaction {transaction}"
        shutil.rmtree(folder)
    assert set(reached) == {0, 1, 2}  # kills fell before, between and after the measurements


def read(log: Path) -> list[str]:
    return log.read_text().split() if log.exists() else []
