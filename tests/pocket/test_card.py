"""The card: what it says of a teacher is what was measured on the weights as they lie there."""

from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from limbeck.data.tokenizer import load_tokenizer, tokenizer_digest
from limbeck.engines.transformers import load_model
from limbeck.errors import UserError
from limbeck.evaluate.axes import generate
from limbeck.evaluate.skills import ask
from limbeck.files import read_json, sha256_file
from limbeck.pocket import card as cards
from limbeck.pocket.build import Built
from limbeck.pocket.card import CARD_SEED, ITEMS_A_FAMILY, Card, read_card, save_teacher, text_bits_per_byte
from limbeck.pocket.corpus import Corpus, Document
from limbeck.pocket.exercises import all_families
from limbeck.pocket.recipe import TeacherRecipe
from limbeck.pocket.world import load_teacher, resolve, teacher_folder
from tests.engines.tiny import new_model, tokenizer_of
from tests.pocket.small_library import read, write_library


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Card, Path, Corpus]:
    """An untrained teacher, measured on a small corpus and two exercises a family."""
    corpus = read(write_library(tmp_path_factory.mktemp("library")))
    folder = tmp_path_factory.mktemp("teacher")
    built = Built(new_model(spread=1.0), tokenizer_of(), ((0, 5.5, 5.4), (10, 4.5, 4.4)), 12.4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cards, "ITEMS_A_FAMILY", 2)
        return save_teacher(built, TeacherRecipe(vocabulary=300), corpus, folder), folder, corpus


def test_a_card_is_read_as_it_was_written(saved: tuple[Card, Path, Corpus]) -> None:
    card, folder, _ = saved
    assert read_card(folder) == card
    assert sorted(read_json(folder / "card.json")) == sorted(asdict(card))


def test_a_card_names_what_lies_beside_it(saved: tuple[Card, Path, Corpus]) -> None:
    card, folder, corpus = saved
    assert card.weights == sha256_file(folder / "model.safetensors")
    assert card.tokenizer == tokenizer_digest(load_tokenizer(folder)) == tokenizer_digest(tokenizer_of())
    assert card.corpus == corpus.digest
    assert card.parameters == sum(parameter.numel() for parameter in new_model().parameters())
    assert TeacherRecipe.model_validate(card.recipe) == TeacherRecipe(vocabulary=300)
    assert [score.family for score in card.families] == [family.name for family in all_families()]
    assert card.training_seconds == 12


def test_weights_are_saved_as_bfloat16(saved: tuple[Card, Path, Corpus]) -> None:
    loaded, original = load_model(saved[1], dtype=torch.bfloat16).state_dict(), new_model(spread=1.0).state_dict()
    assert all(torch.equal(value, original[name].bfloat16()) for name, value in loaded.items())


def test_bits_per_byte_are_those_of_the_saved_weights(saved: tuple[Card, Path, Corpus]) -> None:
    card, folder, corpus = saved
    again = text_bits_per_byte(load_model(folder), load_tokenizer(folder), corpus)
    assert card.bits_per_byte == pytest.approx(again, rel=1e-6)


def test_a_model_that_knows_nothing_needs_log2_v_bits_a_token() -> None:
    """48 characters of two bytes and no merges, and an end-of-text: 96 tokens predicted, at log2(300) bits each."""
    model, tokenizer = new_model(spread=0.0), tokenizer_of()
    text = "\u0416" * 48
    assert len(tokenizer(text, add_special_tokens=False)["input_ids"]) == 96
    corpus = Corpus({"train": (), "validation": (), "held_out": (Document("d.py", text),)}, "")
    expected = torch.log2(torch.tensor(300.0)).item()
    assert text_bits_per_byte(model, tokenizer, corpus) == pytest.approx(expected, rel=1e-5)


def test_the_readme_says_what_the_card_says(saved: tuple[Card, Path, Corpus]) -> None:
    card, folder, _ = saved
    text = (folder / "README.md").read_text()
    for needed in (card.weights, card.corpus, card.tokenizer, f"{card.bits_per_byte:.3f}", f"{card.parameters:,}"):
        assert needed in text
    assert all(f"| {family.name} |" in text for family in all_families())


def test_an_unfinished_folder_has_no_card(
    saved: tuple[Card, Path, Corpus], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The card of other weights never stands beside new ones."""
    (tmp_path / "card.json").write_text("{}")

    def crash(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(cards, "ask_families", crash)
    built = Built(new_model(), tokenizer_of(), (), 0.0)
    with pytest.raises(RuntimeError):
        save_teacher(built, TeacherRecipe(vocabulary=300), saved[2], tmp_path)
    assert not (tmp_path / "card.json").exists()
    with pytest.raises(UserError, match=r"card.json: no such file"):
        read_card(tmp_path)


def test_the_shipped_card_names_the_shipped_files() -> None:
    folder, card = teacher_folder(), read_card(teacher_folder())
    model, tokenizer = load_teacher()
    assert card.weights == sha256_file(folder / "model.safetensors")
    assert card.tokenizer == tokenizer_digest(tokenizer)
    assert card.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert 2_000_000 <= card.parameters <= 4_000_000
    assert (folder / "model.safetensors").stat().st_size <= 8_000_000
    assert len(tokenizer) == TeacherRecipe.model_validate(card.recipe).vocabulary == 4096


def test_the_shipped_teacher_is_worth_copying() -> None:
    card = read_card(teacher_folder())
    assert card.bits_per_byte < card.trigram_bits_per_byte
    assert len(card.families) >= 12
    assert sum(score.accuracy >= 0.8 for score in card.families) >= 8


def test_the_shipped_cards_claims_hold() -> None:
    """Its three best families, asked again; a last digit may fall otherwise on another processor."""
    model, tokenizer = load_teacher()
    best = sorted(read_card(teacher_folder()).families, key=lambda score: -score.accuracy)[:3]
    sets = [generate(f"pocket_{score.family}", seed=CARD_SEED, count=ITEMS_A_FAMILY) for score in best]
    for score, result in zip(best, ask(model, tokenizer, sets), strict=True):
        assert result.accuracy.value == pytest.approx(score.accuracy, abs=0.021)


def test_pocket_stands_for_the_shipped_teacher() -> None:
    assert resolve("pocket") == str(teacher_folder())
    assert resolve("elsewhere/pocket") == "elsewhere/pocket"
