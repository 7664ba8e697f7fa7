"""What a chat template writes around the contents of messages, where that does not depend on what they say."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest


@dataclass(frozen=True)
class Skeleton:
    """The pieces of a rendering between contents, and the trained turns relative to these.

    Attributes:
        pieces: what stands before each content, and behind the last.
        turns: for each: its first message, where it begins relative to that one's content, its last message, and where
            it ends relative to the end of that one's content.
    """

    pieces: tuple[str, ...]
    turns: tuple[tuple[int, int, int, int], ...]

    def stretches(self, contents: Sequence[str], whole: str) -> list[tuple[int, int]] | None:
        """Return where the turns are in a rendering, or None if it is not these pieces around these contents."""
        if whole != "".join(part for pair in zip_longest(self.pieces, contents, fillvalue="") for part in pair):
            return None
        begins, ends, place = [], [], 0
        for piece, content in zip(self.pieces, contents, strict=False):
            begins.append(place + len(piece))
            ends.append(begins[-1] + len(content))
            place = ends[-1]
        return [(begins[first] + before, ends[last] + behind) for first, before, last, behind in self.turns]


def said(place: int) -> str:
    """Return what the message at a place says when a template is probed."""
    return f"said {place}."


def skeleton_of(
    whole: str,
    contents: Sequence[str],
    turns: Sequence[tuple[int, int]],
    stretches: Sequence[tuple[int, int]],
) -> Skeleton | None:
    """Return the skeleton of a rendering of contents that each occur once, or None where there is no such thing.

    Args:
        whole: the rendering.
        contents: in order.
        turns: first and last message of each turn.
        stretches: where these turns are in the rendering.
    """
    if any(whole.count(content) != 1 for content in contents):
        return None
    begins = [whole.index(content) for content in contents]
    ends = [begin + len(content) for begin, content in zip(begins, contents, strict=True)]
    if begins != sorted(begins):
        return None
    pieces = [whole[end:begin] for end, begin in zip([0, *ends], [*begins, len(whole)], strict=True)]
    found = []
    for (first, last), (start, stop) in zip(turns, stretches, strict=True):
        before, behind = start - begins[first], stop - ends[last]
        if not (-len(pieces[first]) <= before <= 0 <= behind <= len(pieces[last + 1])):
            return None  # a border that lies within a content
        found.append((first, before, last, behind))
    return Skeleton(tuple(pieces), tuple(found))
