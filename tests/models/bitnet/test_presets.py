"""Presets weigh what their names say, and what `weigh` says is what the model holds."""

import pytest
import torch

from limbeck.errors import UserError
from limbeck.models.bitnet import LimbeckBitNetForCausalLM
from limbeck.models.bitnet.linear import ternary_layers
from limbeck.models.bitnet.presets import PRESETS, preset_config, weigh


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_named_by_its_size_and_weighs_what_is_said(name: str) -> None:
    config = preset_config(name)
    with torch.device("meta"):
        student = LimbeckBitNetForCausalLM(config)
    found = weigh(config)
    assert found.total == sum(parameter.numel() for parameter in student.parameters())
    assert found.ternary == sum(layer.weight.numel() for layer in ternary_layers(student).values())
    assert name.rsplit("-", 1)[1] == f"{found.total / 1e6:.0f}m"


@pytest.mark.parametrize(
    "changes",
    [{"gated_mlp": False}, {"tie_word_embeddings": False}, {"ternary": False}, {"qk_norm": True, "head_dim": 32}],
)
def test_weights_are_counted_for_every_shape(changes: dict[str, object]) -> None:
    config = preset_config("bitnet-6m", changes)
    with torch.device("meta"):
        student = LimbeckBitNetForCausalLM(config)
    assert weigh(config).total == sum(parameter.numel() for parameter in student.parameters())


def test_known_sizes() -> None:
    found = weigh(preset_config("bitnet-100m"))
    assert (found.total, found.ternary) == (100_126_464, 75_497_472)
    assert weigh(preset_config("royal-flush-100m")).total == 100_094_208
    assert found.packed < 44_000_000
    assert found.cache == 25_165_824


def test_widths_of_exportable_presets_fill_whole_blocks() -> None:
    for name, (profile, sizes) in PRESETS.items():
        if profile != "royal_flush":
            assert sizes["hidden_size"] % 256 == 0 and sizes["intermediate_size"] % 256 == 0, name


def test_unknown_presets_and_fields_name_the_nearest() -> None:
    with pytest.raises(UserError, match="bitnet-100m"):
        preset_config("bitnet-100")
    with pytest.raises(UserError, match="hidden_act"):
        preset_config("bitnet-6m", {"hidden_akt": "silu"})
