"""Admission: an honest model passes every check, and each hostile repository fails the one that is meant for it."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from limbeck.arena.admission import Report, Status, all_checks
from limbeck.arena.admission.contents import content_digest
from limbeck.arena.admission.submission import Submission
from limbeck.arena.faults import ForeignError
from limbeck.arena.local import check_folder
from limbeck.arena.models import LocalRepository
from limbeck.arena.safetensors_header import HeaderError, read_header
from limbeck.data.tokenizer import load_tokenizer, train_tokenizer
from limbeck.errors import UserError
from tests.arena.world import CONFIG, VOCABULARY, arena_config, make_model


def checked(model: Path, teacher: Path) -> Report:
    return check_folder(model, arena_config(teacher), teacher)


def failure(model: Path, teacher: Path) -> tuple[str, str]:
    """The first failed check and its reason; every failure says how to mend it."""
    failed = checked(model, teacher).failure
    assert failed is not None, "the model was admitted"
    assert failed.mend
    return failed.name, failed.why


def edit_config(model: Path, **changes: Any) -> None:
    config = json.loads((model / "config.json").read_text()) | changes
    (model / "config.json").write_text(json.dumps(config))


def edit_tensors(model: Path, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    tensors = load_file(model / "model.safetensors")
    change(tensors)
    save_file(tensors, model / "model.safetensors")


def raw(path: Path, header: bytes | dict[str, Any], data: bytes = b"", length: int | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def digest(model: Path) -> str:
    return content_digest(Submission(lambda: LocalRepository(model)))


def test_an_honest_model_passes_every_check(model: Path, teacher: Path) -> None:
    report = checked(model, teacher)
    assert [result.name for result in report.results] == [check.name for check in all_checks()]
    assert {result.status for result in report.results} == {Status.PASSED}
    assert all(check.about for check in all_checks())


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "optimizer.pkl", "weights.npz"])
def test_pickles_are_refused(model: Path, teacher: Path, name: str) -> None:
    (model / name).write_bytes(b"\x80\x04.")
    name_of_check, why = failure(model, teacher)
    assert name_of_check == "files"
    assert f"{name} is a pickle" in why


@pytest.mark.parametrize("name", ["modeling_llama.py", "__init__.py", "sub/evil.so"])
def test_code_is_refused(model: Path, teacher: Path, name: str) -> None:
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).write_text("import os")
    assert failure(model, teacher) == ("files", f"{name} is code, and no repository's code is ever run.")


@pytest.mark.parametrize("name", ["notes.txt", "model.safetensors.bak", "extra/model.safetensors", "café.json"])
def test_files_that_no_model_needs_are_refused(model: Path, teacher: Path, name: str) -> None:
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).write_text("{}")
    assert failure(model, teacher)[0] == "files"


def test_links_are_refused_and_not_followed(model: Path, teacher: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.json").write_text("{}")
    (model / "generation_config.json").symlink_to(tmp_path / "secret.json")
    assert failure(model, teacher) == ("files", "generation_config.json is not a plain file.")


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("config.json", CONFIG | {"auto_map": {"AutoModelForCausalLM": "modeling.Evil"}}, "auto_map"),
        ("config.json", CONFIG | {"text_config": {"nested": [{"auto_map": {"a": "b"}}]}}, "auto_map"),
        ("config.json", CONFIG | {"attn_implementation": "someone/kernel"}, "kernel outside the library"),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}}, "auto_map"),
        ("generation_config.json", {"custom_generate": "someone/code"}, "custom_generate"),
        ("config.json", ["not", "an", "object"], "not a JSON object"),
    ],
)  # fmt: skip
def test_configurations_that_ask_for_code(model: Path, teacher: Path, file: str, content: Any, said: str) -> None:
    (model / file).write_text(json.dumps(content))
    name, why = failure(model, teacher)
    assert name == "config"
    assert said in why


def test_a_nesting_bomb_is_a_refusal(model: Path, teacher: Path) -> None:
    (model / "config.json").write_text("[" * 200_000)
    assert failure(model, teacher)[0] == "config"


def entry(shape: list[int], start: int, stop: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


@pytest.mark.parametrize(
    ("header", "data", "length", "said"),
    [
        ({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, b"\0" * 12, None, "overlaps"),
        ({"a": entry([2], 0, 8), "b": entry([2], 0, 8)}, b"\0" * 8, None, "overlaps"),
        ({"a": entry([2], 0, 8)}, b"\0" * 4, None, "ends at byte"),
        ({"a": entry([2], 0, 8)}, b"\0" * 12, None, "belong to no tensor"),
        ({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, b"\0" * 12, None, "leaves a hole"),
        ({"a": entry([2], 8, 0)}, b"\0" * 8, None, "data_offsets"),
        ({"a": entry([3], 0, 8)}, b"\0" * 8, None, "its shape needs others"),
        ({"a": entry([-2], 0, 8)}, b"\0" * 8, None, "no sound shape"),
        ({"a": entry([True], 0, 4)}, b"\0" * 4, None, "no sound shape"),
        ({"a": entry([2**40, 2**40], 0, 8)}, b"\0" * 8, None, "its shape needs others"),
        ({"a": entry([2], 0, 8, "F31")}, b"\0" * 8, None, "unknown dtype"),
        ({"a": {"dtype": "F32"}}, b"", None, "not described"),
        ({"__metadata__": {"a": 1}}, b"", None, "__metadata__"),
        ({}, b"", 1 << 60, "header claims"),
        ({}, b"", 9 << 20, "at most 8,388,608"),
        ({}, b"", 100, "and the file has"),
        (b"[" * 100_000, b"", None, "not JSON"),
        (b"\xff\xfe", b"", None, "not JSON"),
        (b"[]", b"", None, "not a JSON object"),
        (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{}}', b"\0" * 4, None, "stands twice"),
    ],
)  # fmt: skip
def test_hostile_headers(model: Path, teacher: Path, header: Any, data: bytes, length: int | None, said: str) -> None:
    raw(model / "model.safetensors", header, data, length)
    name, why = failure(model, teacher)
    assert name == "weights"
    assert "model.safetensors: " in why
    assert said in why


def test_an_empty_weight_file(model: Path, teacher: Path) -> None:
    (model / "model.safetensors").write_bytes(b"")
    assert failure(model, teacher) == (
        "weights",
        "model.safetensors: the file has 0 bytes, too few for a safetensors header.",
    )


@given(st.binary(max_size=300))
@settings(max_examples=300)
def test_any_bytes_give_tensors_or_a_reason(data: bytes) -> None:
    try:
        tensors = read_header(lambda start, length: data[start : start + length], len(data))
    except HeaderError:
        return
    assert all(8 <= tensor.start <= tensor.stop <= len(data) for tensor in tensors)


@given(st.integers(0, 399), st.integers(1, 255))
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_flipped_header_byte_gives_tensors_or_a_reason(model: Path, position: int, flip: int) -> None:
    data = bytearray((model / "model.safetensors").read_bytes())
    data[position] ^= flip
    try:
        tensors = read_header(lambda start, length: bytes(data[start : start + length]), len(data))
    except HeaderError:
        return
    assert tensors[-1].stop == len(data)


def test_more_parameters_than_allowed_whatever_the_configuration_says(model: Path, teacher: Path) -> None:
    edit_tensors(model, lambda tensors: tensors.update({"model.layers.9.hidden": np.zeros((200, 200), "float16")}))
    name, why = failure(model, teacher)
    assert name == "parameters"
    assert "43," in why


def test_a_tensor_that_the_configuration_does_not_stand_for(model: Path, teacher: Path) -> None:
    edit_tensors(model, lambda tensors: tensors.update({"model.extra": np.zeros(1, "float32")}))
    assert failure(model, teacher) == (
        "architecture",
        "tensor 'model.extra' is not part of what config.json stands for.",
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_hidden_layers": 3}, "model.layers.2"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"num_hidden_layers": -1}, "num_hidden_layers"),
        ({"hidden_size": "8"}, "hidden_size"),
        ({"hidden_size": None}, "hidden_size"),
        ({"intermediate_size": 32}, "config.json says"),
        ({"architectures": ["GPT2LMHeadModel"]}, "allowed: LlamaForCausalLM"),
        ({"architectures": "LlamaForCausalLM"}, "allowed"),
        ({"architectures": None}, "allowed"),
        ({"tie_word_embeddings": False}, "lm_head.weight"),
    ],
)
def test_a_configuration_that_does_not_fit_the_weights(
    model: Path, teacher: Path, changes: dict[str, Any], said: str
) -> None:
    edit_config(model, **changes)
    name, why = failure(model, teacher)
    assert name == "architecture"
    assert said in why


def test_dtypes(model: Path, teacher: Path, tmp_path: Path) -> None:
    assert checked(make_model(tmp_path / "half", teacher, dtype="float16"), teacher).passed
    name, why = failure(make_model(tmp_path / "double", teacher, dtype="float64"), teacher)
    assert name == "dtype"
    assert "F64" in why


def test_quantisation_in_the_configuration_or_in_names(model: Path, teacher: Path, tmp_path: Path) -> None:
    named = make_model(tmp_path / "named", teacher)
    edit_tensors(named, lambda tensors: tensors.update({"model.norm.qweight": np.zeros(8, "float32")}))
    assert failure(named, teacher) == ("quantisation", "tensor 'model.norm.qweight' is a quantiser's.")
    edit_config(model, quantization_config={"quant_method": "gptq"})
    assert failure(model, teacher)[0] == "quantisation"


def test_a_vocabulary_that_is_not_the_arenas(model: Path, teacher: Path) -> None:
    edit_config(model, vocab_size=VOCABULARY + 1)
    edit_tensors(
        model, lambda tensors: tensors.update({"model.embed_tokens.weight": np.zeros((VOCABULARY + 1, 8), "f4")})
    )
    name, why = failure(model, teacher)
    assert name == "vocabulary"
    assert "301" in why


def test_an_old_embedding_under_a_new_configuration(model: Path, teacher: Path) -> None:
    edit_tensors(model, lambda tensors: tensors.update({"model.embed_tokens.weight": np.zeros((200, 8), "f4")}))
    results = {result.name: result for result in checked(model, teacher).results}
    assert results["vocabulary"].status is Status.FAILED
    assert "200 x 8" in results["vocabulary"].why


def test_another_tokenizer_is_one_clear_line(model: Path, teacher: Path) -> None:
    train_tokenizer(["completely other words, other merges"] * 9, VOCABULARY, 128).save_pretrained(model)
    name, why = failure(model, teacher)
    assert name == "tokenizer"
    assert "another tokenizer than the teacher's" in why


def test_a_tokenizer_written_differently_that_cuts_the_same_is_admitted(model: Path, teacher: Path) -> None:
    load_tokenizer(teacher).save_pretrained(model)
    content = json.loads((model / "tokenizer.json").read_text())
    (model / "tokenizer.json").write_text(json.dumps(content))
    assert (model / "tokenizer.json").read_bytes() != (teacher / "tokenizer.json").read_bytes()
    assert checked(model, teacher).passed


def test_a_tokenizer_that_cannot_be_loaded(model: Path, teacher: Path) -> None:
    content = json.loads((model / "tokenizer.json").read_text())
    content["pre_tokenizer"] = {"type": "NoSuchThing"}
    (model / "tokenizer.json").write_text(json.dumps(content))
    name, why = failure(model, teacher)
    assert name == "tokenizer"
    assert "\n" not in why


def test_no_tokenizer(model: Path, teacher: Path) -> None:
    (model / "tokenizer.json").unlink()
    assert failure(model, teacher) == ("tokenizer", "there is no tokenizer.json.")


def test_shards_with_an_index(model: Path, teacher: Path) -> None:
    before = digest(model)
    reshard(model)
    assert checked(model, teacher).passed
    assert digest(model) == before
    index = json.loads((model / "model.safetensors.index.json").read_text())
    index["weight_map"]["model.norm.weight"] = "model-00002-of-00002.safetensors"
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert failure(model, teacher) == ("weights", "the index does not agree with the files' headers.")
    (model / "model.safetensors.index.json").unlink()
    assert failure(model, teacher) == ("weights", "2 weight files and no index.")


def reshard(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    names, where = sorted(tensors, reverse=True), {}
    for shard, part in enumerate((names[:5], names[5:]), 1):
        file = f"model-0000{shard}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, model / file)
        where |= dict.fromkeys(part, file)
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))


def test_the_content_digest_sees_through_layout_names_and_precision(tmp_path: Path, teacher: Path) -> None:
    original = make_model(tmp_path / "original", teacher)
    edit_tensors(original, lambda tensors: tensors.update({name: as_bfloat16(t) for name, t in tensors.items()}))
    renamed, saved_as_bf16, changed = (tmp_path / name for name in ("renamed", "bf16", "changed"))
    for copy in (renamed, saved_as_bf16, changed):
        shutil.copytree(original, copy)
    tensors = load_file(original / "model.safetensors")
    save_file({f"x{index}": tensor for index, tensor in enumerate(tensors.values())}, renamed / "model.safetensors")
    save_as_bf16(tensors, saved_as_bf16 / "model.safetensors")
    edit_tensors(changed, lambda tensors: tensors["model.norm.weight"].__setitem__(1, 7.0))
    assert digest(renamed) == digest(saved_as_bf16) == digest(original)
    assert digest(changed) != digest(original)


def test_saving_float32_as_bfloat16_gives_no_new_content(tmp_path: Path, teacher: Path) -> None:
    """Rounded by another implementation than the digest's: torch's."""
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save_torch

    original = make_model(tmp_path / "original", teacher)
    copy = Path(shutil.copytree(original, tmp_path / "copy"))
    tensors = {
        name: torch.tensor(value).bfloat16() for name, value in load_file(original / "model.safetensors").items()
    }
    save_torch(tensors, copy / "model.safetensors")
    assert digest(copy) == digest(original)


def as_bfloat16(values: np.ndarray) -> np.ndarray:
    return (values.view("<u4") & 0xFFFF0000).view("<f4")


def save_as_bf16(tensors: dict[str, np.ndarray], path: Path) -> None:
    header, data = {}, b""
    for name, values in tensors.items():
        half = (values.view("<u4") >> 16).astype("<u2").tobytes()
        header[name] = entry(list(values.shape), len(data), len(data) + len(half), "BF16")
        data += half
    raw(path, header, data)


def test_a_wrong_path(tmp_path: Path, teacher: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        checked(tmp_path / "nowhere", teacher)
    (tmp_path / "file.bin").write_bytes(b"")
    with pytest.raises(UserError, match="not a folder"):
        checked(tmp_path / "file.bin", teacher)


def test_a_disk_that_cannot_be_read_is_nobodys_fault(
    model: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: LocalRepository, path: str, start: int, length: int) -> bytes:
        raise ForeignError("input/output error")

    monkeypatch.setattr(LocalRepository, "read", broken)
    with pytest.raises(ForeignError, match="input/output"):
        checked(model, teacher)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_what_transformers_saves_is_admitted(tmp_path: Path, teacher: Path, tied: bool, bias: bool) -> None:
    torch = pytest.importorskip("torch")
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "vocab_size": VOCABULARY}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 6}
    config = LlamaConfig(**shape, **heads, tie_word_embeddings=tied, attention_bias=bias, mlp_bias=bias)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path / "saved")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(teacher / name, tmp_path / "saved" / name)
    report = checked(tmp_path / "saved", teacher)
    assert report.passed, report.failure
