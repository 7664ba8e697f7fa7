"""Packed students compute what the student computes that they unpack to; files that were changed are refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.errors import IntegrityError, UserError
from limbeck.models.bitnet.linear import ternary_layers
from limbeck.models.packed.files import NAME, read_packed, save_packed, unpack_student
from limbeck.models.packed.products import TorchProducts, best_products
from limbeck.models.packed.runtime import PackedStudent
from tests.models.bitnet.shapes import small_student, some_ids

FLUSH: dict[str, Any] = {
    "qk_norm": True, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "tie_word_embeddings": False,
    "weight_scale": "row", "gated_mlp": False, "hidden_act": "relu2", "sub_norms": False, "head_dim": 16,
}  # fmt: skip


@pytest.fixture(params=[{}, FLUSH], ids=["bitnet", "everything else"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    save_packed(small_student(**request.param), tmp_path)
    return tmp_path


def test_unpacking_gives_the_same_codes_and_scales(tmp_path: Path) -> None:
    for changes in ({}, FLUSH):
        student = small_student(**changes)
        save_packed(student, tmp_path)
        back = ternary_layers(unpack_student(read_packed(tmp_path)))
        for name, layer in ternary_layers(student).items():
            assert torch.equal(layer.codes()[0], back[name].codes()[0])
            assert torch.allclose(layer.codes()[1], back[name].codes()[1], rtol=1e-6)


@pytest.mark.parametrize("arithmetic", ["compiled", "torch"])
@torch.no_grad()
def test_logits_are_those_of_the_unpacked_student(folder: Path, arithmetic: str) -> None:
    packed = read_packed(folder)
    student = PackedStudent(packed, TorchProducts() if arithmetic == "torch" else best_products(2))
    ids = some_ids(1, 40)[0].tolist()
    session = student.session(64, torch.float32)
    states = [session.read(ids[:20]), session.read(ids[20:29]), *(session.read([token]) for token in ids[29:])]
    found = torch.stack([student.logits(state) for state in torch.cat(states)])
    wanted = unpack_student(packed)(torch.tensor([ids])).logits[0]
    assert (found - wanted).abs().max() < 1e-5


@torch.no_grad()
def test_a_cache_of_16_bits_is_near_one_of_32(folder: Path) -> None:
    student = PackedStudent.load(folder)
    ids = some_ids(1, 30)[0].tolist()
    found = []
    for dtype in (torch.float16, torch.float32):
        session = student.session(64, dtype)
        session.read(ids[:-1])
        found.append(student.logits(session.read(ids[-1:])[-1]))
    assert (found[0] - found[1]).abs().max() < 0.05 * found[1].abs().max()


def test_a_session_goes_back_and_has_an_end(folder: Path) -> None:
    student = PackedStudent.load(folder)
    session = student.session(8, torch.float32)
    first = session.read([1, 2, 3, 4])
    session.read([5, 6])
    session.forget(3)
    assert torch.allclose(session.read([4]), first[3:], atol=1e-5)
    with pytest.raises(UserError, match="9 tokens are more than the 8"):
        session.read([1, 2, 3, 4, 5])
    with pytest.raises(UserError, match="can't be kept"):
        session.forget(7)
    with pytest.raises(UserError, match="between 0 and 63"):
        session.read([64])
    with pytest.raises(UserError, match="no token"):
        session.read([])


def test_every_changed_byte_is_found(tmp_path: Path) -> None:
    save_packed(small_student(num_hidden_layers=1), tmp_path)
    path = tmp_path / NAME
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    places = [*range(8), *range(8, 8 + length, 37), *range(8 + length, len(whole), 211), len(whole) - 1]
    for place in places:
        changed = bytearray(whole)
        changed[place] ^= 4
        path.write_bytes(bytes(changed))
        try:
            again = read_packed(tmp_path)
        except (IntegrityError, UserError):
            continue
        path.write_bytes(whole)
        same = read_packed(tmp_path)  # only what says nothing (a space, a name within the header's metadata) may pass
        assert all(torch.equal(tensor, again.tensors[name]) for name, tensor in same.tensors.items()), place


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_a_file_that_is_cut_short_is_refused(tmp_path: Path, kept: int) -> None:
    save_packed(small_student(), tmp_path)
    path = tmp_path / NAME
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(IntegrityError, match=NAME):
        read_packed(tmp_path)


def test_another_configuration_is_refused(tmp_path: Path) -> None:
    save_packed(small_student(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "intermediate_size": 64}))
    with pytest.raises(IntegrityError, match=r"config\.json calls for"):
        read_packed(tmp_path)


def test_what_can_not_be_packed_is_refused(tmp_path: Path) -> None:
    for changes in ({"ternary": False}, {"activation_bits": 16}):
        with pytest.raises(UserError, match="only students with ternary weights and 8-bit inputs"):
            save_packed(small_student(**changes), tmp_path)
    with pytest.raises(UserError, match=r"no packed\.safetensors"):
        PackedStudent.load(tmp_path)


def test_a_code_that_no_weight_has_is_refused(tmp_path: Path) -> None:
    student = small_student()
    save_packed(student, tmp_path)
    packed = read_packed(tmp_path)
    name = "model.layers.0.mlp.up_proj.codes"
    wrong = {**packed.tensors, name: packed.tensors[name] | 3}
    with pytest.raises(IntegrityError, match="no weight has"):
        PackedStudent(type(packed)(packed.config, wrong, packed.bytes))
