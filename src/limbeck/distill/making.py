"""Students that a training run makes itself: untrained ones of a preset, and ternary ones of a dense checkpoint.

What is made depends on the recipe alone (a preset's weights on `training_args.seed`, a converted model's sub-norms on
the first training rows), so a run that is resumed, and every process of a distributed one, makes the same.
"""

from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from limbeck.distill.recipe import DenseModel, PresetModel, Recipe
from limbeck.distill.rows import Rows, RowSet
from limbeck.engines.transformers import quiet
from limbeck.errors import UserError
from limbeck.models.bitnet.configuration import LimbeckBitNetConfig
from limbeck.models.bitnet.from_dense import from_dense, student_config
from limbeck.models.bitnet.linear import ternary_layers
from limbeck.models.bitnet.modelling import LimbeckBitNetForCausalLM
from limbeck.models.bitnet.presets import preset_config
from limbeck.seeds import derive_seed
from limbeck.signals.dataset import SignalRow

CALIBRATION_ROWS = 16
CALIBRATION_TOKENS = 4096


def preset_configuration(settings: PresetModel, tokenizer: PreTrainedTokenizerBase) -> LimbeckBitNetConfig:
    """Return the configuration of an untrained student with a tokenizer's vocabulary.

    Raises:
        UserError: there is no such preset, or its fields don't go together; the message begins with `model`.
    """
    pad = tokenizer.pad_token_id
    of_tokenizer = {
        "vocab_size": len(tokenizer), "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": pad if pad is not None and pad < len(tokenizer) else None,
    }  # fmt: skip
    try:
        return preset_config(settings.preset, {**settings.changes(), **of_tokenizer})
    except UserError as error:
        raise UserError(f"model: {error}") from error


def converted_configuration(settings: DenseModel, dense: PreTrainedModel) -> LimbeckBitNetConfig:
    """Return the configuration of the ternary student that a dense model makes.

    Raises:
        UserError: the model is of a kind that can't be converted; the message begins with the key.
    """
    try:
        return student_config(dense, settings.changes())
    except UserError as error:
        raise UserError(f"model.from_dense: {settings.from_dense}: {error}") from error


def check_fields(recipe: Recipe, skeleton: PreTrainedModel) -> None:
    """Refuse what the recipe says of a student that is made, or of ternary layers, and can't be.

    Raises:
        UserError: an argument that only loading knows, adapters on ternary layers, or a ramp without such layers.
    """
    if isinstance(recipe.model, PresetModel):
        for name in recipe.model_kwargs:
            if name not in ("dtype", "torch_dtype", "attn_implementation"):
                raise UserError(
                    f"model_kwargs.{name}: an untrained student is told dtype and attn_implementation only."
                )
    ternary = bool(ternary_layers(skeleton))
    if recipe.quantisation is not None and not ternary:
        raise UserError(f"quantisation: {recipe.student_name} has no ternary layers. Leave it out.")
    if recipe.lora is not None and ternary:
        raise UserError(
            "lora: what adapters learn would be rounded away when they are merged into ternary layers. Leave it out."
        )


def untrained(config: LimbeckBitNetConfig, seed: int, dtype: torch.dtype, attention: str | None) -> PreTrainedModel:
    """Return an untrained student; its weights depend on configuration and seed alone."""
    told = {} if attention is None else {"attn_implementation": attention}
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(derive_seed(seed, "weights") % 2**63)
        model: PreTrainedModel = LimbeckBitNetForCausalLM._from_config(config, dtype=torch.float32, **told)
    return model.to(dtype)


def converted(
    settings: DenseModel, dense: PreTrainedModel, calibration_BT: Tensor, attention: str | None
) -> PreTrainedModel:
    """Return a ternary student with the weights of a dense model.

    Args:
        settings: the recipe's.
        dense: with its weights.
        calibration_BT: token ids of text that sub-norms are set on.
        attention: how it is computed; None: as the library chooses.
    """
    try:
        student = from_dense(dense.eval(), calibration_BT, **settings.changes())
    except UserError as error:
        raise UserError(f"model.from_dense: {settings.from_dense}: {error}") from error
    if attention is not None:
        student.set_attn_implementation(attention)
    return student


def calibration(rows: Rows, longest: int) -> Tensor:
    """Return tokens `[B, T]` of the first training rows, end to end, cut into pieces of at most `longest`."""
    train: Any = rows.train
    first: Iterable[SignalRow]
    if isinstance(train, RowSet):
        first = (train[index] for index in range(min(CALIBRATION_ROWS, len(train))))
    else:
        first = islice(iter(train), CALIBRATION_ROWS)
    ids = torch.cat([row.input_ids for row in first]).long()[:CALIBRATION_TOKENS]
    length = min(longest, len(ids))
    pieces = len(ids) // length
    return ids[: pieces * length].reshape(pieces, length)
