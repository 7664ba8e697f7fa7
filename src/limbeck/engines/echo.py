"""Prompt log-probabilities by `echo` and `logprobs` of OpenAI's older completions protocol.

The answer repeats the prompt: `tokens`, `token_logprobs` and `top_logprobs` (one object a token, text to number).
Tokens are told by `token_id:…` where the server writes that, and by their text otherwise.
"""

import math
from collections.abc import Sequence
from typing import Any

from limbeck.engines.alignment import TokenBytes
from limbeck.engines.entries import Entries, ShapeError, entries_of_tops


def read_echo(logprobs: Any, ids: Sequence[int], tokens: TokenBytes) -> Entries:
    """Return the lists of a row.

    Args:
        logprobs: `choices[0].logprobs` of the answer.
        ids: the row.
        tokens: our tokenizer's.

    Raises:
        ShapeError: it is something else, or a token of it is not that of the row; the place is named.
    """
    if not isinstance(logprobs, dict):
        raise ShapeError("it has no logprobs")
    written, own, tops = (logprobs.get(name) for name in ("tokens", "token_logprobs", "top_logprobs"))
    if not (isinstance(written, list) and isinstance(own, list) and isinstance(tops, list)):
        raise ShapeError("its logprobs lack tokens, token_logprobs or top_logprobs")
    if not len(written) == len(own) == len(tops) == len(ids):
        raise ShapeError(f"{len(ids)} tokens were sent, {len(written)} came back")
    for place, (token, sent) in enumerate(zip(written, ids, strict=True)):
        if tokens.id_of(str(token)) != sent:
            raise ShapeError(f"token {place} was sent as {sent} and came back as {token!r}")
    try:
        return entries_of_tops(
            [(sent, _number(value)) for sent, value in zip(ids[1:], own[1:], strict=True)],
            [_known(top or {}, tokens) for top in tops[1:]],
        )
    except (AttributeError, TypeError, ValueError) as error:
        raise ShapeError(f"its logprobs are not as OpenAI's protocol describes them ({error})") from error


def _known(top: dict[str, Any], tokens: TokenBytes) -> list[tuple[int | None, float]]:
    """Return the entries of one object, with None for what can't be told.

    Different tokens without a text of their own share a key, and what the key holds is then the value of the last of
    them, at the place of the first. So whatever stands behind such a key may be less probable than one that is lost.
    """
    entries: list[tuple[int | None, float]] = []
    lost = False
    for text, value in top.items():
        token = tokens.id_of(text)
        lost = lost or token is None
        entries.append((None if lost else token, _number(value)))
    return entries


def _number(value: Any) -> float:
    """Return a log-probability; some servers write null for -inf, which JSON does not have."""
    return -math.inf if value is None else float(value)
