"""From written text to token ids, with the stretches that are trained; special tokens only where a template put them.

A text that happens to spell a special token (`<|endoftext|>` in a page about tokenizers) is text: it has to become
ordinary tokens, and only what a chat template writes may become special ones. Plain texts are encoded with
`split_special_tokens`. A template's writing mixes both, so where a message spells special tokens the two are told
apart by *respelling*: each special token gets a private character as its name, in a copy of the tokenizer that knows
it by that name alone. In the text for that copy the template's special tokens are private characters, and those that
messages spell are what they are.

Not touched: added tokens that the tokenizer does not count as special (`<think>` of many). They are tokens wherever
they are spelled. A vocabulary that holds a special token's spelling as an ordinary piece can't tell the two apart
either.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from tokenizers import Encoding, Tokenizer
from transformers import PreTrainedTokenizerBase

FIRST_PRIVATE = 0x100000  # where Unicode's last plane of private characters begins


@dataclass(frozen=True)
class TokenRow:
    """A row of token ids; `trained[i]` says whether token `i` is one that a student should learn to produce."""

    ids: tuple[int, ...]
    trained: tuple[bool, ...]


@dataclass(frozen=True)
class Written:
    """A text to encode.

    Attributes:
        text: the text.
        trained: stretches of characters, each from its first up to but without its last.
        specials: which special tokens it holds: `none` (all that is spelled is text), `spelled` (all that is spelled is
            meant), or `respelled` (those that are meant are private characters).
    """

    text: str
    trained: tuple[tuple[int, int], ...]
    specials: Literal["none", "spelled", "respelled"]

    @property
    def whole(self) -> bool:
        """Whether all of it is trained."""
        return self.trained == ((0, len(self.text)),)


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[Written]) -> list[TokenRow]:
    """Return the tokens of each text, trained where they lie wholly within a trained stretch.

    No special tokens are added. A token that straddles the border of a stretch is not trained: a model that is asked to
    go on from there would never be asked for it.

    Raises:
        ValueError: the tokenizer is none of the `tokenizers` library's.
    """
    rows: list[TokenRow | None] = [None] * len(texts)
    alike: dict[tuple[str, bool], list[int]] = {}
    for place, text in enumerate(texts):
        alike.setdefault((text.specials, text.whole or not text.trained), []).append(place)
    for (specials, uniform), places in alike.items():
        spelling = respelling(tokenizer) if specials == "respelled" else None
        backend = spelling.tokenizer if spelling else _backend(tokenizer, len(tokenizer))
        backend.encode_special_tokens = specials == "none"
        encode_batch = backend.encode_batch_fast if uniform else backend.encode_batch  # without offsets, or with
        written = [texts[place].text for place in places]
        for place, encoding in zip(places, encode_batch(written, add_special_tokens=False), strict=True):
            ids = tuple(spelling.ids.get(token, token) for token in encoding.ids) if spelling else tuple(encoding.ids)
            trained = (texts[place].whole,) * len(ids) if uniform else _trained(encoding, texts[place])
            rows[place] = TokenRow(ids, trained)
    return [row for row in rows if row is not None]


def _trained(encoding: Encoding, text: Written) -> tuple[bool, ...]:
    """Return which tokens lie wholly within a trained stretch.

    The tokens at the borders of a stretch are asked for; only where these don't say it are all offsets looked at.
    """
    trained = [False] * len(encoding.ids)
    for start, stop in text.trained:
        first, last = _tokens_before(encoding, start, text), _tokens_before(encoding, stop, text)
        if first is None or last is None:
            return _trained_by_offsets(encoding, text)
        first += _straddles(encoding, first, start)
        trained[first:last] = [True] * (last - first)
    return tuple(trained)


def _tokens_before(encoding: Encoding, place: int, text: Written) -> int | None:
    """Return how many tokens stand before the one with this character.

    None: it is in no token (some leave out spaces), or tokens before it have no characters of their own.
    """
    count = len(encoding.ids) if place == len(text.text) else encoding.char_to_token(place)
    if not count:
        return count
    before = encoding.token_to_chars(count - 1)
    return count if before is not None and before[0] < place else None


def _straddles(encoding: Encoding, token: int, place: int) -> bool:
    span = encoding.token_to_chars(token) if token < len(encoding.ids) else None
    return span is not None and span[0] < place


def _trained_by_offsets(encoding: Encoding, text: Written) -> tuple[bool, ...]:
    starts, stops = np.asarray(encoding.offsets, dtype=np.int64).reshape(-1, 2).T
    trained = np.zeros(len(starts), dtype=np.bool_)
    for start, stop in text.trained:
        trained |= (starts >= start) & (starts < stop) & (stops <= stop)
    return tuple(trained.tolist())


@lru_cache(maxsize=4)
def _backend(tokenizer: PreTrainedTokenizerBase, entries: int) -> Tokenizer:
    """Return a copy of what a tokenizer does with text: settings that its other users leave behind don't reach it."""
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise ValueError(f"a tokenizer of the kind {type(tokenizer).__name__} can't be used: it has no tokenizer.json")
    backend: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    return Tokenizer.from_str(json.dumps(backend | {"padding": None, "truncation": None, "post_processor": None}))


@dataclass(frozen=True)
class Respelling:
    """A tokenizer's special tokens under private names.

    Attributes:
        names: spelling of each special token to the private character that stands for it.
        spellings: the other way round.
        tokenizer: the copy that knows them by these.
        ids: the copy's ids of special tokens to the original ones.
        either: matches one spelling or one private character.
    """

    names: dict[str, str]
    spellings: dict[str, str]
    tokenizer: Tokenizer
    ids: dict[int, int]
    either: re.Pattern[str]

    def mark(self, value: Any) -> Any:
        """Return a JSON value with private characters for the special tokens that its texts spell.

        Raises:
            ValueError: it holds such characters already.
        """
        if isinstance(value, str):
            if any(character in self.spellings for character in value):
                raise ValueError("a message spells a special token, and holds private characters (plane 16) as well")
            return self.swap(value)
        if isinstance(value, dict):
            return {self.mark(key): self.mark(item) for key, item in value.items()}
        return [self.mark(item) for item in value] if isinstance(value, list | tuple) else value

    def unmark(self, text: str) -> str:
        """Return a text with what private characters stand for."""
        return "".join(self.spellings.get(character, character) for character in text)

    def swap(self, text: str) -> str:
        """Exchange spellings and private characters, in both directions."""
        return self.either.sub(lambda found: self.names.get(found[0]) or self.spellings[found[0]], text)


def spells_special(tokenizer: PreTrainedTokenizerBase, value: Any) -> bool:
    """Return whether any text within a JSON value spells a special token."""
    return _spells(_pattern(tokenizer, len(tokenizer)), value)


def respelling(tokenizer: PreTrainedTokenizerBase) -> Respelling:
    """Return a tokenizer's special tokens under private names; made once, as it copies the vocabulary."""
    return _respelling(tokenizer, len(tokenizer))


def _specials(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Return spelling and id of each special token; longer spellings first, so that none hides in another."""
    found = [(token.content, number) for number, token in tokenizer.added_tokens_decoder.items() if token.special]
    return dict(sorted(found, key=lambda pair: (-len(pair[0]), pair[0])))


@lru_cache(maxsize=8)
def _pattern(tokenizer: PreTrainedTokenizerBase, entries: int) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, _specials(tokenizer))) or "(?!)")


@lru_cache(maxsize=4)
def _respelling(tokenizer: PreTrainedTokenizerBase, entries: int) -> Respelling:
    specials = _specials(tokenizer)
    names = {spelling: chr(FIRST_PRIVATE + place) for place, spelling in enumerate(specials)}
    backend: dict[str, Any] = json.loads(_backend(tokenizer, entries).to_str())
    for token in backend["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    copy = Tokenizer.from_str(json.dumps(backend))
    numbers = copy.get_vocab(with_added_tokens=True)
    return Respelling(
        names=names,
        spellings={name: spelling for spelling, name in names.items()},
        tokenizer=copy,
        ids={numbers[name]: specials[spelling] for spelling, name in names.items()},
        either=re.compile("|".join(map(re.escape, [*names, *names.values()]))),
    )


def _spells(pattern: re.Pattern[str], value: Any) -> bool:
    if isinstance(value, str):
        return pattern.search(value) is not None
    if isinstance(value, dict):
        return any(_spells(pattern, item) for pair in value.items() for item in pair)
    return isinstance(value, list | tuple) and any(_spells(pattern, item) for item in value)
