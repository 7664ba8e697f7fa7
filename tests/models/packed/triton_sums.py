"""Run by test_triton_products in a process of its own, with TRITON_INTERPRET=1, which has to be set before imports."""

import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F

from limbeck.models.bitnet.linear import rounded_inputs
from limbeck.models.packed.files import read_packed, save_packed
from limbeck.models.packed.layout import pack_codes
from limbeck.models.packed.products import PackedLayer, Rounded, TorchProducts
from limbeck.models.packed.runtime import PackedStudent
from limbeck.models.packed.triton_products import TritonProducts
from tests.models.bitnet.shapes import small_student, some_ids


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layer_of(rows: int, width: int, per_row: bool) -> tuple[PackedLayer, torch.Tensor]:
    codes = torch.randint(-1, 2, (rows, width), generator=torch.Generator().manual_seed(rows))
    return PackedLayer(pack_codes(codes), drawn(rows if per_row else 1, seed=1).abs() + 0.1, width), codes


def sums_are_those_of_integers() -> None:
    for tokens in (1, 3, 5, 40):
        for width in (96, 128, 300):
            layer, codes = layer_of(70, width, per_row=False)
            layer.gamma.fill_(1.0)
            inputs = drawn(tokens, width)
            inputs[0] = torch.tensor([[-1e9, 1e9][index % 2] for index in range(width)])
            rounded = TritonProducts().rounded(inputs)
            unscaled = Rounded(rounded.numbers, torch.ones_like(rounded.scales), rounded.sums)
            exact = rounded.numbers[:, :width].long() @ codes.T
            assert torch.equal(TritonProducts().ternary(layer, unscaled).long(), exact), (tokens, width)


def outputs_are_those_of_pytorch() -> None:
    for tokens in (1, 9):
        for per_row in (False, True):
            layer, _ = layer_of(50, 200, per_row)
            rounded = TorchProducts().rounded(drawn(tokens, 200))
            expected = TorchProducts().ternary(layer, rounded)
            padded = Rounded(F.pad(rounded.numbers, (0, 56)), rounded.scales, rounded.sums)
            assert torch.equal(TritonProducts().ternary(layer, padded), expected), (tokens, per_row)


def inputs_are_rounded_as_pytorch_rounds_them() -> None:
    inputs = torch.cat([drawn(6, 100), torch.zeros(1, 100), (torch.arange(100.0)[None] - 50) / 2])
    inputs[7, 0] = 127.0  # a scale of 1: every other number lies between two integers
    numbers, scales = rounded_inputs(inputs)
    found = TritonProducts().rounded(inputs)
    assert torch.equal(found.numbers[:, :100].float(), numbers)
    assert not found.numbers[:, 100:].any()
    assert torch.equal(found.scales, scales[:, 0])
    assert torch.equal(found.sums.long(), found.numbers.long().sum(1))


def inputs_are_normalised() -> None:
    inputs, gain = drawn(5, 100), drawn(100, seed=2)
    normal = F.rms_norm(inputs.double(), (100,), gain.double(), 1e-5)
    found = TritonProducts().rounded(inputs, gain, 1e-5)
    back = found.numbers[:, :100].double() * found.scales[:, None].double()
    assert ((back - normal).abs() <= found.scales[:, None] / 2 * (1 + 1e-4)).all()
    assert found.numbers.abs().amax(1).eq(127).all()


def a_student_computes_the_same() -> None:
    with tempfile.TemporaryDirectory() as folder:
        save_packed(small_student(), Path(folder))
        packed = read_packed(Path(folder))
        first, second = (PackedStudent(packed, products) for products in (TorchProducts(), TritonProducts()))
        ids = some_ids(1, 9)[0].tolist()
        one, other = first.session(64), second.session(64)
        assert torch.allclose(one.read(ids[:6]), other.read(ids[:6]), atol=1e-5)
        states = one.read(ids[6:7]), other.read(ids[6:7])
        assert torch.allclose(first.logits(states[0][-1]), second.logits(states[1][-1]), atol=1e-5)


if __name__ == "__main__":
    for check in (
        sums_are_those_of_integers,
        outputs_are_those_of_pytorch,
        inputs_are_rounded_as_pytorch_rounds_them,
        inputs_are_normalised,
        a_student_computes_the_same,
    ):
        check()
        print(check.__name__)
