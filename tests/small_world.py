"""A small world to train in: a captured dataset of pocket exercises, and an untrained student."""

from pathlib import Path
from typing import Any

import pytest

from limbeck.data.capture import CaptureRecipe, capture
from limbeck.data.sources import TextSource
from limbeck.models.llama import LlamaShape
from limbeck.pocket.corpus import load_corpus
from limbeck.pocket.students import write_student
from limbeck.pocket.texts import write_training_text
from limbeck.pocket.world import teacher_folder

TINY = LlamaShape(hidden_size=32, layers=1, heads=2, key_value_heads=1, mlp_size=64, context=256)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `signals` (60 rows) and `student`."""
    folder = tmp_path_factory.mktemp("world")
    write_training_text(folder / "text.jsonl", load_corpus(), seed=1, texts=6, exercises=50)
    text = TextSource(path=str(folder / "text.jsonl"))
    capture(CaptureRecipe(model=str(teacher_folder()), name="pocket", dataset=text, output=str(folder / "signals")))
    write_student(folder / "student", 1, TINY)
    return folder


def recipe_data(world: Path, out: Path, **changes: Any) -> dict[str, Any]:
    """A recipe of a dozen steps on the small world."""
    return {
        "model": str(world / "student"),
        "output_path": str(out),
        "sequence_length": 256,
        "dataset": {"train_dataset": {"disk_path": str(world / "signals")}},
        "loss_functions": [{"function": "kl", "weight": 0.5}, {"function": "cross_entropy", "weight": 0.5}],
        "optimizer": {"kind": "muon"},
        "training_args": {
            "max_steps": 12,
            "per_device_train_batch_size": 4,
            "learning_rate": 0.005,
            "save_steps": 4,
            "logging_steps": 1,
            "train_sampling_strategy": "group_by_length",
        },
    } | changes
