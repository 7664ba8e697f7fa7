"""The tokenizer: any text comes back byte for byte, digits stand alone, and a digest says which one it is."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.data.tokenizer import SPECIAL_TOKENS, load_tokenizer, tokenizer_digest, train_tokenizer
from limbeck.pocket.world import teacher_folder
from tests.engines.tiny import TEXT, tokenizer_of

SMALL = tokenizer_of()
SHIPPED = load_tokenizer(teacher_folder())
texts = st.lists(st.one_of(st.text(), st.sampled_from([*SPECIAL_TOKENS, " ", "\n", "  ", "12", "def "]))).map("".join)


def ids_of(text: str) -> list[int]:
    return list(SMALL(text, add_special_tokens=False)["input_ids"])


@given(text=texts)
def test_any_text_comes_back(text: str) -> None:
    for tokenizer in (SMALL, SHIPPED):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids, skip_special_tokens=False) == text


@given(
    number=st.integers(0, 10**30),
    around=st.tuples(st.sampled_from(["", "x", " ", "-"]), st.sampled_from(["", ".", " 3"])),
)
def test_digits_stand_alone(number: int, around: tuple[str, str]) -> None:
    text = f"{around[0]}{number}{around[1]}"
    for tokenizer in (SMALL, SHIPPED):
        pieces = [tokenizer.decode([i]) for i in tokenizer(text, add_special_tokens=False)["input_ids"]]
        assert [piece for piece in pieces if any(map(str.isdigit, piece))] == [c for c in text if c.isdigit()]


def test_special_tokens_have_fixed_ids_of_their_own() -> None:
    names = (
        "<|pad|>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>",
        "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|fim_pad|>",
    )  # fmt: skip
    for tokenizer in (SMALL, SHIPPED):
        assert tokenizer.convert_tokens_to_ids(list(names)) == list(range(10))
        assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1)
        assert tokenizer("".join(names), add_special_tokens=False)["input_ids"] == list(range(10))


def test_the_vocabulary_is_as_large_as_asked_for() -> None:
    assert len(SMALL) == 300
    assert SMALL.model_max_length == 64


def test_a_conversation_is_written_with_its_roles() -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    assert SMALL.apply_chat_template(messages, tokenize=False) == "<|user|>hi<|assistant|>ho<|endoftext|>"
    asked = SMALL.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    assert asked == "<|user|>hi<|assistant|>"


def test_the_same_texts_give_the_same_tokenizer() -> None:
    assert tokenizer_digest(train_tokenizer([TEXT] * 3, 300, 64)) == tokenizer_digest(SMALL)


def test_the_digest_outlives_saving_and_loading(tmp_path: Path) -> None:
    SMALL.save_pretrained(tmp_path / "once")
    loaded = load_tokenizer(tmp_path / "once")
    loaded.save_pretrained(tmp_path / "twice")
    assert tokenizer_digest(loaded) == tokenizer_digest(SMALL)
    assert tokenizer_digest(load_tokenizer(tmp_path / "twice")) == tokenizer_digest(SMALL)


def test_the_digest_is_not_moved_by_padding_and_truncation() -> None:
    tokenizer = train_tokenizer([TEXT] * 3, 300, 64)
    tokenizer(["a", "a longer one"], padding=True, truncation=True, max_length=4)
    assert tokenizer_digest(tokenizer) == tokenizer_digest(SMALL)


@pytest.mark.parametrize("change", ["texts", "vocabulary", "token"])
def test_another_tokenizer_has_another_digest(change: str) -> None:
    other = tokenizer_of(
        300 - (change == "vocabulary"), TEXT.replace("double", "treble") if change == "texts" else TEXT
    )
    if change == "token":
        other = train_tokenizer([TEXT] * 3, 300, 64)
        other.add_tokens(["unheard-of"])
    assert tokenizer_digest(other) != tokenizer_digest(SMALL)
