"""Which token of our tokenizer a server's token is: by id where it says one, by its bytes otherwise, never by guess.

A server that generates returns tokens as strings, often with their bytes. Byte-level and byte-fallback vocabularies
(GPT-2, Llama, Qwen, Mistral, Gemma and most others) have exactly one token for a string of bytes, so that bytes name
the token. Where they do not (no such token, or two of them) there is no answer, and the caller refuses or leaves out,
but does not shift.
"""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from limbeck.engines.entries import Entries, ShapeError, entries_of_tops
from limbeck.errors import UserError

NUMBERED = re.compile(r"token_id:(\d{1,12})")
BYTE_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True)
class Vocabulary:
    """The bytes of every token.

    Attributes:
        data: the bytes of each id; special and added tokens have those of their text.
        ordinary: ids by bytes, of tokens that text is made of.
        added: ids by text, of special and added tokens.
        special: ids that decoding leaves out.
    """

    data: dict[int, bytes]
    ordinary: dict[bytes, list[int]]
    added: dict[bytes, int]
    special: frozenset[int]


class TokenBytes:
    """Finds the ids of tokens; the vocabulary is read when the first is asked for by its bytes."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The tokenizer's tokens by their bytes.

        Raises:
            UserError: the tokenizer's tokens are not made of bytes.
        """
        return _read_vocabulary(self._tokenizer)

    def id_of(self, token: str, data: Sequence[int] | None = None) -> int | None:
        """Return the id of a token, or None where it can't be told.

        Args:
            token: as the server writes it: `token_id:7`, or text.
            data: its bytes, where the server says them.
        """
        if numbered := NUMBERED.fullmatch(token):
            return int(numbered[1])
        if data is None and "\ufffd" in token:
            return None
        key = token.encode("utf-8", "surrogatepass") if data is None else bytes(data)
        found = self.vocabulary.ordinary.get(key, [])
        if len(found) == 1:
            return found[0]
        return None if found else self.vocabulary.added.get(key)

    def text_of(self, ids: Sequence[int]) -> bytes:
        """Return the bytes that these ids stand for, without special tokens at the end."""
        last = len(ids)
        while last and ids[last - 1] in self.vocabulary.special:
            last -= 1
        return b"".join(self.vocabulary.data.get(token, b"") for token in ids[:last])


def align_content(
    content: Any, text: str, tokens: TokenBytes, numbered: Sequence[int] | None = None
) -> tuple[list[int], Entries]:
    """Return the ids of a generated answer and the lists of its tokens.

    Args:
        content: `choices[i].logprobs.content` of OpenAI's chat protocol.
        text: the answer's text, which the tokens must make up.
        tokens: our tokenizer's.
        numbered: the ids that the server itself says, where it does.

    Returns:
        the ids; lists of one more place, the first without entries.

    Raises:
        ShapeError: a token is none of ours, or the tokens do not make up the text; says which.
    """
    if not isinstance(content, list):
        raise ShapeError("no log-probabilities came with the text")
    try:
        parts = [_Part.of(part, tokens) for part in content]
    except (KeyError, TypeError, ValueError) as error:
        raise ShapeError(f"its logprobs.content is not as OpenAI's protocol describes it ({error})") from error
    if parts and not parts[-1].text:  # an end-of-text token without a name: nothing that could be stored
        parts.pop()
    owns = []
    for place, part in enumerate(parts):
        if part.own is None:
            raise ShapeError(f"token {place} of the answer, {part.text!r}, is not one token of this tokenizer")
        owns.append((part.own, part.logprob))
    ids = [own for own, _ in owns]
    if numbered is not None and list(numbered)[: len(ids)] != ids:
        raise ShapeError("the ids that the server says are not those of its log-probabilities")
    written = tokens.text_of(ids)
    if text not in (written.decode("utf-8", "replace"), written.decode("utf-8", "ignore")):
        raise ShapeError(f"the answer's {len(ids)} tokens do not make up its text of {len(text)} characters")
    return ids, entries_of_tops(owns, [part.top for part in parts])


@dataclass(frozen=True)
class _Part:
    """One generated token."""

    text: str
    own: int | None
    logprob: float
    top: list[tuple[int | None, float]]

    @staticmethod
    def of(part: dict[str, Any], tokens: TokenBytes) -> "_Part":
        rivals = part.get("top_logprobs") or []
        return _Part(
            str(part["token"]),
            tokens.id_of(str(part["token"]), part.get("bytes")),
            float(part["logprob"]),
            [(tokens.id_of(str(one["token"]), one.get("bytes")), _number(one["logprob"])) for one in rivals],
        )


def _number(value: Any) -> float:
    """Return a log-probability; some servers write null for -inf, which JSON does not have."""
    return -math.inf if value is None else float(value)


def _read_vocabulary(tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UserError("this tokenizer has no tokenizer.json: its tokens can't be told by their bytes.")
    decode = _decoder(json.loads(backend.to_str()).get("decoder"))
    added = {token: str(entry.content).encode() for token, entry in tokenizer.added_tokens_decoder.items()}
    data = dict(added)
    ordinary: dict[bytes, list[int]] = {}
    for piece, token in tokenizer.get_vocab().items():
        if token not in added and (written := decode(piece)) is not None:
            data[token] = written
            ordinary.setdefault(written, []).append(token)
    special = frozenset(token for token, entry in tokenizer.added_tokens_decoder.items() if entry.special)
    return Vocabulary(data, ordinary, {text: token for token, text in added.items()}, special)


def _decoder(decoder: dict[str, Any] | None) -> Any:
    """Return what turns an entry of the vocabulary into its bytes."""
    steps = (decoder or {}).get("decoders", [decoder or {}])
    kinds = {str(step.get("type")) for step in steps}
    if "ByteLevel" in kinds:
        byte_of = _byte_level()
        return lambda piece: bytes(byte_of[sign] for sign in piece) if all(sign in byte_of for sign in piece) else None
    if "ByteFallback" in kinds or "Metaspace" in kinds:

        def with_fallback(piece: str) -> bytes:
            if byte := BYTE_FALLBACK.fullmatch(piece):
                return bytes([int(byte[1], 16)])
            return piece.replace("▁", " ").encode()

        return with_fallback
    raise UserError(
        f"this tokenizer's decoder ({', '.join(sorted(kinds))}) does not say what bytes a token stands for. Use a "
        "server that returns token ids (protocol: vllm)."
    )


def _byte_level() -> dict[str, int]:
    """Return the byte that each sign of a byte-level vocabulary stands for.

    Printable Latin-1 bytes stand for themselves, the others for the signs from U+0100 on, in order (GPT-2).
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + at): byte for at, byte in enumerate(others)}
