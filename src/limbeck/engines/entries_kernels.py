"""Lists of log-probabilities compiled by numba: read from JSON text, and put in order.

Both let go of Python's lock. `scan_lists` accepts exactly the shape that vLLM's server writes and gives up on anything
else; whoever calls it then reads the text with `json`, which is slower and says what is wrong.
"""

from typing import Any

import numpy as np

from limbeck.signals.codecs.compiling import compiled

FINE, NOTHING, OUTSIDE, NOT_A_NUMBER, ABOVE_ZERO, TWICE, WITHOUT_OWN = range(7)
CLAMPED = -9999.0  # what servers write for -inf, which JSON does not have
ABOVE = 1e-3  # a log-probability above 0 by less is rounding

QUOTE, BACKSLASH, COMMA, COLON, MINUS, PLUS, POINT = (ord(sign) for sign in '"\\,:-+.')
OPEN_LIST, CLOSE_LIST, OPEN_OBJECT, CLOSE_OBJECT, ZERO, NINE = (ord(sign) for sign in "[]{}09")
LOGPROB = np.frombuffer(b'logprob"', dtype=np.uint8)
RANK = np.frombuffer(b'rank"', dtype=np.uint8)
POWERS = np.array([10.0**power for power in range(23)])
DIGITS = 18  # that fit into 64 bits


@compiled()
def arrange(
    starts: Any, ids: Any, logprobs: Any, ranks: Any, tokens: Any, seen: Any, best_ids: Any, best: Any, own: Any
) -> tuple[int, int, int]:
    """Put each position's entries in falling order, the best K of them, and check them.

    Place p of the lists is about token p of the row; position p - 1 of what is returned.

    Args:
        starts: `[T + 1]`, where each token's entries begin and end.
        ids: `[E]`, token ids.
        logprobs: `[E]`.
        ranks: `[E]`, 1 for the most probable, 0 where unknown.
        tokens: `[T]`, the row.
        seen: `[V]`, zeros; scratch.
        best_ids: `[T, K]`, zeros; filled.
        best: `[T, K]`, `-inf`; filled.
        own: `[T]`; filled with the log-probability of the token that comes next.

    Returns:
        a fault (FINE if there is none), its place p, and the entry that is wrong.
    """
    width = best.shape[1]
    for place in range(1, len(tokens)):
        first, last = starts[place], starts[place + 1]
        if first == last:
            return NOTHING, place, first
        found = False
        filled = 0
        for entry in range(first, last):
            token, value = ids[entry], logprobs[entry]
            if token < 0 or token >= len(seen):
                return OUTSIDE, place, entry
            if not value <= ABOVE:
                return (ABOVE_ZERO if value > ABOVE else NOT_A_NUMBER), place, entry
            value = min(value, 0.0)
            if value <= CLAMPED:
                value = -np.inf
            if seen[token] == place:
                # vLLM's flat lists name the row's own token first and again among the most probable
                if token != tokens[place] or value != own[place - 1]:
                    return TWICE, place, entry
                continue
            seen[token] = place
            if token == tokens[place]:
                found = True
                own[place - 1] = value
                if ranks[entry] > last - first:  # it is here as the row's own, not as one of the most probable
                    continue
            if value == -np.inf or (filled == width and value <= best[place - 1, width - 1]):
                continue
            spot = filled if filled < width else width - 1
            while spot > 0 and best[place - 1, spot - 1] < value:
                best[place - 1, spot] = best[place - 1, spot - 1]
                best_ids[place - 1, spot] = best_ids[place - 1, spot - 1]
                spot -= 1
            best[place - 1, spot] = value
            best_ids[place - 1, spot] = token
            filled = min(filled + 1, width)
        if not found:
            return WITHOUT_OWN, place, first
    return FINE, 0, 0


@compiled()
def scan_lists(text: Any, at: int, starts: Any, ids: Any, logprobs: Any, ranks: Any) -> tuple[int, int]:
    """Read `[null, {"7": {"logprob": -0.5, "rank": 1, "decoded_token": "x"}, …}, …]`.

    Args:
        text: bytes of JSON, with at least one zero byte behind it.
        at: where the bracket stands.
        starts: filled with where each place's entries begin, and one more.
        ids: filled; as long as there can be entries. So are `logprobs` and `ranks`.

    Returns:
        where the list ends and how many places it has; (-1, 0) if it has not this shape.
    """
    places = entries = 0
    starts[0] = 0
    at = _blanks(text, at + 1)
    while text[at] != CLOSE_LIST:
        if places:
            if text[at] != COMMA:
                return -1, 0
            at = _blanks(text, at + 1)
        if text[at] == OPEN_OBJECT:
            at, entries = _scan_place(text, at, entries, ids, logprobs, ranks)
        elif (
            text[at] == ord("n") and text[at + 1] == ord("u") and text[at + 2] == ord("l") and text[at + 3] == ord("l")
        ):
            at += 4
        else:
            return -1, 0
        if at < 0 or places + 2 > len(starts):
            return -1, 0
        places += 1
        starts[places] = entries
        at = _blanks(text, at)
    return at + 1, places


@compiled()
def _scan_place(text: Any, at: int, entries: int, ids: Any, logprobs: Any, ranks: Any) -> tuple[int, int]:
    """Read one object of entries; return what follows it, and how many entries there are now."""
    before = entries
    at = _blanks(text, at + 1)
    while text[at] != CLOSE_OBJECT:
        if entries > before:
            if text[at] != COMMA:
                return -1, entries
            at = _blanks(text, at + 1)
        if text[at] != QUOTE or entries == len(ids):
            return -1, entries
        at += 1
        token = 0
        begin = at
        while ZERO <= text[at] <= NINE:
            token = token * 10 + (int(text[at]) - ZERO)
            at += 1
        if text[at] != QUOTE or not 0 < at - begin <= DIGITS:
            return -1, entries
        at = _after_colon(text, at + 1)
        if at < 0 or text[at] != OPEN_OBJECT:
            return -1, entries
        at, logprob, rank = _scan_entry(text, at)
        if at < 0:
            return -1, entries
        ids[entries], logprobs[entries], ranks[entries] = token, logprob, rank
        entries += 1
        at = _blanks(text, at)
    return at + 1, entries


@compiled()
def _scan_entry(text: Any, at: int) -> tuple[int, float, int]:
    """Read the object of one entry; return what follows it, its log-probability and its rank."""
    logprob, rank, known, fields = 0.0, 0, False, 0
    at = _blanks(text, at + 1)
    while text[at] != CLOSE_OBJECT:
        if fields:
            if text[at] != COMMA:
                return -1, 0.0, 0
            at = _blanks(text, at + 1)
        if text[at] != QUOTE:
            return -1, 0.0, 0
        is_logprob = text[at + 1] == LOGPROB[0] and _is(text, at + 1, LOGPROB)
        is_rank = text[at + 1] == RANK[0] and _is(text, at + 1, RANK)
        if is_logprob:
            at += len(LOGPROB) + 1
        elif is_rank:
            at += len(RANK) + 1
        else:
            at = _string(text, at)
        if at < 0:
            return -1, 0.0, 0
        at = _after_colon(text, at)
        if at < 0:
            return -1, 0.0, 0
        if text[at] == QUOTE and not is_logprob and not is_rank:
            at = _string(text, at)
        elif text[at] == MINUS or ZERO <= text[at] <= NINE:
            at, value = _number(text, at)
            if is_logprob:
                logprob, known = value, True
            elif is_rank:
                rank = int(value)
        elif text[at] == ord("n") and text[at + 1] == ord("u") and text[at + 2] == ord("l") and not is_logprob:
            at += 4 if text[at + 3] == ord("l") else -at - 1
        else:
            return -1, 0.0, 0
        if at < 0:
            return -1, 0.0, 0
        fields += 1
        at = _blanks(text, at)
    return (at + 1 if known else -1), logprob, rank


@compiled()
def _number(text: Any, at: int) -> tuple[int, float]:
    """Read a number to within two units in the last place of a float64."""
    negative = text[at] == MINUS
    if negative:
        at += 1
    begin = at
    mantissa, digits, exponent = 0, 0, 0
    while ZERO <= text[at] <= NINE:
        if digits < DIGITS:
            mantissa = mantissa * 10 + (int(text[at]) - ZERO)
            digits += 1 if mantissa else 0
        else:
            exponent += 1
        at += 1
    if at == begin or (text[begin] == ZERO and at > begin + 1):
        return -1, 0.0
    if text[at] == POINT:
        at += 1
        begin = at
        while ZERO <= text[at] <= NINE:
            if digits < DIGITS:
                mantissa = mantissa * 10 + (int(text[at]) - ZERO)
                digits += 1 if mantissa else 0
                exponent -= 1
            at += 1
        if at == begin:
            return -1, 0.0
    if text[at] == ord("e") or text[at] == ord("E"):
        at += 1
        sign = -1 if text[at] == MINUS else 1
        if text[at] == MINUS or text[at] == PLUS:
            at += 1
        begin = at
        power = 0
        while ZERO <= text[at] <= NINE:
            power = power * 10 + (int(text[at]) - ZERO)
            at += 1
        if not 0 < at - begin <= 3:
            return -1, 0.0
        exponent += sign * power
    value = float(mantissa)
    if exponent < 0:
        value = value / POWERS[-exponent] if -exponent < len(POWERS) else value * 10.0**exponent
    elif exponent:
        value = value * POWERS[exponent] if exponent < len(POWERS) else value * 10.0**exponent
    return at, -value if negative else value


@compiled()
def _string(text: Any, at: int) -> int:
    """Return what follows the string that begins at this quote, or -1 if it does not end."""
    at += 1
    while text[at] != QUOTE:
        if text[at] < 32:
            return -1
        at += 2 if text[at] == BACKSLASH and text[at + 1] else 1
    return at + 1


@compiled()
def _is(text: Any, begin: int, word: Any) -> bool:
    for index in range(len(word)):  # noqa: SIM110 - a loop is what numba compiles
        if text[begin + index] != word[index]:
            return False
    return True


@compiled()
def _after_colon(text: Any, at: int) -> int:
    at = _blanks(text, at)
    return _blanks(text, at + 1) if text[at] == COLON else -1


@compiled()
def _blanks(text: Any, at: int) -> int:
    while text[at] == 32 or text[at] == 10 or text[at] == 13 or text[at] == 9:
        at += 1
    return at
