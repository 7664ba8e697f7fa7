"""Rows of text as `SignalRow`s, and several rows as one, in which they are documents."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from limbeck.data.encoding import TokenRow
from limbeck.signals.dataset import SignalRow
from limbeck.signals.encoded_rows import laid_end_to_end
from limbeck.signals.stacking import concatenate


def text_row(row: TokenRow, start: int = 0) -> SignalRow:
    """Return a row of tokens without a signal; the tokens up to position `start` are not trained."""
    trained = torch.tensor(row.trained, dtype=torch.bool)
    trained[: start + 1 if start else 0] = False
    return SignalRow(torch.tensor(row.ids, dtype=torch.int64), trained, None)


def packed(rows: Sequence[SignalRow]) -> SignalRow:
    """Return rows of one source as one row, in which they are documents."""
    whole = laid_end_to_end(rows, [(index, 0, len(row.input_ids)) for index, row in enumerate(rows)])
    numbers, count = [], 0
    for row in rows:
        inside = row.documents if row.documents is not None else torch.zeros_like(row.input_ids)
        own = torch.unique_consecutive(inside, return_inverse=True)[1]
        numbers.append(own + count)
        count += int(own.max()) + 1
    signals = [row.signal for row in rows if row.signal is not None]
    signal = concatenate(signals) if signals else None
    return replace(whole, signal=signal, documents=torch.cat(numbers), source=rows[0].source)
