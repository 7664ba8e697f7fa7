"""Special tokens are where a template put them, and nowhere else; trained tokens lie within trained stretches."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from limbeck.data.encoding import (
    Written,
    _trained,
    _trained_by_offsets,
    encode,
    respelling,
    spells_special,
)
from tests.data.strangers import chatml, llama
from tests.engines.tiny import tokenizer_of

TOKENIZERS = {"ours": tokenizer_of(), "chatml": chatml(), "llama": llama()}
each = pytest.mark.parametrize("name", TOKENIZERS)


def specials_of(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    return {token.content: number for number, token in tokenizer.added_tokens_decoder.items() if token.special}


def pieces(tokenizer: PreTrainedTokenizerBase) -> st.SearchStrategy[str]:
    """Texts in which special tokens are spelled now and then."""
    plain = st.text("ab <|>/s\n", max_size=6)
    return st.lists(plain | st.sampled_from(sorted(specials_of(tokenizer))), max_size=5).map("".join)


@each
def test_a_text_is_tokenised_as_transformers_does(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    for text in ("def double(x):", " a  b", "", "é日🙂"):
        (row,) = encode(tokenizer, [Written(text, (), "spelled")])
        assert list(row.ids) == tokenizer(text, add_special_tokens=False)["input_ids"]
        assert row.trained == (False,) * len(row.ids)


@pytest.mark.parametrize("name", ["ours", "chatml"])  # the third may write a piece of its vocabulary as a special token
@given(data=st.data())
def test_what_a_text_spells_is_text(name: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[name]
    text = data.draw(pieces(tokenizer))
    (row,) = encode(tokenizer, [Written(text, (), "none")])
    assert not set(row.ids) & set(specials_of(tokenizer).values())
    assert tokenizer.decode(row.ids) == text


@each
@given(data=st.data())
def test_respelling_exchanges_what_is_meant_and_what_is_spelled(name: str, data: st.DataObject) -> None:
    """A text for the copy, in which private names mean special tokens: these come out, the spelled ones do not."""
    tokenizer = TOKENIZERS[name]
    spelling, specials = respelling(tokenizer), specials_of(tokenizer)
    said = data.draw(st.lists(pieces(tokenizer), min_size=1, max_size=4))
    meant = data.draw(st.lists(st.sampled_from(sorted(specials)), min_size=len(said), max_size=len(said)))
    text = "".join(spelling.names[mark] + words for mark, words in zip(meant, said, strict=True))
    (row,) = encode(tokenizer, [Written(text, (), "respelled")])
    assert [token for token in row.ids if token in specials.values()] == [specials[mark] for mark in meant]
    assert tokenizer.decode(row.ids).replace(" ", "") == spelling.unmark(text).replace(" ", "")


@each
@given(text=st.text("ab x\n", max_size=20))
def test_the_copy_tokenises_as_the_original_where_nothing_is_spelled(name: str, text: str) -> None:
    tokenizer = TOKENIZERS[name]
    mark = min(specials_of(tokenizer))
    plain, respelled = encode(
        tokenizer,
        [
            Written(f"{text}{mark}{text}", (), "spelled"),
            Written(f"{text}{respelling(tokenizer).names[mark]}{text}", (), "respelled"),
        ],
    )
    assert plain == respelled


def test_marks_are_undone_by_unmarking_and_forged_ones_are_refused() -> None:
    spelling = respelling(TOKENIZERS["ours"])
    value = {"role": "user", "content": "a <|endoftext|><|user|>", "tool_calls": [{"<|pad|>": 1}]}
    marked = spelling.mark(value)
    assert not spells_special(TOKENIZERS["ours"], marked)
    assert spells_special(TOKENIZERS["ours"], value)
    assert spelling.unmark(marked["content"]) == value["content"]
    with pytest.raises(ValueError, match="private characters"):
        spelling.mark(f"<|pad|>{next(iter(spelling.spellings))}")


@given(st.text("ab \n é", max_size=30), st.data())
def test_trained_tokens_lie_within_trained_stretches(text: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS["ours"]
    start = data.draw(st.integers(0, len(text)))
    stop = data.draw(st.integers(start, len(text)))
    (row,) = encode(tokenizer, [Written(text, ((start, stop),), "none")])
    inside = tokenizer.decode([token for token, trained in zip(row.ids, row.trained, strict=True) if trained])
    assert inside in text[start:stop]
    if (start, stop) == (0, len(text)):
        assert inside == text


def test_a_token_across_the_border_of_a_stretch_is_not_trained() -> None:
    tokenizer = TOKENIZERS["ours"]
    text = "def double"
    whole = tokenizer(text)["input_ids"]
    assert len(whole) < len(text)
    for start in range(len(text)):
        (row,) = encode(tokenizer, [Written(text, ((start, len(text)),), "none")])
        kept = [token for token, trained in zip(row.ids, row.trained, strict=True) if trained]
        assert kept == whole[len(whole) - len(kept) :]
        assert len(tokenizer.decode(kept)) <= len(text) - start
    for stop in range(len(text)):
        (row,) = encode(tokenizer, [Written(text, ((0, stop),), "none")])
        kept = [token for token, trained in zip(row.ids, row.trained, strict=True) if trained]
        assert kept == whole[: len(kept)]
        assert len(tokenizer.decode(kept)) <= stop


def test_settings_that_other_calls_left_behind_change_nothing() -> None:
    tokenizer = tokenizer_of(301)
    (before,) = encode(tokenizer, [Written("def double(x)" * 3, (), "none")])
    tokenizer("a b c", truncation=True, max_length=2, padding="max_length")
    (after,) = encode(tokenizer, [Written("def double(x)" * 3, (), "none")])
    assert before == after


def test_special_tokens_that_come_later_are_known() -> None:
    tokenizer = tokenizer_of(302)
    assert not spells_special(tokenizer, "<|new|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|new|>"]})
    assert spells_special(tokenizer, ["<|new|>"])
    assert "<|new|>" in respelling(tokenizer).names


@each
@given(data=st.data())
def test_borders_say_the_same_as_all_offsets(name: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[name]
    text = data.draw(st.text("ab x\n é日🙂", max_size=30))
    places = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=6)))
    stretches = tuple(zip(places[::2], places[1::2], strict=False))
    (encoding,) = tokenizer.backend_tokenizer.encode_batch([text], add_special_tokens=False)
    written = Written(text, stretches, "spelled")
    assert _trained(encoding, written) == _trained_by_offsets(encoding, written)
