"""How the pocket teacher is made: the recipe that `limbeck pocket build` follows and the model card repeats."""

from pydantic import Field

from limbeck.models.llama import LlamaShape
from limbeck.settings import Settings

LEARNT_SLOWLY = ("addition", "call_function", "largest", "lookup", "progression", "subtraction", "truth", "variables")


class TeacherRecipe(Settings):
    """Every choice that decides what the pocket teacher becomes."""

    seed: int = 1
    vocabulary: int = Field(4096, ge=300)
    tokenizer_exercises: int = Field(40_000, ge=0, description="exercises mixed into the tokenizer's training text")
    shape: LlamaShape = LlamaShape()
    steps: int = Field(3600, gt=0)
    text_rows: int = Field(2, gt=0, description="text windows a step")
    infill_rows: int = Field(1, ge=0, description="fill-in-the-middle rows a step")
    text_length: int = Field(512, gt=0, description="predictions in a text window")
    exercise_rows: int = Field(128, gt=0, description="exercises a step")
    exercise_parts: int = Field(4, gt=0, description="batches of about equally long rows that they are split into")
    twice: tuple[str, ...] = Field(LEARNT_SLOWLY, description="families that have two turns where others have one")
    learning_rate: float = Field(8e-3, gt=0)
    weight_decay: float = Field(0.05, ge=0)
    warmup_steps: int = Field(60, ge=0)
    decay_share: float = Field(0.4, gt=0, le=1, description="last share of the steps, in which the rate falls to 0")
    checkpoint_every: int = Field(100, gt=0)


QUICK = TeacherRecipe(
    shape=LlamaShape(hidden_size=96, layers=3, heads=3, key_value_heads=1, mlp_size=256, context=512),
    tokenizer_exercises=4_000,
    steps=150,
    text_rows=3,
    text_length=128,
    exercise_rows=32,
    exercise_parts=2,
    warmup_steps=15,
    checkpoint_every=50,
)
