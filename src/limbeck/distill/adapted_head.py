"""The student's output head as one matrix, with a low-rank adapter on it or not."""

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from limbeck.engines.transformers import output_head
from limbeck.errors import UserError
from limbeck.signals.types import OutputHead


def head_of(student: PreTrainedModel) -> OutputHead:
    """Return the student's output head; where the `peft` package adapts it, the sum `W + s B A`.

    The sum `[V, D]` is made anew at each call, and its gradient flows to A and B.

    Raises:
        UserError: the head is not one linear layer, or its adapter can't be added to it.
    """
    head = student.get_output_embeddings()
    if not hasattr(head, "lora_A"):
        return output_head(student)
    base = head.get_base_layer()
    if not isinstance(base, nn.Linear):
        raise UserError(f"lora: the output head is a {type(base).__name__}, not one linear layer. Leave it out.")
    weight = base.weight
    for name in head.active_adapters:
        if name in head.lora_A:
            weight = weight + _product(head, name)
    return OutputHead(weight, base.bias, getattr(student.config, "final_logit_softcapping", None))


def _product(head: nn.Module, name: str) -> Tensor:
    """Return what one adapter adds to the weights, `[V, D]`."""
    dropout = head.lora_dropout[name]  # type: ignore[index]
    if getattr(dropout, "p", 0.0) or getattr(head, "use_dora", {}).get(name):
        raise UserError(
            "lora: an adapter on the output head can't have dropout, nor be a DoRA, because it is added to the head's "
            "weights. Set lora.dropout to 0, or leave the head out of lora.target_modules."
        )
    adapter: Any = head
    product: Tensor = adapter.lora_B[name].weight @ adapter.lora_A[name].weight
    return product * adapter.scaling[name]
