from pathlib import Path

import pytest

from limbeck.data.tokenizer import train_tokenizer
from tests.arena.world import VOCABULARY, make_model


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tokenizer that every honest model carries."""
    folder = tmp_path_factory.mktemp("teacher")
    tokenizer = train_tokenizer(["def add(a, b):\n    return a + b\n", "the quick brown fox " * 20], VOCABULARY, 128)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def model(tmp_path: Path, teacher: Path) -> Path:
    return make_model(tmp_path / "model", teacher)
