"""Muon for hidden matrices and AdamW for everything else, in one optimizer on one schedule.

Muon's update of a matrix is the nearest semi-orthogonal matrix to its Nesterov momentum (Jordan et al., 2024,
https://kellerjordan.github.io/posts/muon/), scaled by 0.2 * sqrt(max(rows, columns)) so that its root mean square
matches what AdamW's updates have (Liu et al., arXiv:2502.16982): one learning rate and one weight decay then serve
both. The iteration runs in float32 where the device has no fast bfloat16, and over all matrices of one shape at once.

The split is by role, not by shape: embeddings and output heads are matrices too, but belong to AdamW.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

# Quintic coefficients that push small singular values towards 1 fastest (Jordan et al.).
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
ADAMW_UPDATE_RMS = 0.2


def split_by_role(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return parameter groups of a model: hidden matrices for Muon; embeddings, heads, norms and biases for AdamW.

    Weight decay falls on matrices of both kinds of group but embeddings, never on norms and biases.
    """
    tables = {
        id(parameter)
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) or name.rsplit(".", 1)[-1] == "lm_head"
        for parameter in module.parameters(recurse=False)
    }
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [p for p in trained if p.ndim == 2 and id(p) not in tables]
    others = [p for p in trained if p.ndim != 2 or id(p) in tables]
    return [
        {"params": matrices, "muon": True, "weight_decay": weight_decay},
        {"params": others, "muon": False, "weight_decay": 0.0},
    ]


class MuonAdamW(torch.optim.Optimizer):
    """Muon over the groups marked `muon`, AdamW over the others.

    Args:
        params: parameter groups, as `split_by_role` makes them; `muon` groups hold matrices `[rows, columns]`.
        lr: learning rate, on AdamW's scale for both.
        weight_decay: decoupled, multiplied by `lr`; the default of groups that don't say.
        momentum: of Muon's Nesterov average.
        betas: of AdamW.
        eps: of AdamW.
        iterations: of Newton-Schulz.

    Raises:
        ValueError: a `muon` group holds something that is not a matrix.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        iterations: int = 5,
    ) -> None:
        defaults = {
            "lr": lr, "weight_decay": weight_decay, "momentum": momentum, "betas": betas, "eps": eps,
            "iterations": iterations, "muon": False,
        }  # fmt: skip
        super().__init__(params, defaults)
        for group in self.param_groups:
            for parameter in group["params"]:
                if group["muon"] and parameter.ndim != 2:
                    raise ValueError(f"Muon takes matrices; got a parameter of shape {tuple(parameter.shape)}")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            trained = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not group["muon"]:
                self._step_adamw(trained, group)
                continue
            by_shape: dict[tuple[torch.Size, torch.device], list[Tensor]] = {}
            for parameter in trained:
                by_shape.setdefault((parameter.shape, parameter.device), []).append(parameter)
            for parameters in by_shape.values():
                self._step_muon(parameters, group)
        return loss

    def _step_muon(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        averages = []
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
            state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
            averages.append(parameter.grad.lerp(state["momentum"], group["momentum"]))  # type: ignore[union-attr]
        scale = ADAMW_UPDATE_RMS * max(parameters[0].shape) ** 0.5
        updates = orthogonalised(torch.stack(averages), group["iterations"])
        for parameter, update in zip(parameters, updates, strict=True):
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(update.to(parameter.dtype), alpha=-group["lr"] * scale)

    def _step_adamw(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["step"] = torch.zeros(())
                state["mean"] = torch.zeros_like(parameter)
                state["variance"] = torch.zeros_like(parameter)
        states = [self.state[parameter] for parameter in parameters]
        adamw(
            parameters,
            [parameter.grad for parameter in parameters if parameter.grad is not None],
            [state["mean"] for state in states],
            [state["variance"] for state in states],
            [],
            [state["step"] for state in states],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def orthogonalised(matrices_BRC: Tensor, iterations: int = 5) -> Tensor:
    """Return matrices `[B, R, C]` with singular values near 1 (within about 0.3) and the same singular vectors."""
    work = matrices_BRC.to(_iteration_dtype(matrices_BRC.device))
    if tall := work.shape[-2] > work.shape[-1]:
        work = work.mT
    work = work / (work.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = NEWTON_SCHULZ
    for _ in range(iterations):
        gram = work @ work.mT
        work = a * work + torch.baddbmm(gram, gram, gram, beta=b, alpha=c) @ work
    return work.mT if tall else work


def _iteration_dtype(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
