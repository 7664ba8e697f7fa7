"""Engines load a ternary student as any other model, and compute its hidden states and logits alike."""

from pathlib import Path

import torch

from limbeck.engines.transformers import final_hidden, load_model, output_head
from limbeck.models.bitnet import LimbeckBitNetForCausalLM
from tests.models.bitnet.shapes import small_student, some_ids


@torch.no_grad()
def test_a_student_is_loaded_by_its_folder(tmp_path: Path) -> None:
    student, ids = small_student(final_logit_softcapping=0.5), some_ids()
    student.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert isinstance(loaded, LimbeckBitNetForCausalLM)
    head = output_head(loaded)
    logits = torch.tanh(final_hidden(loaded, ids) @ head.weight.T / head.soft_cap) * head.soft_cap
    assert torch.allclose(logits, student(ids).logits, atol=1e-5)
