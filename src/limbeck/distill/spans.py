"""Where two tokenizations of one text have said the same: the positions at which two models can be compared.

A place of a text is told in bytes of its UTF-8 form. Each tokenization is a list of ends: how much of the text has been
said once a token is read. Two positions belong together where the ends are equal. Ends are never inferred from lengths
of decoded strings, and never trusted unproven:

- Where a tokenizer's tokens stand for bytes (byte-level and byte-fallback vocabularies, `▁` for a space), the bytes of
  all tokens must make up the text, but for the space that some put in front. A token may end within a character.
- Where a normaliser rewrites the text (lower case, composed accents, dropped spaces), the tokenizer's own offsets are
  proposals: an end is accepted if the tokens since the last accepted one say exactly what the normaliser makes of the
  text between the two. The end of an unknown token is not accepted: it has read the text without knowing it.

What can't be proven has the end `NOWHERE`, and is compared with nothing: there are fewer positions, never shifted ones.
"""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from tokenizers import Encoding
from transformers import PreTrainedTokenizerBase

from limbeck.engines.alignment import TokenBytes, Vocabulary
from limbeck.errors import UserError

NOWHERE = -1
LONGEST_PROOF = 64  # tokens that may pass without a proven end before the rest of a text is given up
PROBE = " a  b\n c"  # shows whether spaces survive


@dataclass(frozen=True)
class Tokens:
    """A text in tokens.

    Attributes:
        ids: of the tokens.
        ends: bytes of the text that have been said after each; `NOWHERE` where that can't be told.
    """

    ids: list[int]
    ends: list[int]


@dataclass(frozen=True)
class Rewritten:
    """A row of one model's tokens as the text that another is to read.

    Attributes:
        text: ends before the first byte that is no UTF-8 (a character that the row's end cuts in two, say).
        ends: bytes of `text` that have been said after each of the row's tokens, or `NOWHERE`.
    """

    text: str
    ends: list[int]


def shared_positions(first: Sequence[int], second: Sequence[int]) -> list[tuple[int, int]]:
    """Return the positions `(i, j)` at which two tokenizations of one text have said the same of it, rising in both.

    Where several tokens in a row have the same end (one of them says nothing, as a beginning-of-text token does), it is
    the last: the one whose successor says what comes next.
    """
    last = {end: place for place, end in enumerate(second) if end != NOWHERE}
    own = {end: place for place, end in enumerate(first) if end != NOWHERE}
    return [(place, last[end]) for end, place in own.items() if end in last]


class TextTokens:
    """A tokenizer, as far as texts and places in them are concerned.

    Args:
        tokenizer: with a `tokenizer.json`.

    Raises:
        UserError: it has none.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise UserError(f"{tokenizer.name_or_path}: this tokenizer has no tokenizer.json. Save it as a fast one.")
        self.tokenizer = tokenizer
        self._backend = type(backend).from_str(backend.to_str())  # padding and truncation are settings of others
        self._backend.no_padding()
        self._backend.no_truncation()

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The bytes of every token.

        Raises:
            UserError: the tokens are not made of bytes.
        """
        return TokenBytes(self.tokenizer).vocabulary

    @cached_property
    def prefix(self) -> list[int]:
        """The tokens that this tokenizer puts in front of a text (a beginning-of-text token)."""
        bare, full = (self._backend.encode("a", add_special_tokens=added).ids for added in (False, True))
        starts = [place for place in range(len(full)) if full[place : place + len(bare)] == bare]
        return full[: starts[0]] if starts else []

    def read(self, text: str, *, prefix: bool = False) -> Tokens:
        """Return a text in tokens; with `prefix`, behind the tokens that stand in front of one, unless it has them."""
        encoding = self._backend.encode(text, add_special_tokens=False)
        front = self.prefix if prefix and encoding.ids[: len(self.prefix)] != self.prefix else []
        data = text.encode()
        ends = self._ends_by_bytes(encoding.ids, data) if self._of_bytes else None
        if ends is None:
            ends = self._ends_by_offsets(encoding, text)
        return Tokens([*front, *encoding.ids], [*(0 for _ in front), *ends])

    def rewrite(self, ids: Sequence[int], replacements: Mapping[int, str]) -> Rewritten:
        """Return the text that tokens of this tokenizer stand for.

        Args:
            ids: a row's.
            replacements: what stands for a token (a special one) instead of its own bytes. Once such a token is read,
                its whole replacement has been said; where that is empty, the token has no place in the text.

        Raises:
            UserError: the tokens are not made of bytes.
        """
        vocabulary = self.vocabulary
        written = bytearray()
        ends = []
        bare = True  # nothing, or a special token, stands in front: a space that was put there is not the text's
        for place, token in enumerate(ids):
            if token in replacements:
                written += replacements[token].encode()
                ends.append(len(written) if replacements[token] else NOWHERE)
                bare = self._space_after_special
                continue
            data = vocabulary.data.get(token, b"")
            if bare and self._space_in_front and (place == 0 or self._space_after_special):
                data = data.removeprefix(b" ")
            written += data
            ends.append(len(written) if token in vocabulary.data else NOWHERE)
            bare = False
        try:
            text = written.decode()
        except UnicodeDecodeError as error:
            text = written[: error.start].decode()
            ends = [end if end <= error.start else NOWHERE for end in ends]
        return Rewritten(text, ends)

    @cached_property
    def _added(self) -> dict[int, str]:
        return {token: str(entry.content) for token, entry in self.tokenizer.added_tokens_decoder.items()}

    @cached_property
    def _of_bytes(self) -> bool:
        try:
            return bool(self.vocabulary.ordinary)
        except UserError:
            return False

    @cached_property
    def _space_in_front(self) -> bool:
        return self._spaced(self._backend.encode("a", add_special_tokens=False).ids)

    @cached_property
    def _space_after_special(self) -> bool:
        special = next(iter(self.vocabulary.special), None)
        if not self._space_in_front or special is None:
            return False
        text = self.vocabulary.data[special].decode()
        ids = self._backend.encode(text + "a", add_special_tokens=False).ids
        return self._spaced(ids[1:])

    def _spaced(self, ids: Sequence[int]) -> bool:
        return bool(ids) and b"".join(self.vocabulary.data.get(token, b"") for token in ids).startswith(b" ")

    @cached_property
    def _keeps_spaces(self) -> bool:
        ids = self._backend.encode(PROBE, add_special_tokens=False).ids
        return self._of_bytes and self._ends_by_bytes(ids, PROBE.encode()) is not None

    def _ends_by_bytes(self, ids: Sequence[int], text: bytes) -> list[int] | None:
        """Return the ends where the bytes of all tokens make up the text, else None."""
        vocabulary = self.vocabulary
        ends: list[int] = []
        said = 0
        for run in _runs(ids, self._added):
            pieces = [vocabulary.data.get(token) for token in run]
            if any(piece is None for piece in pieces):
                return None
            joined = b"".join(piece for piece in pieces if piece is not None)
            if text.startswith(joined, said):
                extra = 0
            elif joined.startswith(b" ") and text.startswith(joined[1:], said):
                extra = 1
            else:
                return None
            place = 0
            for piece in pieces:
                place += len(piece or b"")
                ends.append(said + max(0, place - extra))
            said += len(joined) - extra
        return ends if said == len(text) else None

    def _ends_by_offsets(self, encoding: Encoding, text: str) -> list[int]:
        """Return the ends that can be proven among those that the tokenizer proposes."""
        offsets: list[tuple[int, int]] = encoding.offsets
        ends = [NOWHERE] * len(offsets)
        first, proven, proven_bytes = 0, 0, 0  # the first token behind the last proven place, and that place
        for place, (_, stop) in enumerate(offsets):
            if place - first >= LONGEST_PROOF:
                break
            unknown = encoding.ids[place] == self.tokenizer.unk_token_id
            following = offsets[place + 1][0] if place + 1 < len(offsets) else len(text)
            for end in (self._beyond_erased(text, stop), following):
                if end < proven or not (unknown or self._says(encoding, slice(first, place + 1), text[proven:end])):
                    continue
                proven_bytes += len(text[proven:end].encode())
                first, proven = place + 1, end
                ends[place] = NOWHERE if unknown else proven_bytes
                break
        return ends

    def _beyond_erased(self, text: str, end: int) -> int:
        """Return the end of what the normaliser leaves nothing of (an accent that it drops), but for spaces."""
        while (
            self._backend.normalizer is not None
            and end < len(text)
            and not text[end].isspace()
            and not self._backend.normalizer.normalize_str(text[end])
        ):
            end += 1
        return end

    def _says(self, encoding: Encoding, part: slice, text: str) -> bool:
        """Whether tokens say exactly what the normaliser makes of a stretch of text."""
        if encoding.ids[part] == [token := encoding.ids[part][0]] and token in self._added:
            return _packed(text) == _packed(self._added[token])  # no normaliser sees it
        normaliser = self._backend.normalizer
        normal = text if normaliser is None else normaliser.normalize_str(text)
        if self._of_bytes:
            said = b"".join(self.vocabulary.data.get(token, b"") for token in encoding.ids[part])
            if not self._keeps_spaces:
                return b"".join(said.split()) == _packed(normal)
            bare = self._space_in_front and (part.start == 0 or encoding.ids[part.start - 1] in self._added)
            told = (normal.encode(), normal.replace("▁", " ").encode())
            return said in told or (bare and said.removeprefix(b" ") in told)
        return b"".join(piece.removeprefix("##").encode() for piece in encoding.tokens[part]) == _packed(normal)


def _packed(text: str) -> bytes:
    return "".join(text.replace("▁", " ").split()).encode()


def _runs(ids: Sequence[int], added: Container[int]) -> list[list[int]]:
    """Return ids cut before and after every added token: text between these is read by itself."""
    runs: list[list[int]] = []
    for place, token in enumerate(ids):
        if place and token not in added and ids[place - 1] not in added:
            runs[-1].append(token)
        else:
            runs.append([token])
    return runs
