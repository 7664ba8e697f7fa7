"""Packed rows: no document changes another one's logits, or its gradient, in any implementation of attention."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from limbeck.distill.isolation import check_isolation, document_positions, final_states, flat_states, padded
from limbeck.errors import UserError
from limbeck.signals.dataset import SignalRow
from limbeck.signals.loader import SignalBatch, collate
from tests.distill.tiny_run import VOCABULARY, tiny_student

LENGTHS = ((5, 1, 6), (4, 3))  # documents of two rows; the second row is padded


def packed_rows(seed: int) -> list[SignalRow]:
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for lengths in LENGTHS:
        ids = torch.randint(3, VOCABULARY, (sum(lengths),), generator=generator)
        documents = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
        rows.append(SignalRow(ids, torch.ones_like(ids, dtype=torch.bool), None, documents))
    return rows


def checkpointing(student: LlamaForCausalLM) -> LlamaForCausalLM:
    student.activation_checkpointing_enable()
    return student.train()


STUDENTS: dict[str, Any] = {
    "sdpa": lambda: tiny_student(attention="sdpa").eval(),
    "eager": lambda: tiny_student(attention="eager").eval(),
    "sdpa checkpointed": lambda: checkpointing(tiny_student(attention="sdpa")),
    "eager checkpointed": lambda: checkpointing(tiny_student(attention="eager")),
}


@pytest.mark.parametrize("name", STUDENTS)
def test_changing_a_document_changes_no_logit_of_another(name: str) -> None:
    student = STUDENTS[name]()
    batch = collate(packed_rows(1))
    changed = replace(batch, input_ids=batch.input_ids.clone())
    first = changed.documents == 0
    changed.input_ids[first] = (changed.input_ids[first] + 1) % VOCABULARY
    logits = [student.lm_head(final_states(student, one)) for one in (batch, changed)]
    others = batch.attention_mask & ~first
    assert torch.equal(logits[0][others], logits[1][others])
    assert not torch.allclose(logits[0][first], logits[1][first])


@pytest.mark.parametrize("name", STUDENTS)
def test_a_packed_document_is_what_it_is_alone(name: str) -> None:
    student = STUDENTS[name]()
    batch = collate(packed_rows(2))
    states = final_states(student, batch)
    for row, lengths in enumerate(LENGTHS):
        starts = [sum(lengths[:place]) for place in range(len(lengths))]
        for start, length in zip(starts, lengths, strict=True):
            ids = batch.input_ids[row : row + 1, start : start + length]
            alone = student.model(input_ids=ids).last_hidden_state[0]
            torch.testing.assert_close(states[row, start : start + length], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", STUDENTS)
def test_no_gradient_reaches_another_document(name: str) -> None:
    student = STUDENTS[name]()
    batch = collate(packed_rows(3))
    seen: list[torch.Tensor] = []
    student.model.embed_tokens.register_forward_hook(lambda module, given, output: seen.append(output))
    states = final_states(student, batch)
    (gradient,) = torch.autograd.grad(states[batch.documents == 1].square().sum(), seen[0])
    assert gradient[batch.documents != 1].abs().max() == 0
    assert gradient[batch.documents == 1].abs().sum() > 0


def test_rows_laid_end_to_end_give_the_same_states() -> None:
    student = tiny_student().eval()
    batch = collate(packed_rows(4))
    flat = flat_states(student, batch)
    assert flat.shape[:2] == (1, sum(map(sum, LENGTHS)))
    found, expected = padded(flat, batch.attention_mask), final_states(student, batch)
    torch.testing.assert_close(found[batch.attention_mask], expected[batch.attention_mask], atol=1e-5, rtol=1e-5)
    assert found[~batch.attention_mask].abs().sum() == 0


def test_rows_of_one_document_are_laid_end_to_end_too() -> None:
    student = tiny_student().eval()
    rows = [replace(row, documents=None) for row in packed_rows(5)]
    batch = collate(rows)
    found = padded(flat_states(student, batch), batch.attention_mask)
    expected = final_states(student, batch)
    torch.testing.assert_close(found[batch.attention_mask], expected[batch.attention_mask], atol=1e-5, rtol=1e-5)


def test_positions_start_again_in_each_document() -> None:
    documents = torch.tensor([[4, 4, 4, 7, 2, 2], [0, 0, 1, 1, 1, -1]])
    assert document_positions(documents).tolist() == [[0, 1, 2, 0, 0, 1], [0, 1, 0, 1, 2, 0]]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_model_that_keeps_documents_apart_is_taken(attention: str) -> None:
    student = tiny_student(attention=attention, dropout=0.5).train()
    check_isolation(student)
    assert student.training


def test_a_model_that_does_not_is_refused() -> None:
    def leaking(student: LlamaForCausalLM, batch: SignalBatch) -> torch.Tensor:
        return student.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state

    with pytest.raises(UserError, match="documents packed into one row see each other"):
        check_isolation(tiny_student(), leaking)
