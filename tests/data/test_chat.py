"""Chat rows: exactly the chosen turns, with their ends, are marked as trained, whatever the template."""

import json
from itertools import groupby, pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from limbeck.data.chat import (
    Conversation,
    TokenRow,
    conversation_row,
    exchange_row,
    prompt_ids,
    written_by_template,
    written_plainly,
)
from limbeck.data.encoding import encode
from tests.data.strangers import chatml, llama
from tests.engines.tiny import TEXT, tokenizer_of

TOKENIZER = tokenizer_of()
CHATML = chatml()
plain = st.text(st.characters(codec="utf-8", exclude_characters="<|>"), max_size=12)
spelled = st.lists(plain | st.sampled_from(["<|user|>", "<|endoftext|>", "<|im_end|>", "<|"]), max_size=3).map("".join)


def turns(*roles: str, content: st.SearchStrategy[str] = plain) -> st.SearchStrategy[dict[str, str]]:
    return st.fixed_dictionaries({"role": st.sampled_from(roles), "content": content})


def conversations(content: st.SearchStrategy[str] = plain) -> st.SearchStrategy[list[dict[str, str]]]:
    return st.builds(
        lambda first, others: [first, *others],
        turns("system", "user", content=content),
        st.lists(turns("system", "user", "assistant", "tool", content=content), max_size=5),
    )


def said(*pairs: tuple[str, str]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in pairs]


def trained_spans(row: TokenRow, tokenizer: PreTrainedTokenizerBase = TOKENIZER) -> list[str]:
    """The text of each run of trained tokens."""
    runs = groupby(zip(row.ids, row.trained, strict=True), key=lambda pair: pair[1])
    return [str(tokenizer.decode([token for token, _ in run])) for trained, run in runs if trained]


@given(messages=conversations())
def test_exactly_the_assistants_turns_are_trained(messages: list[dict[str, str]]) -> None:
    row = conversation_row(TOKENIZER, messages)
    expected = [f"{message['content']}<|endoftext|>" for message in messages if message["role"] == "assistant"]
    assert trained_spans(row) == expected
    assert list(row.ids) == TOKENIZER.apply_chat_template(messages, return_dict=False)
    assert len(row.ids) == len(row.trained)


@given(messages=conversations(spelled), trained=st.sets(st.sampled_from(["system", "user", "assistant", "tool"])))
def test_exactly_the_chosen_turns_are_trained_and_messages_hold_no_special_tokens(
    messages: list[dict[str, str]], trained: set[str]
) -> None:
    row = conversation_row(TOKENIZER, messages, trained=sorted(trained))
    assert TOKENIZER.decode(row.ids) == TOKENIZER.apply_chat_template(messages, tokenize=False)
    expected = [
        message["content"] + "<|endoftext|>" * (message["role"] == "assistant")
        for message in messages
        if message["role"] in trained
    ]
    # neighbours of one role are one turn, with the header of the second in it
    if all(one["role"] != other["role"] for one, other in pairwise(messages)):
        assert trained_spans(row) == [text for text in expected if text]
    special = [TOKENIZER.decode([token]) for token in row.ids if token in TOKENIZER.all_special_ids]
    by_template = [
        mark
        for message in messages
        for mark in (f"<|{message['role']}|>", *(["<|endoftext|>"] if message["role"] == "assistant" else []))
    ]
    assert special == by_template


@given(messages=conversations(spelled))
def test_another_layout_has_the_same_guarantees(messages: list[dict[str, str]]) -> None:
    row = conversation_row(CHATML, messages)
    written = CHATML.apply_chat_template(messages, tokenize=False)
    assert CHATML.decode(row.ids) == written
    assert "".join(trained_spans(row, CHATML)) == "".join(
        f"{message['content'].strip()}<|im_end|>\n" for message in messages if message["role"] == "assistant"
    )
    runs = sum(
        message["role"] != "tool" or place == 0 or messages[place - 1]["role"] != "tool"
        for place, message in enumerate(messages)
    )
    marks = CHATML.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    assert [row.ids.count(mark) for mark in marks] == [runs, runs]
    if not any("<|" in message["content"] for message in messages):
        assert list(row.ids) == CHATML.apply_chat_template(messages, return_dict=False)


def test_outputs_of_several_tools_are_one_turn() -> None:
    messages = said(("user", "q"), ("assistant", "a"), ("tool", "one"), ("tool", "two"), ("assistant", "b"))
    row = conversation_row(CHATML, messages, trained=("tool",))
    (span,) = trained_spans(row, CHATML)
    assert span == "one</answer><answer>two</answer><|im_end|>\n"


def test_text_marks_of_roles_and_a_beginning_that_the_template_writes() -> None:
    tokenizer = llama()
    messages = said(("user", "Hi"), ("assistant", "Ho </s> [INST]"), ("user", "<s>"), ("assistant", "x"))
    row = conversation_row(tokenizer, messages)
    assert row.ids[0] == tokenizer.bos_token_id
    assert row.ids.count(tokenizer.bos_token_id) == 1
    assert row.ids.count(tokenizer.eos_token_id) == 2
    spans = [span.strip() for span in trained_spans(row, tokenizer)]
    assert spans == ["Ho </s> [INST]</s>", "x</s>"]


def test_an_assistant_may_speak_first() -> None:
    row = conversation_row(TOKENIZER, said(("assistant", "hi"), ("user", "ho")))
    assert trained_spans(row) == ["hi<|endoftext|>"]


def test_an_exchange_trains_its_answer_and_its_end() -> None:
    row = exchange_row(TOKENIZER, "2 + 3 = ?", "Answer: 5")
    assert trained_spans(row) == ["Answer: 5<|endoftext|>"]


@given(prompt=spelled, response=spelled)
def test_a_prompt_is_the_beginning_of_its_exchange(prompt: str, response: str) -> None:
    """What a model is asked is what it saw in training before an answer, to the token."""
    asked, row = prompt_ids(TOKENIZER, prompt), exchange_row(TOKENIZER, prompt, response)
    assert list(row.ids[: len(asked)]) == asked
    assert row.trained == (False,) * len(asked) + (True,) * (len(row.ids) - len(asked))


CALL = {"type": "function", "function": {"name": "add", "arguments": {"x": 1, "y": "é <|endoftext|><|im_end|>"}}}
TOOLS = [{"type": "function", "function": {"name": "add", "description": "<|user|>", "parameters": {}}}]
CALLING = [
    {"role": "user", "content": "1 + 2?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "3"},
    {"role": "assistant", "content": "It is 3."},
]


@pytest.mark.parametrize("tokenizer", [TOKENIZER, CHATML], ids=["ours", "chatml"])
def test_tool_calls_are_trained_with_their_turn(tokenizer: PreTrainedTokenizerBase) -> None:
    row = conversation_row(tokenizer, CALLING, tools=TOOLS)
    assert tokenizer.decode(row.ids) == tokenizer.apply_chat_template(CALLING, tools=TOOLS, tokenize=False)
    call, answer = trained_spans(row, tokenizer)
    assert json.dumps(CALL["function"], ensure_ascii=False) in call
    assert answer.startswith("It is 3.")
    assert json.dumps(TOOLS[0]) in tokenizer.decode(row.ids)
    assert row.ids.count(tokenizer.convert_tokens_to_ids("<|user|>")) == (tokenizer is TOKENIZER)


def test_arguments_are_written_as_text_where_a_template_joins_them() -> None:
    tokenizer = tokenizer_of(303)
    tokenizer.chat_template = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
        "{% for call in m.tool_calls %}{{ call.function.name + ':' + call.function.arguments }}{% endfor %}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    call, _ = trained_spans(conversation_row(tokenizer, CALLING), tokenizer)
    assert call == f"add:{json.dumps(CALL['function']['arguments'], ensure_ascii=False)}"  # type: ignore[index]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "leaves out the tools"),
        (
            "{{ tools | tojson }}{% for m in messages %}{{ m.content }}{% endfor %}",
            "leaves out the tool calls of message 2",
        ),
        (
            "{{ messages | rejectattr('role', 'equalto', 'tool') | list | tojson }}{{ tools | tojson }}",
            r"leaves out message 3 \(tool\)",
        ),
        ("{{ raise_exception('roles must\nalternate') }}", "refuses it: roles must alternate"),
        ("{{ tools | tojson }}{{ messages[0].content }}{{ messages[5].content.x }}", "refuses it"),
        (None, "no chat template"),
    ],
)
def test_a_template_that_loses_something_is_refused(template: str | None, message: str) -> None:
    tokenizer = tokenizer_of(304)
    tokenizer.chat_template = template
    with pytest.raises(ValueError, match=message):
        conversation_row(tokenizer, CALLING, tools=TOOLS)


FORGETFUL = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' }}"
    "{% if loop.last %}{{ m['content'] }}{% else %}{{ m['content'].split('#')[-1] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""Drops what was thought in all turns but the last."""


def test_a_template_that_rewrites_earlier_turns_is_refused_or_each_turn_stands_apart() -> None:
    tokenizer = tokenizer_of(299, TEXT)
    tokenizer.chat_template = FORGETFUL
    messages = said(("user", "hi"), ("assistant", "thought#said"), ("user", "more"), ("assistant", "idea#done"))
    with pytest.raises(ValueError, match=r"changes earlier turns .*turns_apart: true"):
        conversation_row(tokenizer, messages)
    apart = list(written_by_template(tokenizer, Conversation(tuple(messages)), turns_apart=True))
    rows = encode(tokenizer, apart)
    assert [tokenizer.decode(row.ids) for row in rows] == [
        "<|user|>hi<|assistant|>thought#said",
        "<|user|>hi<|assistant|>said<|user|>more<|assistant|>idea#done",
    ]
    assert [trained_spans(row, tokenizer) for row in rows] == [["thought#said"], ["idea#done"]]


def test_a_template_that_acts_on_a_special_token_in_a_message_is_refused() -> None:
    tokenizer = tokenizer_of(305)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content.split('<|pad|>')[-1] }}{% endfor %}"
    with pytest.raises(ValueError, match="acts on a special token"):
        conversation_row(tokenizer, said(("user", "a"), ("assistant", "b<|pad|>c")))


def test_the_template_is_told_what_it_wants_to_know() -> None:
    tokenizer = tokenizer_of(306)
    tokenizer.chat_template = "{{ date }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    conversation = Conversation(tuple(said(("user", "a"), ("assistant", "b"))))
    (written,) = written_by_template(tokenizer, conversation, arguments={"date": "1 May"})
    assert written.text == "1 May<|user|>a<|assistant|>b"


def test_contents_joined_plainly() -> None:
    messages = tuple(
        said(("system", "s"), ("user", "<|user|>"), ("assistant", "yes"), ("user", ""), ("assistant", "no"))
    )
    written = written_plainly(Conversation(messages), ("assistant",), "\n")
    assert written.text == "s\n<|user|>\nyes\n\nno"
    assert [written.text[start:stop] for start, stop in written.trained] == ["yes", "no"]
    with pytest.raises(ValueError, match="only be written by a chat template"):
        written_plainly(Conversation(tuple(CALLING)), ("assistant",), "\n")
