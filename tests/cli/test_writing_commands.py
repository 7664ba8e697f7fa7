"""`limbeck complete`, `chat`, `evaluate-infill` and `tokenizer train`: what they print, and one line for bad input."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from limbeck.cli.main import app
from limbeck.data.fim import infill_prompt
from limbeck.data.tokenizer import load_tokenizer
from limbeck.engines.completions import Sampling, open_generator, prompt_ids
from limbeck.errors import UserError
from limbeck.models.packed.engine import PackedEngine
from limbeck.models.packed.files import save_packed
from limbeck.seeds import derive_seed
from tests.engines.tiny import save, tokenizer_of
from tests.models.packed.test_engine import TOKENIZER, sharp_student


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    save_packed(sharp_student(), folder)
    TOKENIZER.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("plain"))


def limbeck(*arguments: str | Path, text: str = "") -> Result:
    return CliRunner().invoke(app, [str(one) for one in arguments], input=text)


def refusal(*arguments: str | Path, text: str = "") -> str:
    done = limbeck(*arguments, text=text)
    assert isinstance(done.exception, UserError), (done.output, done.exception)
    assert "\n" not in str(done.exception)
    return str(done.exception)


def written(folder: Path, prompt: list[int], **sampling: Any) -> str:
    generator = open_generator(str(folder), None, PackedEngine(), TOKENIZER)
    return generator.generate([prompt], Sampling(**sampling))[0].text


def test_a_gap_is_filled(packed: Path, tmp_path: Path) -> None:
    expected = written(packed, infill_prompt(TOKENIZER, "def ", "(x)"), temperature=0, max_tokens=9)
    done = limbeck("complete", packed, "--prefix", "def ", "--suffix", "(x)", "--max-tokens", 9)
    assert done.exit_code == 0
    assert done.stdout == f"{expected}\n"
    (tmp_path / "suffix").write_text("(x)")
    files = ("--prefix-file", "-", "--suffix-file", tmp_path / "suffix")
    done = limbeck("complete", packed, *files, "--max-tokens", 9, "--whole", text="def ")
    assert done.stdout == f"def {expected}(x)\n"


def test_without_a_length_a_gap_takes_what_the_context_leaves(plain: Path) -> None:
    done = limbeck("complete", plain, "--prefix", "1" * 50)
    assert done.exit_code == 0
    assert "cut at 11 tokens" in done.stderr  # of 64, after 50 digits and three sentinels


def test_a_conversation_goes_on(packed: Path) -> None:
    done = limbeck("chat", packed, "--system", "s", "--max-tokens", 6, "--seed", 4, text="a\n\nb\n/new\na\n/quit\nc\n")
    assert done.exit_code == 0
    messages: list[dict[str, str]] = [{"role": "system", "content": "s"}]
    answers = []
    for turn in ("a", "b"):
        messages.append({"role": "user", "content": turn})
        seed = derive_seed(4, "turn", len(messages)) >> 33
        options: dict[str, Any] = {"temperature": 0.7, "top_p": 0.95, "max_tokens": 6, "seed": seed}
        answers.append(written(packed, prompt_ids(TOKENIZER, messages), **options))
        messages.append({"role": "assistant", "content": answers[-1]})
    assert done.stdout == "".join(f"{answer}\n" for answer in (*answers, answers[0]))


def test_a_conversation_that_is_too_long_can_be_begun_anew(plain: Path) -> None:
    done = limbeck("chat", plain, "--max-tokens", 4, text=f"{'1' * 70}\nhi\n")
    assert done.exit_code == 0
    assert "do not fit into the model's context of 64" in done.stderr.replace("\n", " ")
    assert "/new" in done.stderr
    assert done.stdout.strip()


def test_infilling_is_measured(packed: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": f"value {i} " * 9}) + "\n" for i in range(5)))
    sizes = [f"--set={one}" for one in ("spans=7", "longest=5", "around=16", "max_tokens=4")]
    done = limbeck("evaluate-infill", packed, "--dataset", tmp_path / "texts.jsonl", *sizes, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.exception
    found = json.loads((tmp_path / "out" / "infill.json").read_text())
    assert (found["spans"], found["documents"], len(found["answers"])) == (7, 5, 7)
    assert done.stdout.strip() == str(tmp_path / "out" / "infill.json")


def test_a_tokenizer_is_trained(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("def double(x):\n    return x + x\n")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("vocabulary: 9999\ncontext: 77\n")
    done = limbeck("tokenizer", "train", tmp_path / "a.py", "--recipe", recipe, "--vocabulary", 270, "--out",
                   tmp_path / "out")  # fmt: skip
    assert done.exit_code == 0, done.exception
    tokenizer = load_tokenizer(tmp_path / "out")
    assert (len(tokenizer), tokenizer.model_max_length) == (270, 77)


def test_bad_input_is_one_line(packed: Path, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "nowhere: no such folder" in refusal("complete", "nowhere", "--prefix", "a")
    assert "org/model: no such folder" in refusal("chat", "org/model")
    assert "nothing around the gap" in refusal("complete", plain)
    assert "only one of them" in refusal("complete", plain, "--prefix-file", "-", "--suffix-file", "-")
    assert "say the same thing" in refusal("complete", plain, "--prefix", "a", "--prefix-file", "b")
    assert "b: no such file (--suffix-file)" in refusal("complete", plain, "--suffix-file", "b")
    assert "do not fit into the model's context of 64" in refusal("complete", packed, "--prefix", "1" * 80)
    assert "or ask for fewer" in refusal("complete", packed, "--prefix", "1" * 10, "--max-tokens", 60)
    assert "device 'cuda'" in refusal("complete", packed, "--prefix", "a", "--device", "cuda")
    assert "unknown key 'span'. Did you mean 'spans'?" in refusal("evaluate-infill", plain, "--set", "span=1")
    assert "unknown key 'vocabulry'" in refusal("tokenizer", "train", "a", "--set", "vocabulry=300")
    tokenizer = tokenizer_of()
    tokenizer.save_pretrained(tmp_path)
    data = (tmp_path / "tokenizer.json").read_text().replace("<|fim_", "<|gap_")
    (tmp_path / "tokenizer.json").write_text(data)
    settings = (tmp_path / "tokenizer_config.json").read_text().replace("<|fim_", "<|gap_")
    (tmp_path / "tokenizer_config.json").write_text(settings)
    assert "no token <|fim_prefix|>" in refusal("complete", tmp_path, "--prefix", "a")
    (tmp_path / "chat_template.jinja").unlink()
    assert "no chat template" in refusal("chat", tmp_path)
