"""The arena's evaluator on the pocket world: the same spec gives the same prompts, and the same numbers."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from limbeck.arena.decision import PromptEvidence
from limbeck.arena.evaluation import RoundSpec, find_teacher, get_evaluator
from limbeck.arena.faults import CandidateError, ForeignError
from limbeck.arena.identity import BlockNumber
from limbeck.engines.transformers import load_model
from limbeck.errors import UserError
from limbeck.evaluate.divergences import TextRow, measure
from limbeck.files import read_json
from limbeck.models.llama import LlamaShape
from limbeck.pocket import evaluator as pocket
from limbeck.pocket.corpus import load_corpus
from limbeck.pocket.students import write_student
from limbeck.pocket.world import load_teacher, teacher_folder
from tests.engines.tiny import save

TINY = LlamaShape(hidden_size=32, layers=1, heads=2, key_value_heads=1, mlp_size=64, context=256)
PROMPT, CONTINUED = 12, 8


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("student")
    write_student(folder, 1, TINY)
    return folder


@pytest.fixture
def spec(tmp_path: Path) -> RoundSpec:
    return RoundSpec(
        round_id=BlockNumber(7), seed=11, teacher=teacher_folder(), prompts=10, max_prompt_tokens=PROMPT,
        max_new_tokens=CONTINUED, work=tmp_path / "work",
    )  # fmt: skip


def passages(spec: RoundSpec) -> list[tuple[list[int], int]]:
    return [(ids, first) for ids, first in read_json(spec.work / "passages.json")["passages"]]


def test_the_same_spec_gives_the_same_prompts_and_evidence(spec: RoundSpec, student: Path, tmp_path: Path) -> None:
    """In another folder, from nothing: what a second validator would find."""
    one = get_evaluator("pocket").prepare(spec)
    other = get_evaluator("pocket").prepare(replace(spec, work=tmp_path / "elsewhere"))
    assert one.prompts == other.prompts
    assert one.evaluate(student) == other.evaluate(student)


def test_another_seed_draws_other_prompts(spec: RoundSpec, tmp_path: Path) -> None:
    digests = {prompt.digest for prompt in get_evaluator("pocket").prepare(spec).prompts}
    other = get_evaluator("pocket").prepare(replace(spec, seed=12, work=tmp_path / "elsewhere"))
    assert len(digests) == 10
    assert not digests & {prompt.digest for prompt in other.prompts}


def test_after_a_crash_the_prompts_come_from_the_rounds_folder(
    spec: RoundSpec, student: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = get_evaluator("pocket").prepare(spec)
    evidence = before.evaluate(student)
    monkeypatch.setattr(pocket, "continue_by_sampling", lambda *_, **__: pytest.fail("nothing is to be sampled again"))
    again = get_evaluator("pocket").prepare(spec)
    assert again.prompts == before.prompts
    assert again.evaluate(student) == evidence


def test_a_crash_while_the_teacher_writes_leaves_nothing(spec: RoundSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object, **__: object) -> None:
        raise RuntimeError

    with monkeypatch.context() as patch:
        patch.setattr(pocket, "continue_by_sampling", crash)
        with pytest.raises(RuntimeError):
            get_evaluator("pocket").prepare(spec)
    assert not (spec.work / "passages.json").exists()
    assert len(get_evaluator("pocket").prepare(spec).prompts) == 10


def test_prompts_are_held_out_text_with_the_teachers_continuation(spec: RoundSpec) -> None:
    found = get_evaluator("pocket").prepare(spec).prompts
    tokenizer = load_teacher()[1]
    held_out = [document.text for document in load_corpus().documents["held_out"]]
    for prompt, (ids, first) in zip(found, passages(spec), strict=True):
        assert first == PROMPT - 1
        assert 1 <= prompt.tokens == len(ids) - PROMPT <= CONTINUED
        text = tokenizer.decode(ids[:PROMPT])
        assert any(text in whole for whole in held_out)


def test_evidence_is_the_mean_over_the_continuation(spec: RoundSpec, student: Path) -> None:
    """Each passage measured alone, prompt positions left out."""
    evidence = get_evaluator("pocket").prepare(spec).evaluate(student)
    for index, (ids, first) in enumerate(passages(spec)):
        (row,) = measure(load_model(student), load_teacher()[0], [TextRow("", tuple(ids), 0)])
        assert evidence[index].prompt == index
        assert evidence[index].tokens == len(ids) - 1 - first
        assert evidence[index].kl == pytest.approx(row.kl[first:].mean(), rel=1e-4)
        assert evidence[index].reverse_kl == pytest.approx(row.reverse_kl[first:].mean(), rel=1e-4)
        assert evidence[index].top1 == pytest.approx(row.agreement[first:].mean(), abs=0.2)


def test_without_continuations_the_text_itself_is_compared(spec: RoundSpec, student: Path) -> None:
    measurement = get_evaluator("pocket").prepare(replace(spec, max_new_tokens=0))
    assert [prompt.tokens for prompt in measurement.prompts] == [PROMPT - 1] * 10
    assert all(first == 0 and len(ids) == PROMPT for ids, first in passages(spec))
    assert [one.tokens for one in measurement.evaluate(student)] == [PROMPT - 1] * 10


def test_the_teacher_itself_has_no_divergence(spec: RoundSpec) -> None:
    for one in get_evaluator("pocket").prepare(spec).evaluate(teacher_folder()):
        assert (one.kl, one.reverse_kl, one.top1) == (0.0, 0.0, 1.0)


@pytest.mark.parametrize("kind", ["absent", "another vocabulary", "pickle"])
def test_a_candidate_that_cannot_be_measured_is_its_own_fault(
    spec: RoundSpec, student: Path, tmp_path: Path, kind: str
) -> None:
    folder = tmp_path / "candidate"
    if kind == "another vocabulary":
        save(folder)
    elif kind == "pickle":
        shutil.copytree(student, folder)
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CandidateError):
        get_evaluator("pocket").prepare(spec).evaluate(folder)


def test_weights_that_are_no_numbers_are_a_failure_and_no_measurement(
    spec: RoundSpec, student: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(student, tmp_path / "candidate")
    weights = load_file(folder / "model.safetensors")
    save_file(
        {name: torch.full_like(value, float("nan")) for name, value in weights.items()},
        folder / "model.safetensors", {"format": "pt"},
    )  # fmt: skip
    evidence: list[PromptEvidence] = list(get_evaluator("pocket").prepare(spec).evaluate(folder))
    assert all(one.kl is None and one.error is not None for one in evidence)


def test_a_teacher_that_cannot_be_loaded_is_not_the_candidates_fault(
    spec: RoundSpec, student: Path, tmp_path: Path
) -> None:
    get_evaluator("pocket").prepare(spec)
    lost = get_evaluator("pocket").prepare(replace(spec, teacher=tmp_path / "lost"))
    with pytest.raises(UserError):
        lost.evaluate(student)


def test_a_damaged_cache_is_refused(spec: RoundSpec) -> None:
    spec.work.mkdir()
    (spec.work / "passages.json").write_text("[[1, 2")
    with pytest.raises(UserError, match=r"passages.json: not valid JSON"):
        get_evaluator("pocket").prepare(spec)


@pytest.mark.parametrize(
    "change", [{"seed": 2}, {"prompts": 2}, {"max_prompt_tokens": PROMPT - 1}, {"max_new_tokens": 0}]
)
def test_what_was_kept_for_another_spec_is_drawn_anew(spec: RoundSpec, tmp_path: Path, change: dict[str, int]) -> None:
    get_evaluator("pocket").prepare(spec)
    found = get_evaluator("pocket").prepare(replace(spec, **change)).prompts
    assert found == get_evaluator("pocket").prepare(replace(spec, work=tmp_path / "fresh", **change)).prompts


def test_prompts_that_leave_the_teachers_context_are_refused(spec: RoundSpec) -> None:
    with pytest.raises(ForeignError, match="context of 512"):
        get_evaluator("pocket").prepare(replace(spec, max_new_tokens=512))


def test_what_measured_is_described() -> None:
    assert get_evaluator("pocket").description.startswith("pocket ")
    assert torch.__version__ in get_evaluator("pocket").description


def test_the_pocket_teacher_is_found_by_name() -> None:
    assert find_teacher("pocket") == teacher_folder()
