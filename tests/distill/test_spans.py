"""Two tokenizations of one text are compared where both have said the same, and nowhere else."""

import unicodedata
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from limbeck.distill.spans import NOWHERE, TextTokens, shared_positions
from limbeck.errors import UserError
from tests.distill.families import NAMES, family

PIECES = [
    "the ",
    "dog",
    " ",
    "  ",
    "\n",
    "\t",
    "Größe",
    "e\u0301",
    "é",
    "日本語",
    "\U0001f600",
    "\U0001f680",
    "▁",
    "12",
]
WRITTEN = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=4)), max_size=12).map("".join)
TEXTS = WRITTEN.filter(lambda text: not any(0xD800 <= ord(sign) < 0xE000 for sign in text))
BYTES = ("bytes", "large", "spaces", "first")  # families whose tokens say every byte of a text without "▁"


@pytest.fixture(scope="module")
def readers() -> dict[str, TextTokens]:
    return {name: TextTokens(family(name)) for name in NAMES}


def said(name: str, tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> str:
    """What tokens say, by the tokenizer's own decoder."""
    text = tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=False)
    return str(text)


def normal(name: str, text: str) -> str:
    """What is left of a text in a family whose normaliser rewrites it."""
    match name:
        case "composed":
            return unicodedata.normalize("NFC", text)
        case "pieces":
            return unicodedata.normalize("NFKC", text).replace("▁", " ")
        case "words":
            bare = "".join(sign for sign in unicodedata.normalize("NFD", text) if unicodedata.category(sign) != "Mn")
            return "".join(bare.lower().split())
        case "bytes" | "large":
            return text
        case _:
            return text.replace("▁", " ")


@settings(max_examples=60)
@given(text=TEXTS)
def test_an_end_is_what_the_decoder_says_so_far(readers: dict[str, TextTokens], text: str) -> None:
    """Checked wherever a whole character ends, with a decoder that knows nothing of offsets."""
    for name in ("bytes", "large", "composed", "spaces", "first", "pieces"):
        tokens = readers[name].read(text)
        unknown = readers[name].tokenizer.unk_token_id
        data = text.encode()
        for place, end in enumerate(tokens.ends):
            if end == NOWHERE or unknown in tokens.ids[: place + 1]:
                continue
            try:
                expected = normal(name, data[:end].decode())
            except UnicodeDecodeError:
                continue  # within a character
            found = said(name, readers[name].tokenizer, tokens.ids[: place + 1])
            stripped = name in ("spaces", "first")  # their decoder takes one space away, wherever it came from
            assert found in (expected, expected.removeprefix(" ") if stripped else expected), (name, place)


@settings(max_examples=60)
@given(text=TEXTS)
def test_ends_rise_and_stay_within_the_text(readers: dict[str, TextTokens], text: str) -> None:
    for reader in readers.values():
        tokens = reader.read(text, prefix=True)
        known = [end for end in tokens.ends if end != NOWHERE]
        assert len(tokens.ids) == len(tokens.ends)
        assert all(first <= second for first, second in pairwise(known))
        assert all(0 <= end <= len(text.encode()) for end in known)


@settings(max_examples=60)
@given(text=TEXTS.filter(lambda text: "▁" not in text))
def test_tokens_of_bytes_have_an_end_each_and_the_last_is_the_text(readers: dict[str, TextTokens], text: str) -> None:
    for name in BYTES:
        tokens = readers[name].read(text)
        assert NOWHERE not in tokens.ends
        assert not text or tokens.ends[-1] == len(text.encode())


@settings(max_examples=60)
@given(text=TEXTS, own=st.sampled_from(["bytes", "large", "spaces", "first"]), other=st.sampled_from(NAMES))
def test_shared_positions_have_said_the_same(readers: dict[str, TextTokens], text: str, own: str, other: str) -> None:
    """From the student's tokens to text to the teacher's: what either decoder says up to a shared position agrees."""
    ids = readers[own].tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
    written = readers[own].rewrite(ids, {})
    tokens = readers[other].read(written.text, prefix=True)
    pairs = shared_positions(written.ends, tokens.ends)
    assert all(i < k and j < m for (i, j), (k, m) in pairwise(pairs))
    for i, j in pairs:
        first, second = said(own, family(own), ids[: i + 1]), written.text.encode()[: tokens.ends[j]]
        try:
            expected = second.decode()
        except UnicodeDecodeError:
            continue
        assert first.removeprefix(" ") == expected.removeprefix(" ")
        assert tokens.ends[j] == written.ends[i]


@pytest.mark.parametrize("name", BYTES)
def test_a_tokenizer_shares_every_position_with_itself(readers: dict[str, TextTokens], name: str) -> None:
    text = "The dog: Größe 日本語 \U0001f600 12  34\n"
    tokens = readers[name].read(text)
    expected = [(i, i) for i, end in enumerate(tokens.ends) if end not in tokens.ends[i + 1 :]]
    assert shared_positions(tokens.ends, tokens.ends) == expected
    assert len(expected) >= len(tokens.ids) - 1  # one may say nothing but the space in front


def test_known_positions() -> None:
    assert shared_positions([1, 3, 4, 7], [3, 5, 7]) == [(1, 0), (3, 2)]
    assert shared_positions([2, 2, 5], [0, 2, NOWHERE, 5, 5]) == [(1, 1), (2, 4)]  # of equal ends the last
    assert shared_positions([NOWHERE, 4], [NOWHERE, 4]) == [(1, 1)]
    assert shared_positions([], [1]) == []


def test_a_character_that_tokens_cut_in_different_places_is_shared_at_its_end(readers: dict[str, TextTokens]) -> None:
    text = "\u20ac"  # three bytes, none of which was seen in training
    small, spaced = readers["bytes"].read(text), readers["spaces"].read(text)
    assert small.ends == [1, 2, 3]
    assert [end for end in spaced.ends if end > 0] == [1, 2, 3]
    whole = readers["words"].read("日")
    assert shared_positions(readers["bytes"].read("日").ends, whole.ends) == [(2, 0)]


def test_a_normaliser_shares_the_ends_of_what_it_rewrites(readers: dict[str, TextTokens]) -> None:
    text = "Cafe\u0301 THE dog"
    ends = readers["words"].read(text).ends
    assert {len("Cafe\u0301".encode()), len("Cafe\u0301 THE".encode()), len(text.encode())} <= set(ends)
    assert len("Cafe") not in ends  # the accent is still to come
    composed = readers["composed"].read(text).ends
    assert len("Cafe") not in composed and composed[-1] == len(text.encode())


def test_trimmed_offsets_do_not_shift_a_space(readers: dict[str, TextTokens]) -> None:
    """This family reports " the" without its space, and where it rewrites the text nothing but offsets is known."""
    text = "e\u0301 the  dog "
    tokens = readers["composed"].read(text)
    assert family("composed")(text, return_offsets_mapping=True)["offset_mapping"][1][0] > len("e\u0301")  # trimmed
    for place, end in enumerate(tokens.ends):
        if end != NOWHERE:
            found = said("composed", family("composed"), tokens.ids[: place + 1])
            assert found == unicodedata.normalize("NFC", text.encode()[:end].decode())


def test_the_end_of_an_unknown_token_is_not_shared(readers: dict[str, TextTokens]) -> None:
    tokens = readers["words"].read("the \u0416 dog")
    unknown = tokens.ids.index(family("words").unk_token_id)
    assert tokens.ends[unknown] == NOWHERE
    assert tokens.ends[-1] == len("the \u0416 dog".encode())


def test_special_tokens_are_said_as_their_replacements(readers: dict[str, TextTokens]) -> None:
    student = family("bytes")
    user, end = student.convert_tokens_to_ids("<|user|>"), student.eos_token_id
    ids = [user, *student("the dog").input_ids, end]
    written = readers["bytes"].rewrite(ids, {user: "", end: "</s>"})
    assert written.text == "the dog</s>"
    assert written.ends[0] == NOWHERE and written.ends[-1] == len("the dog</s>")
    tokens = readers["spaces"].read(written.text, prefix=True)
    assert tokens.ids[0] == family("spaces").bos_token_id and tokens.ends[0] == 0
    assert (len(ids) - 1, len(tokens.ids) - 1) in shared_positions(written.ends, tokens.ends)


def test_a_prefix_that_the_text_has_is_not_said_twice(readers: dict[str, TextTokens]) -> None:
    tokens = readers["spaces"].read("<s>the dog", prefix=True)
    assert tokens.ids.count(family("spaces").bos_token_id) == 1
    assert tokens.ends[0] == 3


def test_a_row_that_ends_within_a_character_is_read_up_to_there(readers: dict[str, TextTokens]) -> None:
    ids = family("bytes")("dog \u20ac").input_ids[:-1]
    written = readers["bytes"].rewrite(ids, {})
    assert written.text == "dog "
    assert written.ends[-2:] == [NOWHERE, NOWHERE] and written.ends[-3] == 4


def test_tokens_that_are_not_bytes_can_not_be_written_as_text(readers: dict[str, TextTokens]) -> None:
    with pytest.raises(UserError, match="decoder"):
        readers["words"].rewrite([1, 2], {})
