"""Untrained pocket students: the teacher's architecture in a smaller shape, with the teacher's tokenizer."""

from pathlib import Path

from limbeck.engines.transformers import quiet
from limbeck.models.llama import LlamaShape, new_llama
from limbeck.pocket.world import load_teacher

STUDENT = LlamaShape(hidden_size=128, layers=3, heads=4, key_value_heads=2, mlp_size=352, context=512)


def write_student(folder: Path, seed: int, shape: LlamaShape = STUDENT) -> None:
    """Save an untrained student; its weights depend on shape and seed alone."""
    _, tokenizer = load_teacher()
    with quiet():
        new_llama(shape, tokenizer, seed).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
