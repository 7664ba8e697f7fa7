"""The shapes that training text comes in: a record of any known dataset, as a text or as conversations.

A record is what a line of JSONL or a row of Parquet holds: an object of named values. `contents` finds which of the
known shapes it has (`KINDS`, in that order, or the columns that `Columns` names), and brings every conversation to
one form: messages of a `role` and a `content`, tool calls as `transformers`' chat templates expect them. Values that
are null count as absent. Nothing is guessed beyond the names listed here, and what has none of these shapes is
refused by name.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from limbeck.data.chat import ROLES, Conversation, Message
from limbeck.errors import UserError
from limbeck.settings import Settings, nearest

PAIRS = (
    ("instruction", "output"),
    ("inputs", "targets"),
    ("prompt", "response"),
    ("prompt", "completion"),
    ("instruction", "response"),
    ("question", "answer"),
    ("question", "response"),
)
"""Known names of prompts and their responses."""
KINDS: tuple[tuple[str, ...], ...] = (
    ("text",), *PAIRS[:2], ("turns",), ("conversations",), ("conversation",), ("messages",), *PAIRS[2:],
    ("prompt", "responses"), ("content",),
)  # fmt: skip
"""Known shapes by the names of their columns; the first that a record has all of is taken."""
PROMPTS = (("prompt",), ("instruction",), ("inputs",), ("question",))
"""Prompts alone, where answers are still to be written."""
TEXTS = frozenset({"text", "content"})
SPEAKERS = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant",
    "system": "system", "developer": "developer", "tool": "tool", "function": "tool", "observation": "tool",
    "function_response": "tool", "function_call": "assistant",
}  # fmt: skip
"""Names of speakers, and the roles that they are."""
BESIDE = {
    "system": ("system", "system_prompt"), "context": ("input", "context"), "tools": ("tools", "functions"),
    "document": ("document", "id"),
}  # fmt: skip
"""Known names of what may stand beside a prompt or a conversation."""
KEPT = frozenset({name for kind in KINDS for name in kind} | {name for names in BESIDE.values() for name in names})

Record = Mapping[str, Any]


class Columns(Settings):
    """Which columns hold what; each that is not named is looked for under its known names."""

    text: str | None = None
    prompt: str | None = None
    response: str | None = None
    messages: str | None = None
    system: str | None = None
    tools: str | None = None
    document: str | None = None

    def named(self) -> dict[str, str]:
        """Return what is named: key of these settings to column."""
        return {key: column for key, column in self if column is not None}


@dataclass(frozen=True)
class Text:
    """Plain text."""

    text: str


def wanted_columns(names: Sequence[str], columns: Columns, place: str, *, answered: bool = True) -> list[str]:
    """Return those of a table's columns that records need, or refuse a table that lacks what is named or known.

    Args:
        names: the table's columns.
        columns: which of them hold what.
        place: what messages call the table.
        answered: whether prompts need their responses.

    Raises:
        UserError: a named column is not there, or none of the known shapes is; the message says what there is.
    """
    _kind(dict.fromkeys(names, ""), columns, place, answered)
    taken = KEPT | set(columns.named().values())
    return [name for name in names if name in taken]


def document_of(record: Record, columns: Columns, place: str) -> str:
    """Return what a record calls the document that it is from, or else its place."""
    name = _beside(record, "document", columns.document)
    return place if name is None else str(name)


def contents(record: Record, columns: Columns, place: str, *, answered: bool = True) -> Iterator[Text | Conversation]:
    """Yield what a record holds: a text, a conversation, or one conversation for each of several `responses`.

    Args:
        record: the record.
        columns: which columns hold what.
        place: where the record is from; messages name it.
        answered: whether a prompt needs its response; if not, one that stands alone is a conversation to go on with.

    Raises:
        UserError: the record has none of the known shapes, or holds something else than these promise.
    """
    kind = _kind(record, columns, place, answered)
    if len(kind) == 2 or kind in PROMPTS or kind == (columns.prompt,):
        asked = kind[0]
        prompt = _side(record, asked, "user", place)
        if asked == "instruction" and (context := _beside(record, "context", None)):
            prompt[-1]["content"] += f"\n\n{_checked(context, 'input', place)}"
        for answer in _answers(record, kind[1], place) if len(kind) == 2 else [[]]:
            yield _conversation(record, [*prompt, *answer], columns, place)
    elif kind[0] == columns.text or (kind[0] in TEXTS and kind[0] != columns.messages):
        yield Text(_checked(record[kind[0]], kind[0], place))
    else:
        yield _conversation(record, _messages(record[kind[0]], kind[0], place), columns, place)


def _answers(record: Record, key: str, place: str) -> list[list[Message]]:
    """Return the one response of a record, or each of several by teacher."""
    if key != "responses":
        return [_side(record, key, "assistant", place)]
    answers = record[key]
    if not isinstance(answers, Mapping) or not answers:
        raise UserError(f"{place}: 'responses' has to be an object of at least one response, by teacher.")
    return [_side(answers, teacher, "assistant", place) for teacher in answers if answers[teacher] is not None]


def _kind(record: Record, columns: Columns, place: str, answered: bool) -> tuple[str, ...]:
    """Return the names of the columns that make up a record's shape: one, or a prompt's and its response's."""
    for key, column in columns.named().items():
        if column not in record:
            raise UserError(f"{place}: there is no column {column!r} (columns.{key}).{nearest(column, list(record))}")
    kinds: tuple[tuple[str, ...], ...] = tuple((name,) for name in (columns.text, columns.messages) if name)
    if columns.prompt or columns.response:
        kinds += tuple(
            (columns.prompt or asked, columns.response or reply) for asked, reply in (*PAIRS, ("prompt", "responses"))
        )
    kinds = kinds or KINDS
    if not answered:
        kinds += ((columns.prompt,),) if columns.prompt else PROMPTS
    for kind in kinds:
        if all(record.get(name) is not None for name in kind):
            return kind
    there = next((kind for kind in kinds if all(name in record for name in kind)), None)
    if there is None:
        with_response = " with 'response'" if answered else ""
        asks = answered and any(record.get(name) is not None for (name,) in PROMPTS)
        alone = "A teacher answers prompts by a section `generate`. " if asks else ""
        raise UserError(
            f"{place}: needs 'text', 'prompt'{with_response}, or 'messages'; it has {sorted(map(str, record))}. "
            f"{alone}Name the columns to read under `columns`."
        )
    return there


def _conversation(record: Record, messages: list[Message], columns: Columns, place: str) -> Conversation:
    system = _beside(record, "system", columns.system)
    if system and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": _checked(system, "system", place)}, *messages]
    return Conversation(tuple(messages), _tools(_beside(record, "tools", columns.tools), place))


def _beside(record: Record, what: str, named: str | None) -> Any:
    names = (named,) if named else BESIDE[what]
    return next((record[name] for name in names if record.get(name) is not None), None)


def _side(record: Record, key: str, role: str, place: str) -> list[Message]:
    """Return one side of an exchange: a text, or messages of its own."""
    if isinstance(record[key], list):
        return _messages(record[key], key, place)
    return [{"role": role, "content": _checked(record[key], key, place)}]


def _checked(value: Any, key: str, place: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{place}: {key!r} has to be a text, and is {type(value).__name__}.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{place}: {key!r} is not Unicode text: half a surrogate pair at {error.start}.") from error
    return value


def _messages(value: Any, key: str, place: str) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise UserError(f"{place}: {key!r} has to be a list of at least one message.")
    return [_message(message, f"{place}: {key!r}[{index}]") for index, message in enumerate(value)]


def _message(value: Any, place: str) -> Message:
    """Bring one message to `role`, `content` and what else its template may ask for."""
    if not isinstance(value, dict):
        raise UserError(f"{place} has to be an object with 'role' and 'content', and is {type(value).__name__}.")
    message = {key: item for key, item in value.items() if item is not None}
    speaker = message.pop("role", None) or message.pop("from", None)
    content = message.pop("content", None) if "content" in message else message.pop("value", None)
    calls = message.pop("tool_calls", None)
    if not isinstance(speaker, str) or speaker not in SPEAKERS:
        raise UserError(f"{place} needs a 'role' of {', '.join(ROLES)}, and has {speaker!r}.")
    if speaker == "function_call":
        calls, content = [_parsed(content, f"{place}.value")], None
    if isinstance(content, list):
        content = "".join(_part(part, place) for part in content)
    if content is None and calls:
        content = ""
    message |= {"role": SPEAKERS[speaker], "content": _checked(content, "content", place)}
    if calls:
        if not isinstance(calls, list):
            raise UserError(f"{place}.tool_calls has to be a list, and is {type(calls).__name__}.")
        message["tool_calls"] = [_call(call, f"{place}.tool_calls[{index}]") for index, call in enumerate(calls)]
    return message


def _part(part: Any, place: str) -> str:
    if isinstance(part, dict) and isinstance(part.get("text"), str):
        return str(part["text"])
    raise UserError(f"{place} has a content that is not text. Leave it out: only text can be read.")


def _call(value: Any, place: str) -> dict[str, Any]:
    """Bring one tool call, wrapped in `function` or not, arguments as JSON text or object, to the usual form."""
    function = value.get("function", value) if isinstance(value, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise UserError(f"{place} needs the 'name' of a function.")
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        arguments = _parsed(arguments, f"{place}.arguments")
    if not isinstance(arguments, dict):
        raise UserError(f"{place}.arguments have to be an object, and are {type(arguments).__name__}.")
    beside = {key: item for key, item in value.items() if key in ("id", "index") and item is not None}
    return {**beside, "type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _tools(value: Any, place: str) -> tuple[dict[str, Any], ...]:
    if value is None or value == "":
        return ()
    listed = _parsed(value, f"{place}: 'tools'") if isinstance(value, str) else value
    if not isinstance(listed, list):
        raise UserError(f"{place}: 'tools' have to be a list, and are {type(listed).__name__}.")
    tools = [_parsed(tool, f"{place}: 'tools'") if isinstance(tool, str) else tool for tool in listed]
    if not all(isinstance(tool, dict) for tool in tools):
        raise UserError(f"{place}: each of 'tools' has to be an object that describes a function.")
    return tuple(tools)


def _parsed(text: Any, place: str) -> Any:
    try:
        return json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{place}: not JSON ({error}).") from error
