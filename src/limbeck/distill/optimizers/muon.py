"""Muon for hidden matrices and AdamW for everything else, in one optimizer on one schedule.

Muon's update of a matrix is the nearest semi-orthogonal matrix to its Nesterov momentum (Jordan et al., 2024,
https://kellerjordan.github.io/posts/muon/). It is scaled by 0.2 * sqrt(max(rows, columns)) by default, so that its
root mean square matches what AdamW's updates have (Liu et al., arXiv:2502.16982): one learning rate and one weight
decay then serve both. Update and scalings are those of `torch.optim.Muon`, whose iteration runs in bfloat16, matrix by
matrix; here it runs over all matrices of one shape at once, and in float32 on all processors, with fast bfloat16 and
without, so that what they train differs by rounding alone. Parameters that FSDP2 shards are made whole for the
iteration, each on one rank (`sharded`).

Which parameter is what is told by `roles.split_by_role`: embeddings and output heads are matrices too, but AdamW's.
"""

from collections.abc import Callable, Iterable
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from limbeck.distill.optimizers.sharded import local, on_whole_matrices, ranks_of

Scaling = Literal["match_rms_adamw", "original"]

# Quintic coefficients that push small singular values towards 1 fastest (Jordan et al.).
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
ADAMW_UPDATE_RMS = 0.2
STACKED_NUMBERS = 1 << 27  # in a stack of matrices on one rank; a larger one would only cost memory


class MuonAdamW(torch.optim.Optimizer):
    """Muon over the groups marked `muon`, AdamW over the others.

    Args:
        params: parameter groups, as `split_by_role` makes them; `muon` groups hold matrices `[rows, columns]`, or one
            for each expert, `[experts, rows, columns]`.
        lr: learning rate, on AdamW's scale for both.
        weight_decay: decoupled, multiplied by `lr`; the default of groups that don't say.
        momentum: of Muon's Nesterov average.
        betas: of AdamW.
        eps: of AdamW.
        iterations: of Newton-Schulz.
        scaling: of Muon's updates: `match_rms_adamw`, or `original`, by sqrt(max(1, rows / columns)), which wants a
            learning rate of its own (Muon's alone is then `lr`).

    Raises:
        ValueError: a `muon` group holds something that is not a matrix, or there is no such scaling.
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
        scaling: Scaling = "match_rms_adamw",
    ) -> None:
        if scaling not in get_args(Scaling):
            raise ValueError(f"scaling is {scaling!r}, but has to be one of {', '.join(get_args(Scaling))}")
        defaults = {
            "lr": lr, "weight_decay": weight_decay, "momentum": momentum, "betas": betas, "eps": eps,
            "iterations": iterations, "scaling": scaling, "muon": False,
        }  # fmt: skip
        super().__init__(params, defaults)
        for group in self.param_groups:
            for parameter in group["params"]:
                if group["muon"] and parameter.ndim not in (2, 3):
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
            for (shape, _), parameters in by_shape.items():
                at_once = max(1, STACKED_NUMBERS // shape.numel()) * ranks_of(parameters[0])
                for first in range(0, len(parameters), at_once):
                    self._step_muon(parameters[first : first + at_once], group)
        return loss

    def _step_muon(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        averages = []
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
            momentum, gradient = local(state["momentum"]), _gradient(parameter)
            momentum.lerp_(gradient, 1 - group["momentum"])
            averages.append(gradient.lerp(momentum, group["momentum"]))
        rows, columns = parameters[0].shape[-2:]
        scale = ADAMW_UPDATE_RMS * max(rows, columns) ** 0.5
        if group["scaling"] == "original":
            scale = max(1.0, rows / columns) ** 0.5
        updates = on_whole_matrices(averages, parameters[0], lambda whole: orthogonalised(whole, group["iterations"]))
        for parameter, update in zip(parameters, updates, strict=True):
            part = local(parameter)
            part.mul_(1 - group["lr"] * group["weight_decay"])
            part.add_(update.to(part.dtype), alpha=-group["lr"] * scale)

    def _step_adamw(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["step"] = torch.zeros(())
                state["mean"] = torch.zeros_like(parameter)
                state["variance"] = torch.zeros_like(parameter)
        states = [self.state[parameter] for parameter in parameters]
        adamw(
            [local(parameter) for parameter in parameters],
            [_gradient(parameter) for parameter in parameters],
            [local(state["mean"]) for state in states],
            [local(state["variance"]) for state in states],
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


def _gradient(parameter: Tensor) -> Tensor:
    if parameter.grad is None:
        raise ValueError("only parameters with a gradient are updated")
    return local(parameter.grad)


def orthogonalised(matrices_BRC: Tensor, iterations: int = 5) -> Tensor:
    """Return matrices `[B, R, C]` with singular values near 1 (within about 0.3) and the same singular vectors."""
    work = matrices_BRC.to(_iteration_dtype(matrices_BRC.device))
    if tall := work.shape[-2] > work.shape[-1]:
        work = work.mT
    work = work / (work.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = NEWTON_SCHULZ
    for _ in range(iterations):
        gram = work @ work.mT
        work = torch.baddbmm(work, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), work, beta=a)
    return work.mT if tall else work


def _iteration_dtype(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
