"""Which parameters are hidden matrices and which are something else: by role in the model, not by shape."""

from collections.abc import Iterator
from typing import Any

from torch import nn

HEADS = ("lm_head", "embed_out", "output_projection")  # of models that don't tell their head
EXPERTS = "experts"  # modules of this name stack one matrix an expert


def split_by_role(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return parameter groups of a model: hidden matrices for Muon, everything else for AdamW.

    Everything else is embeddings, output heads, norms, biases, convolutions, and projections that only training uses
    (`alignment`). Weight decay falls on the hidden matrices alone.
    """
    apart = {id(parameter) for parameter in _not_hidden(model)}
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            hidden = id(parameter) not in apart and (parameter.ndim == 2 or (parameter.ndim == 3 and EXPERTS in name))
            (matrices if hidden else others).append(parameter)
    return [
        {"params": matrices, "muon": True, "weight_decay": weight_decay},
        {"params": others, "muon": False, "weight_decay": 0.0},
    ]


def describe(groups: list[dict[str, Any]]) -> str:
    """Return one line that says how many parameters each part of the optimizer has."""
    parts = []
    for group in groups:
        count = sum(parameter.numel() for parameter in group["params"])
        name = "Muon" if group["muon"] else "AdamW"
        what = "hidden matrices" if group["muon"] else "embeddings, heads, norms, biases"
        parts.append(f"{name}: {len(group['params'])} tensors, {count:,} parameters ({what})")
    return "; ".join(parts)


def _not_hidden(model: nn.Module) -> Iterator[nn.Parameter]:
    for name, module in model.named_modules():
        kind, own_name = type(module).__name__, name.rsplit(".", 1)[-1]
        convolves = "Conv" in kind and kind != "Conv1D"  # the library's name for a linear layer of GPT-2
        if isinstance(module, nn.Embedding) or convolves or own_name in (*HEADS, "alignment"):
            yield from module.parameters()
        head = getattr(module, "get_output_embeddings", lambda: None)()
        if isinstance(head, nn.Module):
            yield from head.parameters()
