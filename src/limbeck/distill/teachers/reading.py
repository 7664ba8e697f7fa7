"""Reading a batch with a teacher: each document by itself, final states and inner layers in the batch's places.

A row of several documents is taken apart, and each is read as a row of its own, from position 0 and with nothing before
it: what one document says can't reach another, whatever kind of attention (or recurrence) the teacher has. Documents
that are read together are of similar length, so that little padding is computed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from limbeck.distill.taps import taps
from limbeck.distill.view import Relations, TeacherView
from limbeck.engines.transformers import final_hidden
from limbeck.signals.loader import SignalBatch
from limbeck.signals.stacking import ABSENT
from limbeck.signals.types import Signal, tensors_of


class Stretch(NamedTuple):
    """One document of a batch: tokens `first` up to but without `last` of a row."""

    row: int
    first: int
    last: int


@dataclass(frozen=True)
class Reading:
    """What a model computed on a batch, on its own device.

    Attributes:
        hidden: `[B, T, D]`, final states (after the last norm); 0 where nothing was read.
        view: outputs of blocks and what attention is made of, in the batch's places.
    """

    hidden: Tensor
    view: TeacherView


def stretches(batch: SignalBatch) -> list[Stretch]:
    """Return the documents of a batch, row by row; padding belongs to none."""
    attended_BT = batch.attention_mask.cpu()
    documents_BT = attended_BT.long() - 1 if batch.documents is None else batch.documents.cpu()
    found = []
    for row, (documents_T, attended_T) in enumerate(zip(documents_BT, attended_BT, strict=True)):
        length = int(attended_T.sum())
        turns = (documents_T[1:length] != documents_T[: length - 1]).nonzero()[:, 0] + 1
        found += [Stretch(row, *ends) for ends in pairwise([0, *turns.tolist(), length]) if ends[0] < ends[1]]
    return found


@torch.no_grad()
def read(
    model: PreTrainedModel, batch: SignalBatch, layers: Sequence[int] = (), relations: Sequence[int] = ()
) -> Reading:
    """Read a batch, in the model's own dtype.

    Args:
        model: in evaluation mode.
        batch: on any device.
        layers: blocks whose outputs are wanted.
        relations: blocks whose queries, keys and values are wanted.
    """
    device = model.get_input_embeddings().weight.device
    with torch.autocast(device.type, enabled=False):
        if batch.documents is None:
            return _read(model, batch.input_ids.to(device), batch.attention_mask.to(device), layers, relations)
        return _apart(model, batch, device, layers, relations)


def _read(
    model: PreTrainedModel, ids_BT: Tensor, attended_BT: Tensor, layers: Sequence[int], relations: Sequence[int]
) -> Reading:
    with taps(model, layers, relations) as seen:
        hidden_BTD = final_hidden(model, ids_BT, None if bool(attended_BT.all()) else attended_BT)
    return Reading(hidden_BTD, TeacherView(dict(seen.layers), dict(seen.relations)))


def _apart(
    model: PreTrainedModel, batch: SignalBatch, device: torch.device, layers: Sequence[int], relations: Sequence[int]
) -> Reading:
    whole: Reading | None = None
    shape = batch.input_ids.shape
    ids_BT = batch.input_ids.to(device)
    for group in _groups(stretches(batch), batch.input_ids.numel()):
        width = max(one.last - one.first for one in group)
        ids_GL, attended_GL = ids_BT.new_zeros(len(group), width), ids_BT.new_zeros(len(group), width, dtype=torch.bool)
        for place, (row, first, last) in enumerate(group):
            ids_GL[place, : last - first] = ids_BT[row, first:last]
            attended_GL[place, : last - first] = True
        part = _read(model, ids_GL, attended_GL, layers, relations)
        whole = whole or _mapped(part, lambda x: x.new_zeros((shape[0], *_at_positions(x, shape[1]))))
        for into, found in zip(_tensors(whole), _tensors(part), strict=True):
            for place, (row, first, last) in enumerate(group):
                into[row, ..., first:last, :] = found[place, ..., : last - first, :]
    if whole is None:
        return _read(model, ids_BT, batch.attention_mask.to(device), layers, relations)
    return whole


def _groups(documents: Sequence[Stretch], tokens: int) -> Iterator[list[Stretch]]:
    """Yield documents, longest first, in groups of at most `tokens` tokens after padding."""
    group: list[Stretch] = []
    for one in sorted(documents, key=lambda one: (one.first - one.last, one)):
        if group and (len(group) + 1) * (group[0].last - group[0].first) > tokens:
            yield group
            group = []
        group.append(one)
    if group:
        yield group


def _at_positions(x_GxLD: Tensor, length: int) -> tuple[int, ...]:
    """Return the shape of one row of what has its positions in the last dimension but one."""
    return (*x_GxLD.shape[1:-2], length, x_GxLD.shape[-1])


def _tensors(reading: Reading) -> list[Tensor]:
    relations = [x for one in reading.view.relations.values() for x in (one.queries, one.keys, one.values)]
    return [reading.hidden, *reading.view.layers.values(), *relations]


def _mapped(reading: Reading, change: Any) -> Reading:
    view = reading.view
    return Reading(
        change(reading.hidden),
        TeacherView(
            {index: change(state) for index, state in view.layers.items()},
            {
                index: Relations(change(one.queries), change(one.keys), change(one.values))
                for index, one in view.relations.items()
            },
        ),
    )


def moved(view: TeacherView, device: torch.device) -> TeacherView:
    """Return a view on `device`."""
    return _mapped(Reading(torch.empty(0), view), lambda x: x.to(device)).view


def spread(signal_N: Signal, places_BT: Tensor) -> Signal:
    """Return the signal of N positions as one of a batch, in the places that are True, and masked elsewhere."""
    spread: dict[str, Any] = {}
    for name, value in tensors_of(signal_N).items():
        whole = value.new_full((*places_BT.shape, *value.shape[1:]), ABSENT.get(name, 0))
        whole[places_BT] = value
        spread[name] = whole
    return replace(signal_N, **spread)
