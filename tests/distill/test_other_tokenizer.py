"""A teacher of another tokenizer reads the student's text, and is heard where both have said the same of it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from limbeck.distill.other_tokenizer import OtherTokenizerTeacher, replacements_of
from limbeck.distill.recipe import Recipe
from limbeck.distill.train import train
from limbeck.distill.view import OtherTokens
from limbeck.engines.transformers import final_hidden
from limbeck.errors import UserError
from limbeck.models.transplant_folder import transplant_folder
from limbeck.pocket.world import teacher_folder
from limbeck.settings import validate_settings
from limbeck.signals.dataset import SignalRow
from limbeck.signals.loader import SignalBatch, collate
from tests.distill.families import family
from tests.engines.tiny import new_model
from tests.small_world import recipe_data

STUDENT, OTHERS = family("bytes"), ("large", "spaces", "words")
TEXTS = ("The quick brown fox \U0001f600 jumps", "def fibonacci(n): return 12", "Größe und  Länge")


def teacher_of(name: str, **special: str) -> OtherTokenizerTeacher:
    return OtherTokenizerTeacher.of(new_model(3, tokenizer=family(name)), family(name), STUDENT, special)


def rows(*texts: str, tokenizer: PreTrainedTokenizerBase = STUDENT, prompt: int = 1) -> list[SignalRow]:
    found = []
    for text in texts:
        ids = torch.tensor(tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids)
        found.append(SignalRow(ids, torch.arange(len(ids)) >= prompt, None))
    return found


def heard(teacher: OtherTokenizerTeacher, batch: SignalBatch) -> OtherTokens:
    same, view = teacher.annotate(batch)
    assert same is batch and view is not None and view.other is not None
    return view.other


def states(other: OtherTokens) -> dict[tuple[int, int], torch.Tensor]:
    keys = zip(other.rows.tolist(), other.positions.tolist(), strict=True)
    return dict(zip(keys, other.signal.hidden, strict=True))


@pytest.mark.parametrize("name", OTHERS)
def test_its_states_are_those_after_the_same_text(name: str) -> None:
    """Read by itself, cut off where the student stands: the same state, from the teacher's own call."""
    teacher, tokenizer = teacher_of(name), family(name)
    batch = collate(rows(*TEXTS))
    found = states(heard(teacher, batch))
    prefix = [tokenizer.bos_token_id] if name == "spaces" else [1] if name == "words" else []
    checked = 0
    for (row, position), state in found.items():
        said = STUDENT.backend_tokenizer.decode(
            batch.input_ids[row, : position + 1].tolist(), skip_special_tokens=False
        )
        assert batch.counted[row, position]
        whole = tokenizer.backend_tokenizer.encode(TEXTS[row], add_special_tokens=False).ids
        part = tokenizer.backend_tokenizer.encode(said, add_special_tokens=False).ids
        if "\ufffd" in said or part != whole[: len(part)]:
            continue  # the text up to here would be cut into other tokens
        alone = final_hidden(teacher.model, torch.tensor([prefix + part]))[0, -1]
        torch.testing.assert_close(state, alone, rtol=1e-4, atol=1e-4)
        checked += 1
    assert checked >= 15 if name != "words" else checked >= 8


def test_a_teacher_of_the_same_tokenizer_is_heard_everywhere() -> None:
    teacher, batch = teacher_of("bytes"), collate(rows(*TEXTS, prompt=4))
    found = states(heard(teacher, batch))
    assert set(found) == {(int(row), int(t)) for row, t in batch.counted.nonzero()}
    whole = final_hidden(teacher.model, batch.input_ids, batch.attention_mask)
    for (row, position), state in found.items():
        torch.testing.assert_close(state, whole[row, position], rtol=1e-4, atol=1e-4)


def test_documents_of_one_row_are_read_apart() -> None:
    apart = collate(rows(*TEXTS[:2]))
    ids = torch.cat([row.input_ids for row in rows(*TEXTS[:2])])
    first = len(rows(TEXTS[0])[0].input_ids)
    documents = (torch.arange(len(ids)) >= first).long()
    packed = collate([SignalRow(ids, torch.ones(len(ids), dtype=torch.bool), None, documents=documents)])
    teacher = teacher_of("spaces")
    found, expected = states(heard(teacher, packed)), states(heard(teacher, apart))
    moved = {(0, position + row * first): state for (row, position), state in expected.items()}
    assert set(moved) <= set(found)
    for place, state in moved.items():
        torch.testing.assert_close(found[place], state, rtol=1e-4, atol=1e-4)


def test_nothing_beyond_the_longest_input_is_read() -> None:
    text = "the dog " * 150
    teacher = teacher_of("large")
    longest = teacher.model.config.max_position_embeddings
    batch = collate(rows(text))
    ids = family("large").backend_tokenizer.encode(text, add_special_tokens=False).ids
    assert len(ids) > longest
    last = len(family("large").decode(ids[:longest]))
    reached = [len(STUDENT.decode(batch.input_ids[0, : p + 1])) for _, p in states(heard(teacher, batch))]
    assert max(reached) == last


def test_a_batch_in_which_nothing_counts_has_no_positions() -> None:
    batch = collate(rows("the dog"))
    other = heard(teacher_of("large"), replace(batch, counted=torch.zeros_like(batch.counted)))
    assert other.signal.hidden.shape == (0, 16) and len(other.rows) == len(other.positions) == 0


def test_special_tokens_go_by_text_then_role() -> None:
    texts = {text: token for token, text in ((t, str(e.content)) for t, e in STUDENT.added_tokens_decoder.items())}
    assert replacements_of(STUDENT, family("spaces"), {}) == {texts["<|end|>"]: "</s>"}
    assert replacements_of(STUDENT, family("large"), {}) == {texts["<|end|>"]: "<|end|>", texts["<|user|>"]: "<|user|>"}
    given = {"<|user|>": "<s>User:\n", "<|end|>": ""}
    assert replacements_of(STUDENT, family("spaces"), given) == {texts["<|user|>"]: "<s>User:\n", texts["<|end|>"]: ""}
    spaced = family("spaces")
    assert replacements_of(spaced, STUDENT, {}) == {
        spaced.bos_token_id: "", spaced.eos_token_id: "<|end|>",
    }  # fmt: skip


def test_a_turn_of_one_template_becomes_a_turn_of_another() -> None:
    """After the student's one token for a turn, the teacher has read its own four; both go on from there."""
    teacher = teacher_of("large", **{"<|user|>": "<|end|>the dog\n"})
    batch = collate(rows("<|user|>jumps over", prompt=0))
    state = states(heard(teacher, batch))[0, 0]
    ids = family("large")("<|end|>the dog\n").input_ids
    torch.testing.assert_close(state, final_hidden(teacher.model, torch.tensor([ids]))[0, -1], rtol=1e-4, atol=1e-4)


def test_a_special_token_that_the_student_does_not_have_is_refused() -> None:
    with pytest.raises(UserError, match=r"teacher.special_tokens: '<\|usr\|>' .*<\|user\|>"):
        teacher_of("large", **{"<|usr|>": "x"})


def test_a_student_whose_tokens_are_no_bytes_is_refused() -> None:
    with pytest.raises(UserError, match=r"model: .*can't be written as text"):
        OtherTokenizerTeacher.of(new_model(tokenizer=family("large")), family("large"), family("words"))


def save(folder: Path, name: str, seed: int, spread: float, context: int = 64) -> str:
    model: LlamaForCausalLM = new_model(seed, spread=spread, tokenizer=family(name))
    model.config.max_position_embeddings = context
    model.save_pretrained(folder)
    family(name).save_pretrained(folder)
    return str(folder)


def test_a_student_learns_how_certain_another_tokenizers_teacher_is(tmp_path: Path) -> None:
    (tmp_path / "text.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in TEXTS * 8))
    data = {
        "model": save(tmp_path / "student", "bytes", 1, spread=1.0),
        "output_path": str(tmp_path / "out"),
        "sequence_length": 64,
        "dataset": {"train_dataset": {"disk_path": str(tmp_path / "text.jsonl")}},
        "teacher": {"kind": "hf", "path": save(tmp_path / "teacher", "large", 2, spread=8.0)},
        "loss_functions": [{"function": "uld", "weight": 1.0}, {"function": "cross_entropy", "weight": 0.0}],
        "training_args": {
            "max_steps": 12, "per_device_train_batch_size": 8, "learning_rate": 0.02, "logging_steps": 1,
            "lr_scheduler_type": "constant",
        },
    }  # fmt: skip
    data["teacher"]["special_tokens"] = {"<|user|>": "\n"}  # type: ignore[index]
    history = train(validate_settings(data, Recipe, "test")).history
    assert 0.2 < history[0]["aligned"] <= 1.0
    assert history[-1]["uld"] < 0.8 * history[0]["uld"]


def test_after_a_transplant_the_losses_of_one_vocabulary_apply(world: Path, tmp_path: Path) -> None:
    """A student of another tokenizer, refused with the teacher's signals, is moved and learns from them."""
    losses = ("kl", "reverse_kl", "jsd", "tvd", "cross_entropy")
    data = recipe_data(world, tmp_path / "out", loss_functions=[{"function": name, "weight": 0.2} for name in losses])
    data["training_args"] |= {"max_steps": 6, "save_steps": 100, "logging_steps": 1}
    data["model"] = save(tmp_path / "student", "spaces", 1, spread=1.0, context=512)
    with pytest.raises(UserError, match="tokenizer"):
        train(validate_settings(data, Recipe, "test"))
    transplant_folder(data["model"], str(teacher_folder()), tmp_path / "moved")
    data["model"] = str(tmp_path / "moved")
    history = train(validate_settings(data, Recipe, "test")).history
    for name in losses:
        assert history[-1][name] < history[0][name]
