"""Wrappers as the trainer wants them: FSDP2 without rounding losses and sums of gradients, and on processors, too."""

import os
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

from limbeck.distill.student import DistilledStudent
from limbeck.errors import UserError


def settle_fsdp(accelerator: Accelerator, settings: dict[str, Any] | None) -> None:
    """Correct an accelerator that shards, by a recipe's `fsdp_config` or because it was launched so.

    Args:
        accelerator: has wrapped nothing yet.
        settings: of its FSDP plugin; None: the recipe has none.

    Raises:
        UserError: FSDP of the first version is asked for.
    """
    state = accelerator.state
    launched = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if state.distributed_type == DistributedType.MULTI_CPU and (settings is not None or launched):
        # accelerate takes FSDP to be for accelerators, and would train whole copies on processors without a word
        plugin = FullyShardedDataParallelPlugin(**(settings or {}))
        if state.mixed_precision != "no":
            plugin.set_mixed_precision(state.mixed_precision)
        state.distributed_type, state.fsdp_plugin = DistributedType.FSDP, plugin
    plugin = getattr(state, "fsdp_plugin", None)
    if plugin is None:
        return
    if plugin.fsdp_version != 2:
        raise UserError("training_args.fsdp_config.version: only version 2 is supported. Leave it out, or set 2.")
    policy = plugin.mixed_precision_policy
    if policy is not None:
        plugin.mixed_precision_policy = replace(policy, output_dtype=torch.float32, reduce_dtype=torch.float32)


def leaves_parameters_unused(model: DistilledStudent) -> bool:
    """Return whether some trained parameters take no part in a step, which DDP has to search for, and pays for.

    Decoder and output head take part, unless no loss looks at the head; a vision tower does not.
    """
    student = model.student
    used = {id(parameter) for parameter in student.get_decoder().parameters()}
    if any(term.loss.over != "states" for term in model.terms):
        used |= {id(parameter) for parameter in student.get_output_embeddings().parameters()}
    return any(parameter.requires_grad and id(parameter) not in used for parameter in student.parameters())
