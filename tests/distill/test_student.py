"""The student with its losses: where they run, on which positions, and what an online teacher adds."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from limbeck.distill.adapted_head import head_of
from limbeck.distill.alignment import Alignment, split_terms
from limbeck.distill.isolation import final_states
from limbeck.distill.losses import get_loss
from limbeck.distill.student import DistilledStudent
from limbeck.distill.taps import taps
from limbeck.distill.term import Term
from limbeck.distill.view import OtherTokens, TeacherView
from limbeck.distill.wrapping import leaves_parameters_unused
from limbeck.errors import LimbeckError, UserError
from limbeck.signals.loader import collate
from limbeck.signals.types import HiddenSignal, OutputHead
from tests.distill.test_isolation import packed_rows
from tests.distill.tiny_run import VOCABULARY, distilled, random_rows, tiny_student, tiny_trainer


def test_the_first_response_token_is_trained_and_the_position_after_the_last_is_not() -> None:
    """Cross-entropy of a row whose tokens 2 and 3 are the response: positions 1 and 2, and no other."""
    row = random_rows(1)[0]
    trained = torch.zeros_like(row.trained)
    trained[2:4] = True
    batch = collate([replace(row, trained=trained)])
    student = tiny_student()
    _, parts = distilled(student, {"cross_entropy": 1.0})(batch, 1.0)
    logits = student(input_ids=row.input_ids[None]).logits[0]
    expected = nn.functional.cross_entropy(logits[1:3], row.input_ids[2:4], reduction="sum")
    torch.testing.assert_close(parts["cross_entropy"], expected.detach())


def test_a_batch_with_nothing_to_train_has_a_gradient_of_zeros() -> None:
    batch = collate([replace(row, trained=torch.zeros_like(row.trained)) for row in random_rows(2)])
    student = distilled(tiny_student())
    loss, _ = student(batch, 1.0)
    loss.backward()
    assert loss.item() == 0
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in student.parameters())


def aligned(student: nn.Module, teacher: nn.Module, *, force: bool = False) -> DistilledStudent:
    terms = [Term.of(get_loss(name), weight) for name, weight in (("kl", 1.0), ("hs_mse", 0.3))]
    outside, inside = split_terms(terms, mapped=True)
    alignment = Alignment(inside, ((0, 1), (1, 1)), (32, 32), force_projection=force)
    return DistilledStudent(student, outside, needs_teacher=True, alignment=alignment)  # type: ignore[arg-type]


def test_losses_on_layers_are_added() -> None:
    teacher = tiny_student()
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(1.1)
    student = tiny_student()
    batch = collate(random_rows(3))
    with torch.no_grad(), taps(teacher, (1,)) as seen:
        final_states(teacher, batch)
    model = aligned(student, teacher)
    loss, parts = model(batch, 7.0, TeacherView(layers=seen.layers))
    assert parts["hs_mse"] > 0
    torch.testing.assert_close(loss.detach(), parts["kl"] + 0.3 * parts["hs_mse"])
    with pytest.raises(LimbeckError, match="there is no view of one"):
        model(batch, 7.0)
    _, measured = model.eval()(batch, 7.0, TeacherView(layers=seen.layers))
    assert measured.keys() == parts.keys()


def test_laid_end_to_end_for_flash_attention_the_losses_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The flattened path, run by sdpa, which honours the same positions."""
    batch = collate(packed_rows(1))
    teacher, student = tiny_student(), tiny_student()
    with torch.no_grad(), taps(teacher, (1,)) as seen:
        final_states(teacher, batch)
        signal = HiddenSignal(final_states(teacher, batch) + 0.1, OutputHead(teacher.lm_head.weight), batch.counted)
    view = TeacherView(layers={1: 1.1 * seen.layers[1]})
    batch = replace(batch, signal=signal)
    expected = aligned(student, teacher)(batch, 1.0, view)
    monkeypatch.setattr("limbeck.distill.isolation.is_flash", lambda model: True)
    monkeypatch.setattr("limbeck.distill.student.is_flash", lambda model: True)
    found = aligned(student, teacher)(batch, 1.0, view)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_teacher_of_another_tokenizer_is_compared_where_both_have_said_the_same() -> None:
    torch.manual_seed(2)
    batch = replace(collate(random_rows(2)), signal=None)
    other = OtherTokens(
        HiddenSignal(torch.randn(3, 8), OutputHead(torch.randn(97, 8)), torch.ones(3, dtype=torch.bool)),
        rows=torch.tensor([0, 0, 1]), positions=torch.tensor([1, 3, 2]),
    )  # fmt: skip
    student = tiny_student()
    terms = [Term.of(get_loss("uld"), 2.0), Term.of(get_loss("cross_entropy"), 0.5)]
    model = DistilledStudent(student, terms, needs_teacher=True)
    loss, parts = model(batch, 1.0, TeacherView(other=other))
    torch.testing.assert_close(loss.detach(), 2 * parts["uld"] + 0.5 * parts["cross_entropy"])
    logits = student(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    q = logits[other.rows, other.positions].softmax(-1).sort(descending=True).values
    p = (other.signal.hidden @ other.signal.head.weight.T).softmax(-1).sort(descending=True).values
    q = nn.functional.pad(q, (0, 97 - VOCABULARY))
    torch.testing.assert_close(parts["uld"], (p - q).abs().sum().detach(), atol=1e-4, rtol=1e-4)


def test_in_evaluation_what_is_measured_is_computed_instead() -> None:
    model = DistilledStudent(
        tiny_student(), [Term.of(get_loss("kl"))], needs_teacher=True, evaluated=[Term.of(get_loss("reverse_kl"))]
    )
    batch = collate(random_rows(2))
    assert model(batch, 1.0)[1].keys() == {"kl"}
    assert model.eval()(batch, 1.0)[1].keys() == {"reverse_kl"}


def test_parameters_that_take_no_part_are_known() -> None:
    model = distilled(tiny_student())
    assert not leaves_parameters_unused(model)
    model.student.vision_tower = nn.Linear(2, 2)
    assert leaves_parameters_unused(model)
    model.student.vision_tower.requires_grad_(False)
    assert not leaves_parameters_unused(model)
    states = DistilledStudent(tiny_student(), [Term.of(get_loss("hs_mse"))], needs_teacher=True)
    assert leaves_parameters_unused(states)


def test_projections_are_in_checkpoints_and_not_in_the_student(tmp_path: Path) -> None:
    teacher = tiny_student()

    def annotate(batch: object) -> object:
        with taps(teacher, (1,)) as seen:
            final_states(teacher, batch)  # type: ignore[arg-type]
        return batch, TeacherView(layers=seen.layers)

    def trained(name: str, checkpoint: Path | None) -> dict[str, torch.Tensor]:
        model = aligned(tiny_student(), teacher, force=True)
        with tiny_trainer(
            tmp_path / name, model, random_rows(8), more={"annotate": annotate}, max_steps=4, save_strategy="steps",
            save_steps=2, muon=True,
        ) as trainer:  # fmt: skip
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
            trainer.save_model(str(tmp_path / name / "final"))
        return model.state_dict()

    whole = trained("whole", None)
    again = trained("again", tmp_path / "whole" / "checkpoint-2")
    assert any("alignment" in name for name in whole)
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert (tmp_path / "whole" / "checkpoint-4" / "alignment.safetensors").exists()
    final = {path.name for path in (tmp_path / "whole" / "final").iterdir()}
    assert final == {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}


class LowRank(nn.Module):
    """What the `peft` package puts in place of a linear layer, as far as it is looked at."""

    def __init__(self, base: nn.Linear, rank: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.base_layer = base
        self.active_adapters = ["default"]
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base.in_features, rank, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(rank, base.out_features, bias=False)})
        self.lora_dropout = nn.ModuleDict({"default": nn.Dropout(dropout) if dropout else nn.Identity()})
        self.scaling = {"default": 0.5}

    def get_base_layer(self) -> nn.Linear:
        return self.base_layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        adapted: torch.Tensor = self.lora_B["default"](self.lora_A["default"](x))
        return self.base_layer(x) + 0.5 * adapted


def test_an_adapter_on_the_head_is_trained() -> None:
    student, batch = tiny_student(), collate(random_rows(3))
    student.requires_grad_(False)
    student.lm_head = LowRank(student.lm_head, 4)
    _, parts = distilled(student, {"cross_entropy": 1.0})(batch, 1.0)
    logits = student(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[batch.counted]
    expected = nn.functional.cross_entropy(logits, batch.targets[batch.counted], reduction="sum")
    torch.testing.assert_close(parts["cross_entropy"], expected.detach(), rtol=1e-5, atol=1e-4)
    wanted = torch.autograd.grad(expected, student.lm_head.lora_A.parameters())
    loss, _ = distilled(student, {"cross_entropy": 1.0})(batch, 1.0)
    found = torch.autograd.grad(loss, student.lm_head.lora_A.parameters())
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_an_adapter_that_cannot_be_added_is_refused() -> None:
    student = tiny_student()
    student.lm_head = LowRank(student.lm_head, 4, dropout=0.1)
    with pytest.raises(UserError, match=r"lora\.dropout"):
        head_of(student)


def test_an_adapter_of_peft_is_the_sum(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    student, batch = tiny_student(), collate(random_rows(3))
    settings = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["lm_head"], init_lora_weights=False)
    adapted = peft.inject_adapter_in_model(settings, student)
    hidden = final_states(adapted, batch)
    expected = adapted.lm_head(hidden)
    head = head_of(adapted)
    torch.testing.assert_close(hidden @ head.weight.T, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(head.weight, adapted.lm_head.get_base_layer().weight)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_recipe_decides_whether_losses_are_compiled(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    told = []

    def total_loss(*arguments: object, compiled: bool = False) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        told.append(compiled)
        return torch.zeros(()), {}

    monkeypatch.setattr("limbeck.distill.student.total_loss", total_loss)
    terms = [Term.of(get_loss("cross_entropy"))]
    DistilledStudent(tiny_student(), terms, needs_teacher=False, compiled=compiled)(collate(random_rows(1)), 1.0)
    assert told == [compiled]
