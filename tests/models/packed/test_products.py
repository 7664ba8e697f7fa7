"""The compiled kernels, for every instruction set of this machine, and PyTorch: exact sums and equal outputs."""

import pytest
import torch
import torch.nn.functional as F

from limbeck.errors import UserError
from limbeck.models.bitnet.linear import rounded_inputs
from limbeck.models.packed.build import compiler
from limbeck.models.packed.layout import pack_codes
from limbeck.models.packed.products import CompiledProducts, PackedLayer, Products, TorchProducts, best_products

SETS = ("torch", "plain", "avx2", "avx512vnni", "neon")


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=SETS)
def products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Products:
    monkeypatch.setenv("LIMBECK_PACKED", request.param)
    try:
        return best_products(threads=2)
    except UserError as error:
        pytest.skip(str(error))


def drawn_layer(rows: int, width: int, *, per_row: bool = False) -> tuple[PackedLayer, torch.Tensor]:
    codes = torch.randint(-1, 2, (rows, width), generator=torch.Generator().manual_seed(rows))
    gamma = drawn(rows if per_row else 1, seed=1).abs() + 0.1
    return PackedLayer(pack_codes(codes), gamma, width), codes


@pytest.mark.skipif(compiler() is None, reason="no C compiler")
def test_kernels_are_compiled_where_there_is_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIMBECK_PACKED", raising=False)
    assert isinstance(best_products(), CompiledProducts)


@pytest.mark.parametrize("tokens", [1, 3, 4, 9])
@pytest.mark.parametrize("width", [128, 200, 128 * 33])
def test_sums_are_those_of_integers(products: Products, tokens: int, width: int) -> None:
    if not isinstance(products, CompiledProducts):
        pytest.skip("sums are inside PyTorch's products")
    layer, codes = drawn_layer(37, width)
    extreme = torch.tensor([[-1e9, 1e9][index % 2] for index in range(width)])
    inputs = drawn(tokens, width)
    inputs[0] = extreme  # numbers of -127 and 127 everywhere
    rounded = products.rounded(inputs)
    exact = rounded.numbers[:, :width].long() @ codes.T
    assert torch.equal(products.sums(layer, rounded).long(), exact)


@pytest.mark.parametrize("per_row", [False, True])
def test_outputs_are_those_of_the_plain_formula(products: Products, per_row: bool) -> None:
    layer, codes = drawn_layer(50, 300, per_row=per_row)
    inputs = drawn(6, 300)
    numbers, scale = rounded_inputs(inputs)
    exact = (numbers.double() @ codes.double().T) * scale.double() * layer.gamma.double()
    found = products.ternary(layer, products.rounded(inputs.clone()))
    assert torch.allclose(found.double(), exact, rtol=1e-6, atol=1e-7)


def test_inputs_are_normalised_and_rounded(products: Products) -> None:
    inputs, gain = drawn(5, 100), drawn(100, seed=2)
    normal = F.rms_norm(inputs.double(), (100,), gain.double(), 1e-5)
    rounded = products.rounded(inputs.clone(), gain, 1e-5)
    back = rounded.numbers[:, :100].double() * rounded.scales[:, None].double()
    assert ((back - normal).abs() <= rounded.scales[:, None] / 2 * (1 + 1e-5)).all()
    assert torch.equal(rounded.sums.long(), rounded.numbers.long().sum(1))
    assert rounded.numbers.abs().amax() == 127


def test_tables(products: Products) -> None:
    table = torch.randint(-127, 128, (61, 45), generator=torch.Generator().manual_seed(0)).to(torch.int8)
    scales, state = drawn(61).abs(), drawn(45, seed=1)
    exact = (table.double() @ state.double()) * scales.double()
    assert torch.allclose(products.table(table, scales, state).double(), exact, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("cap", [0.0, 1.5])
def test_attention_of_one_token(products: Products, dtype: torch.dtype, cap: float) -> None:
    queries = drawn(6, 20)
    keys, values = drawn(2, 90, 20, seed=1).to(dtype), drawn(2, 90, 20, seed=2).to(dtype)
    scores = torch.einsum("hd,hld->hl", queries.double(), keys[:, :77].double().repeat_interleave(3, 0)) * 0.3
    scores = cap * torch.tanh(scores / cap) if cap else scores
    exact = torch.einsum("hl,hld->hd", scores.softmax(-1), values[:, :77].double().repeat_interleave(3, 0))
    found = products.attend(queries, keys, values, 77, 0.3, cap)
    assert torch.allclose(found.double(), exact, atol=1e-5)


def test_an_unknown_instruction_set_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMBECK_PACKED", "mmx")
    with pytest.raises(UserError, match="LIMBECK_PACKED=mmx"):
        best_products()


def test_pytorch_stands_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMBECK_PACKED", "torch")
    assert isinstance(best_products(), TorchProducts)
