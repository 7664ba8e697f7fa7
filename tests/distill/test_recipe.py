"""Recipes: which keys there are, that all of them are documented, and that the shipped ones can be read."""

import typing
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from limbeck.distill.recipe import DatasetTeacher, Recipe
from limbeck.errors import UserError
from limbeck.settings import load_settings, validate_settings

ROOT = Path(__file__).parents[2]
RECIPES = sorted([*(ROOT / "recipes" / "train").glob("*.yaml"), *(ROOT / "recipes").glob("*.yaml")])
SMALLEST: dict[str, Any] = {"model": "m", "output_path": "o", "dataset": {"train_dataset": {"disk_path": "d"}}}
COMPRESSOR = {"d": 100, "k": 4, "exact_k": 4, "residual_bins": []}


def read(**changes: Any) -> Recipe:
    return validate_settings(SMALLEST | changes, Recipe, "recipe.yaml")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_can_be_read(path: Path) -> None:
    recipe = load_settings(path, Recipe)
    assert path.read_text().startswith("#"), "a recipe begins by saying what it is for"
    assert recipe.loss_functions


def models_within(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        inner = [found for field in annotation.model_fields.values() for found in models_within(field.annotation)]
        return [annotation, *inner]
    return [found for argument in typing.get_args(annotation) for found in models_within(argument)]


def test_every_key_is_documented() -> None:
    """The page names each key of the recipe and of its sections; settings of engines have a page of their own."""
    page = (ROOT / "docs" / "training.md").read_text()
    models = {model for model in models_within(Recipe) if not model.__module__.startswith("limbeck.engines")}
    keys = {key for model in models for key in model.model_fields}
    assert len(keys) > 80
    assert sorted(key for key in keys if f"`{key}`" not in page) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sequence_lenght": 3}, r"unknown key 'sequence_lenght'\. Did you mean 'sequence_length'"),
        ({"loss_functions": [{"function": "kl", "temprature": 2}]}, r"'loss_functions\.0\.temprature'.*'temperature'"),
        ({"loss_functions": []}, "loss_functions: "),
        ({"teacher": {"kind": "hf", "pth": "x"}}, r"unknown key 'teacher\.pth'\. Did you mean 'path'"),
        ({"teacher": {"kind": "dataset", "topk": 3}}, r"unknown key 'teacher\.topk'"),
        ({"teacher": {"kind": "oracle"}}, "teacher: .*oracle"),
        ({"dataset": {"train_dataset": {"split": "train"}}}, "name one of disk_path and repo_id"),
        ({"dataset": {"train_dataset": {"disk_path": "a", "repo_id": "a/b"}}}, "name one of disk_path and repo_id"),
        ({"dataset": {"train_dataset": []}}, r"dataset\.train_dataset"),
        ({"layer_mapping": "some"}, "layer_mapping"),
        ({"layer_mapping": [[0]]}, "layer_mapping"),
        ({"packing": True, "dataset": {"train_dataset": {"disk_path": "d"}, "prepacked": True}}, "packed already"),
        ({"frozen_modules": "vision_tower"}, "frozen_modules"),
    ],
)
def test_what_cannot_be_read_is_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read(**changes)
    assert "\n" not in str(caught.value) and str(caught.value).startswith("recipe.yaml: ")


def test_null_is_nothing() -> None:
    recipe = read(frozen_modules=None, frozen_res=None, layer_mapping=None, resize_embeddings_to_multiple_of=None)
    assert recipe.frozen_modules == recipe.frozen_res == ()


def test_overrides_reach_every_depth(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(SMALLEST))
    recipe = load_settings(
        tmp_path / "r.yaml", Recipe, ["training_args.max_steps=3", "dataset.num_samples=7", "layer_mapping=all"]
    )
    assert (recipe.training_args["max_steps"], recipe.dataset.num_samples, recipe.layer_mapping) == (3, 7, "all")


@pytest.mark.parametrize("name", ["packing", "functionary_packing"])
def test_rows_are_packed_by_either_name_unless_they_are_already(name: str) -> None:
    assert read(**{name: True}).packs
    assert read(training_args={"packing": True}).packs
    assert not read().packs
    prepacked = {"train_dataset": {"disk_path": "d"}, "prepacked": True}
    assert not read(functionary_packing=True, dataset=prepacked).packs


def test_a_recipe_holds_one_codec_at_most() -> None:
    legacy = {"vocab_size": 100, "k": 4, "exact_k": 4, "polynomial_degree": 0}
    assert DatasetTeacher().codec() is None
    given = DatasetTeacher(logprob_compressor=COMPRESSOR).codec()
    assert given is not None and given.codec == "distillkit"
    with pytest.raises(UserError, match=r"^teacher: logprob_compressor and legacy_logit_compression are two codecs"):
        DatasetTeacher(logprob_compressor=COMPRESSOR, legacy_logit_compression=legacy).codec()
    with pytest.raises(UserError, match=r"^teacher: logprob_compressor: unknown key 'exactk'.*'exact_k'"):
        DatasetTeacher(logprob_compressor=COMPRESSOR | {"exactk": 1}).codec()
