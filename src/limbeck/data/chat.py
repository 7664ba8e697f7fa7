"""Conversations: what a tokenizer's chat template makes of messages, and which of its tokens are trained.

The text of a row is what the template writes. A *turn* is what one message adds to it, from behind the header that
the template puts before the content (`<|assistant|>`) up to and including the mark that ends it. Turns are found by
rendering beginnings of the conversation: what the template wrote up to a message has to be how the whole begins. A
template that writes earlier turns differently once later ones follow (such as those that drop what was thought
before) is refused, unless each turn is asked for apart (`turns_apart`): a row for each, which ends with it, as the
model met it.

Conversations of the same roles without tools share a *skeleton*: what the template writes around the contents, and
where the turns are in it, found once by such renderings of messages that say their place. A rendering that is exactly
skeleton and contents needs no further ones.

Nothing that a message holds is lost in silence: a template that leaves out a message, its tool calls or the tools is
refused as well.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from limbeck.data.encoding import TokenRow, Written, encode, respelling, spells_special
from limbeck.data.skeleton import Skeleton, said, skeleton_of

__all__ = [
    "ROLES", "Conversation", "Message", "TokenRow", "conversation_row", "exchange_row", "prompt_ids",
    "written_by_template", "written_plainly",
]  # fmt: skip

ROLES = ("system", "developer", "user", "assistant", "tool")
PLAIN = {"role", "content"}
Message = dict[str, Any]


@dataclass(frozen=True)
class Conversation:
    """Messages, each with `role`, `content` and perhaps `tool_calls`; `tools` describes what could be called."""

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """Return the ids of one user turn, ready for the assistant to answer."""
    message = {"role": "user", "content": prompt}
    writing = _writing(tokenizer, Conversation((message,)))
    return list(encode(tokenizer, [writing.written(writing.render(writing.messages, answer_next=True), ())])[0].ids)


def exchange_row(tokenizer: PreTrainedTokenizerBase, prompt: str, response: str) -> TokenRow:
    """Return one user turn and its answer, the answer and its end-of-text token marked as trained."""
    return conversation_row(
        tokenizer, [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    )


def conversation_row(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    tools: Sequence[dict[str, Any]] = (),
    trained: Sequence[str] = ("assistant",),
) -> TokenRow:
    """Return a whole conversation, every turn of the `trained` roles with its end marked as trained.

    Raises:
        ValueError: the template refuses the conversation, leaves something out, or changes earlier turns when later
            ones follow, so that what a message adds can't be told.
    """
    (written,) = written_by_template(tokenizer, Conversation(tuple(messages), tuple(tools)), trained)
    return encode(tokenizer, [written])[0]


def written_by_template(
    tokenizer: PreTrainedTokenizerBase,
    conversation: Conversation,
    trained: Sequence[str] = ("assistant",),
    *,
    turns_apart: bool = False,
    arguments: Mapping[str, Any] | None = None,
) -> Iterator[Written]:
    """Yield a conversation as the tokenizer's chat template writes it: once, or once for each trained turn.

    Args:
        tokenizer: whose template and special tokens.
        conversation: what was said.
        trained: roles whose turns are trained.
        turns_apart: write each trained turn on its own, with all that came before it and nothing behind.
        arguments: what else the template is told (such as `enable_thinking`, or a date).

    Raises:
        ValueError: as `conversation_row`.
    """
    writing = _writing(tokenizer, conversation, arguments)
    turns = list(_turns(writing.messages, trained))
    if not turns_apart:
        yield writing.with_turns(writing.messages, turns)
        return
    for first, last in turns:
        yield writing.with_turns(writing.messages[: last + 1], [(first, last)])


def written_plainly(conversation: Conversation, trained: Sequence[str], separator: str) -> Written:
    """Return a conversation as its contents alone, joined by `separator`, those of the `trained` roles trained.

    Raises:
        ValueError: there are tools or tool calls, which only a template can write.
    """
    if conversation.tools or any(message.get("tool_calls") for message in conversation.messages):
        raise ValueError("tools and their calls can only be written by a chat template (chat_template: true)")
    text, stretches = "", []
    for message in conversation.messages:
        text += separator if text else ""
        if message["role"] in trained:
            stretches.append((len(text), len(text) + len(message["content"])))
        text += message["content"]
    return Written(text, tuple(stretches), "none")


def _turns(messages: Sequence[Message], trained: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Yield first and last message of each trained turn.

    Neighbouring messages of one role but the assistant's are one turn: templates join the outputs of several tools.
    """
    first = 0
    for last, message in enumerate(messages):
        role = message["role"]
        if role != "assistant" and last + 1 < len(messages) and messages[last + 1]["role"] == role:
            continue
        if role in trained:
            yield first, last
        first = last + 1


@dataclass(frozen=True)
class _Writing:
    """One conversation and how its tokenizer writes it; `marked` where its messages spell special tokens."""

    tokenizer: PreTrainedTokenizerBase
    messages: Sequence[Message]
    tools: Sequence[dict[str, Any]]
    arguments: Mapping[str, Any]
    marked: bool = False

    def render(self, messages: Sequence[Message], *, answer_next: bool = False, tools: bool = True) -> str:
        """Return what the template writes, arguments of tools as objects or, where it asks for that, as JSON text."""
        try:
            return self._apply(messages, answer_next, tools)
        except TypeError:
            return self._apply([_with_written_arguments(message) for message in messages], answer_next, tools)

    def with_turns(self, messages: Sequence[Message], turns: Sequence[tuple[int, int]]) -> Written:
        """Return what the template writes of `messages`, the turns (first and last message of each) trained."""
        whole = self.render(messages)
        skeleton = self._skeleton(messages, turns)
        stretches = skeleton.stretches([message["content"] for message in messages], whole) if skeleton else None
        return self.written(whole, self.stretches(messages, turns, whole) if stretches is None else stretches)

    def stretches(
        self, messages: Sequence[Message], turns: Sequence[tuple[int, int]], whole: str
    ) -> list[tuple[int, int]]:
        """Return where the turns are in the whole, by rendering the beginnings of the conversation.

        Raises:
            ValueError: as `conversation_row`.
        """
        self._check_nothing_left_out(messages, whole)
        stretches = []
        for first, last in turns:
            start = self._header(messages[: first + 1], whole)
            end = whole if last + 1 == len(messages) else self.render(messages[: last + 1])
            if start is None or start > len(end) or not whole.startswith(end):
                raise ValueError(
                    "the chat template changes earlier turns when later ones follow; "
                    "ask for each turn in a row of its own (turns_apart: true)"
                )
            stretches.append((start, len(end)))
        return stretches

    def written(self, text: str, trained: Sequence[tuple[int, int]]) -> Written:
        """Return a rendering as a text to encode."""
        if not self.marked:
            return Written(text, tuple(trained), "spelled")
        swap = respelling(self.tokenizer).swap
        moved = tuple((len(swap(text[:start])), len(swap(text[:stop]))) for start, stop in trained)
        return Written(swap(text), moved, "respelled")

    def _header(self, messages: Sequence[Message], whole: str) -> int | None:
        """Return where the content of the last of `messages` begins, or None if the whole doesn't begin like that."""
        *before, message = messages
        if before and message["role"] == "assistant":
            asked = self.render(before, answer_next=True)
            if whole.startswith(asked):
                return len(asked)
        kept = {key: value for key, value in message.items() if key in ("role", "name", "tool_call_id")}
        one, other = (self.render([*before, kept | {"content": probe}]) for probe in ("a", "b"))
        shared = next((place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(one))
        return shared if whole.startswith(one[:shared]) else None

    def _skeleton(self, messages: Sequence[Message], turns: Sequence[tuple[int, int]]) -> Skeleton | None:
        """Return what the template writes around plain contents of these roles, if it does so whatever they are."""
        if self.tools or any(message.keys() != PLAIN for message in messages):
            return None
        told = json.dumps(dict(self.arguments), sort_keys=True, default=str)
        roles = tuple(message["role"] for message in messages)
        return _skeleton_of(self.tokenizer, str(self.tokenizer.chat_template), told, roles, tuple(turns))

    def _check_nothing_left_out(self, messages: Sequence[Message], whole: str) -> None:
        if self.tools and self.render(messages, tools=False) == whole:
            raise ValueError("the chat template leaves out the tools")
        probes = [{**message, "content": said(place)} for place, message in enumerate(messages)]
        probed = self._tried(probes)
        for place, message in enumerate(messages):
            probe, rest = probes[place], {key: value for key, value in message.items() if key != "tool_calls"}
            unseen = message["content"].strip() and (probed is None or probe["content"] not in probed)
            if unseen and self._tried([*messages[:place], probe, *messages[place + 1 :]]) == whole:
                raise ValueError(f"the chat template leaves out message {place + 1} ({message['role']})")
            if message.get("tool_calls") and self._tried([*messages[:place], rest, *messages[place + 1 :]]) == whole:
                raise ValueError(f"the chat template leaves out the tool calls of message {place + 1}")

    def _tried(self, messages: Sequence[Message]) -> str | None:
        """Return what the template writes, or None if it refuses these messages."""
        try:
            return self.render(messages)
        except ValueError:
            return None

    def _apply(self, messages: Sequence[Message], answer_next: bool, tools: bool) -> str:
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    list(messages), tools=list(self.tools) if tools and self.tools else None, tokenize=False,
                    add_generation_prompt=answer_next, **self.arguments,
                )
            )  # fmt: skip
        except TemplateError as error:
            raise ValueError(f"the chat template refuses it: {' '.join(str(error).split())}") from error


def _writing(
    tokenizer: PreTrainedTokenizerBase, conversation: Conversation, arguments: Mapping[str, Any] | None = None
) -> _Writing:
    """Return how `tokenizer` writes a conversation, with marks for the special tokens that its messages spell."""
    if tokenizer.chat_template is None:
        raise ValueError("the tokenizer has no chat template; have messages joined plainly (chat_template: false)")
    plain = _Writing(tokenizer, conversation.messages, conversation.tools, arguments or {})
    if not spells_special(tokenizer, [plain.messages, plain.tools]):
        return plain
    spelling = respelling(tokenizer)
    marked = replace(plain, messages=spelling.mark(plain.messages), tools=spelling.mark(plain.tools), marked=True)
    if spelling.unmark(marked.render(marked.messages)) != plain.render(plain.messages):
        raise ValueError("the chat template acts on a special token that a message spells out; change that message")
    return marked


@lru_cache(maxsize=1024)
def _skeleton_of(
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    told: str,
    roles: tuple[str, ...],
    turns: tuple[tuple[int, int], ...],
) -> Skeleton | None:
    """Return what a template writes around messages that each say their place; the same for many conversations."""
    contents = [said(place) for place in range(len(roles))]
    messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
    writing = _Writing(tokenizer, messages, (), json.loads(told))
    try:
        whole = writing.render(messages)
        return skeleton_of(whole, contents, turns, writing.stretches(messages, turns, whole))
    except ValueError:
        return None  # the conversation itself is refused in its own words


def _with_written_arguments(message: Message) -> Message:
    if not message.get("tool_calls"):
        return message
    calls = [
        call
        | {"function": call["function"] | {"arguments": json.dumps(call["function"]["arguments"], ensure_ascii=False)}}
        for call in message["tool_calls"]
    ]
    return {**message, "tool_calls": calls}
