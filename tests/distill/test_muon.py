"""Muon: what it orthogonalises, what it leaves to AdamW, and that its state survives."""

import pytest
import torch
from torch import nn

from limbeck.distill.optimizers.muon import MuonAdamW, orthogonalised
from limbeck.distill.optimizers.roles import describe, split_by_role


@pytest.mark.parametrize("shape", [(32, 32), (16, 64), (64, 16)])
def test_singular_values_come_near_one_and_vectors_stay(shape: tuple[int, int]) -> None:
    matrix = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))
    update = orthogonalised(matrix)
    values = torch.linalg.svdvals(update)
    assert values.min() > 0.3 and values.max() < 1.4
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    cosine = torch.nn.functional.cosine_similarity(update.flatten(1), (u @ v).flatten(1))
    assert cosine.min() > 0.95


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.layer = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.lm_head = nn.Linear(8, 11, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.lm_head(self.norm(self.layer(self.embed(ids))))


def test_the_split_is_by_role() -> None:
    model = Small()
    muon, adamw = split_by_role(model, weight_decay=0.1)
    assert [id(p) for p in muon["params"]] == [id(model.layer.weight)]
    assert len(adamw["params"]) == 5
    assert adamw["weight_decay"] == 0.0


class Everything(nn.Module):
    """Parts whose shapes say nothing of their role."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.convolution = nn.Conv1d(8, 8, 3)
        self.experts = nn.Module()
        self.experts.up = nn.Parameter(torch.zeros(4, 8, 16))
        self.projection = nn.Linear(8, 8)
        self.alignment = nn.Linear(8, 8, bias=False)
        self.classifier = nn.Linear(8, 11, bias=False)
        self.frozen = nn.Linear(8, 8)
        self.frozen.requires_grad_(False)

    def get_output_embeddings(self) -> nn.Module:
        return self.classifier


def test_the_role_is_told_by_the_model_and_not_by_the_shape() -> None:
    model = Everything()
    groups = split_by_role(model, weight_decay=0.1)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    muon, adamw = ({names[id(parameter)] for parameter in group["params"]} for group in groups)
    assert muon == {"experts.up", "projection.weight"}
    assert adamw == {
        "embed.weight", "convolution.weight", "convolution.bias", "projection.bias", "alignment.weight",
        "classifier.weight",
    }  # fmt: skip
    assert describe(groups).startswith("Muon: 2 tensors, 576 parameters (hidden matrices); AdamW: 6 tensors")


def test_a_vector_is_refused() -> None:
    with pytest.raises(ValueError, match="Muon takes matrices"):
        MuonAdamW([{"params": [nn.Parameter(torch.zeros(3))], "muon": True}])


def test_the_update_has_the_size_of_an_adamw_step() -> None:
    weight = nn.Parameter(torch.zeros(64, 32))
    weight.grad = torch.randn(64, 32, generator=torch.Generator().manual_seed(2))
    MuonAdamW([{"params": [weight], "muon": True}], lr=1.0, weight_decay=0.0).step()
    assert weight.detach().square().mean().sqrt().item() == pytest.approx(0.2, rel=0.25)


def test_the_other_group_is_torchs_adamw() -> None:
    ours, theirs = nn.Parameter(torch.ones(5)), nn.Parameter(torch.ones(5))
    optimizers = [
        MuonAdamW([ours], lr=0.1, weight_decay=0.2),
        torch.optim.AdamW([theirs], lr=0.1, weight_decay=0.2, betas=(0.9, 0.95)),
    ]
    for step in range(5):
        for parameter, optimizer in zip((ours, theirs), optimizers, strict=True):
            parameter.grad = torch.arange(5.0) - step
            optimizer.step()
    torch.testing.assert_close(ours, theirs)


def test_a_restored_optimizer_goes_on_bit_for_bit() -> None:
    def run(steps: int, model: Small, optimizer: MuonAdamW, first: int = 0) -> None:
        for step in range(first, steps):
            ids = torch.randint(11, (4, 6), generator=torch.Generator().manual_seed(step))
            model(ids).logsumexp(-1).sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    torch.manual_seed(0)
    model = Small()
    start = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = MuonAdamW(split_by_role(model, 0.1), lr=0.01)
    run(3, model, optimizer)
    saved = {name: value.clone() for name, value in model.state_dict().items()}, optimizer.state_dict()
    other = Small()
    other.load_state_dict(saved[0])
    restored = MuonAdamW(split_by_role(other, 0.1), lr=0.01)
    restored.load_state_dict(saved[1])
    run(6, other, restored, first=3)
    model.load_state_dict(start)
    run(6, model, MuonAdamW(split_by_role(model, 0.1), lr=0.01))
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


@pytest.mark.parametrize("scaling", ["match_rms_adamw", "original"])
@pytest.mark.parametrize("shape", [(16, 64), (64, 16)])
def test_the_update_is_torchs(scaling: str, shape: tuple[int, int]) -> None:
    """To within what `torch.optim.Muon` loses by iterating in bfloat16."""
    torch.manual_seed(4)
    ours = nn.Parameter(torch.randn(shape))
    theirs = nn.Parameter(ours.detach().clone())
    start = ours.detach().clone()
    optimizers = [
        MuonAdamW([{"params": [ours], "muon": True}], lr=0.1, weight_decay=0.2, scaling=scaling),  # type: ignore[arg-type]
        torch.optim.Muon([theirs], lr=0.1, weight_decay=0.2, momentum=0.95, adjust_lr_fn=scaling),
    ]
    for step in range(3):
        gradient = torch.randn(shape, generator=torch.Generator().manual_seed(step))
        for parameter, optimizer in zip((ours, theirs), optimizers, strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()
    moved = (theirs.detach() - start).norm()
    assert (ours - theirs).norm() < 0.03 * moved


def test_experts_are_matrices_each() -> None:
    torch.manual_seed(5)
    stacked = nn.Parameter(torch.randn(3, 8, 16))
    apart = [nn.Parameter(matrix.clone()) for matrix in stacked.detach()]
    stacked.grad = torch.randn(3, 8, 16)
    for matrix, gradient in zip(apart, stacked.grad, strict=True):
        matrix.grad = gradient.clone()
    MuonAdamW([{"params": [stacked], "muon": True}], lr=0.1).step()
    MuonAdamW([{"params": apart, "muon": True}], lr=0.1).step()
    torch.testing.assert_close(stacked.detach(), torch.stack([matrix.detach() for matrix in apart]))


def test_an_unknown_scaling_is_refused() -> None:
    with pytest.raises(ValueError, match="has to be one of match_rms_adamw, original"):
        MuonAdamW([nn.Parameter(torch.zeros(3))], scaling="adamw")  # type: ignore[arg-type]
