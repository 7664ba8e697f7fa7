"""The engine for packed students writes what `transformers` writes with the student that they unpack to."""

from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.engines.completions import Completion, Sampling, open_generator
from limbeck.engines.generation import TransformersGenerator
from limbeck.engines.registry import engine_names, parse_engine
from limbeck.engines.settings import TransformersEngine
from limbeck.errors import IntegrityError, UserError
from limbeck.models.bitnet import LimbeckBitNetForCausalLM
from limbeck.models.exports.formats import export
from limbeck.models.packed.engine import PackedEngine, PackedGenerator
from limbeck.models.packed.files import NAME, read_packed, save_packed, unpack_student
from limbeck.models.packed.runtime import PackedStudent, Session
from tests.engines.tiny import tokenizer_of
from tests.models.bitnet.shapes import small_student

TOKENIZER = tokenizer_of()
EOS = TOKENIZER.eos_token_id
PROMPTS = [[20, 21, 22], [30], [40, 41, 42, 43, 44], [30]]
EXACT = PackedEngine(cache="float32", threads=1)


def sharp_student(seed: int = 0) -> LimbeckBitNetForCausalLM:
    """A student whose distributions are far from uniform, so that a wrong draw shows."""
    student = small_student(seed, vocab_size=300)
    with torch.no_grad():
        student.model.norm.weight.mul_(30)
    return student


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packed")
    save_packed(sharp_student(), path)
    TOKENIZER.save_pretrained(path)
    return path


def opened(folder: Path, engine: PackedEngine = EXACT) -> PackedGenerator:
    generator = open_generator(str(folder), None, engine, TOKENIZER)
    assert isinstance(generator, PackedGenerator)
    return generator


def by_transformers(folder: Path, sampling: Sampling, prompts: Any = PROMPTS, **options: Any) -> list[Completion]:
    model = unpack_student(read_packed(folder))
    generator = TransformersGenerator(model, TOKENIZER, TransformersEngine(), str(folder))
    return generator.generate(prompts, sampling, **options)


def without_scores(completion: Completion) -> tuple[Any, ...]:
    return completion.prompt, completion.choice, completion.text, completion.ids, completion.finish_reason, (
        completion.usage, completion.model, completion.prompt_ids
    )  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [{"temperature": 0.0}, {"temperature": 1.0, "n": 3}, {"temperature": 1.7, "top_p": 0.7, "seed": 5}],
    ids=["greedy", "sampled", "nucleus"],
)
def test_completions_are_those_of_transformers(folder: Path, changes: dict[str, Any]) -> None:
    sampling = Sampling(max_tokens=20, top_logprobs=4, **changes)
    expected = by_transformers(folder, sampling, first_prompt=3)
    found = opened(folder).generate(PROMPTS, sampling, first_prompt=3)
    assert list(map(without_scores, found)) == list(map(without_scores, expected))
    for one, other in zip(found, expected, strict=True):
        assert one.top is not None and other.top is not None and other.token_logprobs is not None
        assert torch.equal(one.top.ids, other.top.ids)
        torch.testing.assert_close(one.top.logprobs, other.top.logprobs, atol=1e-4, rtol=0)
        torch.testing.assert_close(one.token_logprobs, other.token_logprobs, atol=1e-4, rtol=0)


def test_end_tokens_and_stop_texts_end_a_completion(folder: Path) -> None:
    sampling = Sampling(temperature=1.5, max_tokens=40, n=6, stop=("e", "7"))
    expected = by_transformers(folder, sampling)
    assert {one.finish_reason for one in expected} == {"stop", "length"}
    assert list(map(without_scores, opened(folder).generate(PROMPTS, sampling))) == [
        without_scores(one) for one in expected
    ]


def test_the_students_own_end_tokens_come_along(tmp_path: Path) -> None:
    """Chat models end a turn with another token than a text: `export` keeps what the student's folder says."""
    student = sharp_student()
    student.generation_config.eos_token_id = [EOS, 77]
    student.save_pretrained(tmp_path / "student")
    TOKENIZER.save_pretrained(tmp_path / "student")
    export(tmp_path / "student", "packed", tmp_path / "packed")
    assert opened(tmp_path / "packed").ends == {EOS, 77}


def test_a_prompt_is_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, prompts = Session.read, []

    def noted(self: Session, ids: Any) -> Any:
        if len(ids) > 1 or self.length == 0:
            prompts.append(list(ids))
        return read(self, ids)

    monkeypatch.setattr(Session, "read", noted)
    found = opened(folder).generate(PROMPTS, Sampling(max_tokens=3, n=4))
    assert prompts == [[20, 21, 22], [30], [40, 41, 42, 43, 44]]
    assert [(one.prompt, one.choice) for one in found] == [(p, c) for p in range(4) for c in range(4)]
    assert len({one.ids for one in found[4:8] + found[12:]}) > 3


def test_earlier_calls_leave_no_trace(folder: Path) -> None:
    generator, sampling = opened(folder, PackedEngine()), Sampling(max_tokens=8, seed=3)
    first = generator.generate(PROMPTS[2:3], sampling)
    generator.generate([[40, 41, 9, 9]], sampling)
    assert generator.generate(PROMPTS[2:3], sampling) == first


def test_a_conversation_is_gone_on_with(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `reuse` only what is new is read, and what comes of it is the same."""
    sampling, read, lengths = Sampling(temperature=0, max_tokens=6), Session.read, []

    def noted(self: Session, ids: Any) -> Any:
        lengths.append(len(ids))
        return read(self, ids)

    generator = opened(folder, EXACT.model_copy(update={"reuse": True}))
    [first] = generator.generate([[20, 21, 22, 23]], sampling)
    longer = [20, 21, 22, 23, *(first.ids or ()), 50, 51]
    shorter = longer[:-4]
    expected = opened(folder).generate([longer], sampling) + opened(folder).generate([shorter], sampling)
    monkeypatch.setattr(Session, "read", noted)
    found = generator.generate([longer], sampling)
    assert lengths[0] == 3  # the last token written was chosen, but not read; two more are new
    lengths.clear()
    found += generator.generate([shorter], sampling)
    assert lengths[0] == 1
    assert [one.ids for one in found] == [one.ids for one in expected]


def test_tokens_are_told_as_they_are_taken(folder: Path) -> None:
    sampling = Sampling(temperature=1.5, max_tokens=12, n=2, stop=("e",))
    generators = (
        opened(folder),
        TransformersGenerator(unpack_student(read_packed(folder)), TOKENIZER, TransformersEngine(), ""),
    )
    for generator in generators:
        told: list[tuple[int, int, int]] = []
        found = generator.generate(PROMPTS, sampling, first_prompt=5, on_token=lambda *one, told=told: told.append(one))
        for one in found:
            assert tuple(t for p, c, t in told if (p + 5, c) == (one.prompt, one.choice)) == one.ids


def test_the_context_is_the_students_or_less(folder: Path) -> None:
    assert opened(folder).context == 64
    generator = opened(folder, PackedEngine(context=10))
    assert len(generator.generate([[30] * 4], Sampling(temperature=0, max_tokens=6))[0].ids or ()) <= 6
    with pytest.raises(UserError, match="its 5 tokens and 6 new ones are more than the model's context of 10"):
        generator.generate([[30] * 5], Sampling(max_tokens=6))
    with pytest.raises(UserError, match=r"engine.context: 65 tokens are more than the student's 64"):
        opened(folder, PackedEngine(context=65))


def test_recipes_know_the_engine() -> None:
    assert "packed" in engine_names()
    assert parse_engine({"engine": "packed", "threads": 2}) == PackedEngine(threads=2)
    with pytest.raises(UserError, match=r"unknown key 'thread'. Did you mean 'threads'?"):
        parse_engine({"engine": "packed", "thread": 2})


def test_bad_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: no such folder"):
        open_generator("nowhere", None, PackedEngine(), TOKENIZER)
    with pytest.raises(UserError, match=f"no {NAME} here"):
        open_generator(str(tmp_path), None, PackedEngine(), TOKENIZER)
    with pytest.raises(UserError, match="the tokenizer has 400 entries, the student 300"):
        open_generator(str(folder), None, PackedEngine(), tokenizer_of(400, "".join(map(chr, range(32, 900)))))
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    (tmp_path / NAME).write_bytes((folder / NAME).read_bytes()[:-3])
    with pytest.raises(IntegrityError, match="safetensors"):
        open_generator(str(tmp_path), None, PackedEngine(), TOKENIZER)


def test_a_closed_generator_says_so(folder: Path) -> None:
    generator = opened(folder)
    generator.close()
    with pytest.raises(ValueError, match="closed"):
        generator.generate(PROMPTS, Sampling())


def test_an_id_outside_the_vocabulary_is_refused(folder: Path) -> None:
    generator = PackedGenerator(PackedStudent.load(folder), TOKENIZER, EXACT, "packed")
    with pytest.raises(UserError, match="between 0 and 299"):
        generator.generate([[300]], Sampling(max_tokens=1))
