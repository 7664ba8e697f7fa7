"""Answers of a server: written once, aligned token by token, or refused."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from limbeck.engines.alignment import TokenBytes
from limbeck.engines.chat import ServerGenerator
from limbeck.engines.completions import Sampling, open_generator, prompt_ids, scored_row
from limbeck.engines.retries import BudgetSpentError
from limbeck.engines.scoring import score_rows
from limbeck.errors import LimbeckError, UserError
from limbeck.signals.codecs.registry import make_codec
from limbeck.signals.codecs.token import TokenSpec
from limbeck.signals.codecs.topk_spec import TopkSpec
from limbeck.signals.types import TokenSignal, TopkSignal
from tests.engines.loopback import Answer, Loopback, bytes_of, serve, status
from tests.engines.tiny import new_model, tokenizer_of

MODEL, TOKENIZER = new_model(spread=4.0), tokenizer_of()
PROMPTS = [[{"role": "user", "content": text}] for text in ("What is left of 12", "def double(x):", "Answer")]
TOP = 20
SAMPLING = Sampling(max_tokens=7, seed=3, top_logprobs=TOP)
SPEC = TopkSpec(select="count", cap=TOP, temperatures=(1.0,))


@pytest.fixture
def server() -> Iterator[Loopback]:
    with serve(MODEL, TOKENIZER) as running:
        yield running


def generate(
    server: Loopback, sampling: Sampling = SAMPLING, prompts: Any = PROMPTS, first: int = 0, **changes: Any
) -> Any:
    generator = open_generator("unused", None, server.engine(**changes), TOKENIZER)
    try:
        return generator.generate(prompts, sampling, first_prompt=first)
    finally:
        generator.close()


@pytest.mark.parametrize("protocol", ["vllm", "openai"])
def test_what_is_said_of_an_answer_is_what_the_model_says_of_it(server: Loopback, protocol: str) -> None:
    """Prompt and answer read again by the model itself: the same log-probabilities at the same places."""
    for completion, messages in zip(generate(server, protocol=protocol), PROMPTS, strict=True):
        ids, trained, signal = scored_row(prompt_ids(TOKENIZER, messages), completion)
        assert ids[trained].tolist() == list(completion.ids)
        [expected] = score_rows(MODEL, [(ids, trained)], SPEC, batch_tokens=64)
        assert isinstance(signal, TopkSignal)
        assert isinstance(expected, TopkSignal)
        assert torch.equal(signal.mask, expected.mask)
        known = (signal.logprobs > float("-inf")) & signal.mask[:, None]
        assert known[signal.mask].sum() > 0.9 * known[signal.mask].numel()
        torch.testing.assert_close(signal.logprobs[known], expected.logprobs[known], atol=1e-4, rtol=0)
        assert torch.equal(signal.ids[known], expected.ids[known].long())
        make_codec(SPEC, 300).encode(signal, [len(ids)])
        _, _, own = scored_row(prompt_ids(TOKENIZER, messages), completion, "token")
        [plain] = score_rows(MODEL, [(ids, trained)], TokenSpec(), batch_tokens=64)
        assert isinstance(own, TokenSignal)
        torch.testing.assert_close(own.logprobs[own.mask], plain.logprobs[own.mask], atol=1e-4, rtol=0)


def test_every_completion_has_a_seed_of_its_own_and_a_resume_the_same(server: Loopback) -> None:
    sampling = Sampling(max_tokens=6, seed=9, n=2)
    whole = generate(server, sampling)
    assert [(one.prompt, one.choice) for one in whole] == [(p, c) for p in range(3) for c in range(2)]
    seeds = [body["seed"] for body in server.asked("/v1/completions")]
    assert len(set(seeds)) == 6
    assert all(0 <= seed < 2**31 for seed in seeds)
    resumed = generate(server, sampling, PROMPTS[1:], first=1)
    assert [one.text for one in resumed] == [one.text for one in whole[2:]]


def test_vllm_gets_our_ids_and_others_get_messages(server: Loopback) -> None:
    generate(server, prompts=PROMPTS[:1])
    [body] = server.asked("/v1/completions")
    assert body["prompt"] == prompt_ids(TOKENIZER, PROMPTS[0])
    generate(server, prompts=PROMPTS[:1], protocol="openai")
    [body] = server.asked("/v1/chat/completions")
    assert body["messages"] == PROMPTS[0]
    assert (body["logprobs"], body["top_logprobs"]) == (True, TOP)
    assert "top_k" not in body  # strict servers refuse what OpenAI's protocol does not know


@pytest.mark.parametrize(("top", "asked"), [(None, 20), (7, 7)])
def test_generated_mode_asks_for_log_probabilities_by_itself(server: Loopback, top: int | None, asked: int) -> None:
    plain = Sampling(max_tokens=3)
    [completion] = generate(server, plain, PROMPTS[:1], mode="generated", top=top, protocol="openai")
    assert completion.top is not None
    assert completion.top.ids.shape[-1] == asked
    [body] = server.asked("/v1/chat/completions")
    assert body["top_logprobs"] == asked


def test_usage_and_reason_are_the_servers(server: Loopback) -> None:
    [completion] = generate(server, prompts=PROMPTS[:1])
    assert completion.usage.prompt_tokens == len(prompt_ids(TOKENIZER, PROMPTS[0]))
    assert completion.usage.completion_tokens == len(completion.ids)
    assert completion.finish_reason in ("stop", "length")
    assert completion.model == "org/teacher"


def content(answer: Answer) -> list[Answer]:
    return answer["choices"][0]["logprobs"]["content"]


def rename(part: Answer, text: str) -> None:
    part.update(token=text, bytes=list(text.encode()))


def change(act: Callable[[Answer], Any]) -> Callable[[Answer], Answer]:
    def changed(answer: Answer) -> Answer:
        act(answer)
        return answer

    return changed


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda answer: rename(content(answer)[2], "no such token"), "token 2 of the answer, 'no such token', is"),
        (lambda answer: content(answer).pop(1), "do not make up its text"),
        (lambda answer: content(answer).insert(1, content(answer)[0]), "do not make up its text"),
        (lambda answer: answer["choices"][0]["message"].update(content="other"), "do not make up its text"),
        (lambda answer: answer["choices"][0].update(logprobs=None), "no log-probabilities came"),
        (lambda answer: content(answer)[0].pop("logprob"), "logprobs.content is not as"),
        (lambda answer: content(answer)[1].update(logprob=float("nan"), top_logprobs=[]), "position 1: .* not a num"),
        (lambda answer: answer["choices"][0].update(token_ids=[1, 2, 3, 4, 5, 6, 7]), "the ids that the server says"),
        (lambda answer: answer["choices"][0]["message"].update(content=None), "the answer holds no text"),
        (lambda answer: answer.update(model="org/other"), "'org/other' answered"),
    ],
)  # fmt: skip
def test_an_answer_that_cannot_be_aligned_is_an_error(
    server: Loopback, act: Callable[[Answer], Any], message: str
) -> None:
    server.always = change(act)
    with pytest.raises(LimbeckError, match=message) as caught:
        generate(server, prompts=PROMPTS[:1], protocol="openai", first=17)
    assert "prompt 17" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_prompt_than_was_sent_is_an_error(server: Loopback) -> None:
    server.always = change(lambda answer: answer["choices"][0]["prompt_token_ids"].append(5))
    with pytest.raises(LimbeckError, match="it read another prompt"):
        generate(server, prompts=PROMPTS[:1])


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        (Sampling(top_logprobs=21), "at most 20"),
        (Sampling(top_logprobs=5, temperature=0.7), "set both to 1"),
        (Sampling(top_logprobs=5, top_p=0.9), "set both to 1"),
    ],
)
def test_log_probabilities_whose_meaning_is_not_known_are_not_asked_for(
    server: Loopback, sampling: Sampling, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        generate(server, sampling, protocol="openai")
    assert server.asked("/v1/chat/completions") == []


def test_ids_are_no_prompt_for_a_chat_server(server: Loopback) -> None:
    with pytest.raises(UserError, match="takes conversations, not token ids"):
        generate(server, prompts=[[5, 6, 7]], protocol="openai")


def test_a_budget_ends_the_run_with_what_is_finished(server: Loopback) -> None:
    sampling = Sampling(max_tokens=5, seed=1)
    cost = len(prompt_ids(TOKENIZER, PROMPTS[0])) + 5
    with pytest.raises(BudgetSpentError, match=f"the budget of {cost + 6} tokens is spent") as caught:
        generate(server, sampling, [PROMPTS[0]] * 50, budget_tokens=cost + 6, concurrency=1)
    assert [one.prompt for one in caught.value.finished] == [0]
    assert caught.value.finished[0].text == generate(server, sampling, PROMPTS[:1])[0].text


def test_a_prompt_that_is_not_answered_costs_nothing(server: Loopback) -> None:
    cost = len(prompt_ids(TOKENIZER, PROMPTS[0])) + 5
    generator = ServerGenerator(
        "org/teacher", None, server.engine(budget_tokens=cost, attempts=1, concurrency=1), TOKENIZER
    )
    server.next(status(503))
    with pytest.raises(LimbeckError, match="failed 1 times"):
        generator.generate(PROMPTS[:1], Sampling(max_tokens=5))
    assert generator._endpoint.budget.spent == 0
    assert len(generator.generate(PROMPTS[:1], Sampling(max_tokens=5))) == 1
    generator.close()


def test_without_log_probabilities_there_is_no_row(server: Loopback) -> None:
    [completion] = generate(server, Sampling(max_tokens=3), PROMPTS[:1])
    with pytest.raises(LimbeckError, match=r"prompt 0: .* Set sampling.top_logprobs"):
        scored_row(prompt_ids(TOKENIZER, PROMPTS[0]), completion)


def test_a_row_is_not_made_of_another_prompt(server: Loopback) -> None:
    [completion] = generate(server, prompts=PROMPTS[:1])
    with pytest.raises(LimbeckError, match="Use the teacher's own tokenizer and chat template"):
        scored_row(prompt_ids(TOKENIZER, PROMPTS[1]), completion)


def test_the_generator_is_opened_by_the_engines_name(server: Loopback) -> None:
    generator = open_generator("unused", None, server.engine(), TOKENIZER)
    generator.close()
    assert isinstance(generator, ServerGenerator)
    assert generator.description["engine"] == "server"


def test_every_token_is_found_by_its_bytes() -> None:
    tokens = TokenBytes(TOKENIZER)
    for token in range(len(TOKENIZER)):
        assert tokens.id_of("whatever", list(bytes_of(TOKENIZER, token))) == token
        assert tokens.id_of(f"token_id:{token}") == token
    assert tokens.id_of("\ufffd") is None
    assert tokens.id_of("surely none") is None


def test_byte_fallback_vocabularies_have_bytes_too() -> None:
    """Llama's kind: a sign for the blank, and tokens for single bytes."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    pieces = ["<unk>", "<s>", "▁Hello", "ello", "▁", "<0x0A>", "<0xC3>", "é"]
    backend = Tokenizer(models.BPE({piece: at for at, piece in enumerate(pieces)}, [], byte_fallback=True))
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokens = TokenBytes(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>"))
    assert tokens.id_of(" Hello") == 2
    assert tokens.id_of("", [0x0A]) == 5
    assert tokens.id_of("\ufffd", [0xC3]) == 6
    assert tokens.id_of("é") == 7
    assert tokens.id_of("<s>") == 1
    assert tokens.text_of([2, 5, 1, 1]) == b" Hello\n"


def test_two_tokens_of_the_same_bytes_are_no_answer() -> None:
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE({"<unk>": 0, "<0x41>": 1, "A": 2}, [], byte_fallback=True))
    backend.decoder = decoders.Sequence([decoders.ByteFallback()])
    tokens = TokenBytes(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>"))
    assert tokens.id_of("A") is None


def test_a_tokenizer_that_is_not_made_of_bytes_is_refused() -> None:
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece()
    tokens = TokenBytes(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]"))
    with pytest.raises(UserError, match=r"this tokenizer's decoder \(WordPiece\) does not say what bytes"):
        tokens.id_of("a")
