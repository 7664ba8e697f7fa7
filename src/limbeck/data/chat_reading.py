"""From tokens back to messages: which conversation a chat template would write just so.

The tokens' text is cut where the template, probed with messages that say their place, changes from one role to the
next. What comes of it is believed only if the template writes it, token by token, with the same tokens trained.
"""

from collections.abc import Iterator
from functools import lru_cache

from transformers import PreTrainedTokenizerBase

from limbeck.data.chat import Message, conversation_row
from limbeck.data.encoding import TokenRow
from limbeck.data.skeleton import said

PROBED = (
    ("system", "user", "assistant", "user", "assistant", "user", "assistant"),
    ("user", "assistant", "user", "assistant", "user", "assistant"),
    ("system", "user", "assistant", "tool", "assistant", "user"),
    ("user", "assistant", "tool", "tool", "assistant", "tool"),
    ("system", "system", "user", "user", "assistant", "assistant"),
)
"""Conversations in which neighbours of all usual kinds occur; those that a template refuses are left out."""

Cuts = dict[str, dict[str, frozenset[str]]]
"""What may stand between contents of two roles; "" is what is before the first and behind the last."""


def messages_of(tokenizer: PreTrainedTokenizerBase, row: TokenRow) -> list[Message]:
    """Return the conversation that a row is.

    Raises:
        ValueError: it is none that the tokenizer's chat template writes with these tokens, the assistant's trained.
    """
    if tokenizer.chat_template is None:
        raise ValueError("the tokenizer has no chat template")
    text = str(tokenizer.decode(row.ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
    messages = list(_cut(text, _cuts(tokenizer, str(tokenizer.chat_template))))
    if not messages or conversation_row(tokenizer, messages) != row:
        raise ValueError(
            "it is no conversation that the chat template writes so, the assistant's turns and no others trained"
        )
    return messages


def _cut(text: str, cuts: Cuts) -> Iterator[Message]:
    """Yield the messages of a text, cutting at the first place that can be one, by the longest piece there."""
    starts = [(piece, role) for role, pieces in cuts[""].items() for piece in pieces if text.startswith(piece)]
    if not starts:
        return
    piece, role = max(starts, key=lambda start: len(start[0]))
    place = len(piece)
    while role:
        found = [
            (at, -len(piece), following, piece)
            for following, pieces in cuts.get(role, {}).items()
            for piece in pieces
            if (at := _where(text, piece, place, last=not following)) >= 0
        ]
        if not found:
            return
        at, _, following, piece = min(found)
        yield {"role": role, "content": text[place:at]}
        place, role = at + len(piece), following


def _where(text: str, piece: str, place: int, *, last: bool) -> int:
    """Return where a piece stands behind a place, at the end of the text if it is the last one; -1: nowhere."""
    if not last:
        return text.find(piece, place)
    at = len(text) - len(piece)
    return at if at >= place and text.endswith(piece) else -1


@lru_cache(maxsize=8)
def _cuts(tokenizer: PreTrainedTokenizerBase, template: str) -> Cuts:
    """Return what a template writes between contents; `template` only tells one from another."""
    found: dict[str, dict[str, set[str]]] = {"": {}}
    for roles in (probed[:count] for probed in PROBED for count in range(1, len(probed) + 1)):
        messages = [{"role": role, "content": said(place)} for place, role in enumerate(roles)]
        try:
            row = conversation_row(tokenizer, messages)
        except ValueError:
            continue
        rest = str(tokenizer.decode(row.ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
        before = ""
        for role, message in zip(roles, messages, strict=True):
            piece, _, rest = rest.partition(message["content"])
            found.setdefault(before, {}).setdefault(role, set()).add(piece)
            before = role
        found.setdefault(before, {}).setdefault("", set()).add(rest)
    return {role: {then: frozenset(pieces) for then, pieces in ways.items()} for role, ways in found.items()}
