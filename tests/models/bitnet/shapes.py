"""Small students for tests."""

from typing import Any

import torch

from limbeck.models.bitnet import LimbeckBitNetConfig, LimbeckBitNetForCausalLM

SMALL: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip


def small_student(seed: int = 0, **changes: Any) -> LimbeckBitNetForCausalLM:
    torch.manual_seed(seed)
    return LimbeckBitNetForCausalLM(LimbeckBitNetConfig(**{**SMALL, **changes})).eval()


def some_ids(rows: int = 2, length: int = 12, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, 64, (rows, length), generator=torch.Generator().manual_seed(seed))
