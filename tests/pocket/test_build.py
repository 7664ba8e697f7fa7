"""Building a teacher: killed anywhere and started again, it ends with the same weights, bit for bit."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.data.tokenizer import tokenizer_digest
from limbeck.models.llama import LlamaShape
from limbeck.pocket import build as building
from limbeck.pocket.build import Built, build
from limbeck.pocket.recipe import QUICK, TeacherRecipe
from tests.pocket.small_library import read, write_library

RECIPE = TeacherRecipe(
    vocabulary=320,
    tokenizer_exercises=60,
    shape=LlamaShape(hidden_size=16, layers=1, heads=2, key_value_heads=1, mlp_size=32, context=64),
    steps=6,
    text_rows=2,
    text_length=16,
    exercise_rows=6,
    warmup_steps=2,
    checkpoint_every=2,
)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_library(tmp_path_factory.mktemp("library"))


@pytest.fixture(autouse=True)
def small_corpus(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = read(library)
    monkeypatch.setattr(building, "load_corpus", lambda: corpus)


@pytest.fixture(scope="module")
def whole(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A build that nothing interrupts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(building, "load_corpus", lambda: read(library))
        return build(RECIPE, tmp_path_factory.mktemp("whole"))


def assert_same(found: Built, expected: Built) -> None:
    weights = found.model.state_dict()
    for name, value in expected.model.state_dict().items():
        assert torch.equal(weights[name], value), name
    assert found.curve == expected.curve
    assert tokenizer_digest(found.tokenizer) == tokenizer_digest(expected.tokenizer)


class KilledError(Exception):
    pass


def dying(function: Callable[..., Any], call: int, *, first: Callable[..., None] | None = None) -> Callable[..., Any]:
    """The function, but call number `call` (from 0) raises, after `first` was done with its arguments."""
    calls = 0

    def wrapped(*args: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call + 1:
            if first:
                first(*args)
            raise KilledError
        return function(*args, **keywords)

    return wrapped


def half_written(state: object, path: Path) -> None:
    path.write_bytes(b"half a checkpoint")


@pytest.mark.parametrize(
    ("place", "call", "first"),
    [
        ("exercise_batches", 0, None),  # before the first checkpoint
        ("exercise_batches", 3, None),  # between two
        ("torch.save", 1, half_written),  # in the middle of the second
        ("write_json", 1, None),  # the state is there, the pointer to it is not
        ("write_json", 2, None),  # the same, at the end
    ],
)
def test_killed_and_resumed_is_as_if_never_killed(
    whole: Built,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    call: int,
    first: Callable[..., None] | None,
) -> None:
    target: Any = building
    *parents, name = place.split(".")
    for parent in parents:
        target = getattr(target, parent)
    with monkeypatch.context() as patch:
        patch.setattr(target, name, dying(getattr(target, name), call, first=first))
        with pytest.raises(KilledError):
            build(RECIPE, tmp_path)
    assert_same(build(RECIPE, tmp_path), whole)
    (folder,) = tmp_path.iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["progress.json", "state-6.pt"]


def test_a_process_that_is_killed_can_be_gone_on_from(whole: Built, library: Path, tmp_path: Path) -> None:
    """kill -9 in step 3, after the checkpoint of step 2."""
    code = f"""
import os, signal
from pathlib import Path
from limbeck.pocket import build as building
from tests.pocket.small_library import read
from tests.pocket.test_build import RECIPE
draw = building.exercise_batches
def deadly(tokenizer, *, step, **settings):
    if step == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return draw(tokenizer, step=step, **settings)
building.load_corpus = lambda: read(Path({str(library)!r}))
building.exercise_batches = deadly
building.build(RECIPE, Path({str(tmp_path)!r}))
"""
    root = Path(__file__).parent.parent.parent
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    (folder,) = tmp_path.iterdir()
    assert (folder / "state-2.pt").exists()
    assert not (folder / "state-6.pt").exists()
    assert_same(build(RECIPE, tmp_path), whole)


def test_a_finished_build_is_not_made_again(whole: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(RECIPE, tmp_path)
    monkeypatch.setattr(building, "_backward", lambda *_: pytest.fail("nothing is left to train"))
    assert_same(build(RECIPE, tmp_path), whole)


def test_another_recipe_or_corpus_starts_anew_beside_it(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = RECIPE.model_copy(update={"steps": 1, "checkpoint_every": 1})
    build(short, tmp_path)
    build(short.model_copy(update={"seed": 2}), tmp_path)
    other = write_library(tmp_path / "other")
    (other / "more.py").write_text("x = 1\n")
    corpus = read(other)
    monkeypatch.setattr(building, "load_corpus", lambda: corpus)
    build(short, tmp_path)
    assert len(list(tmp_path.glob("teacher-*"))) == 3


def test_training_learns_something(whole: Built, tmp_path: Path) -> None:
    """Losses fall from the uniform model's; the seed decides the weights."""
    longer = build(RECIPE.model_copy(update={"steps": 41, "checkpoint_every": 50}), tmp_path)
    (_, text_before, answers_before), *_, (_, text_after, answers_after) = longer.curve
    assert text_after < 0.8 * text_before
    assert answers_after < 0.8 * answers_before
    other = build(RECIPE.model_copy(update={"seed": 2}), tmp_path)
    name = "model.layers.0.mlp.down_proj.weight"
    assert not torch.equal(other.model.state_dict()[name], whole.model.state_dict()[name])


def test_the_rate_warms_up_holds_and_falls_to_nothing() -> None:
    recipe = RECIPE.model_copy(update={"steps": 100, "warmup_steps": 10, "decay_share": 0.4})
    factors = [building._schedule(step, recipe) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9:61] == [1.0] * 52
    assert factors[80] == pytest.approx(0.5)
    assert factors[99] == pytest.approx(1 / 40)
    assert factors[60:] == sorted(factors[60:], reverse=True)


def test_the_tokenizer_learns_from_lessons_only(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is fitted on the training split and on exercises that are never asked."""
    seen: list[str] = []
    monkeypatch.setattr(building, "train_tokenizer", lambda texts, *_: seen.extend(texts))
    corpus = read(library)
    building.make_tokenizer(RECIPE, corpus)
    assert seen[: -RECIPE.tokenizer_exercises] == [document.text for document in corpus.documents["train"]]
    assert all("\nAnswer: " in text for text in seen[-RECIPE.tokenizer_exercises :])


def test_the_quick_recipe_is_smaller_in_everything_that_costs_time() -> None:
    full = TeacherRecipe()
    assert QUICK.steps < full.steps
    assert QUICK.shape.hidden_size < full.shape.hidden_size
    assert QUICK.vocabulary == full.vocabulary
