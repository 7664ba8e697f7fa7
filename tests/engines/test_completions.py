"""Completions by `transformers`: each one the model's own, drawn by a stream of its own, ended where it should end."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.engines.completions import Completion, Sampling, completion_seed, prompt_ids, scored_row
from limbeck.engines.generation import TransformersGenerator
from limbeck.engines.scoring import score_rows
from limbeck.engines.settings import TransformersEngine
from limbeck.errors import LimbeckError, UserError
from limbeck.signals.codecs.topk_spec import TopkSpec
from limbeck.signals.types import TopkSignal
from tests.engines.tiny import new_model, tokenizer_of

TOKENIZER = tokenizer_of()
MODEL = new_model(spread=4.0).double()
EOS = TOKENIZER.eos_token_id
PROMPTS = [[20, 21, 22], [30], [40, 41, 42, 43, 44], [50, 51]]
prompt_lists = st.lists(st.lists(st.integers(10, 299), min_size=1, max_size=9), min_size=1, max_size=5)


def generate(
    sampling: Sampling, prompts: Any = PROMPTS, *, model: Any = MODEL, batch_tokens: int = 8192, first: int = 0
) -> list[Completion]:
    generator = TransformersGenerator(model, TOKENIZER, TransformersEngine(batch_tokens=batch_tokens), "tiny")
    return generator.generate(prompts, sampling, first_prompt=first)


@torch.no_grad()
def plainly(prompt: list[int], sampling: Sampling, number: int, choice: int = 0, model: Any = MODEL) -> list[int]:
    """With no batch, cache or padding: each time the first token whose cumulated probability passes the draw."""
    generator = torch.Generator().manual_seed(completion_seed(sampling, number, choice))
    draws = torch.rand(sampling.max_tokens, generator=generator, dtype=torch.float64)
    ids = list(prompt)
    for draw in draws.tolist():
        logits = model(torch.tensor([ids])).logits[0, -1].double()
        if sampling.temperature == 0:
            ids.append(int(logits.argmax()))
        else:
            mass = (logits / sampling.temperature).softmax(-1).tolist()
            order = sorted(range(len(mass)), key=lambda token: -mass[token])
            kept, total = set(), 0.0
            for token in order:
                if total >= sampling.top_p:
                    break
                kept.add(token)
                total += mass[token]
            below = 0.0
            for token, share in enumerate(mass):
                below += share if token in kept else 0.0
                if below > draw * total:
                    break
            ids.append(token)
        if ids[-1] == EOS:
            break
    return ids[len(prompt) :]


@settings(max_examples=20)
@given(
    prompts=prompt_lists,
    batch_tokens=st.sampled_from([1, 30, 8192]),
    temperature=st.sampled_from([0.0, 0.5, 1.0, 1.7]),
    top_p=st.sampled_from([1.0, 0.8, 0.1]),
    seed=st.integers(0, 5),
)
def test_completions_do_not_depend_on_the_batch(
    prompts: list[list[int]], batch_tokens: int, temperature: float, top_p: float, seed: int
) -> None:
    sampling = Sampling(temperature=temperature, top_p=top_p, max_tokens=5, seed=seed)
    for number, completion in enumerate(generate(sampling, prompts, batch_tokens=batch_tokens)):
        assert list(completion.ids or ()) == plainly(prompts[number], sampling, number)


def test_a_run_that_is_resumed_goes_on_with_the_same_texts() -> None:
    sampling = Sampling(max_tokens=6, seed=4, n=2)
    whole = generate(sampling)
    assert [(one.prompt, one.choice) for one in whole] == [(p, c) for p in range(4) for c in range(2)]
    assert generate(sampling, PROMPTS[2:], first=2) == whole[4:]
    assert len({one.ids for one in generate(Sampling(max_tokens=6, n=8), [[20]])}) > 4
    assert generate(Sampling(max_tokens=6, seed=5)) != generate(Sampling(max_tokens=6, seed=6))


def test_the_global_generator_is_neither_read_nor_moved() -> None:
    sampling = Sampling(max_tokens=4)
    torch.manual_seed(0)
    first, state = generate(sampling), torch.get_rng_state()
    torch.manual_seed(1)
    assert generate(sampling) == first
    torch.manual_seed(0)
    assert torch.equal(torch.get_rng_state(), state)


def ending_after(prompt: list[int], steps: int) -> Any:
    """A copy of the model whose greedy answer to `prompt` ends after `steps` tokens: two embeddings change places."""
    last = plainly(prompt, Sampling(temperature=0, max_tokens=steps + 1), 0)[-1]
    model = new_model(spread=4.0).double()
    with torch.no_grad():
        table = model.get_input_embeddings().weight
        table[[EOS, last]] = table[[last, EOS]]
    return model


def test_a_completion_ends_with_the_end_of_text() -> None:
    model, greedy = ending_after([20, 21, 22], 2), Sampling(temperature=0, max_tokens=9)
    ended, other = generate(greedy, [[20, 21, 22], [30]], model=model)
    assert ended.ids is not None
    assert ended.ids[-1] == EOS
    assert ended.finish_reason == "stop"
    assert "<|endoftext|>" not in ended.text
    assert list(ended.ids) == plainly([20, 21, 22], greedy, 0, model=model)
    assert list(other.ids or ()) == plainly([30], greedy, 1, model=model)
    assert ended.usage.completion_tokens == len(ended.ids)


def test_the_models_own_end_tokens_end_it_too() -> None:
    """Chat models end a turn with another token than a text."""
    greedy = Sampling(temperature=0, max_tokens=6)
    third = plainly([20, 21, 22], greedy, 0)[2]
    model = new_model(spread=4.0).double()
    model.generation_config.eos_token_id = [EOS, third]
    [completion] = generate(greedy, [[20, 21, 22]], model=model)
    assert completion.ids is not None
    assert completion.ids[-1] == third
    assert completion.finish_reason == "stop"


def test_a_stop_text_ends_a_completion_and_is_not_part_of_it() -> None:
    greedy = Sampling(temperature=0, max_tokens=12)
    [whole] = generate(greedy, [[20, 21, 22]])
    for length in (1, 2, 3):
        for start in range(1, len(whole.text) - length):
            stop = whole.text[start : start + length]
            if "\ufffd" in stop:
                continue
            [cut] = generate(greedy.model_copy(update={"stop": (stop, "never this")}), [[20, 21, 22]])
            assert cut.text == whole.text[: whole.text.index(stop)]
            assert cut.finish_reason == "stop"
            assert cut.ids == (whole.ids or ())[: len(cut.ids or ())]
            assert stop in TOKENIZER.decode(cut.ids)


def test_a_stop_text_ends_only_its_own_row() -> None:
    drawn = Sampling(max_tokens=10, seed=2)
    first, second = generate(drawn, PROMPTS[:2])
    parts = [first.text[at : at + length] for length in (1, 2, 3) for at in range(1, len(first.text) - length)]
    stop = next(part for part in parts if part not in second.text and "\ufffd" not in part)
    stopped, whole = generate(drawn.model_copy(update={"stop": (stop,)}), PROMPTS[:2])
    assert stopped.finish_reason == "stop"
    assert stopped.text == first.text[: first.text.index(stop)]
    assert whole == second


def test_what_is_said_of_an_answer_is_what_scoring_says_of_it() -> None:
    for prompt, completion in zip(PROMPTS, generate(Sampling(max_tokens=6, top_logprobs=7)), strict=True):
        ids, trained, signal = scored_row(prompt, completion)
        spec = TopkSpec(select="count", cap=7, temperatures=(1.0,))
        [expected] = score_rows(MODEL, [(ids, trained)], spec, batch_tokens=64)
        assert isinstance(signal, TopkSignal)
        assert isinstance(expected, TopkSignal)
        assert torch.equal(signal.mask, expected.mask)
        torch.testing.assert_close(
            signal.logprobs[signal.mask], expected.logprobs[signal.mask].float(), atol=2e-5, rtol=0
        )
        assert torch.equal(signal.ids[signal.mask], expected.ids[signal.mask].long())


def test_a_conversation_is_a_prompt() -> None:
    messages = [{"role": "user", "content": "What is left"}]
    sampling = Sampling(max_tokens=4)
    [chat] = generate(sampling, [messages])
    [plain] = generate(sampling, [prompt_ids(TOKENIZER, messages)])
    assert chat == plain
    assert chat.usage.prompt_tokens == len(prompt_ids(TOKENIZER, messages))


def test_what_does_not_fit_into_the_context_is_refused() -> None:
    with pytest.raises(
        UserError, match="prompt 8: its 60 tokens and 5 new ones are more than the model's context of 64"
    ):
        generate(Sampling(max_tokens=5), [[20], [30] * 60], first=7)


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(LimbeckError, match="without a token"):
        prompt_ids(TOKENIZER, [])


def test_no_prompts_no_completions() -> None:
    assert generate(Sampling(), []) == []
