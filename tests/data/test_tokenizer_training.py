"""Tokenizers from files: the entries that every student needs, the same each time, measured on text not trained on."""

import json
from pathlib import Path

import pytest

from limbeck.data.fim import sentinels
from limbeck.data.tokenizer import SPECIAL_TOKENS, load_tokenizer, tokenizer_digest
from limbeck.data.tokenizer_training import TokenizerRecipe, bytes_a_token, train_tokenizer_folder
from limbeck.errors import UserError
from limbeck.settings import load_settings

ROOT = Path(__file__).parents[2]
LINES = [f"def name_{i}(value):\n    return value + {i}\n" for i in range(40)]


@pytest.fixture
def texts(tmp_path: Path) -> str:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"content": line}) + "\n" for line in LINES))
    return str(path)


def test_a_tokenizer_has_every_entry_and_fills_gaps(texts: str, tmp_path: Path) -> None:
    recipe = TokenizerRecipe(texts=(texts,), vocabulary=280, context=128, held_out=10)
    trained = train_tokenizer_folder(recipe, tmp_path / "out")
    tokenizer = load_tokenizer(tmp_path / "out")
    assert (trained.entries, trained.documents, trained.held_out) == (280, 36, 4)
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == list(range(10))
    assert len(sentinels(tokenizer)) == 3
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.model_max_length) == (0, 1, 128)
    assert tokenizer_digest(tokenizer) == trained.digest
    held = [LINES[index] for index in (9, 19, 29, 39)]
    tokens = sum(len(tokenizer(text)["input_ids"]) for text in held)
    assert trained.bytes_a_token == pytest.approx(sum(map(len, held)) / tokens)
    assert trained.bytes_a_token > 1.5


def test_text_kept_from_training_is_not_trained_on(texts: str, tmp_path: Path) -> None:
    """Only the held-out records differ: the tokenizer is the same, what is measured is not."""
    other = tmp_path / "other.jsonl"
    changed = [f"Ωmega {'漢' * i}" if i % 10 == 9 else line for i, line in enumerate(LINES)]
    other.write_text("".join(json.dumps({"content": line}) + "\n" for line in changed))
    found = [
        train_tokenizer_folder(TokenizerRecipe(texts=(path,), vocabulary=300, held_out=10), tmp_path / name)
        for name, path in (("a", texts), ("b", str(other)))
    ]
    assert found[0].digest == found[1].digest
    assert found[0].bytes_a_token != found[1].bytes_a_token


def test_the_same_recipe_gives_the_same_files(texts: str, tmp_path: Path) -> None:
    recipe = TokenizerRecipe(texts=(texts,), vocabulary=320)
    train_tokenizer_folder(recipe, tmp_path / "once")
    train_tokenizer_folder(recipe, tmp_path / "twice")
    for file in (tmp_path / "once").iterdir():
        assert file.read_bytes() == (tmp_path / "twice" / file.name).read_bytes()


def test_conversations_and_plain_files_are_text_too(tmp_path: Path) -> None:
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": "zebra zebra"}]}) + "\n")
    (tmp_path / "plain.txt").write_text("zebra zebra zebra")
    sources = (str(tmp_path / "chat.jsonl"), str(tmp_path / "plain.txt"))
    trained = train_tokenizer_folder(TokenizerRecipe(texts=sources, vocabulary=272), tmp_path / "out")
    assert trained.documents == 2
    assert bytes_a_token(load_tokenizer(tmp_path / "out"), [" zebra"]) == 6.0
    assert trained.bytes_a_token is None


@pytest.mark.parametrize(("name", "entries"), [("code-16k", 16384), ("code-32k", 32768)])
def test_the_recipes_are_valid(name: str, entries: int) -> None:
    recipe = load_settings(ROOT / "recipes" / "tokenizers" / f"{name}.yaml", TokenizerRecipe)
    assert recipe.vocabulary == entries


def test_a_text_that_is_too_small_for_the_vocabulary_is_told(texts: str, tmp_path: Path) -> None:
    assert train_tokenizer_folder(TokenizerRecipe(texts=(texts,)), tmp_path / "out").entries < 400


def test_bad_requests_are_refused(texts: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="name at least one file"):
        train_tokenizer_folder(TokenizerRecipe(), tmp_path / "out")
    with pytest.raises(UserError, match=r"nowhere.txt: no such file"):
        train_tokenizer_folder(TokenizerRecipe(texts=("nowhere.txt",)), tmp_path / "out")
    with pytest.raises(UserError, match="there is something here already"):
        train_tokenizer_folder(TokenizerRecipe(texts=(texts,)), tmp_path)
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(UserError, match="no text in it"):
        train_tokenizer_folder(TokenizerRecipe(texts=(str(tmp_path / "empty.txt"),)), tmp_path / "out")
    assert not (tmp_path / "out").exists()
