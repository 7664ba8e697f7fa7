"""Untrained pocket students: the teacher's architecture in a smaller shape, with the teacher's tokenizer."""

from pathlib import Path

from limbeck.engines.transformers import quiet
from limbeck.pocket.build import new_model
from limbeck.pocket.recipe import Shape
from limbeck.pocket.world import load_teacher

STUDENT = Shape(hidden_size=128, layers=3, heads=4, key_value_heads=2, mlp_size=352, context=512)


def write_student(folder: Path, seed: int, shape: Shape = STUDENT) -> None:
    """Save an untrained student; its weights depend on shape and seed alone."""
    _, tokenizer = load_teacher()
    with quiet():
        new_model(shape, len(tokenizer), tokenizer, seed).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
