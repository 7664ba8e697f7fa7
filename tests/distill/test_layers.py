"""Which block learns from which is a matter of two configurations, and a wrong recipe is refused by them."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig

from limbeck.distill.layers import (
    AttentionRelationSettings,
    LayerMapping,
    block_count,
    proportional,
    resolve_layers,
    resolve_relations,
    state_width,
)
from limbeck.errors import UserError
from limbeck.settings import Settings, validate_settings


class Recipe(Settings):
    layer_mapping: LayerMapping | None = None


def llama(blocks: int, width: int = 32, heads: int = 4, groups: int = 2) -> Any:
    return AutoConfig.for_model(
        "llama", hidden_size=width, num_hidden_layers=blocks, num_attention_heads=heads, num_key_value_heads=groups
    )


def multimodal(blocks: int) -> Any:
    text = {"model_type": "mistral", "num_hidden_layers": blocks, "hidden_size": 48, "num_attention_heads": 4}
    return AutoConfig.for_model("mistral3", text_config=text, vision_config={"model_type": "pixtral"})


def mapping_of(given: object) -> LayerMapping | None:
    return validate_settings({"layer_mapping": given}, Recipe, "recipe.yaml").layer_mapping


@given(st.integers(1, 100), st.integers(1, 100))
def test_all_goes_through_the_teachers_depth_in_order_and_ends_at_its_end(student: int, teacher: int) -> None:
    pairs = proportional(student, teacher)
    assert [s for s, _ in pairs] == list(range(student))
    assert pairs[-1] == (student - 1, teacher - 1)
    placed = [t for _, t in pairs]
    assert placed == sorted(placed)
    assert placed[0] >= 0
    for s, t in pairs:  # the first block behind which at least the student's share of the depth lies
        assert (t + 1) / teacher >= (s + 1) / student - 1e-12
        assert t / teacher < (s + 1) / student
    if student == teacher:
        assert placed == list(range(teacher))
    if teacher % student == 0:
        assert placed == [(s + 1) * teacher // student - 1 for s in range(student)]


def test_all_of_two_depths() -> None:
    assert resolve_layers("all", llama(3), llama(28)) == ((0, 9), (1, 18), (2, 27))
    assert resolve_layers("all", llama(4), llama(2)) == ((0, 0), (1, 0), (2, 1), (3, 1))


def test_the_text_part_of_a_multimodal_model_counts() -> None:
    assert block_count(multimodal(6)) == 6
    assert state_width(multimodal(6)) == 48
    assert resolve_layers("all", llama(2), multimodal(6)) == ((0, 2), (1, 5))


def test_pairs_are_read_from_a_recipe_and_kept_in_order() -> None:
    mapping = mapping_of([[1, 27], [0, 3]])
    assert mapping == ((1, 27), (0, 3))
    assert resolve_layers(mapping, llama(2), llama(28)) == ((1, 27), (0, 3))
    assert mapping_of("all") == "all"


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        (((0, 3), (1, 28)), "layer_mapping.1: the teacher has 28 blocks (0 to 27), and block 28 is asked for."),
        (((2, 3),), "layer_mapping.0: the student has 2 blocks (0 to 1), and block 2 is asked for."),
        (((0, 3), (1, 4), (0, 3)), r"layer_mapping.2: the pair [0, 3] stands there already"),
    ],
)
def test_a_block_that_is_not_there_is_refused(mapping: LayerMapping, message: str) -> None:
    with pytest.raises(UserError) as refused:
        resolve_layers(mapping, llama(2), llama(28))
    assert message in str(refused.value)


@pytest.mark.parametrize(("given", "key"), [("last", ""), ([[1]], "0.1"), ([[0, -1]], "0.1"), ([], ""), (3, "")])
def test_what_is_no_mapping_is_refused_with_its_place(given: object, key: str) -> None:
    with pytest.raises(UserError, match=r"recipe\.yaml: layer_mapping.*") as refused:
        mapping_of(given)
    assert key in str(refused.value)


def test_relations_are_taken_of_the_last_blocks_unless_others_are_named() -> None:
    assert resolve_relations(AttentionRelationSettings(), llama(2), llama(7)) == ((1, 6),)
    named = AttentionRelationSettings(layers=((1, 4),))
    assert resolve_relations(named, llama(2), llama(7)) == ((1, 4),)
    with pytest.raises(UserError, match=r"attention_relation\.layers\.0: the teacher has 4 blocks"):
        resolve_relations(named, llama(2), llama(4))


def test_heads_that_cannot_be_regrouped_are_refused() -> None:
    settings = AttentionRelationSettings(relation_heads=16)
    assert resolve_relations(settings, llama(2), llama(2, 64)) == ((1, 1),)
    with pytest.raises(
        UserError, match=r"relation_heads: 1 heads of 8 numbers of the student .* Choose a divisor of 8"
    ):
        resolve_relations(settings, llama(2, groups=1), llama(2, 64))
    with pytest.raises(UserError, match=r"attention_relation.*: unknown key 'relation_head'.*'relation_heads'"):
        validate_settings({"relation_head": 2}, AttentionRelationSettings, "attention_relation")


def test_a_block_without_softmax_attention_is_refused() -> None:
    kinds = ["linear_attention", "full_attention", "linear_attention"]
    mixed = AutoConfig.for_model("qwen3_next", num_hidden_layers=3, hidden_size=32, num_attention_heads=4, head_dim=8,
                                 num_key_value_heads=2, layer_types=kinds)  # fmt: skip
    assert resolve_relations(AttentionRelationSettings(layers=((1, 1),)), llama(2), mixed) == ((1, 1),)
    for settings in (AttentionRelationSettings(), AttentionRelationSettings(layers=((1, 0),))):
        with pytest.raises(UserError, match=r"layers\.0: block [02] of the teacher is 'linear_attention'"):
            resolve_relations(settings, llama(2), mixed)
