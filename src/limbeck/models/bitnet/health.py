"""How a ternary student fares while it is trained: what its codes, scales and activations do.

Small scales alone don't hurt, because the codes don't depend on them; but a scale that falls tenfold says that
something shrinks all weights of a layer (weight decay without gradients, most often), and training stands still.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from limbeck.models.bitnet.linear import TernaryLinear, ternary_layers

FALL = 10.0  # a scale so many times smaller than at the start is an alarm


@dataclass(frozen=True)
class LayerHealth:
    """One ternary layer between two looks at it.

    Attributes:
        minus: share of codes that are -1.
        zero: that are 0.
        plus: that are 1.
        scale: mean of gamma.
        flips: share of codes that changed since the last look.
        update: root mean square of what the weights changed by since the last look, over gamma.
        largest: the largest input since the last look, in absolute value; 0 where none was watched.
    """

    minus: float
    zero: float
    plus: float
    scale: float
    flips: float
    update: float
    largest: float


class HealthMonitor:
    """Looks at a student's ternary layers every now and then, and remembers what they were.

    Between looks it keeps a copy of the codes (one byte a weight) and, if `updates`, of the weights.

    Args:
        model: the student; not wrapped.
        updates: whether to measure updates.
    """

    def __init__(self, model: nn.Module, *, updates: bool = True) -> None:
        self._layers = ternary_layers(model)
        self._updates = updates
        self._largest: dict[str, Tensor] = {}
        self._codes: dict[str, Tensor] = {}
        self._weights: dict[str, Tensor] = {}
        self._first: dict[str, float] = {}
        for name, layer in self._layers.items():
            self._remember(name, layer)
            self._first[name] = layer.codes()[1].mean().item()

    def state(self, *, everything: bool = True) -> dict[str, Tensor]:
        """Return what the next look compares with, by name: first scales, largest inputs; codes and weights.

        Args:
            everything: False leaves codes and weights out, which are the layers' own just behind a look.
        """
        found = {f"first/{name}": torch.tensor(scale, dtype=torch.float64) for name, scale in self._first.items()}
        found |= {f"largest/{name}": value.cpu() for name, value in self._largest.items()}
        if everything:
            found |= {f"codes/{name}": value.cpu() for name, value in self._codes.items()}
            found |= {f"weights/{name}": value.cpu() for name, value in self._weights.items()}
        return found

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Remember what `state` returned; what is not there is taken from the layers as they are."""
        for name, layer in self._layers.items():
            self._remember(name, layer)
            if f"first/{name}" in state:
                self._first[name] = state[f"first/{name}"].item()
            for kept, label in ((self._codes, "codes"), (self._weights, "weights"), (self._largest, "largest")):
                if f"{label}/{name}" in state:
                    kept[name] = state[f"{label}/{name}"].to(layer.weight.device)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the largest inputs of the layers while the block runs."""
        hooks = [layer.register_forward_pre_hook(self._watch(name)) for name, layer in self._layers.items()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @torch.no_grad()
    def look(self) -> dict[str, LayerHealth]:
        """Return each layer's health by its name, and remember what the layers are now."""
        found = {}
        for name, layer in self._layers.items():
            codes, gamma = layer.codes()
            before = self._codes[name].to(codes.device)
            update = 0.0
            if self._updates:
                moved = layer.weight.detach().float() - self._weights[name].to(layer.weight.device)
                update = (moved / gamma).square().mean().sqrt().item()
            largest = self._largest.pop(name, None)
            found[name] = LayerHealth(
                minus=(codes < 0).float().mean().item(),
                zero=(codes == 0).float().mean().item(),
                plus=(codes > 0).float().mean().item(),
                scale=gamma.mean().item(),
                flips=(codes != before).float().mean().item(),
                update=update,
                largest=0.0 if largest is None else largest.item(),
            )
            self._remember(name, layer)
        return found

    def alarms(self, found: dict[str, LayerHealth]) -> list[str]:
        """Return one line for each layer whose scale fell tenfold since the monitor was made."""
        return [
            f"{name}: the scale fell from {self._first[name]:.2e} to {health.scale:.2e}. The weights shrink faster "
            "than gradients move them: lower weight_decay or the learning rate."
            for name, health in found.items()
            if health.scale * FALL <= self._first[name]
        ]

    def _remember(self, name: str, layer: TernaryLinear) -> None:
        self._codes[name] = layer.codes()[0].to(torch.int8)
        if self._updates:
            self._weights[name] = layer.weight.detach().float().clone()

    def _watch(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def see(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            largest = inputs[0].detach().abs().amax().float()
            before = self._largest.get(name)
            self._largest[name] = largest if before is None else torch.maximum(before, largest)

        return see


def summary(found: dict[str, LayerHealth]) -> dict[str, float]:
    """Return what a training log shows of all layers: mean shares and flips, the least scale, the greatest input."""
    layers = list(found.values())
    if not layers:
        return {}
    names = ("minus", "zero", "plus", "flips", "update")
    mean = {name: sum(getattr(layer, name) for layer in layers) / len(layers) for name in names}
    return {
        **{f"ternary_{name}": value for name, value in mean.items()},
        "ternary_least_scale": min(layer.scale for layer in layers),
        "ternary_largest_input": max(layer.largest for layer in layers),
    }
