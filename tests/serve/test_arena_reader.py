"""The reader over a real arena: what it tells is what the store and the ledger hold, and it never writes."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from limbeck.arena.local import LocalArena
from limbeck.data.tokenizer import train_tokenizer
from limbeck.errors import UserError
from limbeck.serve.app import create_app
from limbeck.serve.arena_reader import FolderArena, public_text
from tests.arena.world import VOCABULARY, FakeEvaluator, arena_with, commit, make_model


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    train_tokenizer(["the quick brown fox jumps " * 20], VOCABULARY, 128).save_pretrained(folder)
    return folder


@pytest.fixture
def arena(tmp_path: Path, teacher: Path) -> Iterator[LocalArena]:
    models = {
        "alice": make_model(tmp_path / "a", teacher, kl=0.5, seed=1),
        "bob": make_model(tmp_path / "b", teacher, kl=0.7, seed=2),
        "pickle": make_model(tmp_path / "p", teacher, kl=0.1, seed=3),
    }
    (models["pickle"] / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    opened = arena_with(tmp_path / "arena", teacher, models)
    yield opened
    opened.close()


@pytest.fixture
def reader(arena: LocalArena) -> Iterator[FolderArena]:
    opened = FolderArena.open(arena.folder)
    yield opened
    opened.close()


def test_before_the_first_round_there_is_no_king(reader: FolderArena) -> None:
    assert reader.king() is None
    assert reader.scores() == []
    assert reader.rounds(10) == []
    assert reader.arena().open_round is None
    assert len(reader.metagraph().neurons) == 4  # three miners and the validator


def test_after_a_round_it_tells_king_lead_and_reasons(arena: LocalArena, reader: FolderArena) -> None:
    verdict = arena.run_round(FakeEvaluator())
    assert verdict is not None
    king = reader.king()
    assert king is not None
    assert (king.commitment, king.model, king.since_round) == (verdict.king_after, "alice/student", verdict.round_id)
    assert king.kl == next(entry.kl for entry in verdict.standings if entry.commitment == king.commitment)
    assert king.lead is not None
    assert king.lead.low is not None
    assert king.lead.high is not None
    assert king.lead.low < king.lead.mean < king.lead.high
    assert king.lead.mean == pytest.approx(0.2, rel=0.1)
    assert king.runner_up is not None
    states = {entry.model: (entry.state, bool(entry.reason)) for entry in reader.commitments()}
    assert states["alice/student"] == ("evaluated", False)
    assert states["pickle/student"] == ("disqualified", True)
    assert [(score.model, score.outcome, score.from_king is None) for score in reader.scores()] == [
        ("alice/student", "crowned", True),
        ("bob/student", "lost", False),
    ]


def test_rounds_carry_the_digest_that_verify_compares(arena: LocalArena, reader: FolderArena) -> None:
    verdict = arena.run_round(FakeEvaluator())
    assert verdict is not None
    (entry,) = reader.rounds(10)
    assert (entry.verdict_digest, entry.words, entry.state) == (verdict.digest, verdict.words, "closed")


def test_the_crown_s_move_is_seen_at_once(
    arena: LocalArena, reader: FolderArena, teacher: Path, tmp_path: Path
) -> None:
    arena.run_round(FakeEvaluator())
    assert reader.king() is not None
    commit(arena, "carol", make_model(tmp_path / "c", teacher, kl=0.2, seed=4))
    verdict = arena.run_round(FakeEvaluator())
    assert verdict is not None
    king = reader.king()
    assert king is not None
    assert (king.model, king.commitment) == ("carol/student", verdict.king_after)
    assert [(reign.model, reign.to_round is None) for reign in reader.reigns()] == [
        ("carol/student", True),
        ("alice/student", False),
    ]
    assert king.lead is not None
    assert king.lead.mean == pytest.approx(0.3, rel=0.1)
    assert len(reader.rounds(1)) == 1


def test_the_metagraph_is_the_ledger_s(arena: LocalArena, reader: FolderArena) -> None:
    reader.metagraph()  # folds what is there, so that the next read takes in new blocks alone
    arena.run_round(FakeEvaluator())
    graph = reader.metagraph()
    assert [(neuron.uid, neuron.hotkey) for neuron in graph.neurons] == [
        (neuron.uid, neuron.hotkey) for neuron in arena.ledger.neurons()
    ]
    assert graph.block_hash == arena.ledger.head(finalized=False).hash
    king = reader.king()
    assert king is not None
    assert {neuron.uid: neuron.incentive for neuron in graph.neurons if neuron.incentive} == {king.uid: 1.0}


def test_serving_changes_no_file(arena: LocalArena) -> None:
    arena.run_round(FakeEvaluator())
    folder = arena.folder
    arena.close()
    before = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*.sqlite")}
    reader = FolderArena.open(folder)
    browser = TestClient(create_app(reader))
    for path in ("/", "/api/king", "/api/scores", "/api/metagraph", "/api/rounds", "/api/commitments", "/api/health"):
        assert browser.get(path).status_code == 200
    reader.close()
    assert before == {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*.sqlite")}


def test_no_answer_names_a_folder_of_this_machine(arena: LocalArena, reader: FolderArena) -> None:
    arena.run_round(FakeEvaluator())
    browser = TestClient(create_app(reader))
    for path in ("/", "/api/king", "/api/scores", "/api/rounds", "/api/commitments", "/api/health"):
        assert str(arena.folder.parent) not in browser.get(path).text


@pytest.mark.parametrize(
    ("text", "public"),
    [
        ("/srv/arena/models: the model store is not there.", "[path]: the model store is not there."),
        ("cannot read '/root/x/y.bin' (No such file)", "cannot read '[path]' (No such file)"),
        ("alice/student@0123: tokenizer.json differs", "alice/student@0123: tokenizer.json differs"),
        (
            "KL 0.2 nats/token, 1/2 of them, https://example.org/a/b",
            "KL 0.2 nats/token, 1/2 of them, https://example.org/a/b",
        ),
    ],
)
def test_absolute_paths_are_cut_out_of_reasons(text: str, public: str) -> None:
    assert public_text(text) == public


def test_a_folder_without_an_arena_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no arena"):
        FolderArena.open(tmp_path)
    (tmp_path / "store.sqlite").write_text("not a database")
    (tmp_path / "ledger.sqlite").write_text("not a database")
    with pytest.raises(UserError, match=r"store\.sqlite"):
        FolderArena.open(tmp_path)
