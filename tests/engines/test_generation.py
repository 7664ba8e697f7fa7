"""Greedy answers and sampled continuations: what comes out is the model's own, whatever stands beside it in a batch."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from limbeck.engines.transformers import answer_greedily, continue_by_sampling, load_model
from tests.engines.tiny import new_model, save, tokenizer_of

TOKENIZER = tokenizer_of()
MODEL = new_model().double()
EOS = TOKENIZER.eos_token_id
prompt_lists = st.lists(st.lists(st.integers(10, 299), min_size=1, max_size=12), min_size=1, max_size=6)


@torch.no_grad()
def continue_plainly(model: PreTrainedModel, prompt: list[int], count: int) -> list[int]:
    """The most probable token, one after another, with no cache, no batch and no padding."""
    ids = list(prompt)
    while len(ids) < len(prompt) + count:
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == EOS:
            break
    return ids[len(prompt) :]


def as_text(ids: list[int]) -> str:
    return str(TOKENIZER.decode(ids, skip_special_tokens=True))


@settings(max_examples=25, deadline=None)
@given(prompts=prompt_lists, batch_size=st.integers(1, 4))
def test_padding_on_the_left_changes_nothing(prompts: list[list[int]], batch_size: int) -> None:
    found = answer_greedily(MODEL, TOKENIZER, prompts, max_new_tokens=6, batch_size=batch_size)
    assert list(found) == [as_text(continue_plainly(MODEL, prompt, 6)) for prompt in prompts]


def end_after(prompt: list[int], steps: int) -> PreTrainedModel:
    """A copy of the model that ends its answer to `prompt` after `steps` tokens: two embeddings change places."""
    last = continue_plainly(MODEL, prompt, steps + 1)[-1]
    model = new_model().double()
    with torch.no_grad():
        table = model.get_input_embeddings().weight
        table[[EOS, last]] = table[[last, EOS]]
    return model


def test_an_answer_ends_where_the_model_ends_it() -> None:
    """A batch goes on for its longest answer; the others stay as they ended."""
    prompt = [40, 41, 42, 43]
    model = end_after(prompt, 2)
    prompts = [prompt, [50], [60, 61]]
    alone = [continue_plainly(model, one, 8) for one in prompts]
    assert alone[0][-1] == EOS
    assert len(alone[0]) < 8
    assert list(answer_greedily(model, TOKENIZER, prompts, max_new_tokens=8)) == [as_text(ids) for ids in alone]


@pytest.mark.parametrize("habit", ["repetition_penalty", "num_beams", "suppress_tokens"])
def test_a_models_own_generation_settings_do_not_bend_a_greedy_answer(tmp_path: Path, habit: str) -> None:
    prompts = [[40, 41, 42], [50]]
    model = load_model(save(tmp_path))
    plain = [continue_plainly(model, prompt, 12) for prompt in prompts]
    habits = {"repetition_penalty": 5.0, "num_beams": 4, "suppress_tokens": [plain[0][0], plain[1][0]]}
    (tmp_path / "generation_config.json").write_text(json.dumps({habit: habits[habit]}))
    found = answer_greedily(load_model(tmp_path), TOKENIZER, prompts, max_new_tokens=12)
    assert list(found) == [as_text(ids) for ids in plain]


def sample(seed: int = 3, *, prompts: list[list[int]] | None = None, batch_size: int = 2) -> list[list[int]]:
    asked = prompts or [[20, 21, 22], [30, 31, 32], [40, 41, 42], [50, 51, 52], [60, 61, 62]]
    return continue_by_sampling(MODEL, asked, max_new_tokens=7, seed=seed, eos_token_id=EOS, batch_size=batch_size)


def test_the_same_seed_samples_the_same_tokens() -> None:
    assert sample() == sample()
    assert sample(seed=3) != sample(seed=4)


def test_the_global_generator_is_neither_read_nor_moved() -> None:
    torch.manual_seed(0)
    first, state = sample(), torch.get_rng_state()
    torch.manual_seed(1)
    assert sample() == first
    torch.manual_seed(0)
    assert torch.equal(torch.get_rng_state(), state)


def test_each_batch_draws_from_a_generator_of_its_own() -> None:
    """So the continuation of a prompt does not depend on how the batches before it went."""
    others = [[99, 98, 97], [96, 95, 94], [40, 41, 42], [50, 51, 52]]
    assert sample(prompts=others)[2:4] == sample()[2:4]


def test_equal_prompts_in_different_batches_go_on_differently() -> None:
    continued = sample(prompts=[[20, 21, 22]] * 8, batch_size=1)
    assert len({tuple(ids) for ids in continued}) > 4


def test_a_continuation_ends_with_its_first_end_of_text() -> None:
    model = end_after([20, 21, 22], 1)
    model.model.norm.weight.data.mul_(100)  # so sharp that sampling is greedy
    (continued,) = continue_by_sampling(model, [[20, 21, 22]], max_new_tokens=9, seed=1, eos_token_id=EOS)
    assert continued == continue_plainly(model, [20, 21, 22], 9)
    assert continued.index(EOS) == len(continued) - 1 < 8


def test_samples_follow_the_models_distribution() -> None:
    """First tokens of 4,000 draws against the softmax, within five standard errors for every token."""
    count, prompt = 4000, [20, 21, 22]
    with torch.no_grad():
        expected = MODEL(torch.tensor([prompt])).logits[0, -1].softmax(-1)
    drawn = continue_by_sampling(MODEL, [prompt] * count, max_new_tokens=1, seed=5, eos_token_id=EOS, batch_size=500)
    share = torch.bincount(torch.tensor([ids[0] for ids in drawn]), minlength=len(expected)) / count
    error = (expected * (1 - expected) / count).sqrt()
    assert ((share - expected).abs() <= 5 * error + 1.5 / count).all()
