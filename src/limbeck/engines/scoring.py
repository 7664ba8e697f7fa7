"""Scoring: what a `transformers` teacher says about every trained position of some rows, as signals of a codec's kind.

Rows are read in batches of similar length, so that little padding is computed, and logits are made only for positions
that count, a chunk at a time: `[B, T, V]` never exists, and a codec of hidden states makes no logits at all. How logits
become a signal is `limbeck.signals.from_logits`'s to know.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from limbeck.engines.transformers import final_hidden, output_head
from limbeck.errors import UserError
from limbeck.seeds import derive_seed
from limbeck.settings import Settings
from limbeck.signals.codecs.hidden_head import HiddenSpec, hidden_spec, write_head
from limbeck.signals.codecs.sampled_random import Keys, position_keys
from limbeck.signals.from_logits import LogitsChunk, kind_stored, logits_of, maker_of
from limbeck.signals.stacking import ABSENT, concatenate, split
from limbeck.signals.types import HiddenSignal, OutputHead, TeacherSignal, tensors_of, to_device

CHUNK_LOGITS = 1 << 23
PROBE_TOKENS = 8
HEAD_TOLERANCE = 0.05  # of the largest logit: rounding is far below it, a scale that was left out far above

SignalMaker = Callable[[Tensor, Tensor, Keys], TeacherSignal]


@torch.no_grad()
def score_rows(
    model: PreTrainedModel,
    rows: Sequence[tuple[Tensor, Tensor]],
    spec: Settings,
    *,
    batch_tokens: int,
    on_row: Callable[[int], None] = lambda tokens: None,
    first_sample: int = 0,
    seed: int = 0,
) -> list[TeacherSignal]:
    """Return the signal of each row, on the CPU.

    Args:
        model: the teacher, in evaluation mode.
        rows: `input_ids` `[T]` and `trained` `[T]` of each row.
        spec: settings of the codec that will store the signals; decides their kind. For `hidden` those that
            `complete_spec` returns.
        batch_tokens: tokens read at a time, padding included.
        on_row: called with the number of tokens of each finished row, for progress.
        first_sample: the number of the first row in the whole capture; the others follow. With `seed` a row's number
            decides what is drawn for it, whatever rows it is scored with.
        seed: of what is drawn at random (`sampled`).

    Raises:
        UserError: this codec's signals can't be made of this model, or its head alone does not make its logits.
    """
    head = output_head(model)
    make = _signal_maker(spec, head)
    if len(rows):
        check_head(model, head, rows[0][0][:PROBE_TOKENS])
    found: list[TeacherSignal | None] = [None] * len(rows)
    for batch in _batches([len(ids) for ids, _ in rows], batch_tokens):
        ids_BT = torch.nn.utils.rnn.pad_sequence([rows[row][0] for row in batch], batch_first=True)
        counted_BT = torch.zeros(ids_BT.shape, dtype=torch.bool)
        for place, row in enumerate(batch):
            trained = rows[row][1]
            counted_BT[place, : len(trained) - 1] = trained[1:]
        hidden_BTD = final_hidden(model, ids_BT.to(model.device))
        targets_N = torch.roll(ids_BT, -1, dims=1)[counted_BT]
        keys = [position_keys(derive_seed(seed, "sample", first_sample + row), ids_BT.shape[1]) for row in batch]
        signal = make(hidden_BTD[counted_BT.to(model.device)], targets_N, np.stack(keys)[counted_BT.numpy()])
        for row, counted, part in zip(batch, counted_BT, split(signal, counted_BT.sum(1).tolist()), strict=True):
            found[row] = _spread(part, counted[: len(rows[row][0])])
            on_row(len(rows[row][0]))
    return [signal for signal in found if signal is not None]


def complete_spec(spec: Settings, model: PreTrainedModel) -> Settings:
    """Return a codec's settings with what they have to know of the teacher: for `hidden` its output head's digest.

    A manifest is made of what this returns; other codecs' settings come back as they are.

    Raises:
        UserError: the settings name another head, or the model's is not one linear layer.
    """
    if not isinstance(spec, HiddenSpec):
        return spec
    complete = hidden_spec(output_head(model), spec.dtype)
    if spec.head_sha256 and spec != complete:
        raise UserError(
            f"codec 'hidden': its settings name a head of SHA-256 {spec.head_sha256} and width {spec.width}, but the "
            f"teacher's has {complete.head_sha256} and {complete.width}. Leave both out, or name that teacher."
        )
    return complete


def write_references(folder: Path | str, spec: Settings, model: PreTrainedModel) -> None:
    """Publish what a dataset's signals refer to and its columns don't hold: for `hidden` the output head.

    Call it once the folder's writer is open; where it is there already it is checked. Other codecs need nothing.

    Raises:
        UserError: the settings name another head.
        IntegrityError: the folder holds another file in its place.
    """
    if isinstance(spec, HiddenSpec):
        write_head(folder, output_head(model), spec)


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


def _signal_maker(spec: Settings, head: OutputHead) -> SignalMaker:
    """Return what makes the signal of N positions, on the CPU, of hidden states, targets and keys."""
    vocabulary = head.weight.shape[0]
    if kind_stored(spec, vocabulary) == "hidden":
        bias = None if head.bias is None else head.bias.detach()
        ours = OutputHead(head.weight.detach(), bias, head.soft_cap)
        return lambda hidden_ND, targets_N, keys_N: _states(hidden_ND, ours)
    make = maker_of(spec, vocabulary)
    step = max(16, CHUNK_LOGITS // vocabulary)

    def of_states(hidden_ND: Tensor, targets_N: Tensor, keys_N: Keys) -> TeacherSignal:
        parts: list[Any] = []
        for first in range(0, max(1, len(hidden_ND)), step):
            part = slice(first, first + step)
            logits_NV = logits_of(hidden_ND[part], head)
            chunk = LogitsChunk(logits_NV, targets_N[part].to(logits_NV.device), keys_N[part])
            parts.append(to_device(make(chunk), "cpu"))
        return concatenate(parts)

    return of_states


def _states(hidden_ND: Tensor, head: OutputHead) -> HiddenSignal:
    return HiddenSignal(hidden_ND.cpu(), head, torch.ones(len(hidden_ND), dtype=torch.bool))


@torch.no_grad()
def check_head(model: PreTrainedModel, head: OutputHead, ids_T: Tensor) -> None:
    """Refuse a model that does more with its states than its head and soft-cap: a scale, say, that would be lost.

    Args:
        model: in evaluation mode.
        head: of the model, as `output_head` returns it.
        ids_T: a few tokens to try it on.

    Raises:
        UserError: its logits are not those of this head.
    """
    ids = ids_T[None].to(model.device)
    theirs = model(input_ids=ids, use_cache=False).logits[0].float()
    ours = logits_of(final_hidden(model, ids)[0], head).to(theirs.dtype)
    off = float((ours - theirs).abs().max())
    if not off <= HEAD_TOLERANCE * float(theirs.abs().max()):
        raise UserError(
            f"{type(model).__name__}: its logits are not those of its output head (they are up to {off:.3g} apart): it "
            "scales or shifts them. Capture from a model whose head is one linear layer, with a soft-cap at most."
        )


def _spread(signal: TeacherSignal, counted_T: Tensor) -> TeacherSignal:
    """Return a signal of the counted positions as one of the whole row, masked elsewhere."""
    spread: dict[str, Any] = {}
    for name, value in tensors_of(signal).items():
        whole = value.new_full((len(counted_T), *value.shape[1:]), ABSENT.get(name, 0))
        whole[counted_T] = value
        spread[name] = whole
    return replace(signal, **{**spread, "mask": counted_T})
