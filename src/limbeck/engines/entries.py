"""From lists of the most probable tokens, as servers and vLLM return them, to signals: checked, never shifted.

The list at place p of a row is about token p given the tokens before it; it has the K most probable tokens, and the
row's own token p wherever that ranks. That own token is what proves that lists and row belong together: a list that
lacks it is an error that names row and position, and so is a place without a list.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limbeck.errors import LimbeckError
from limbeck.signals.tail import log_complement
from limbeck.signals.types import TokenSignal, TopkSignal

LISTS = re.compile(rb'(?<!\\)"prompt_logprobs"\s*:\s*(?=\[)')
SHORTEST_ENTRY = len('"0":{"logprob":0}')
SHORTEST_PLACE = len("{},")
UNRANKED = 1 << 40  # the rank of a token that is not among the most probable
Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Entries:
    """The lists of one row, end to end.

    Attributes:
        starts: `[P + 1]`, where each place's entries begin and end; place 0 has none.
        ids: `[E]`, token ids.
        logprobs: `[E]`, natural; what is -9999 or less is absent.
        ranks: `[E]`, 1 for the most probable; 0 where unknown.
    """

    starts: Integers
    ids: Integers
    logprobs: Floats
    ranks: Integers

    def __len__(self) -> int:
        return len(self.starts) - 1


class ShapeError(LimbeckError):
    """What came are not lists of log-probabilities; whoever asked for them says from whom."""


def entries_of_lists(lists: Sequence[Any]) -> Entries:
    """Return the entries of parsed JSON: `[null, {"7": {"logprob": -0.5, "rank": 1}, …}, …]`.

    Raises:
        ShapeError: they are something else.
    """
    starts, ids, logprobs, ranks = [0], [], [], []
    for place in lists:
        try:
            for token, entry in (place or {}).items():
                ids.append(int(token))
                logprobs.append(float(entry["logprob"]))
                ranks.append(int(entry.get("rank") or 0))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ShapeError(f"the list of token {len(starts) - 1} is no list of log-probabilities") from error
        starts.append(len(ids))
    return Entries(
        np.array(starts, dtype=np.int64), np.array(ids, dtype=np.int64), np.array(logprobs, dtype=np.float64),
        np.array(ranks, dtype=np.int64),
    )  # fmt: skip


def entries_of_tops(owns: Sequence[tuple[int, float]], tops: Sequence[Sequence[tuple[int | None, float]]]) -> Entries:
    """Return the entries of tokens whose own log-probability and most probable rivals stand apart.

    Where a rival can't be told (its id is None), it and all that are less probable are left to the tail: what is kept
    are the most probable tokens, only fewer of them.

    Args:
        owns: id and log-probability of each of P tokens.
        tops: for each of them the most probable tokens and their log-probabilities, in any order.

    Returns:
        the lists of P + 1 places; the first has none.
    """
    starts, ids, logprobs, ranks = [0, 0], [], [], []
    for (own, value), top in zip(owns, tops, strict=True):
        known: dict[int, float] = {}
        for token, logprob in sorted(top, key=lambda entry: -entry[1]):
            if token is None:
                break
            known[token] = logprob
        if own not in known:
            ids.append(own)
            logprobs.append(value)
            ranks.append(UNRANKED)
        ids += known.keys()
        logprobs += known.values()
        ranks += [0] * len(known)
        starts.append(len(ids))
    return Entries(
        np.array(starts, dtype=np.int64), np.array(ids, dtype=np.int64), np.array(logprobs, dtype=np.float64),
        np.array(ranks, dtype=np.int64),
    )  # fmt: skip


def read_answer(body: bytes) -> dict[str, Any]:
    """Return an answer of vLLM's server, its lists as `Entries` in place of `prompt_logprobs`.

    The lists, which are nearly all of the text, are read by compiled code; the rest by `json`. Where the lists do not
    have the usual shape, `json` reads them too.

    Raises:
        ValueError: this is not JSON, or not an object: half an answer.
        ShapeError: the lists are something else.
    """
    found = LISTS.search(body)
    begin = found.end() if found else 0
    scanned = _scanned(body, begin) if found else None
    if scanned is None:
        answer = json.loads(body)
    else:
        entries, end = scanned
        answer = json.loads(body[:begin] + b"0" + body[end:])
    if not isinstance(answer, dict):
        raise ValueError("the answer is not an object")
    choices = answer.get("choices")
    for part in (answer, *(choices if isinstance(choices, list) else ())):
        lists = part.get("prompt_logprobs") if isinstance(part, dict) else None
        if isinstance(lists, list):
            part["prompt_logprobs"] = entries_of_lists(lists)
        elif scanned and lists == 0:
            part["prompt_logprobs"] = entries
    return answer


def _scanned(body: bytes, at: int) -> tuple[Entries, int] | None:
    """Return the entries of the list that begins at `at`, and where it ends; None if it has not the usual shape."""
    from limbeck.engines.entries_kernels import scan_lists  # numba takes half a second to import

    text = np.frombuffer(body + b"\0", dtype=np.uint8)
    room = len(body) // SHORTEST_ENTRY + 1  # more than there can be; what is not written to takes no memory
    ids, logprobs, ranks = np.empty(room, np.int64), np.empty(room, np.float64), np.empty(room, np.int64)
    starts = np.empty(len(body) // SHORTEST_PLACE + 3, np.int64)
    end, places = scan_lists(text, at, starts, ids, logprobs, ranks)
    if end < 0:
        return None
    used = int(starts[places])
    return Entries(starts[: places + 1].copy(), ids[:used].copy(), logprobs[:used].copy(), ranks[:used].copy()), end


def signal_of_entries(
    entries: Entries, ids_T: Tensor, counted_T: Tensor, *, kind: str, width: int, vocabulary: int, where: str
) -> TopkSignal | TokenSignal:
    """Return what the lists say about a row.

    Args:
        entries: the row's lists.
        ids_T: the row.
        counted_T: the positions that are to say something; the last is not among them. Of these, the ones where no
            token at all is known are masked too.
        kind: `topk` or `token`.
        width: the most entries that a position keeps.
        vocabulary: V.
        where: who answered and which row it was, for messages: `server …: row 7`.

    Raises:
        LimbeckError: the lists are not about this row, or hold what is no distribution; the position is named.
    """
    tokens = ids_T.numpy().astype(np.int64)
    if len(entries) != len(tokens):
        raise LimbeckError(
            f"{where}: it has {len(tokens)} tokens, but log-probabilities came for {len(entries)}. "
            "Nothing of this row is taken: it was cut, or not read as it was sent."
        )
    if len(tokens) and entries.starts[1] != 0:
        raise LimbeckError(f"{where}, position 0: a list for the first token, before which nothing stands.")
    best_ids, best, own = _arranged(entries, tokens, width, vocabulary, where)
    if kind == "token":
        return TokenSignal(torch.from_numpy(own).float().masked_fill(~counted_T, 0.0), counted_T)
    return _topk(best_ids, best, counted_T & torch.from_numpy(best[:, 0] > -np.inf), vocabulary)


def signal_of_answer(
    entries: Entries, ids: Sequence[int], *, width: int, vocabulary: int, where: str
) -> tuple[TopkSignal, Tensor]:
    """Return what a model said about the tokens that it generated.

    Args:
        entries: lists of one place more than there are tokens; the first is empty.
        ids: the n generated tokens.

    Returns:
        a signal `[n]` whose position j is about `ids[j]`, masked where nothing is known but its own token; and the
        tokens' own log-probabilities `[n]`.

    Raises:
        LimbeckError: the lists are not about these tokens; the position is named.
    """
    tokens = np.array([0, *ids], dtype=np.int64)
    if len(entries) != len(tokens):
        raise LimbeckError(f"{where}: {len(ids)} tokens came, but log-probabilities for {len(entries) - 1}.")
    best_ids, best, own = _arranged(entries, tokens, width, vocabulary, where)
    known = torch.from_numpy(best[:-1, 0] > -np.inf)
    return _topk(best_ids[:-1], best[:-1], known, vocabulary), torch.from_numpy(own[:-1]).float()


def _topk(best_ids: Integers, best: Floats, mask_T: Tensor, vocabulary: int) -> TopkSignal:
    logprobs_TK = torch.from_numpy(best)
    log_tail_T = log_complement(logprobs_TK.logsumexp(-1))
    if best.shape[1] == vocabulary:
        log_tail_T = log_tail_T.masked_fill((logprobs_TK > float("-inf")).all(-1), float("-inf"))
    return TopkSignal(
        ids=torch.from_numpy(best_ids).masked_fill(~mask_T[:, None], 0),
        logprobs=logprobs_TK.float().masked_fill(~mask_T[:, None], float("-inf")),
        log_tail_mass=log_tail_T.float().masked_fill(~mask_T, float("-inf")),
        log_normalisers=torch.zeros(len(mask_T), 1),
        temperatures=(1.0,),
        mask=mask_T,
    )


def _arranged(
    entries: Entries, tokens: Integers, width: int, vocabulary: int, where: str
) -> tuple[Integers, Floats, Floats]:
    """Return ids `[T, K]`, log-probabilities `[T, K]` and those of the next tokens `[T]`."""
    from limbeck.engines import entries_kernels as kernels  # numba takes half a second to import

    best_ids = np.zeros((len(tokens), width), dtype=np.int64)
    best = np.full((len(tokens), width), -np.inf)
    own = np.zeros(len(tokens))
    seen = np.zeros(vocabulary, dtype=np.int32)
    fault, place, entry = kernels.arrange(
        entries.starts, entries.ids, entries.logprobs, entries.ranks, tokens, seen, best_ids, best, own
    )
    if fault == kernels.FINE:
        return best_ids, best, own
    token = int(entries.ids[entry]) if entry < len(entries.ids) else -1
    value = float(entries.logprobs[entry]) if entry < len(entries.ids) else 0.0
    complaint = {
        kernels.NOTHING: "no log-probabilities came",
        kernels.OUTSIDE: f"token id {token} is outside the vocabulary of {vocabulary}",
        kernels.NOT_A_NUMBER: f"the log-probability of token {token} is not a number",
        kernels.ABOVE_ZERO: f"token {token} has a log-probability of {value:g}, above 0",
        kernels.TWICE: f"token {token} is given twice",
        kernels.WITHOUT_OWN: f"the list lacks token {tokens[place]}, with which the row goes on: it is not of this row",
    }[fault]
    raise LimbeckError(f"{where}, position {place - 1}: {complaint}. Nothing of this row is taken.")
