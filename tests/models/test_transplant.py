"""A student with another tokenizer: its rows come from where they should, and it still says what it knew."""

import copy
import json
import math
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from typer.testing import CliRunner

from limbeck.cli.main import app
from limbeck.data.tokenizer import train_tokenizer
from limbeck.errors import LimbeckError, UserError
from limbeck.models.token_roles import counterparts, roles
from limbeck.models.transplant import give_vocabulary, set_special_ids, transplant
from limbeck.models.transplant_folder import transplant_folder
from limbeck.models.transplant_tokens import Lexicon, origins
from limbeck.pocket.corpus import load_corpus
from limbeck.pocket.world import load_teacher, teacher_folder
from tests.distill.families import family
from tests.engines.tiny import new_model


def lexicon(name: str) -> Lexicon:
    return Lexicon(family(name), name)


def row_of(old: Lexicon, new: Lexicon, data: bytes) -> tuple[str, list[bytes]]:
    """What a token of the new vocabulary is made of, by its bytes."""
    made = origins(old, new, len(new.tokenizer))[new.ids[data]]
    return made.kind, [old.data[piece][0] for piece in made.pieces]


@pytest.mark.parametrize("old", ["bytes", "large", "spaces", "words"])
@pytest.mark.parametrize("new", ["bytes", "large", "spaces", "words"])
def test_a_token_is_made_of_its_own_bytes(old: str, new: str) -> None:
    """Across families: what the pieces are written with is what the token is written with."""
    source, target = lexicon(old), lexicon(new)
    for token, made in enumerate(origins(source, target, len(family(new)))):
        if token in target.added:
            continue
        spelled = b"".join(source.data[piece][0] for piece in made.pieces)
        if made.kind == "copied":
            assert set(source.data[made.pieces[0]]) & set(target.data[token])
        elif made.kind == "composed" and old != "words":  # which can't write every byte
            assert spelled in target.data[token]
        assert made.kind in ("copied", "composed") or old == "words"


def test_the_same_token_is_found_in_every_family() -> None:
    assert row_of(lexicon("bytes"), lexicon("words"), b" the") == ("copied", [b" the"])
    assert row_of(lexicon("words"), lexicon("bytes"), b" the") == ("copied", [b" the"])
    assert row_of(lexicon("spaces"), lexicon("large"), b" ") == ("copied", [b" "])
    kind, pieces = row_of(lexicon("bytes"), lexicon("spaces"), "日本".encode())
    assert kind == "composed" and b"".join(pieces) == "日本".encode()


def test_a_vocabulary_of_half_characters_is_composed_of_bytes() -> None:
    """A byte-level token that is no text by itself, in a vocabulary that falls back on bytes."""
    old, new = lexicon("spaces"), lexicon("large")
    broken = next(data for data in new.ids if len(data) == 2 and data[0] >= 0xE3 and data[1] >= 0x80)
    kind, pieces = row_of(old, new, broken)
    assert kind == "composed" and b"".join(pieces) == broken and len(pieces) == 2


def test_special_tokens_go_by_their_role() -> None:
    student, teacher = family("bytes"), family("spaces")
    assert roles(teacher) == {"bos": 1, "eos": 2, "pad": 2, "unk": 0}
    own = {str(entry.content): token for token, entry in student.added_tokens_decoder.items()}
    assert counterparts(teacher, student) == {1: own["<|end|>"], 2: own["<|end|>"]}
    chat = train_tokenizer(["a"], 300, 64)
    assert counterparts(student, chat)[own["<|user|>"]] == chat.convert_tokens_to_ids("<|user|>")
    made = origins(Lexicon(student, "old"), Lexicon(teacher, "new"), len(teacher))
    assert (made[2].kind, made[2].pieces) == ("role", (own["<|end|>"],))


def test_rows_are_copied_averaged_or_drawn() -> None:
    model, old, new = new_model(tokenizer=family("bytes")), family("bytes"), family("large")
    before = model.get_input_embeddings().weight.detach().clone()
    report = transplant(model, old, new, vocabulary=len(new) + 13)
    after = model.get_input_embeddings().weight.detach()
    source, target = Lexicon(old, "old"), Lexicon(new, "new")
    made = origins(source, target, len(new) + 13)
    for token, origin in enumerate(made):
        if origin.pieces:
            torch.testing.assert_close(after[token], before[list(origin.pieces)].mean(0), rtol=1e-5, atol=1e-7)
        elif origin.kind == "padding":
            torch.testing.assert_close(after[token], before.mean(0))
    assert report.counts["padding"] == 13 and sum(report.counts.values()) == len(after) == report.new_vocabulary
    assert report.old_vocabulary == len(before) and report.tied
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model.config.vocab_size == len(new) + 13
    assert (model.config.eos_token_id, model.generation_config.eos_token_id) == (new.eos_token_id,) * 2


def test_a_head_of_its_own_and_its_bias_move_too() -> None:
    model, old, new = new_model(tokenizer=family("bytes")), family("bytes"), family("large")
    model.config.tie_word_embeddings = False
    head = nn.Linear(16, len(old))
    model.set_output_embeddings(head)
    weight, bias = head.weight.detach().clone(), head.bias.detach().clone()
    assert not transplant(model, old, new).tied
    moved = model.get_output_embeddings()
    made = origins(Lexicon(old, "old"), Lexicon(new, "new"), len(new))
    for token in (5, 270, len(new) - 1):
        pieces = list(made[token].pieces)
        torch.testing.assert_close(moved.weight.detach()[token], weight[pieces].mean(0), rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(moved.bias.detach()[token], bias[pieces].mean(), rtol=1e-5, atol=1e-7)


def test_what_is_drawn_depends_on_the_seed_alone() -> None:
    def drawn(seed: int) -> Tensor:
        model = new_model(tokenizer=family("bytes"))
        transplant(model, family("bytes"), family("large"), seed=seed, random=True)
        return model.get_input_embeddings().weight.detach().clone()

    assert torch.equal(drawn(1), drawn(1)) and not torch.equal(drawn(1), drawn(2))


def test_a_vocabulary_can_be_padded() -> None:
    model = new_model(tokenizer=family("bytes"))
    before = model.get_input_embeddings().weight.detach().clone()
    give_vocabulary(model, len(before) + 7, seed=1)
    assert torch.equal(model.get_input_embeddings().weight.detach()[: len(before)], before)
    assert model.config.vocab_size == len(before) + 7


def test_a_token_of_the_configuration_without_a_counterpart_is_refused() -> None:
    model = new_model(tokenizer=family("bytes"))
    model.config.image_token_id = 77
    with pytest.raises(UserError, match="image_token_id is token 77"):
        set_special_ids(model, family("large"), {0: 0})
    set_special_ids(model, family("large"), {77: 3})
    assert model.config.image_token_id == 3


def bits_a_byte(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> float:
    nats = 0.0
    for text in texts:
        ids = torch.tensor([[tokenizer.eos_token_id, *tokenizer(text, add_special_tokens=False).input_ids]])
        with torch.no_grad():
            log_q = model(input_ids=ids).logits[0, :-1].float().log_softmax(-1)
        nats -= float(log_q.gather(-1, ids[0, 1:, None]).sum())
    return nats / math.log(2) / sum(len(text.encode()) for text in texts)


def test_text_is_scored_far_better_than_with_random_rows(tmp_path: Path) -> None:
    """The pocket teacher, in a small vocabulary with merges of its own: 1.7 bits a byte become 3, or 9 at random."""
    corpus = load_corpus()
    texts = [document.text[:400] for document in corpus.documents["held_out"][:8]]
    model, old = load_teacher()  # which others use too
    new = train_tokenizer([document.text for document in corpus.documents["train"][:12]], 1500, 512)
    before = bits_a_byte(model, old, texts)
    new.save_pretrained(tmp_path / "new")
    transplant_folder(str(teacher_folder()), str(tmp_path / "new"), tmp_path / "moved")
    moved = AutoModelForCausalLM.from_pretrained(tmp_path / "moved", dtype=torch.float32)
    loaded = AutoTokenizer.from_pretrained(tmp_path / "moved")
    assert loaded.chat_template == new.chat_template and loaded.get_vocab() == new.get_vocab()
    after = bits_a_byte(moved, loaded, texts)
    drawn = copy.deepcopy(model)
    transplant(drawn, old, new, random=True)
    assert before < after < 0.4 * bits_a_byte(drawn, new, texts)


@pytest.fixture
def student(tmp_path: Path) -> Path:
    new_model(tokenizer=family("bytes")).save_pretrained(tmp_path / "student")
    family("bytes").save_pretrained(tmp_path / "student")
    return tmp_path / "student"


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    """A model whose vocabulary is padded, and whose answers two tokens end."""
    model = new_model(2, tokenizer=family("large"))
    model.resize_token_embeddings(len(family("large")) + 5)
    model.generation_config.eos_token_id = [0, 1]
    model.save_pretrained(tmp_path / "teacher")
    family("large").save_pretrained(tmp_path / "teacher")
    return tmp_path / "teacher"


def test_the_command(student: Path, teacher: Path, tmp_path: Path) -> None:
    arguments = ["tokenizer", "transplant", str(student), "--tokenizer", str(teacher), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert result.stdout.strip().endswith(str(tmp_path / "out"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.config.vocab_size == len(family("large")) + 5
    assert model.generation_config.eos_token_id == [0, 1]
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".part")]
    report = json.loads((tmp_path / "out.transplant.json").read_text())
    assert report["counts"]["padding"] == 5 and report["method"] == "average"
    assert all(token and pieces for token, pieces in report["examples"]["composed"])


SURGEON = """#!{python}
import shutil, sys
base, donor, out = sys.argv[1:4]
shutil.copytree(donor, out)
"""


def test_mergekit_makes_the_rows_where_it_is_installed(
    student: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for the program: a model with the donor's rows, which then get ids, tokenizer and padding."""
    program = tmp_path / "bin" / "mergekit-tokensurgeon"
    program.parent.mkdir()
    program.write_text(SURGEON.format(python=os.sys.executable))  # type: ignore[attr-defined]
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    rows = len(family("large")) + 20
    transplant_folder(str(student), str(teacher), tmp_path / "out", method="tokensurgeon", vocabulary=rows)
    made, donor = (LlamaForCausalLM.from_pretrained(tmp_path / name) for name in ("out", "teacher"))
    weight = made.get_input_embeddings().weight
    assert weight.shape[0] == rows
    torch.testing.assert_close(weight[:400], donor.get_input_embeddings().weight[:400])
    program.write_text("#!/bin/sh\necho 'no such architecture' >&2\nexit 3\n")
    with pytest.raises(LimbeckError, match="no such architecture"):
        transplant_folder(str(student), str(teacher), tmp_path / "again", method="tokensurgeon")
    assert {path.name for path in tmp_path.iterdir()} == {"student", "teacher", "bin", "out", "out.transplant.json"}


def test_bad_requests_are_one_line(
    student: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").write_text("x")
    (tmp_path / "empty").mkdir()
    out = tmp_path / "out"
    for message, given in {
        "there is something here already": (student, teacher, tmp_path / "full", {}),
        "has the tokenizer of .* already": (student, student, out, {}),
        "no such folder": (student, tmp_path / "nowhere" / "x", out, {}),
        "--tokenizer: .*: no tokenizer can be loaded": (student, tmp_path / "empty", out, {}),
        "STUDENT: .*: no tokenizer can be loaded": (tmp_path / "empty", teacher, out, {}),
        "vocabulary: 9 rows for a tokenizer of": (student, teacher, out, {"vocabulary": 9}),
        "mergekit is not installed": (student, teacher, out, {"method": "tokensurgeon"}),
    }.items():
        with pytest.raises(UserError, match=message) as error:
            transplant_folder(str(given[0]), str(given[1]), given[2], **given[3])  # type: ignore[arg-type]
        assert "\n" not in str(error.value)
        assert not out.exists()
