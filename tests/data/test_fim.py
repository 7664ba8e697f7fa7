"""Fill-in-the-middle rows: the parts of a document, all of it, in one of two orders."""

from random import Random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from limbeck.data.fim import infill_prompt, infill_row, sentinels
from limbeck.errors import UserError
from limbeck.seeds import derive_random
from tests.engines.tiny import TEXT, tokenizer_of

TOKENIZER = tokenizer_of()
PREFIX, SUFFIX, MIDDLE = sentinels(TOKENIZER)
END = TOKENIZER.eos_token_id
documents = st.text(max_size=40)


def parts_of(ids: list[int]) -> tuple[str, str, str]:
    """The texts behind the three sentinels of a row."""
    assert ids[0] == PREFIX
    assert ids[-1] == END
    assert [ids.count(token) for token in (PREFIX, SUFFIX, MIDDLE, END)] == [1, 1, 1, 1]
    after, middle = ids.index(SUFFIX), ids.index(MIDDLE)
    assert after < middle
    first, second, third = ids[1:after], ids[after + 1 : middle], ids[middle + 1 : -1]
    return str(TOKENIZER.decode(first)), str(TOKENIZER.decode(second)), str(TOKENIZER.decode(third))


@given(documents, st.integers(0, 1000))
@example("x <|fim_middle|> y <|endoftext|>", 1)
@example("x <|fim_middle|> y <|endoftext|>", 2)
@example("", 1)
def test_the_parts_are_the_document_in_either_order(document: str, seed: int) -> None:
    prefix, suffix, rest = parts_of(infill_row(TOKENIZER, document, Random(seed)))
    # PSM writes prefix, suffix, middle; SPM leaves the first part empty and writes the prefix before the middle
    assert prefix + rest + suffix == document


@given(documents, st.integers(0, 1000))
def test_a_row_is_a_function_of_document_and_seed(document: str, seed: int) -> None:
    assert infill_row(TOKENIZER, document, Random(seed)) == infill_row(TOKENIZER, document, Random(seed))


def test_both_orders_come_half_of_the_time() -> None:
    drawn = [infill_row(TOKENIZER, TEXT, derive_random(1, "infill", index)) for index in range(1000)]
    spm = sum(ids[1] == SUFFIX for ids in drawn)
    assert 440 <= spm <= 560  # 500 expected, four standard deviations; a prefix is empty in 3 % of the others
    middles = [len(parts_of(ids)[2]) for ids in drawn if ids[1] != SUFFIX]
    # two cuts drawn evenly are a third of the document apart on average
    assert len(TEXT) * 0.28 < sum(middles) / len(middles) < len(TEXT) * 0.39


def test_cuts_fall_inside_words() -> None:
    """Before tokenising, so that a middle may begin within what is one token of the whole."""
    word = "def double"
    whole = len(TOKENIZER(word)["input_ids"])
    assert max(len(infill_row(TOKENIZER, word, Random(seed))) - 4 for seed in range(50)) > whole


@given(documents, documents)
def test_a_prompt_is_how_a_row_in_psm_order_begins(prefix: str, suffix: str) -> None:
    ids = infill_prompt(TOKENIZER, prefix, suffix)
    assert parts_of([*ids, END]) == (prefix, suffix, "")
    assert ids[-1] == MIDDLE


def test_the_row_of_a_document_without_spelled_tokens_is_pinned() -> None:
    """Trainings that go on after a pause draw the same rows."""
    psm, spm = "<|fim_prefix|>a<|fim_suffix|> cd<|fim_middle|>b", "<|fim_prefix|><|fim_suffix|>d<|fim_middle|>ab c"
    assert TOKENIZER.decode(infill_row(TOKENIZER, "ab cd", Random(4))) == f"{psm}<|endoftext|>"
    assert TOKENIZER.decode(infill_row(TOKENIZER, "ab cd", Random(5))) == f"{spm}<|endoftext|>"


def test_sentinels_are_single_tokens() -> None:
    assert TOKENIZER.convert_ids_to_tokens([PREFIX, SUFFIX, MIDDLE]) == [
        "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"
    ]  # fmt: skip
    assert TOKENIZER("<|fim_prefix|><|fim_suffix|><|fim_middle|>")["input_ids"] == [PREFIX, SUFFIX, MIDDLE]


def strange(**special: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"a": 0}, [])), **special)


def test_a_tokenizer_without_sentinels_is_refused() -> None:
    with pytest.raises(UserError, match=r"no token <\|fim_prefix\|>"):
        infill_row(strange(eos_token="</s>"), "a", Random(1))


def test_a_tokenizer_without_an_end_is_refused() -> None:
    tokenizer = strange()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"]})
    with pytest.raises(UserError, match="no end-of-text token"):
        infill_row(tokenizer, "a", Random(1))
