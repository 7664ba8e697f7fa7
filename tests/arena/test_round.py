"""Rounds: the better model takes the crown, weights follow, failures are laid to whose they are."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from limbeck.arena.chain.interface import Block, ChainError, ErrorCode
from limbeck.arena.config import load_arena
from limbeck.arena.decision import Outcome
from limbeck.arena.faults import ForeignError
from limbeck.arena.identity import CommitmentId
from limbeck.arena.local import LocalArena
from limbeck.arena.models import FolderStore, ModelStore, Repository
from limbeck.arena.round import Validator, finalized_block, run_round
from limbeck.arena.store import CommitmentState, RoundState, Store
from limbeck.errors import LimbeckError, UserError
from tests.arena.world import FakeEvaluator, FakeMeasurement, arena_config, arena_with, commit, make_model


@pytest.fixture
def good(tmp_path: Path, teacher: Path) -> Path:
    return make_model(tmp_path / "good", teacher, kl=0.3, seed=1)


@pytest.fixture
def bad(tmp_path: Path, teacher: Path) -> Path:
    return make_model(tmp_path / "bad", teacher, kl=0.6, seed=2)


def state_of(arena: LocalArena, commitment: str) -> tuple[CommitmentState, str]:
    row = arena.store.commitments.get(CommitmentId.parse(commitment))
    assert row is not None
    return row.state, row.reason


def test_the_better_model_takes_the_crown_and_the_weights(tmp_path: Path, teacher: Path, good: Path, bad: Path) -> None:
    arena = arena_with(tmp_path / "arena", teacher, {"b": bad, "g": good})
    verdict = arena.run_round(FakeEvaluator())
    assert verdict is not None
    king = arena.king()
    assert king is not None
    assert str(king.commitment) == verdict.king_after
    assert arena.king_folder() is not None
    uid = next(neuron.uid for neuron in arena.ledger.neurons() if neuron.hotkey == king.commitment.hotkey)
    assert arena.ledger.weights() == {0: {uid: 65_535}}
    assert arena.store.rounds.weights(verdict.round_id) == {uid: 65_535}
    assert (arena.king_folder() / "model.safetensors").read_bytes() == (good / "model.safetensors").read_bytes()
    assert [row.state for row in arena.store.rounds.all()] == [RoundState.CLOSED]
    assert arena.run_round(FakeEvaluator()) is None
    assert arena.store.verify_events() > 0


def test_the_king_is_measured_again_and_holds_within_the_margin(tmp_path: Path, teacher: Path, good: Path) -> None:
    arena = arena_with(tmp_path / "arena", teacher, {"g": good})
    first = arena.run_round(FakeEvaluator())
    commit(arena, "near", make_model(tmp_path / "near", teacher, kl=0.2985, seed=3))
    second = arena.run_round(FakeEvaluator())
    assert first is not None
    assert second is not None
    assert second.round_id > first.round_id
    assert second.king_before == second.king_after == first.king_after
    assert {entry.outcome for entry in second.standings} == {Outcome.HELD, Outcome.LOST}
    commit(arena, "better", make_model(tmp_path / "better", teacher, kl=0.29, seed=4))
    third = arena.run_round(FakeEvaluator(tmp_path / "log"))
    assert third is not None
    assert third.crown_moved
    assert (tmp_path / "log").read_text().count("\n") == 3  # the teacher, the king, the one challenger
    assert [reign.to_round for reign in arena.store.rounds.reigns()] == [third.round_id, None]


def test_a_copy_under_other_names_is_out_and_the_first_committer_owns_it(
    tmp_path: Path, teacher: Path, good: Path
) -> None:
    copy = Path(shutil.copytree(good, tmp_path / "copy"))
    tensors = load_file(good / "model.safetensors")
    (copy / "model.safetensors").unlink()
    half = len(tensors) // 2
    parts = [dict(list(tensors.items())[:half]), dict(list(tensors.items())[half:])]
    weight_map = {}
    for index, part in enumerate(parts, 1):
        save_file(part, copy / f"model-0000{index}-of-00002.safetensors")
        weight_map |= dict.fromkeys(part, f"model-0000{index}-of-00002.safetensors")
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    arena = arena_with(tmp_path / "arena", teacher, {})
    original, copied, same = commit(arena, "z", good), commit(arena, "a", copy), commit(arena, "m", good)
    verdict = arena.run_round(FakeEvaluator())
    assert verdict is not None
    assert verdict.king_after == original
    for late in (copied, same):
        state, reason = state_of(arena, late)
        assert state is CommitmentState.DISQUALIFIED
        assert f"of {original}" in reason or f"those of {original}" in reason


def test_a_model_changed_or_gone_after_the_commitment(tmp_path: Path, teacher: Path, good: Path, bad: Path) -> None:
    arena = arena_with(tmp_path / "arena", teacher, {"g": good, "b": bad})
    rows = {arena.models.open(ref): ref for ref in (arena.models.latest("g/student"), arena.models.latest("b/student"))}
    changed, gone = (repository.folder() for repository in rows)
    (changed / "README.md").write_text("Now with other weights.")
    shutil.rmtree(gone)
    assert arena.run_round(FakeEvaluator()) is None
    reasons = [row.reason for row in arena.store.commitments.all()]
    assert "manifest: the files are not those that were committed" in reasons[0]
    assert "repository:" in reasons[1]
    assert "not in the model store" in reasons[1]


def test_a_king_whose_model_vanishes_loses_the_throne(tmp_path: Path, teacher: Path, good: Path, bad: Path) -> None:
    arena = arena_with(tmp_path / "arena", teacher, {"g": good})
    arena.run_round(FakeEvaluator())
    folder = arena.king_folder()
    assert folder is not None
    shutil.rmtree(folder)
    late = commit(arena, "b", bad)
    verdict = arena.run_round(FakeEvaluator())
    assert verdict is not None
    assert verdict.king_after == late
    assert state_of(arena, str(verdict.king_before))[0] is CommitmentState.DISQUALIFIED


def test_a_model_that_cannot_run_is_out_by_its_own_fault(tmp_path: Path, teacher: Path, good: Path) -> None:
    broken = make_model(tmp_path / "broken", teacher, kl=99, seed=5)
    arena = arena_with(tmp_path / "arena", teacher, {"x": broken, "g": good})
    verdict = arena.run_round(FakeEvaluator())
    assert verdict is not None
    king = arena.king()
    assert king is not None
    assert state_of(arena, str(verdict.standings[0].commitment)) == (
        CommitmentState.DISQUALIFIED,
        "the model cannot be run.",
    )


def test_anothers_fault_leaves_the_challenger_in_the_queue(
    tmp_path: Path, teacher: Path, good: Path, bad: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arena = arena_with(tmp_path / "arena", teacher, {"b": bad, "g": good})
    honest = FakeMeasurement.evaluate

    def flaky(self: FakeMeasurement, model: Path) -> Any:
        if "/g/" in str(model):
            raise ForeignError("the disk gave up.")
        return honest(self, model)

    monkeypatch.setattr(FakeMeasurement, "evaluate", flaky)
    first = arena.run_round(FakeEvaluator())
    assert first is not None
    assert sorted(entry.outcome for entry in first.standings) == [Outcome.CROWNED, Outcome.VOID]
    monkeypatch.undo()
    second = arena.run_round(FakeEvaluator())
    assert second is not None
    assert second.crown_moved


def test_a_store_that_is_away_disqualifies_nobody(tmp_path: Path, teacher: Path, good: Path) -> None:
    arena = arena_with(tmp_path / "arena", teacher, {"g": good})

    class Away(ModelStore):
        def open(self, ref: object) -> Repository:
            raise ForeignError("no route to host")

    arena.ledger.wait_block(20)
    assert run_round(replace(arena.validator(), models=Away()), FakeEvaluator()) is None
    assert [row.state for row in arena.store.commitments.all()] == [CommitmentState.PENDING]
    assert arena.store.events()[-1].kind == "admission put off"
    assert arena.run_round(FakeEvaluator()) is not None


def test_an_evaluator_that_leaves_prompts_out_crowns_nobody(
    tmp_path: Path, teacher: Path, good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arena = arena_with(tmp_path / "arena", teacher, {"g": good})
    honest = FakeMeasurement.evaluate
    monkeypatch.setattr(FakeMeasurement, "evaluate", lambda self, model: honest(self, model)[1:])
    verdict = arena.run_round(FakeEvaluator())
    assert verdict is not None
    assert verdict.king_after is None
    assert verdict.standings[0].outcome is Outcome.VOID
    assert "was not measured" in verdict.standings[0].reason


@pytest.mark.parametrize("code", [ErrorCode.PRUNED, ErrorCode.NOT_YET, ErrorCode.TIMEOUT])
def test_an_unknown_block_hash_stops_the_round(
    tmp_path: Path, teacher: Path, good: Path, monkeypatch: pytest.MonkeyPatch, code: ErrorCode
) -> None:
    arena = arena_with(tmp_path / "arena", teacher, {"g": good})

    def unknown(number: int) -> str:
        raise ChainError(code, f"block {number}: unknown")

    monkeypatch.setattr(arena.ledger, "block_hash", unknown)
    with pytest.raises(ChainError, match="unknown"):
        arena.run_round(FakeEvaluator())
    assert arena.store.rounds.all() == []


@pytest.mark.parametrize("hashed", ["", "0x0", "0x" + "0" * 64, "None"])
def test_what_is_no_block_hash_stops_the_round(
    tmp_path: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch, hashed: str
) -> None:
    arena = arena_with(tmp_path / "arena", teacher, {})
    monkeypatch.setattr(arena.ledger, "block_hash", lambda number: hashed)
    with pytest.raises(ChainError, match="not a block hash"):
        finalized_block(arena.ledger)


def test_only_finalized_commitments_count(tmp_path: Path, teacher: Path, good: Path) -> None:
    arena = arena_with(tmp_path / "arena", teacher, {"g": good})
    assert run_round(arena.validator(), FakeEvaluator()) is None
    assert arena.store.commitments.all() == []
    arena.ledger.wait_block(arena.ledger.head(finalized=False).number + 2)
    assert run_round(arena.validator(), FakeEvaluator()) is not None


def test_bad_entries_on_the_chain_harm_nothing(tmp_path: Path, teacher: Path, good: Path) -> None:
    arena = arena_with(tmp_path / "arena", teacher, {})
    for name, data in (("x", b"\xff\xfe"), ("y", b""), ("z", b"L1:a/b:cut")):
        arena.register(name, name)
        arena.ledger.publish(arena.wallets.hotkey(name, name), data)
    king = commit(arena, "g", good)
    verdict = arena.run_round(FakeEvaluator())
    assert verdict is not None
    assert [row.id for row in arena.store.commitments.all()] == [CommitmentId.parse(king)]


def test_a_hotkey_commits_once(tmp_path: Path, teacher: Path, good: Path, bad: Path) -> None:
    arena = arena_with(tmp_path / "arena", teacher, {"g": bad})
    with pytest.raises(UserError, match="has committed already"):
        arena.submit(arena.publish("g/other", good), "g", "wallet-g")
    arena.run_round(FakeEvaluator())
    key = arena.wallets.hotkey("wallet-g", "g")
    assert arena.ledger.publish(key, arena.payload(arena.models.latest("g/other")).encode()).ok  # around the tool
    assert arena.run_round(FakeEvaluator()) is None
    assert len(arena.store.commitments.all()) == 1


def test_places_in_a_round_are_given_first_committed_first(tmp_path: Path, teacher: Path) -> None:
    arena = arena_with(
        tmp_path / "arena",
        teacher,
        {},
        round={"evaluator": "fake", "prompts": 4, "max_challengers": 3, "challengers_per_coldkey": 2},
    )
    committed = []
    for index in range(5):
        wallet = "sybil" if index < 3 else f"w{index}"
        model = make_model(tmp_path / f"m{index}", teacher, kl=0.5 - index / 100, seed=index)
        arena.register(f"h{index}", wallet)
        committed.append(str(arena.submit(arena.publish(f"h{index}/m", model), f"h{index}", wallet)))
    first = arena.run_round(FakeEvaluator())
    assert first is not None
    assert [entry.commitment for entry in first.standings] == [committed[0], committed[1], committed[3]]
    second = arena.run_round(FakeEvaluator())
    assert second is not None
    assert [entry.commitment for entry in second.standings][-1] == committed[4]


def test_the_configuration_of_a_round_is_the_one_it_was_planned_with(tmp_path: Path, teacher: Path, good: Path) -> None:
    arena = arena_with(tmp_path / "arena", teacher, {"g": good})
    arena.run_round(FakeEvaluator())
    arena.close()
    stricter = arena_config(teacher, policy={"name": "kl_duel", "max_kl": 0.1})
    again = LocalArena.open(tmp_path / "arena", stricter)
    assert again.store.config()[0] == 2  # type: ignore[index]
    commit(again, "b", make_model(tmp_path / "b", teacher, kl=0.2, seed=9))
    verdict = again.run_round(FakeEvaluator())
    assert verdict is not None
    assert verdict.king_after is None
    assert [again.verify(row.id).identical for row in again.store.rounds.all()] == [True, True]
    assert again.ledger.weights() == {0: {}}


def test_the_same_arena_twice_gives_the_same_verdict_and_log(
    tmp_path: Path, teacher: Path, good: Path, bad: Path
) -> None:
    ends = []
    for name in ("one", "two"):
        arena = arena_with(tmp_path / name, teacher, {"b": bad, "g": good})
        verdict = arena.run_round(FakeEvaluator())
        assert verdict is not None
        ends.append((verdict.digest, arena.store.events()[-1].hash, arena.ledger.head(finalized=False).hash))
    assert ends[0] == ends[1]


def test_another_evaluator_does_not_finish_a_round(
    tmp_path: Path, teacher: Path, good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arena = arena_with(tmp_path / "arena", teacher, {"g": good})

    def stopped(self: FakeMeasurement, model: Path) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(FakeMeasurement, "evaluate", stopped)
        with pytest.raises(KeyboardInterrupt):
            arena.run_round(FakeEvaluator())
    other = FakeEvaluator()
    other.description = "fake 2"
    with pytest.raises(LimbeckError, match="was begun by the evaluator 'fake 1'"):
        arena.run_round(other)
    assert arena.run_round(FakeEvaluator()) is not None


def test_a_store_belongs_to_its_ledger(tmp_path: Path, teacher: Path) -> None:
    arena = arena_with(tmp_path / "arena", teacher, {})
    arena.close()
    with pytest.raises(UserError, match="belongs to the chain"):
        Store(tmp_path / "arena" / "store.sqlite", "0x" + "1" * 64)


def test_a_store_open_for_reading_writes_nothing(tmp_path: Path, teacher: Path, good: Path) -> None:
    arena = arena_with(tmp_path / "arena", teacher, {"g": good})
    verdict = arena.run_round(FakeEvaluator())
    assert verdict is not None
    reader = Store(tmp_path / "arena" / "store.sqlite", read_only=True)
    assert reader.rounds.verdict(verdict.round_id) == verdict
    with pytest.raises(Exception, match="readonly"):
        reader.note("note", {})


def test_a_folder_without_an_arena(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no arena"):
        LocalArena.open(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_the_model_store_keeps_revisions(tmp_path: Path, good: Path) -> None:
    store = FolderStore(tmp_path / "models")
    first = store.publish("a/b", good)
    assert store.publish("a/b", good) == first
    (good / "README.md").write_text("A note.")
    second = store.publish("a/b", good)
    assert second != first == replace(second, revision=first.revision)
    assert store.latest("a/b") == second
    assert "README.md" not in [file.path for file in store.open(first).files()]
    (good / "link").symlink_to(good / "config.json")
    with pytest.raises(UserError, match="not a plain file"):
        store.publish("a/b", good)
    assert sorted(path.name for path in (tmp_path / "models/a/b").iterdir()) == sorted(
        [first.revision, second.revision, "refs"]
    )


def test_the_preset_is_valid_and_a_wrong_key_is_named(tmp_path: Path) -> None:
    assert load_arena("pocket").policy.name == "kl_duel"
    with pytest.raises(UserError, match="Did you mean 'student'"):
        load_arena("pocket", ("studnet.max_bytes=1",))
    with pytest.raises(UserError, match="Presets: pocket"):
        load_arena("poket")


def test_a_block_is_what_the_chain_says(tmp_path: Path, teacher: Path) -> None:
    arena = arena_with(tmp_path / "arena", teacher, {})
    block = finalized_block(arena.ledger)
    assert isinstance(block, Block)
    assert block.hash == arena.ledger.block_hash(block.number)


def test_a_validator_without_a_teacher_says_so(tmp_path: Path, teacher: Path, good: Path) -> None:
    arena = arena_with(tmp_path / "arena", teacher, {"g": good})
    arena.ledger.wait_block(20)
    validator: Validator = replace(arena.validator(), teacher=None)
    with pytest.raises(UserError, match="--teacher DIR"):
        run_round(validator, FakeEvaluator())
