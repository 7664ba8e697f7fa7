"""Which tokens of an old vocabulary a token of a new one is made of: by the bytes that it stands for.

Byte-level vocabularies, vocabularies that write a space as `▁`, and vocabularies of word pieces (`##`) are compared by
the text that a token stands for, its leading space included, so that the same token is found whatever family it is of.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from transformers import PreTrainedTokenizerBase

from limbeck.engines.alignment import TokenBytes
from limbeck.errors import UserError
from limbeck.models.token_roles import added_tokens, counterparts, is_reserved

Kind = Literal["copied", "role", "composed", "random", "padding"]


@dataclass(frozen=True)
class Origin:
    """Where a token's rows come from.

    Attributes:
        kind: `copied` from the token of the same bytes; from the special token of the same `role`; `composed` of the
            old tokens that its bytes are written in; `random`; `padding`, which is no token at all.
        pieces: old ids.
    """

    kind: Kind
    pieces: tuple[int, ...] = ()


class Lexicon:
    """A tokenizer's tokens by their bytes.

    Args:
        tokenizer: byte-level, with `▁` for spaces, or of word pieces.
        name: what messages call it.

    Raises:
        UserError: the tokens of this tokenizer can't be told by bytes.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
        self.tokenizer = tokenizer
        self.added = added_tokens(tokenizer)
        self.data = _bytes_of(tokenizer, self.added, name)

    @cached_property
    def ids(self) -> dict[bytes, int]:
        """The id of each string of bytes; of two, the token that is written as text, not as a byte."""
        found: dict[bytes, int] = {}
        pieces = self.tokenizer.convert_ids_to_tokens(list(self.data))
        for (token, spellings), _ in sorted(zip(self.data.items(), pieces, strict=True), key=_text_first):
            for data in spellings:
                found.setdefault(data, token)
        return found

    @cached_property
    def longest(self) -> int:
        """The most bytes that a token has."""
        return max(map(len, self.ids), default=0)

    def shown(self, token: int) -> str:
        """Return a token as reports show it."""
        if token in self.added:
            return self.added[token]
        return self.data.get(token, [b""])[0].decode("utf-8", "backslashreplace")

    def pieces(self, data: bytes) -> tuple[int, ...]:
        """Return the tokens that bytes are written in; what no token can write is left out."""
        return self._as_read(data) or tuple(self._greedily(data))

    def _as_read(self, data: bytes) -> tuple[int, ...]:
        """Return the tokens in which the tokenizer itself reads the bytes, if these are text and nothing is added."""
        try:
            text = data.decode()
        except UnicodeDecodeError:
            return ()
        ids = self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
        for part in (ids, ids[1:]):  # without the space that some put in front
            spelled = [self.data[token][0] for token in part if token in self.data]
            if len(spelled) == len(part) and b"".join(spelled) == data:
                return tuple(part)
        return ()

    def _greedily(self, data: bytes) -> Iterator[int]:
        place = 0
        while place < len(data):
            for stop in range(min(len(data), place + self.longest), place, -1):
                if (token := self.ids.get(data[place:stop])) is not None:
                    yield token
                    place = stop
                    break
            else:
                place += 1


def origins(old: Lexicon, new: Lexicon, vocabulary: int) -> list[Origin]:
    """Return the origin of each of `vocabulary` rows for the new tokenizer's ids.

    Special and added tokens come from the old token of the same text or role, else of their text's pieces; those that
    are reserved for later use, and rows beyond the tokenizer's entries, of nothing.
    """
    special = counterparts(new.tokenizer, old.tokenizer)
    found = []
    for token in range(vocabulary):
        if token in special:
            same = new.added[token] == old.added.get(special[token])
            found.append(Origin("copied" if same else "role", (special[token],)))
        elif token in new.added:
            text = new.added[token].encode()
            found.append(_composed(old, [] if is_reserved(new.added[token]) else [text]))
        elif token in new.data:
            found.append(_composed(old, new.data[token]))
        else:
            found.append(Origin("padding"))
    return found


def _composed(old: Lexicon, spellings: list[bytes]) -> Origin:
    for data in spellings:
        if (token := old.ids.get(data)) is not None:
            return Origin("copied", (token,))
    for data in spellings:
        if pieces := old.pieces(data):
            return Origin("composed", pieces)
    return Origin("random")


def _bytes_of(tokenizer: PreTrainedTokenizerBase, added: dict[int, str], name: str) -> dict[int, list[bytes]]:
    """Return how each ordinary token is spelled; a word's first piece with the space before it, and without."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UserError(f"{name}: this tokenizer has no tokenizer.json. Save it as a fast tokenizer.")
    if type(backend.model).__name__ == "WordPiece":
        prefix = str(backend.model.continuing_subword_prefix)
        return {
            token: [piece.removeprefix(prefix).encode()] if piece.startswith(prefix) else _word(piece)
            for piece, token in tokenizer.get_vocab().items()
            if token not in added
        }
    try:
        vocabulary = TokenBytes(tokenizer).vocabulary
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
    return {token: [data] for token, data in vocabulary.data.items() if token not in added}


def _word(piece: str) -> list[bytes]:
    spellings = [f" {piece}".encode(), piece.encode()]
    return spellings if piece[:1].isalnum() else spellings[::-1]


def _text_first(entry: tuple[tuple[int, list[bytes]], str]) -> tuple[bool, int]:
    (token, _), piece = entry
    return piece.startswith("<0x"), token
