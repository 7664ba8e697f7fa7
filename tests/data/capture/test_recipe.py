"""Recipes of captures: those we ship are valid, options go where they should, and mistakes are named."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, TypeAdapter

from limbeck.cli.capture import PLACES
from limbeck.data.capture import CaptureRecipe
from limbeck.data.capture.workers import on_own_device
from limbeck.engines.scorer import EngineSettings, ServerEngine, TransformersEngine, VllmEngine
from limbeck.errors import UserError
from limbeck.settings import load_settings, validate_settings

RECIPES = Path(__file__).parents[3] / "recipes" / "capture"
PLAIN = {"model": "pocket", "dataset": {"path": "text.jsonl"}, "output": "out"}


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes_are_valid(path: Path) -> None:
    assert load_settings(path, CaptureRecipe).dataset.path


@pytest.mark.parametrize("option", PLACES)
def test_every_option_has_its_place_in_the_recipe(option: str) -> None:
    *sections, key = PLACES[option].split(".")
    models: tuple[type[BaseModel], ...] = (CaptureRecipe,)
    for section in sections:
        field = CaptureRecipe.model_fields[section].annotation
        models = (
            (TransformersEngine, VllmEngine, ServerEngine) if section == "engine" else (field,)  # type: ignore[assignment]
        )
    assert any(key in model.model_fields for model in models)


def test_a_misspelt_key_is_named_with_the_nearest(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(PLAIN | {"samples_per_shards": 4}))
    with pytest.raises(UserError, match=r"recipe.yaml: .*samples_per_shards.*samples_per_shard"):
        load_settings(path, CaptureRecipe)


@pytest.mark.parametrize(
    ("device", "devices", "expected"),
    [
        ("cuda", 4, ["cuda:0", "cuda:1", "cuda:2", "cuda:3", "cuda:0"]),
        ("cuda:2", 4, ["cuda:2"] * 5),
        ("cpu", 4, ["cpu"] * 5),
    ],
)
def test_each_process_has_a_device_of_its_own(device: str, devices: int, expected: list[str]) -> None:
    data: dict[str, Any] = PLAIN | {"engine": {"engine": "transformers", "device": device}}
    recipe = validate_settings(data, CaptureRecipe, "recipe")
    placed = [on_own_device(recipe, number, devices).engine for number in range(5)]
    assert [engine.device for engine in placed if isinstance(engine, TransformersEngine)] == expected


def test_engines_are_told_apart_by_their_name() -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(EngineSettings)
    assert isinstance(adapter.validate_python({"engine": "vllm"}), VllmEngine)


def test_settings_of_no_named_codec_are_topks_or_distillkits() -> None:
    def codec(**settings: Any) -> dict[str, Any]:
        data = {"model": "m", "dataset": {"path": "t"}, "output": "o", "codec": settings}
        return validate_settings(data, CaptureRecipe, "recipe").codec

    assert codec(cap=7) == {"codec": "topk", "cap": 7}
    assert codec(codec="dense") == {"codec": "dense"}
    kit = {"d": 300, "k": 8, "exact_k": 8, "residual_bins": []}
    assert codec(logprob_compressor=kit)["codec"] == codec(**kit)["codec"] == "distillkit"
    with pytest.raises(UserError, match="unknown key"):
        codec(logprob_compressor={**kit, "exact": 8})
