"""On-policy batches: the student's own words, prompts masked, the same whenever and wherever they are written."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from limbeck.distill.executor import Positions, Term, token_values, total_loss
from limbeck.distill.losses import get_loss
from limbeck.distill.rollout import Rollout, StudentWriter, check_rollout, evaluating, open_rollout
from limbeck.distill.student import DistilledStudent
from limbeck.distill.teachers.hf import ModelTeacher
from limbeck.distill.teachers.online import Needs, open_teacher
from limbeck.distill.teachers.settings import HfTeacher, RolloutSettings
from limbeck.engines.transformers import load_model, quiet
from limbeck.errors import UserError
from limbeck.signals.dataset import SignalRow
from limbeck.signals.loader import SignalBatch, collate
from limbeck.signals.types import DenseSignal, OutputHead, TokenSignal
from tests.engines.loopback import Answer, Handler, Loopback, serve
from tests.engines.tiny import new_model, save, tokenizer_of

END = int(tokenizer_of().eos_token_id or 0)


@pytest.fixture(scope="module")
def student() -> LlamaForCausalLM:
    return new_model(3, spread=2.0)


def rollout(student: LlamaForCausalLM, *, seed: int = 1, rank: int = 0, length: int = 48, **settings: Any) -> Rollout:
    return open_rollout(
        RolloutSettings(**{"max_new_tokens": 8, **settings}), student, tokenizer_of(), seed=seed,
        sequence_length=length, rank=rank,
    )  # fmt: skip


def batch(*prompts: int, length: int = 16) -> SignalBatch:
    """Rows of a prompt and a response; 0: text that is trained throughout."""
    generator = torch.Generator().manual_seed(11)
    rows = [
        SignalRow(torch.randint(10, 290, (length,), generator=generator), torch.arange(length) >= prompt, None)
        for prompt in prompts
    ]
    return collate(rows)


@given(st.sampled_from(["0", "0.1", "0.25", "0.3", "0.5", "0.7", "1"]), st.integers(0, 10_000))
def test_the_share_of_on_policy_steps_is_exact_and_evenly_spread(fraction: str, first: int) -> None:
    roll = Rollout(RolloutSettings(fraction=float(fraction)), StudentWriter(None, None, 1), 0, 0, 256, 0)  # type: ignore[arg-type]
    chosen = [roll.on_policy(step) for step in range(first, first + 100)]
    assert sum(chosen) == round(100 * float(fraction))
    assert [roll.on_policy(step) for step in range(first, first + 100)] == chosen


def test_steps_that_are_not_on_policy_keep_their_batch(student: LlamaForCausalLM) -> None:
    given_batch = batch(4, 6)
    assert rollout(student, fraction=0.0)(given_batch, 0, 0) is given_batch


def test_prompts_stay_and_are_masked_and_completions_count(student: LlamaForCausalLM) -> None:
    before = batch(4, 9)
    rolled = rollout(student, stop=())(before, 0, 0)
    for row, prompt in enumerate((4, 9)):
        length = int(rolled.attention_mask[row].sum())
        assert torch.equal(rolled.input_ids[row, :prompt], before.input_ids[row, :prompt])
        assert prompt < length <= prompt + 8
        assert rolled.trained[row].nonzero()[:, 0].tolist() == list(range(prompt, length))
        assert rolled.counted[row].nonzero()[:, 0].tolist() == list(range(prompt - 1, length - 1))
        written = rolled.input_ids[row, prompt:length].tolist()
        assert END not in written[:-1]
        assert len(written) == 8 or written[-1] == END


def test_completions_are_the_students_own(student: LlamaForCausalLM) -> None:
    """Greedily written, each token is the most probable one of the student as it is now."""
    rolled = rollout(student, temperature=0.0)(batch(4, 9), 0, 0)
    with torch.no_grad():
        best = student(rolled.input_ids, attention_mask=rolled.attention_mask).logits.argmax(-1)
    assert torch.equal(best[rolled.counted], rolled.targets[rolled.counted])


def test_rows_without_a_prompt_begin_with_their_first_tokens(student: LlamaForCausalLM) -> None:
    before = batch(0, 0)
    rolled = rollout(student, prompt_tokens=5)(before, 0, 0)
    assert torch.equal(rolled.input_ids[:, :5], before.input_ids[:, :5])
    assert not rolled.trained[:, :5].any() and rolled.trained[:, 5].all()


def test_prompts_that_leave_no_room_keep_their_last_tokens(student: LlamaForCausalLM) -> None:
    before = batch(14)
    rolled = rollout(student, length=18, max_new_tokens=8)(before, 0, 0)
    assert torch.equal(rolled.input_ids[0, :10], before.input_ids[0, 4:14])
    assert rolled.input_ids.shape[1] <= 18


def test_each_document_of_a_packed_row_is_a_prompt(student: LlamaForCausalLM) -> None:
    packed = replace(batch(0, 3), documents=torch.tensor([[0] * 7 + [1] * 9, [2] * 16]), sources=("code", "prose"))
    rolled = rollout(student, prompt_tokens=4, completions=2)(packed, 0, 0)
    starts = [packed.input_ids[0, :4], packed.input_ids[0, 7:11], packed.input_ids[1, :3]]
    assert len(rolled.input_ids) == 6 and rolled.documents is None
    assert rolled.sources == ("code",) * 4 + ("prose",) * 2
    for row, start in enumerate(starts):
        for choice in (0, 1):
            assert torch.equal(rolled.input_ids[2 * row + choice, : len(start)], start)


def test_a_batch_without_prompts_stays(student: LlamaForCausalLM) -> None:
    """A stand-in, say, of a rank that has no rows left; whoever writes is called all the same."""
    called = []

    class Counting(StudentWriter):
        def write(self, prompts: Any, sampling: Any, step: int) -> Any:
            called.append(len(prompts))
            return super().write(prompts, sampling, step)

    idle = replace(batch(4), trained=torch.zeros(1, 16, dtype=torch.bool))
    roll = replace(rollout(student), writer=Counting(student, tokenizer_of(), 64))
    assert roll(idle, 0, 0) is idle and called == [0]


def test_what_is_written_depends_on_seed_step_micro_batch_and_rank_alone(student: LlamaForCausalLM) -> None:
    def written(*, seed: int = 1, rank: int = 0, step: int = 2, micro: int = 1) -> list[list[int]]:
        return rollout(student, seed=seed, rank=rank)(batch(4, 6), step, micro).input_ids.tolist()

    once = written()
    torch.manual_seed(99)  # a resumed process has another history
    assert written() == once
    others = [written(seed=2), written(rank=1), written(step=3), written(micro=0)]
    assert all(other != once for other in others)


def test_the_run_around_it_is_not_disturbed(student: LlamaForCausalLM) -> None:
    """Random numbers, dropout of frozen parts, and the model's own generation settings are as they were."""
    student.train()
    student.model.layers[0].eval()
    modes = [module.training for module in student.modules()]
    state, settings = torch.get_rng_state(), student.generation_config
    rollout(student)(batch(4), 0, 0)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in student.modules()] == modes
    assert student.generation_config is settings
    with evaluating(student):
        assert not any(module.training for module in student.modules())
    student.eval()


def test_the_student_writes_in_the_precision_in_which_it_trains(student: LlamaForCausalLM) -> None:
    seen = []
    hook = student.model.layers[0].mlp.register_forward_hook(lambda module, given, output: seen.append(output.dtype))
    settings = RolloutSettings(max_new_tokens=3)
    for autocast in (None, torch.bfloat16):
        roll = open_rollout(settings, student, tokenizer_of(), seed=1, sequence_length=48, autocast=autocast)
        assert roll(batch(4), 0, 0).counted.any()
    hook.remove()
    assert set(seen[: len(seen) // 2]) == {torch.float32} and set(seen[len(seen) // 2 :]) == {torch.bfloat16}


def test_a_stop_text_ends_a_completion(student: LlamaForCausalLM) -> None:
    """The same random numbers with and without it: the completion is the same up to the stop text, and ends there."""
    found = 0
    for micro in range(8):
        free = rollout(student)(batch(4), 0, micro).input_ids[0, 4:].tolist()
        texts = [tokenizer_of().decode([token]) for token in free]
        for stop in {text for text in texts[:-1] if text.isascii() and text.strip() and text.count("<") == 0}:
            stopped = rollout(student, stop=(stop,))(batch(4), 0, micro).input_ids[0, 4:].tolist()
            first = next(place for place, text in enumerate(texts) if stop in text)
            assert stopped == free[: first + 1]
            found += 1
    assert found > 3


def test_impossible_rollouts_are_refused(student: LlamaForCausalLM) -> None:
    with pytest.raises(UserError, match=r"rollout\.max_new_tokens: 64 new tokens leave no room"):
        rollout(student, max_new_tokens=64)
    k1, reverse = Term.of(get_loss("k1")), Term.of(get_loss("reverse_kl"), temperature=2.0)
    check_rollout(RolloutSettings(fraction=0.5, temperature=0.7), [reverse])
    check_rollout(RolloutSettings(), [k1])
    for key, settings in (
        ("temperature", RolloutSettings(temperature=0.7)),
        ("top_p", RolloutSettings(top_p=0.9)),
        ("fraction", RolloutSettings(fraction=0.5)),
    ):
        with pytest.raises(UserError, match=rf"rollout\.{key}: 'k1'"):
            check_rollout(settings, [k1])


# the sampled-token estimators, over every token that the student could draw


def gradient(name: str, logits_V: torch.Tensor, signal: DenseSignal | TokenSignal, target: int = 0) -> torch.Tensor:
    """The executor's gradient by the student's logits, which stand in for the states of a head that is the identity."""
    hidden = logits_V[None].clone().requires_grad_()
    head = OutputHead(torch.eye(len(logits_V), dtype=torch.float64))
    positions = Positions(hidden, torch.tensor([target]), signal)
    total_loss(positions, head, [Term.of(get_loss(name))], 1.0)[0].backward()
    assert hidden.grad is not None
    return hidden.grad[0]


@given(st.integers(0, 2**32 - 1))
def test_estimators_have_the_expected_gradient_of_their_divergence(seed: int) -> None:
    """E over the student's draws: k1 and k2 the exact reverse KL's gradient, k3 the forward KL's."""
    generator = torch.Generator().manual_seed(seed)
    logits_V, teacher_V = torch.randn(2, 7, generator=generator, dtype=torch.float64) * 2
    log_p_V, q_V = teacher_V.log_softmax(-1), logits_V.softmax(-1)
    everywhere = torch.ones(1, dtype=torch.bool)
    dense = DenseSignal(log_p_V[None], everywhere)
    exact = {name: gradient(name, logits_V, dense) for name in ("kl", "reverse_kl")}
    for name, divergence in (("k1", "reverse_kl"), ("k2", "reverse_kl"), ("k3", "kl")):
        expected = sum(
            q_V[token] * gradient(name, logits_V, TokenSignal(log_p_V[token : token + 1], everywhere), token)
            for token in range(7)
        )
        torch.testing.assert_close(expected, exact[divergence], rtol=1e-9, atol=1e-12)


def test_estimators_have_the_expected_value_of_the_reverse_kl() -> None:
    logits_V, teacher_V = torch.randn(2, 7, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    log_p_V, log_q_V = teacher_V.log_softmax(-1), logits_V.log_softmax(-1)
    head = OutputHead(torch.eye(7, dtype=torch.float64))
    signal = TokenSignal(log_p_V, torch.ones(7, dtype=torch.bool))
    positions = Positions(logits_V.expand(7, 7), torch.arange(7), signal)
    values = token_values(positions, head, [Term.of(get_loss(name)) for name in ("k1", "k2", "k3")])
    reverse = (log_q_V.exp() * (log_q_V - log_p_V)).sum()
    for name in ("k1", "k3"):
        torch.testing.assert_close((log_q_V.exp() * values[name]).sum(), reverse)
    torch.testing.assert_close(
        (log_q_V.exp() * values["k2"]).sum() * 2, (log_q_V.exp() * (log_q_V - log_p_V) ** 2).sum()
    )


# training


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> ModelTeacher:
    folder = save(tmp_path_factory.mktemp("teacher"), 5)
    with quiet():
        new_model(5, spread=3.0).save_pretrained(folder)
    needs = Needs.of([Term.of(get_loss("reverse_kl")), Term.of(get_loss("k2"))])
    opened = open_teacher(HfTeacher(path=str(folder)), needs, "cpu")
    assert isinstance(opened, ModelTeacher)
    return opened


@pytest.mark.parametrize(("name", "left"), [("reverse_kl", 0.5), ("k2", 0.85)])
def test_on_policy_training_brings_the_reverse_kl_down(teacher: ModelTeacher, name: str, left: float) -> None:
    student = new_model(6, spread=2.0).train()
    module = DistilledStudent(student, [Term.of(get_loss(name))], needs_teacher=True)
    optimizer = torch.optim.Adam(student.parameters(), lr=3e-3)
    roll, prompts = rollout(student, completions=8, max_new_tokens=6), batch(3, 5, 4, 6)

    def measured() -> float:
        rolled, _ = teacher.annotate(rollout(student, seed=77, completions=16)(prompts, 0, 0))
        with torch.no_grad():
            exact = DistilledStudent(student, [Term.of(get_loss("reverse_kl"))], needs_teacher=True)
            return float(exact(rolled, float(rolled.counted.sum()))[0])

    before = measured()
    for step in range(30):
        rolled, _ = teacher.annotate(roll(prompts, step, 0))
        optimizer.zero_grad()
        module(rolled, float(rolled.counted.sum()))[0].backward()
        optimizer.step()
    assert measured() < left * before


# a server that follows the student


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Loopback]:
    """Speaks as vLLM's does in its development mode: reloads weights when it is told to."""
    answer = Handler._answer

    def reloading(self: Handler, body: Answer) -> tuple[int, Answer]:
        if self.path == "/collective_rpc" and body["method"] == "reload_weights":
            self.loopback.model = load_model(body["kwargs"]["weights_path"])
            return 200, {"results": [None]}
        if self.path == "/reset_prefix_cache":
            return 200, {}
        return answer(self, body)

    monkeypatch.setattr(Handler, "_answer", reloading)
    with serve(new_model(1), tokenizer_of()) as running:
        yield running


def served(server: Loopback, folder: Path, student: LlamaForCausalLM, **changes: Any) -> Rollout:
    writer = {"kind": "server", "engine": server.engine(attempts=1).model_dump(), "weights": folder} | changes
    return rollout(student, writer=writer, temperature=0.0)


def test_a_server_writes_with_the_weights_of_the_step(server: Loopback, tmp_path: Path) -> None:
    student = new_model(3, spread=2.0)
    roll = served(server, tmp_path / "weights", student)
    for step in (0, 1):
        rolled = roll(batch(4, 9), step, 0)
        here = rollout(student, temperature=0.0)(batch(4, 9), step, 0)
        assert torch.equal(rolled.input_ids, here.input_ids)
        assert torch.equal(rolled.counted, here.counted)
        with torch.no_grad():
            student.lm_head.weight.copy_(student.lm_head.weight.roll(1, 0))
    roll.close()
    paths = [path for path, _ in server.requests if path != "/v1/completions"]
    assert paths == ["/collective_rpc", "/reset_prefix_cache"] * 2
    assert all(isinstance(asked["prompt"], list) for asked in server.asked("/v1/completions"))
    assert {path.name for path in (tmp_path / "weights").iterdir()} >= {"config.json", "model.safetensors"}


def test_weights_are_given_anew_only_when_asked_for(
    server: Loopback, tmp_path: Path, student: LlamaForCausalLM
) -> None:
    roll = served(server, tmp_path / "weights", student, refresh_every=3)
    for step in range(5):
        roll(batch(4), step, 0)
        roll(batch(4), step, 1)
    assert len(server.asked("/collective_rpc")) == 2


def test_a_server_that_does_not_reload_is_refused(tmp_path: Path, student: LlamaForCausalLM) -> None:
    with (
        serve(new_model(1), tokenizer_of()) as plain,
        pytest.raises(UserError, match="VLLM_SERVER_DEV_MODE=1") as caught,
    ):
        served(plain, tmp_path / "weights", student)(batch(4), 0, 0)
    assert "\n" not in str(caught.value)
