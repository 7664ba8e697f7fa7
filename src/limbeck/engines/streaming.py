"""Text as it is written: tokens in, those characters out that no later token can change.

    stream = TextStream(tokenizer, generator.ends, sampling.stop)
    [completion] = generator.generate([prompt], sampling, on_token=lambda _, __, token: show(stream.push(token)))
    show(stream.rest(completion.text))

What comes out is the completion's text, whole and in order.
"""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

UNKNOWN = "\ufffd"  # what stands for bytes that are no character yet


class TextStream:
    """The text of one completion, in pieces.

    Args:
        tokenizer: of the model.
        ends: tokens that end a text.
        stop: texts that do; they never come out, not even their beginnings.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, ends: frozenset[int], stop: Sequence[str] = ()) -> None:
        self._tokenizer, self._ends, self._stop = tokenizer, ends, tuple(stop)
        self._ids: list[int] = []
        self._shown = 0

    def push(self, token: int) -> str:
        """Return what is certain with this token and was not before."""
        if token not in self._ends:
            self._ids.append(token)
        text = str(
            self._tokenizer.decode(self._ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        ).rstrip(UNKNOWN)
        certain = min((place for stop in self._stop if (place := text.find(stop)) >= 0), default=len(text))
        for stop in self._stop:
            most = min(len(stop) - 1, certain)
            certain -= next((length for length in range(most, 0, -1) if text[:certain].endswith(stop[:length])), 0)
        return self._until(text, certain)

    def rest(self, text: str) -> str:
        """Return what has not come out yet of the whole text."""
        return self._until(text, len(text))

    def _until(self, text: str, place: int) -> str:
        piece = text[self._shown : place]
        self._shown = max(self._shown, place)
        return piece
