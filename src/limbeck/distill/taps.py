"""Looks into a model while it runs: the states behind chosen blocks, and what chosen blocks attend with.

Only what was asked for is held: forward hooks stand on those blocks and nowhere else, where `output_hidden_states`
would keep every block's state. What is seen is the running model's own tensors, nothing is copied; with autograd on,
gradients flow through them, also where blocks are checkpointed (without re-entrant autograd) or weights are sharded.

Queries and keys are seen where attention takes them, after norms and positions were applied, in any implementation of
attention that the library dispatches (eager, sdpa, flash, flex). One model at a time may be looked into: the door that
attention goes through is the library's, and is replaced for as long as the context lasts.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_utils import AttentionInterface

from limbeck.distill.layers import block_count
from limbeck.distill.view import Relations
from limbeck.errors import LimbeckError, UserError


@dataclass(frozen=True)
class Seen:
    """What was seen of a forward pass, by the index of the block.

    Attributes:
        layers: `[B, T, D]`, the states behind blocks.
        relations: queries, keys and values of blocks.
    """

    layers: dict[int, Tensor] = field(default_factory=dict)
    relations: dict[int, Relations] = field(default_factory=dict)


def decoder_blocks(model: PreTrainedModel) -> nn.ModuleList:
    """Return the text decoder's list of blocks.

    It is the list nearest to the top that is as long as the configuration says; of several such, the heaviest (lists
    of experts stand further down, lists of projections for each block beside it).

    Raises:
        UserError: the decoder has no such list.
    """
    count = block_count(model.config)
    level: list[nn.Module] = [model.get_decoder()]
    while level:
        lists = [part for part in level if isinstance(part, nn.ModuleList) and len(part) >= count]
        if lists:
            return max(lists, key=lambda blocks: (len(blocks) == count, sum(p.numel() for p in blocks.parameters())))
        level = [child for part in level for child in part.children()]
    raise UserError(
        f"{type(model).__name__}: its decoder has no list of {count} blocks, so none can be looked into. "
        "Leave out layer_mapping and attention_relation."
    )


@contextmanager
def taps(model: PreTrainedModel, layers: Iterable[int] = (), relations: Iterable[int] = ()) -> Iterator[Seen]:
    """Collect what the model's forward pass shows; run it once inside the context.

    Args:
        model: of `transformers`, text or multimodal (its text decoder is looked into).
        layers: blocks whose states are wanted.
        relations: blocks whose queries, keys and values are wanted.

    Raises:
        UserError: the model has no list of blocks, a block's attention is not one that the library dispatches, or
            gradients can't flow through it.
        LimbeckError: the model was not run, or not through those blocks.
    """
    layers, relations = tuple(layers), tuple(relations)
    seen = Seen()
    with ExitStack() as stack:
        if layers or relations:
            blocks = decoder_blocks(model)
            for index in layers:
                handle = blocks[index].register_forward_hook(_keep_state(seen, index))
                stack.callback(handle.remove)
            if relations:
                stack.enter_context(_watched_attention(seen, {blocks[index]: index for index in relations}))
        yield seen
    if missing := [index for index in layers if index not in seen.layers]:
        raise LimbeckError(f"{type(model).__name__}: block {missing[0]} was looked into, and was not run.")
    if missing := [index for index in relations if index not in seen.relations]:
        raise UserError(
            f"attention_relation: block {missing[0]} of {type(model).__name__} shows no queries, keys and values. "
            "Choose a block with softmax attention."
        )


def _keep_state(seen: Seen, index: int) -> Callable[[nn.Module, Any, Any], None]:
    def hook(block: nn.Module, given: Any, output: Any) -> None:
        state = output[0] if isinstance(output, tuple) else output
        if not isinstance(state, Tensor) or state.dim() != 3:
            raise UserError(
                f"layer_mapping: the output of a {type(block).__name__} (block {index}) is not one state a position."
            )
        seen.layers.setdefault(index, state)

    return hook


@contextmanager
def _watched_attention(seen: Seen, blocks: Mapping[nn.Module, int]) -> Iterator[None]:
    """Keep what the attention of these blocks is called with."""
    inside = {part: index for block, index in blocks.items() for part in block.modules()}
    wants_gradients = torch.is_grad_enabled()
    dispatch = AttentionInterface.get_interface

    def watching_dispatch(self: AttentionInterface, name: str, default: Callable[..., Any]) -> Callable[..., Any]:
        attend = dispatch(self, name, default)

        def watched(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
            if (index := inside.get(module)) is not None:
                if wants_gradients and not torch.is_grad_enabled():
                    raise UserError(
                        "attention_relation: re-entrant checkpointing hides queries and keys from gradients. Set "
                        "training_args.gradient_checkpointing_kwargs to {use_reentrant: false}."
                    )
                seen.relations.setdefault(index, Relations(query, key, value))
            return attend(module, query, key, value, *args, **kwargs)

        return watched

    AttentionInterface.get_interface = watching_dispatch
    try:
        yield
    finally:
        AttentionInterface.get_interface = dispatch
