"""Chat rows: messages to token ids, and which of the tokens are the assistant's.

The text of a row is what the tokenizer's own chat template makes of it. The mask is found by rendering the
conversation up to each assistant message with and without the message: what the message adds is the assistant's.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

Message = dict[str, str]


@dataclass(frozen=True)
class TokenRow:
    """A row of token ids; `trained[i]` says whether token `i` is one that a student should learn to produce."""

    ids: tuple[int, ...]
    trained: tuple[bool, ...]


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """Return the ids of one user turn, ready for the assistant to answer."""
    return _ids(tokenizer, [{"role": "user", "content": prompt}], answer_next=True)


def exchange_row(tokenizer: PreTrainedTokenizerBase, prompt: str, response: str) -> TokenRow:
    """Return one user turn and its answer, the answer and its end-of-text token marked as trained."""
    return conversation_row(
        tokenizer, [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    )


def conversation_row(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> TokenRow:
    """Return a whole conversation, every assistant turn with its end marked as trained.

    Raises:
        ValueError: the template writes earlier turns differently once later ones follow, so that what a message
            adds can't be told.
    """
    ids = _ids(tokenizer, messages)
    trained = [False] * len(ids)
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = _ids(tokenizer, messages[:index], answer_next=True) if index else _opening(tokenizer, message)
        after = _ids(tokenizer, messages[: index + 1])
        if ids[: len(before)] != before or ids[: len(after)] != after:
            raise ValueError("the chat template changes the tokens of earlier turns when later ones follow")
        trained[len(before) : len(after)] = [True] * (len(after) - len(before))
    return TokenRow(tuple(ids), tuple(trained))


def _opening(tokenizer: PreTrainedTokenizerBase, message: Message) -> list[int]:
    """Return what a template writes before a first message: what an empty one and this one have in common."""
    empty, whole = _ids(tokenizer, [{**message, "content": ""}]), _ids(tokenizer, [message])
    shared = next((place for place, (a, b) in enumerate(zip(empty, whole, strict=False)) if a != b), len(empty))
    return whole[:shared]


def _ids(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, answer_next: bool = False) -> list[int]:
    text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=answer_next)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
