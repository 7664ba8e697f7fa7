"""`limbeck check | submit | validate | verify` on a small arena, from a model's folder to a verified verdict."""

import sqlite3
from pathlib import Path

import pytest
import typer
import yaml
from typer.testing import CliRunner, Result

from limbeck.arena import evaluation
from limbeck.cli.check import check
from limbeck.cli.submit import submit
from limbeck.cli.validate import validate
from limbeck.cli.verify import verify
from limbeck.data.tokenizer import train_tokenizer
from limbeck.errors import LimbeckError, UserError
from tests.arena.world import VOCABULARY, FakeEvaluator, arena_config, make_model

app = typer.Typer()
for command in (check, submit, validate, verify):
    app.command()(command)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    train_tokenizer(["a few words and a few more " * 30], VOCABULARY, 128).save_pretrained(folder)
    return folder


@pytest.fixture
def arena_file(tmp_path: Path, teacher: Path) -> Path:
    path = tmp_path / "arena.yaml"
    path.write_text(yaml.safe_dump(arena_config(teacher).model_dump(mode="json")))
    return path


@pytest.fixture(autouse=True)
def fake_evaluator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "_EVALUATORS", {"fake": FakeEvaluator})


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input="")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_from_a_folder_to_a_verified_verdict(tmp_path: Path, teacher: Path, arena_file: Path) -> None:
    folder = tmp_path / "arena"
    first = make_model(tmp_path / "first", teacher, kl=0.5, seed=1)
    second = make_model(tmp_path / "second", teacher, kl=0.3, seed=2)

    assert run("check", first, "--arena", arena_file).exit_code == 0
    opened = run("validate", "--arena-dir", folder, "--arena", arena_file)
    assert "Nobody challenges" in opened.output

    for hotkey, model in (("one", first), ("two", second)):
        flags = ["--arena-dir", folder, "--wallet-name", "me", "--hotkey-name", hotkey, "--model-repo", model]
        dry = run("submit", *flags, "--network", "ledger", "--netuid", 0, "--dry-run")
        assert "nothing was committed" in dry.output
        done = run("submit", *flags, "--yes")
        assert "and read back" in done.output

    copied = run("check", second, "--arena-dir", folder)
    assert copied.exit_code == 0, "a commitment that no validator has looked at owns nothing yet"
    played = run("validate", "--arena-dir", folder, "--rounds", 3)
    assert "takes the crown with KL 0." in played.output
    assert "Nobody challenges" in played.output
    copied = run("check", second, "--arena-dir", folder)
    assert copied.exit_code == 1
    assert "which committed them first" in copied.output

    bundle = tmp_path / "round.json"
    verified = run("verify", "last", "--arena-dir", folder, "--export", bundle)
    assert (verified.exit_code, "identical, to the byte" in verified.output) == (0, True)
    assert "identical, to the byte" in run("verify", bundle).output
    with sqlite3.connect(folder / "store.sqlite") as connection:
        connection.execute("UPDATE evidence SET kl = kl / 2 WHERE prompt = 1")
    tampered = run("verify", "last", "--arena-dir", folder)
    assert tampered.exit_code == 1
    assert "NOT identical: the evidence of" in tampered.output


def test_a_failed_check_says_what_and_how_to_mend_it(tmp_path: Path, teacher: Path, arena_file: Path) -> None:
    model = make_model(tmp_path / "model", teacher)
    (model / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    result = run("check", model, "--arena", arena_file)
    assert result.exit_code == 1
    lines = result.output.splitlines()
    position = next(index for index, line in enumerate(lines) if line.startswith("fail"))
    assert "pytorch_model.bin is a pickle" in lines[position]
    assert "safetensors" in lines[position + 1]
    assert any(line.startswith("skip  weights") for line in lines)


def test_what_would_not_be_admitted_is_not_committed(tmp_path: Path, teacher: Path, arena_file: Path) -> None:
    model = make_model(tmp_path / "model", teacher)
    (model / "evil.py").write_text("")
    run("validate", "--arena-dir", tmp_path / "arena", "--arena", arena_file)
    with pytest.raises(LimbeckError, match="would not be admitted"):
        run("submit", "--arena-dir", tmp_path / "arena", "--model-repo", model, "--yes")


def test_a_question_that_nobody_answers_commits_nothing(tmp_path: Path, teacher: Path, arena_file: Path) -> None:
    model = make_model(tmp_path / "model", teacher)
    run("validate", "--arena-dir", tmp_path / "arena", "--arena", arena_file)
    asked = run("submit", "--arena-dir", tmp_path / "arena", "--model-repo", model)
    assert asked.exit_code == 1
    assert "for ever, and once" in asked.output
    assert "Nobody challenges" in run("validate", "--arena-dir", tmp_path / "arena").output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["check", "nowhere", "--arena", "ARENA"], "nowhere: no such folder"),
        (["check", ".", "--arena", "pokcet"], "no preset of that name"),
        (["submit", "--arena-dir", "nowhere", "--model-repo", "a/b"], "there is no arena"),
        (["submit", "--arena-dir", "nowhere", "--model-repo", "a/b", "--network", "finney"], "only `ledger`"),
        (["validate", "--arena-dir", "nowhere"], "there is no arena"),
        (["verify", "7"], "of which arena"),
        (["verify", "nothing.json"], "no such file"),
        (["verify", "7", "--arena-dir", "nowhere"], "there is no arena"),
    ],
)
def test_wrong_requests(
    tmp_path: Path, arena_file: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=said):
        run(*[str(arena_file) if argument == "ARENA" else argument for argument in arguments])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["arena.yaml"]


def test_a_round_that_is_not_there(tmp_path: Path, arena_file: Path) -> None:
    run("validate", "--arena-dir", tmp_path / "arena", "--arena", arena_file)
    with pytest.raises(UserError, match="no round is closed yet"):
        run("verify", "last", "--arena-dir", tmp_path / "arena")
    with pytest.raises(UserError, match="round 99: no such round"):
        run("verify", "99", "--arena-dir", tmp_path / "arena")
