"""Final hidden states of a batch whose rows may hold several documents, none of which sees another.

A model of `transformers` that is given positions that start again, and no padding mask, builds the mask that keeps
documents apart itself (sdpa, eager, flex); FlashAttention finds the documents by the same positions, but only in a
batch of one row, so that there all rows are laid end to end without their padding. Padding stands behind the text of a
row, is a document of its own, and is seen by nobody.

Not every architecture honours this (recurrent layers carry their state on, some attention takes no positions):
`check_isolation` tries it out on a model.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from limbeck.errors import UserError
from limbeck.signals.loader import SignalBatch

TRIED = 6  # tokens in each document of the trial
LEAK = 2e-2  # of the largest state; sums in another order move bfloat16 states by less


def final_states(model: PreTrainedModel, batch: SignalBatch) -> Tensor:
    """Return the final hidden states `[B, T, D]` (after the last norm); what stands at padding means nothing."""
    if batch.documents is None:
        return _decoded(model, batch.input_ids, attention_mask=batch.attention_mask)
    if is_flash(model):
        return padded(flat_states(model, batch), batch.attention_mask)
    return _decoded(model, batch.input_ids, position_ids=document_positions(batch.documents))


def flat_states(model: PreTrainedModel, batch: SignalBatch) -> Tensor:
    """Return the final hidden states `[1, N, D]` of the batch's N tokens in one row, each document by itself."""
    present_BT = batch.attention_mask
    documents_BT = torch.ones_like(batch.input_ids) if batch.documents is None else batch.documents
    positions_N = document_positions(documents_BT)[present_BT]
    return _decoded(model, batch.input_ids[present_BT][None], position_ids=positions_N[None])


def padded(flat_1ND: Tensor, present_BT: Tensor) -> Tensor:
    """Return states of N tokens in their places in the batch, `[B, T, D]`, zeros at padding."""
    states_BTD = flat_1ND.new_zeros((*present_BT.shape, flat_1ND.shape[-1]))
    states_BTD[present_BT] = flat_1ND[0]
    return states_BTD


def document_positions(documents_BT: Tensor) -> Tensor:
    """Return each token's position in its document `[B, T]`, from 0; a document is a run of equal numbers."""
    places_T = torch.arange(documents_BT.shape[1], device=documents_BT.device)
    starts_BT = torch.zeros_like(documents_BT)
    changed_BT = documents_BT[:, 1:] != documents_BT[:, :-1]
    starts_BT[:, 1:] = torch.where(changed_BT, places_T[1:], 0)
    return places_T - starts_BT.cummax(dim=1).values


def is_flash(model: PreTrainedModel) -> bool:
    """Return whether the model attends by a kernel that reads documents from the positions of a single row."""
    return "flash" in str(getattr(model.config, "_attn_implementation", ""))


@torch.no_grad()
def check_isolation(
    model: PreTrainedModel, states: Callable[[PreTrainedModel, SignalBatch], Tensor] | None = None
) -> None:
    """Try the model on a row of two documents and refuse it if what stands in the first changes the second.

    Args:
        model: on its device, and not yet wrapped for sharding.
        states: what computes `[B, T, D]`; `final_states` when absent.

    Raises:
        UserError: it does.
    """
    device, vocabulary = model.get_input_embeddings().weight.device, model.get_input_embeddings().weight.shape[0]
    ids_2T = torch.arange(4 * TRIED, device=device).reshape(2, -1).remainder(vocabulary)
    ids_2T[1, TRIED:] = ids_2T[0, TRIED:]
    documents_2T = torch.arange(2 * TRIED, device=device).div(TRIED, rounding_mode="floor").expand(2, -1)
    everywhere = torch.ones_like(ids_2T, dtype=torch.bool)
    training = model.training
    model.eval()
    try:
        found = [
            (states or final_states)(
                model,
                SignalBatch(
                    ids[None], everywhere[:1], everywhere[:1], ids[None], everywhere[:1], None, documents_2T[:1]
                ),
            )[0, TRIED:].float()
            for ids in ids_2T
        ]
    finally:
        model.train(training)
    if (found[0] - found[1]).abs().max() > LEAK * found[0].abs().max():
        raise UserError(
            f"{type(model).__name__} ({model.config._attn_implementation}): documents packed into one row see each "
            "other in this model. Leave packing out, or choose another attn_implementation (sdpa, eager)."
        )


def _decoded(model: PreTrainedModel, ids_BT: Tensor, **given: Tensor) -> Tensor:
    return model.get_decoder()(input_ids=ids_BT, use_cache=False, **given).last_hidden_state
