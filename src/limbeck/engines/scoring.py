"""Scoring: what a `transformers` teacher says about every trained position of some rows, as signals of a codec's kind.

Rows are read in batches of similar length, so that little padding is computed, and logits are made only for positions
that count, a chunk at a time: `[B, T, V]` never exists.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from limbeck.engines.transformers import final_hidden, output_head
from limbeck.errors import UserError
from limbeck.settings import Settings
from limbeck.signals.codecs.topk_spec import TopkSpec
from limbeck.signals.sparse import topk_of_logits
from limbeck.signals.stacking import ABSENT, concatenate, split
from limbeck.signals.types import DenseSignal, OutputHead, TeacherSignal, TokenSignal, tensors_of

CHUNK_LOGITS = 1 << 23


@torch.no_grad()
def score_rows(
    model: PreTrainedModel,
    rows: Sequence[tuple[Tensor, Tensor]],
    spec: Settings,
    *,
    batch_tokens: int,
    on_row: Callable[[int], None] = lambda tokens: None,
) -> list[TeacherSignal]:
    """Return the signal of each row, on the CPU.

    Args:
        model: the teacher, in evaluation mode.
        rows: `input_ids` `[T]` and `trained` `[T]` of each row.
        spec: settings of the codec that will store the signals; decides their kind.
        batch_tokens: tokens read at a time, padding included.
        on_row: called with the number of tokens of each finished row, for progress.

    Raises:
        UserError: this engine can't make the codec's kind of signal.
    """
    head = output_head(model)
    found: list[TeacherSignal | None] = [None] * len(rows)
    for batch in _batches([len(ids) for ids, _ in rows], batch_tokens):
        ids_BT = torch.nn.utils.rnn.pad_sequence([rows[row][0] for row in batch], batch_first=True)
        counted_BT = torch.zeros(ids_BT.shape, dtype=torch.bool)
        for place, row in enumerate(batch):
            trained = rows[row][1]
            counted_BT[place, : len(trained) - 1] = trained[1:]
        hidden_BTD = final_hidden(model, ids_BT.to(model.device))
        targets = torch.roll(ids_BT, -1, dims=1)[counted_BT]
        signal = _signal(hidden_BTD[counted_BT.to(model.device)], targets, head, spec)
        for row, counted, part in zip(batch, counted_BT, split(signal, counted_BT.sum(1).tolist()), strict=True):
            found[row] = _spread(part, counted[: len(rows[row][0])])
            on_row(len(rows[row][0]))
    return [signal for signal in found if signal is not None]


def _batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Yield row indices in batches of at most `batch_tokens` tokens after padding, longest rows first."""
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    batch: list[int] = []
    for row in order:
        if batch and (len(batch) + 1) * lengths[batch[0]] > batch_tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _signal(hidden_ND: Tensor, targets_N: Tensor, head: OutputHead, spec: Settings) -> TeacherSignal:
    """Return the signal of N positions."""
    step = max(16, CHUNK_LOGITS // head.weight.shape[0])
    parts: list[Any] = []
    for first in range(0, max(1, len(hidden_ND)), step):
        logits = torch.nn.functional.linear(hidden_ND[first : first + step], head.weight, head.bias).float()
        if head.soft_cap is not None:
            logits = head.soft_cap * torch.tanh(logits / head.soft_cap)
        parts.append(_of_logits(logits.cpu(), targets_N[first : first + step], spec))
    return concatenate(parts)


def _of_logits(logits_NV: Tensor, targets_N: Tensor, spec: Settings) -> TeacherSignal:
    if isinstance(spec, TopkSpec):
        return topk_of_logits(logits_NV, spec)
    mask_N = torch.ones(len(logits_NV), dtype=torch.bool)
    logprobs_NV = torch.log_softmax(logits_NV, dim=-1)
    match getattr(spec, "codec", ""):
        case "dense":
            return DenseSignal(logprobs_NV, mask_N)
        case "token":
            return TokenSignal(logprobs_NV.gather(-1, targets_N[:, None])[:, 0], mask_N)
        case name:
            raise UserError(f"codec {name!r}: a transformers teacher is captured with topk, dense or token.")


def _spread(signal: TeacherSignal, counted_T: Tensor) -> TeacherSignal:
    """Return a signal of the counted positions as one of the whole row, masked elsewhere."""
    spread: dict[str, Any] = {}
    for name, value in tensors_of(signal).items():
        whole = value.new_full((len(counted_T), *value.shape[1:]), ABSENT.get(name, 0))
        whole[counted_T] = value
        spread[name] = whole
    return replace(signal, **{**spread, "mask": counted_T})
