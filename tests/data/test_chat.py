"""Chat rows: exactly the assistant's turns, with their ends, are marked as trained."""

from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.data.chat import TokenRow, conversation_row, exchange_row, prompt_ids
from tests.engines.tiny import TEXT, tokenizer_of

TOKENIZER = tokenizer_of()
plain = st.text(st.characters(codec="utf-8", exclude_characters="<|>"), max_size=12)


def turns(*roles: str) -> st.SearchStrategy[dict[str, str]]:
    return st.fixed_dictionaries({"role": st.sampled_from(roles), "content": plain})


conversations = st.builds(
    lambda first, others: [first, *others],
    turns("system", "user"),
    st.lists(turns("system", "user", "assistant", "tool"), max_size=5),
)


def trained_spans(row: TokenRow) -> list[str]:
    """The text of each run of trained tokens."""
    runs = groupby(zip(row.ids, row.trained, strict=True), key=lambda pair: pair[1])
    return [str(TOKENIZER.decode([token for token, _ in run])) for trained, run in runs if trained]


@given(messages=conversations)
def test_exactly_the_assistants_turns_are_trained(messages: list[dict[str, str]]) -> None:
    row = conversation_row(TOKENIZER, messages)
    expected = [f"{message['content']}<|endoftext|>" for message in messages if message["role"] == "assistant"]
    assert trained_spans(row) == expected
    assert TOKENIZER.decode(row.ids) == TOKENIZER.apply_chat_template(messages, tokenize=False)
    assert len(row.ids) == len(row.trained)


def test_an_assistant_may_speak_first() -> None:
    row = conversation_row(TOKENIZER, [{"role": "assistant", "content": "hi"}, {"role": "user", "content": "ho"}])
    assert trained_spans(row) == ["hi<|endoftext|>"]


def test_an_exchange_trains_its_answer_and_its_end() -> None:
    row = exchange_row(TOKENIZER, "2 + 3 = ?", "Answer: 5")
    assert trained_spans(row) == ["Answer: 5<|endoftext|>"]


@given(prompt=plain, response=plain)
def test_a_prompt_is_the_beginning_of_its_exchange(prompt: str, response: str) -> None:
    """What a model is asked is what it saw in training before an answer, to the token."""
    asked, row = prompt_ids(TOKENIZER, prompt), exchange_row(TOKENIZER, prompt, response)
    assert list(row.ids[: len(asked)]) == asked
    assert row.trained == (False,) * len(asked) + (True,) * (len(row.ids) - len(asked))


def test_a_template_that_rewrites_earlier_turns_is_refused() -> None:
    """Such a template drops what was thought in all turns but the last."""
    tokenizer = tokenizer_of(299, TEXT)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>' }}"
        "{% if loop.last %}{{ m['content'] }}{% else %}{{ m['content'].split('|')[-1] }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    )
    said = [("user", "hi"), ("assistant", "thought|said"), ("user", "more")]
    with pytest.raises(ValueError, match="changes the tokens of earlier turns"):
        conversation_row(tokenizer, [{"role": role, "content": content} for role, content in said])
