"""Records of every known shape, and the refusal of all others."""

import json
from typing import Any

import pytest

from limbeck.data.chat import Conversation
from limbeck.data.shapes import Columns, Text, contents, document_of, wanted_columns
from limbeck.errors import UserError

ASKED, ANSWERED = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"x": 1}}}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {}}}


def read(record: dict[str, Any], **columns: str) -> list[Text | Conversation]:
    return list(contents(record, Columns(**columns), "file, line 3"))


def talk(*messages: dict[str, Any], tools: tuple[dict[str, Any], ...] = ()) -> list[Text | Conversation]:
    return [Conversation(messages, tools)]


@pytest.mark.parametrize(
    "record",
    [
        {"instruction": "q", "output": "a"},
        {"instruction": "q", "input": "", "output": "a"},
        {"inputs": "q", "targets": "a"},
        {"prompt": "q", "response": "a"},
        {"prompt": "q", "completion": "a"},
        {"prompt": [ASKED], "completion": [ANSWERED]},
        {"question": "q", "answer": "a"},
        {"prompt": "q", "responses": {"one": "a", "absent": None}},
        {"turns": [ASKED, ANSWERED]},
        {"turns": [ASKED, ANSWERED], "tools": []},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"messages": [ASKED, ANSWERED]},
        {"messages": [ASKED | {"tool_calls": None, "name": None}, ANSWERED | {"tool_calls": []}]},
        {"messages": [ASKED, {"role": "assistant", "content": [{"type": "text", "text": "a"}]}]},
        {"prompt": "q", "messages": [ASKED, ANSWERED]},
        {"text": None, "content": None, "prompt": "q", "response": "a"},
    ],
)
def test_every_shape_of_an_exchange(record: dict[str, Any]) -> None:
    assert read(record) == talk(ASKED, ANSWERED)


def test_texts() -> None:
    assert read({"text": "abc", "messages": [ASKED]}) == [Text("abc")]
    assert read({"content": "abc"}) == [Text("abc")]


def test_what_stands_beside_a_prompt_is_part_of_it() -> None:
    system = {"role": "system", "content": "s"}
    assert read({"instruction": "q", "input": "more", "output": "a"}) == talk(
        {"role": "user", "content": "q\n\nmore"}, ANSWERED
    )
    assert read({"system_prompt": "s", "question": "q", "response": "a"}) == talk(system, ASKED, ANSWERED)
    assert read({"system": "s", "messages": [system, ASKED]}) == talk(system, ASKED)


def test_each_of_several_responses_is_a_conversation() -> None:
    record = {"prompt": "q", "responses": {"one": "a", "two": "b"}}
    assert read(record) == [*talk(ASKED, ANSWERED), *talk(ASKED, {"role": "assistant", "content": "b"})]


@pytest.mark.parametrize(
    "call",
    [
        CALL,
        CALL["function"],
        {"name": "add", "arguments": '{"x": 1}'},
        {"function": {"name": "add", "arguments": '{"x": 1}'}},
    ],
)
@pytest.mark.parametrize("tools", [[TOOL], json.dumps([TOOL]), [json.dumps(TOOL)]])
def test_tool_calls_of_every_spelling(call: dict[str, Any], tools: Any) -> None:
    answer = {"role": "tool", "content": "3", "tool_call_id": "c1"}
    record = {"tools": tools, "turns": [ASKED, {"role": "assistant", "content": None, "tool_calls": [call]}, answer]}
    assert read(record) == talk(
        ASKED, {"role": "assistant", "content": "", "tool_calls": [CALL]}, answer, tools=(TOOL,)
    )


def test_calls_and_answers_in_the_way_of_sharegpt() -> None:
    record = {
        "conversations": [
            {"from": "human", "value": "q"},
            {"from": "function_call", "value": '{"name": "add", "arguments": {"x": 1}}'},
            {"from": "observation", "value": "3"},
        ],
        "system": "s",
    }
    assert read(record) == talk(
        {"role": "system", "content": "s"},
        ASKED,
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "3"},
    )


def test_what_else_a_message_says_reaches_the_template() -> None:
    ((conversation),) = read({"messages": [ASKED, ANSWERED | {"reasoning_content": "hm"}]})
    assert isinstance(conversation, Conversation)
    assert conversation.messages[1] == ANSWERED | {"reasoning_content": "hm"}


def test_named_columns() -> None:
    record = {"text": "not this", "body": "abc", "ask": "q", "reply": "a", "talk": [ASKED], "by": 7}
    assert read(record, text="body") == [Text("abc")]
    assert read(record, prompt="ask", response="reply") == talk(ASKED, ANSWERED)
    assert read(record, messages="talk") == talk(ASKED)
    assert read({"q": "q", "response": "a"}, prompt="q") == talk(ASKED, ANSWERED)
    assert document_of(record, Columns(document="by"), "place") == "7"
    assert document_of({"id": 0}, Columns(), "place") == "0"
    assert document_of({"document": None}, Columns(), "place") == "place"


@pytest.mark.parametrize("key", ["prompt", "instruction", "inputs", "question"])
def test_prompts_without_answers_are_taken_where_these_are_still_to_be_written(key: str) -> None:
    assert list(contents({key: "q"}, Columns(), "place", answered=False)) == talk(ASKED)
    assert wanted_columns([key, "x"], Columns(), "place", answered=False) == [key]
    with pytest.raises(UserError, match="'prompt' with 'response'"):
        read({key: "q"})
    assert list(contents({"ask": "q"}, Columns(prompt="ask"), "place", answered=False)) == talk(ASKED)
    assert list(contents({"prompt": "q", "response": "a"}, Columns(), "place", answered=False)) == talk(ASKED, ANSWERED)
    with pytest.raises(UserError, match="needs 'text', 'prompt', or 'messages'"):
        list(contents({"answer": "q"}, Columns(), "place", answered=False))


def test_a_column_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(
        UserError, match=r"file, line 3: there is no column 'txet' \(columns.text\). Did you mean 'text'"
    ):
        read({"text": "a", "b": 1}, text="txet")
    with pytest.raises(UserError, match=r"no column 'x' \(columns.messages\). Known: b, text."):
        wanted_columns(["text", "b"], Columns(messages="x"), "file")
    with pytest.raises(UserError, match=r"file: needs 'text', .*; it has \['a', 'b'\]"):
        wanted_columns(["a", "b"], Columns(), "file")


def test_columns_that_nobody_asked_for_are_not_read() -> None:
    names = ["embedding", "text", "document", "mine"]
    assert wanted_columns(names, Columns(), "file") == ["text", "document"]
    assert wanted_columns(names, Columns(text="mine"), "file") == ["text", "document", "mine"]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"text": 1}, "'text' has to be a text, and is int"),
        ({"text": "a\ud800"}, "'text' is not Unicode text: half a surrogate pair at 1"),
        (
            {"messages": [ASKED, {"role": "robot", "content": ""}]},
            r"'messages'\[1\] needs a 'role' of .*, and has 'robot'",
        ),
        ({"messages": [{"role": 5, "content": ""}]}, "needs a 'role'"),
        ({"messages": [{"role": "assistant"}]}, r"'messages'\[0\]: 'content' has to be a text"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "content that is not text"),
        ({"messages": [ANSWERED | {"tool_calls": [{"x": 1}]}]}, r"tool_calls\[0\] needs the 'name'"),
        ({"messages": [ANSWERED | {"tool_calls": "x"}]}, "tool_calls has to be a list"),
        ({"messages": [ANSWERED | {"tool_calls": [{"name": "f", "arguments": "{"}]}]}, "arguments: not JSON"),
        ({"messages": [ANSWERED | {"tool_calls": [{"name": "f", "arguments": "[1]"}]}]}, "have to be an object"),
        ({"conversations": [{"from": "function_call", "value": "no"}]}, "not JSON"),
        ({"messages": [ASKED], "tools": "{"}, "'tools': not JSON"),
        ({"messages": [ASKED], "tools": [1]}, "each of 'tools'"),
        ({"messages": [ASKED], "tools": {}}, "'tools' have to be a list"),
        ({"prompt": "q", "responses": {}}, "'responses'"),
        ({"prompt": "q", "responses": []}, "'responses'"),
        ({"instruction": "q", "input": 1, "output": "a"}, "'input' has to be a text"),
        ({"system": 1, "prompt": "q", "response": "a"}, "'system' has to be a text"),
    ],
)
def test_what_is_not_what_it_promises_is_refused(record: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read(record)
    assert str(caught.value).startswith("file, line 3: ")
    assert "\n" not in str(caught.value)
