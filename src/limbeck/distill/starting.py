"""The student that training starts from: what is known before its weights are read, and reading them.

The skeleton is the model without numbers (on the `meta` device): its parameters and the names of its modules are known
in a second, however large it is, so that a recipe is checked, and a run planned, before anything is loaded.
"""

import importlib.util
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from limbeck.distill.layers import decoder_config
from limbeck.distill.making import (
    check_fields,
    converted,
    converted_configuration,
    preset_configuration,
    untrained,
)
from limbeck.distill.recipe import DenseModel, LoraSettings, PresetModel, Recipe
from limbeck.engines.transformers import check_source, quiet
from limbeck.errors import LimbeckError, UserError
from limbeck.settings import nearest

FLASH = "flash_attention_2"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


@dataclass(frozen=True)
class Start:
    """What is known of a student before its weights are read.

    Attributes:
        config: of the whole model.
        skeleton: on the `meta` device, frozen as the recipe says.
        vocabulary: rows of embeddings and head, once they are resized.
        dtype: of the weights.
        attention: how attention is computed; None: as the library chooses.
    """

    config: Any
    skeleton: PreTrainedModel
    vocabulary: int
    dtype: torch.dtype
    attention: str | None


def open_config(name: str, key: str, *, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """Return a model's configuration; `key` is where the recipe names the model.

    Raises:
        UserError: there is none here.
    """
    try:
        check_source(name)
    except UserError as error:
        raise UserError(f"{key}: {error}") from error
    if Path(name).is_dir() and not (Path(name) / "config.json").exists():
        raise UserError(f"{key}: {name}: no config.json here. Name a folder that holds a transformers model.")
    try:
        with quiet():
            return AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UserError(f"{key}: {name}: no configuration can be read from here ({first}).") from error


def start(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, wanted_vocabulary: int = 0) -> Start:
    """Return what is known of the recipe's student.

    Args:
        recipe: the recipe.
        tokenizer: the student's.
        wanted_vocabulary: entries that the tokenizer and the signals call for; looked at where the recipe resizes.

    Raises:
        UserError: there is no such model or class, or the recipe names a module that it doesn't have.
    """
    if isinstance(recipe.model, PresetModel):
        config: Any = preset_configuration(recipe.model, tokenizer)
    else:
        key = "model.from_dense" if isinstance(recipe.model, DenseModel) else "model"
        config = open_config(
            recipe.student_name, key, revision=recipe.model_revision, trust_remote_code=recipe.trust_remote_code
        )
    skeleton = _skeleton(recipe, config)
    if isinstance(recipe.model, DenseModel):
        config = converted_configuration(recipe.model, skeleton)
        skeleton = _skeleton(recipe, config)
    check_fields(recipe, skeleton)
    vocabulary = int(decoder_config(config).vocab_size)
    if multiple := recipe.resize_embeddings_to_multiple_of:
        vocabulary = -(-max(wanted_vocabulary or vocabulary, 1) // multiple) * multiple
        with quiet():
            skeleton.resize_token_embeddings(vocabulary, mean_resizing=False)
    freeze(skeleton, recipe)
    return Start(config, skeleton, vocabulary, _dtype(recipe), _attention(recipe))


def load_student(
    recipe: Recipe, begun: Start, *, seed: int = 0, calibration: Callable[[], Tensor] | None = None
) -> PreTrainedModel:
    """Return the student with its weights, resized, frozen and with adapters as the recipe says, on the processor.

    Args:
        recipe: the recipe.
        begun: its student.
        seed: of the weights of an untrained student.
        calibration: returns token ids `[B, T]` of training rows, for a student that is made of a dense model.

    Raises:
        UserError: its weights are missing, are pickled, or are not what the configuration says.
    """
    if isinstance(recipe.model, PresetModel):
        model = untrained(begun.config, seed, begun.dtype, begun.attention)
    else:
        model = _stored(recipe, begun)
    if isinstance(recipe.model, DenseModel):
        if calibration is None:
            raise LimbeckError("a student that is made of a dense model needs text to be calibrated on.")
        model = converted(recipe.model, model, calibration(), begun.attention)
    if recipe.resize_embeddings_to_multiple_of:
        with quiet():
            model.resize_token_embeddings(begun.vocabulary)
    freeze(model, recipe)
    return with_adapters(model, recipe.lora) if recipe.lora else model


def _skeleton(recipe: Recipe, config: Any) -> PreTrainedModel:
    auto_class = _auto_class(recipe)
    try:
        with quiet(), torch.device("meta"):
            skeleton: PreTrainedModel = auto_class.from_config(config, trust_remote_code=recipe.trust_remote_code)
    except (ValueError, ImportError, AttributeError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UserError(
            f"model_auto_class: {recipe.student_name} is no model for transformers.{recipe.model_auto_class} "
            f"({first[:200]})."
        ) from error
    return skeleton


def _stored(recipe: Recipe, begun: Start) -> PreTrainedModel:
    """Return the model that the recipe names, with its weights."""
    name = recipe.student_name
    if Path(name).is_dir() and not any(Path(name).glob("*.safetensors")):
        raise UserError(
            f"model: {name}: no *.safetensors file here. Save the model with save_pretrained; "
            "pickle checkpoints, which can run code when they are loaded, are not read."
        )
    told = {key: value for key, value in recipe.model_kwargs.items() if key not in ("dtype", "torch_dtype")}
    if begun.attention:
        told["attn_implementation"] = begun.attention
    try:
        with quiet():
            model, report = _auto_class(recipe).from_pretrained(
                name, revision=recipe.model_revision, dtype=begun.dtype, use_safetensors=True,
                trust_remote_code=recipe.trust_remote_code, output_loading_info=True, **told,
            )  # fmt: skip
    except (OSError, ValueError, RuntimeError, ImportError, TypeError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UserError(f"model: {name}: no model can be loaded from here ({first}).") from error
    if missing := sorted(report["missing_keys"]):
        raise UserError(
            f"model: {name}: its weights lack {len(missing)} tensors that config.json calls for, {missing[0]} "
            "among them. Save the whole model again."
        )
    loaded: PreTrainedModel = model
    return loaded


def freeze(model: nn.Module, recipe: Recipe) -> None:
    """Exempt from training what `frozen_modules` and `frozen_res` name.

    Raises:
        UserError: there is no such module, a pattern is no regular expression or matches nothing, or nothing is left.
    """
    modules = dict(model.named_modules())
    prefix = getattr(model, "base_model_prefix", "")
    for index, name in enumerate(recipe.frozen_modules):
        found = modules.get(name) or modules.get(f"{prefix}.{name}")
        if found is None:
            raise UserError(
                f"frozen_modules.{index}: {recipe.student_name} has no module {name!r}."
                f"{nearest(name, _near(name, modules))}"
            )
        found.requires_grad_(False)
    for index, pattern in enumerate(recipe.frozen_res):
        try:
            expression = re.compile(pattern)
        except re.error as error:
            raise UserError(f"frozen_res.{index}: {pattern!r} is no regular expression ({error}).") from error
        matching = [parameter for name, parameter in model.named_parameters() if expression.search(name)]
        if not matching:
            raise UserError(
                f"frozen_res.{index}: no parameter of {recipe.student_name} has a name that {pattern!r} matches."
            )
        for parameter in matching:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError("frozen_modules, frozen_res: they freeze every parameter; there is nothing left to train.")


def with_adapters(model: PreTrainedModel, settings: LoraSettings) -> PreTrainedModel:
    """Put low-rank adapters into a model, which trains nothing else from then on.

    Raises:
        UserError: `peft` is not installed, or the model has no such layers.
    """
    check_adapters(settings)
    from peft import LoraConfig, inject_adapter_in_model  # type: ignore[import-not-found,unused-ignore]

    targets = list(settings.target_modules) if settings.target_modules else "all-linear"
    config = LoraConfig(
        r=settings.r, lora_alpha=settings.alpha, lora_dropout=settings.dropout, target_modules=targets,
        task_type="CAUSAL_LM",
    )  # fmt: skip
    try:
        return inject_adapter_in_model(config, model)
    except ValueError as error:
        raise UserError(f"lora.target_modules: {str(error).splitlines()[0]}") from error


def without_adapters(model: nn.Module) -> None:
    """Add what the adapters learnt to the weights that they stand on, and take them out."""
    from peft.tuners.tuners_utils import BaseTunerLayer  # type: ignore[import-not-found,unused-ignore]

    adapted = [(name, module) for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]
    for name, module in adapted:
        module.merge()
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, module.get_base_layer())


def check_adapters(settings: LoraSettings | None) -> None:
    """Refuse adapters where the package that makes them is missing."""
    if settings is not None and importlib.util.find_spec("peft") is None:
        raise UserError("lora: adapters need the package peft, which is not installed here: pip install peft.")


def _auto_class(recipe: Recipe) -> Any:
    name = recipe.model_auto_class
    if not name.startswith("AutoModel") or not hasattr(transformers, name):
        known = [one for one in dir(transformers) if one.startswith("AutoModelFor")]
        raise UserError(f"model_auto_class: transformers has no class {name!r}.{nearest(name, known)}")
    return getattr(transformers, name)


def _dtype(recipe: Recipe) -> torch.dtype:
    """Return the dtype of the weights: as asked, else float32, which autocast (`bf16: true`) computes in half of."""
    asked = recipe.model_kwargs.get("dtype", recipe.model_kwargs.get("torch_dtype", "float32"))
    name = str(asked).removeprefix("torch.")
    if name not in DTYPES:
        raise UserError(f"model_kwargs.dtype: {asked!r} is none of {', '.join(DTYPES)}.")
    return DTYPES[name]


def _attention(recipe: Recipe) -> str | None:
    asked = recipe.model_kwargs.get("attn_implementation")
    if asked is not None:
        return str(asked)
    halves = _dtype(recipe) != torch.float32 or bool(
        recipe.training_args.get("bf16") or recipe.training_args.get("fp16")
    )
    fast = torch.cuda.is_available() and importlib.util.find_spec("flash_attn") is not None and halves
    return FLASH if recipe.use_flash_attention and fast else None


def _near(name: str, modules: dict[str, nn.Module]) -> list[str]:
    """Return the names to look for a near one among: of modules, without the numbers of blocks, shortest first."""
    plain = {module for module in modules if module and not re.search(r"\.\d+(\.|$)", module)}
    depth = name.count(".") + 1
    near = sorted(module for module in plain if module.count(".") <= depth)
    return near or sorted(plain)
