"""What a training run is doing: each loss by name, speed, memory; and the watch that stops it when a loss is no number.

Sums stay on the device and are read when something is logged; the watch reads one number an optimisation step. Nothing
here waits for the device at each micro-batch.
"""

import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from limbeck.errors import LimbeckError
from limbeck.signals.loader import SignalBatch

Reduce = Callable[[Tensor], Tensor]  # the sum over ranks
SHOWN = 16  # samples that are named in a message


@dataclass
class Meters:
    """Sums since something was last logged.

    Attributes:
        signal_bytes: of the stored signal, a token; 0 where none is read.
        losses: by name, over micro-batches of this rank; each is a share of the mean over a step's tokens.
        steps: optimisation steps.
        tokens: that were read by this rank, padding not counted.
        since: when counting began, in seconds.
    """

    signal_bytes: float = 0.0
    losses: dict[str, Tensor] = field(default_factory=dict)
    steps: int = 0
    tokens: Tensor | None = None
    since: float = field(default_factory=time.monotonic)

    def add(self, batch: SignalBatch, parts: Mapping[str, Tensor]) -> None:
        """Count a micro-batch."""
        for name, value in parts.items():
            self.losses[name] = self.losses[name] + value if name in self.losses else value.clone()
        tokens = batch.attention_mask.sum()
        self.tokens = tokens if self.tokens is None else self.tokens + tokens

    def read(self, reduce: Reduce) -> dict[str, float]:
        """Return what is logged, over all ranks, and start anew.

        Returns:
            the mean of each loss over the steps, `tokens_per_second`, `signal_bytes_per_second` where signals are read,
            and memory in GB: what this process holds (`memory_gb`), and the most that its GPU held (`gpu_memory_gb`).
        """
        seconds = max(time.monotonic() - self.since, 1e-9)
        logged: dict[str, float] = {}
        if self.losses and self.steps:
            means = reduce(torch.stack([value.double() for value in self.losses.values()])) / self.steps
            logged = dict(zip(self.losses, means.tolist(), strict=True))
        if self.tokens is not None:
            logged["tokens_per_second"] = reduce(self.tokens.double()).item() / seconds
            if self.signal_bytes:
                logged["signal_bytes_per_second"] = logged["tokens_per_second"] * self.signal_bytes
        self.losses, self.steps, self.tokens, self.since = {}, 0, None, time.monotonic()
        return logged | memory()


def memory() -> dict[str, float]:
    """Return the memory that this process holds, and the most that its GPU held, in GB."""
    held = {"memory_gb": _resident_bytes() / 1e9}
    if torch.cuda.is_available():
        held["gpu_memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return held


def _resident_bytes() -> int:
    status = Path("/proc/self/statm")
    if status.exists():
        return int(status.read_text().split()[1]) * resource.getpagesize()
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


@dataclass(frozen=True)
class _Seen:
    samples: tuple[int, ...]
    loss: Tensor
    parts: dict[str, Tensor]


@dataclass
class Watch:
    """Holds the losses of one optimisation step until they are known to be numbers."""

    seen: list[_Seen] = field(default_factory=list)

    def add(self, batch: SignalBatch, loss: Tensor, parts: Mapping[str, Tensor]) -> None:
        """Keep a micro-batch's losses."""
        self.seen.append(_Seen(batch.samples, loss.detach(), dict(parts)))

    def check(self, step: int, reduce: Reduce, gradient_norm: Tensor | float | None, folder: str) -> None:
        """Look at the step's losses and its gradient, and forget them.

        Args:
            step: number of the optimisation step, from 1.
            reduce: sums over ranks.
            gradient_norm: over all ranks; None: not looked at.
            folder: where checkpoints are, for the message.

        Raises:
            LimbeckError: one of them is not a number, on this rank or another; the first bad micro-batch is named.
        """
        seen, self.seen = self.seen, []
        if not seen:
            return
        bad = torch.stack([~torch.isfinite(micro_batch.loss) for micro_batch in seen]).any().float()
        norm = torch.as_tensor(0.0 if gradient_norm is None else gradient_norm, device=bad.device)
        anywhere, gradient = torch.stack([reduce(bad), norm.to(bad.dtype)]).tolist()
        advice = (
            f"The last good checkpoint is in {folder}. Look at these rows, lower the learning rate, "
            "or clip the gradient (training_args.max_grad_norm)."
        )
        for number, micro_batch in enumerate(seen):
            if not bool(torch.isfinite(micro_batch.loss)):
                raise LimbeckError(
                    f"step {step}, micro-batch {number} ({_named(micro_batch.samples)}): "
                    f"the loss is not finite ({_described(micro_batch.parts)}). {advice}"
                )
        if anywhere:
            raise LimbeckError(f"step {step}: the loss is not finite on another rank, which names the batch. {advice}")
        if gradient != gradient or abs(gradient) == float("inf"):
            samples = tuple(sample for micro_batch in seen for sample in micro_batch.samples)
            raise LimbeckError(f"step {step} ({_named(samples)}): the loss is finite and its gradient is not. {advice}")


def _named(samples: tuple[int, ...]) -> str:
    shown = ", ".join(str(sample) for sample in samples[:SHOWN])
    return f"samples {shown}{', …' if len(samples) > SHOWN else ''}" if samples else "no samples"


def _described(parts: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{name} {value.item():g}" for name, value in parts.items())
