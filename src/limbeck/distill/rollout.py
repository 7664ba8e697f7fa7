"""On-policy batches: the student goes on from a row's prompt by itself, and is trained on what it wrote.

    roll = open_rollout(recipe.rollout, student, tokenizer, seed=7, sequence_length=512, rank=rank)
    batch = roll(batch, step, micro_batch)                 # the batch itself in steps that are not on-policy
    roll.close()

Which steps are on-policy is a function of the step's number alone, the same on all ranks. Each completion is drawn by a
random stream of its own, seeded by the run's seed, the step, the micro-batch, the rank and the row: what a run writes
does not depend on where it was stopped and resumed. Prompts are masked from the loss.

Not here: what the teacher says of the completions (`teachers`), and the losses (`reverse_kl`, or `k1` to `k3` where the
teacher scores single tokens only).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Protocol

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from limbeck.distill.teachers.reading import stretches
from limbeck.distill.teachers.settings import RolloutSettings, ServerWriter
from limbeck.distill.term import Term
from limbeck.engines.completions import Completion, Sampling
from limbeck.engines.generation import TransformersGenerator
from limbeck.engines.settings import TransformersEngine
from limbeck.errors import LimbeckError, UserError
from limbeck.seeds import derive_seed
from limbeck.signals.dataset import SignalRow
from limbeck.signals.loader import SignalBatch, collate

ESTIMATORS = ("k1", "k2", "k3")


class Writer(Protocol):
    """Whoever writes the student's completions."""

    def write(self, prompts: Sequence[Sequence[int]], sampling: Sampling, step: int) -> list[Completion]:
        """Return the completions of each prompt by the student as it is at `step`, in order, with their ids."""
        ...

    def close(self) -> None:
        """Let go of connections."""
        ...


def open_rollout(
    settings: RolloutSettings,
    student: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int,
    sequence_length: int,
    rank: int = 0,
    autocast: torch.dtype | None = None,
) -> "Rollout":
    """Return what makes on-policy batches.

    Args:
        settings: the recipe's.
        student: the model that is trained, without wrappers; it is looked at anew in each step.
        tokenizer: the student's.
        seed: of the run.
        sequence_length: the longest row, prompt and completion together.
        rank: of this process; each has prompts of its own.
        autocast: the dtype in which the student computes while it is trained; None: that of its weights.

    Raises:
        UserError: there is no room for completions, or the server can't be reached.
    """
    context = getattr(student.config.get_text_config(), "max_position_embeddings", None) or sequence_length
    length = min(sequence_length, context)
    if settings.max_new_tokens >= length:
        raise UserError(
            f"rollout.max_new_tokens: {settings.max_new_tokens} new tokens leave no room for a prompt in rows of "
            f"{length} (sequence_length, or the student's context)."
        )
    writer: Writer
    if isinstance(settings.writer, ServerWriter):
        from limbeck.distill.rollout_server import RefreshedServer

        writer = RefreshedServer(settings.writer, student, tokenizer)
    else:
        writer = StudentWriter(student, tokenizer, settings.writer.batch_tokens, autocast)
    return Rollout(settings, writer, seed, rank, length, int(tokenizer.pad_token_id or 0))


def check_rollout(settings: RolloutSettings, terms: Sequence[Term]) -> None:
    """Refuse what can't be, before anything is loaded.

    Raises:
        UserError: a sampled-token estimator is asked for on text that is drawn from another distribution than the
            student's own at the loss's temperature.
    """
    for term in terms:
        if term.name not in ESTIMATORS:
            continue
        if settings.temperature != term.temperature or settings.top_p < 1:
            named = "top_p" if settings.top_p < 1 else "temperature"
            raise UserError(
                f"rollout.{named}: {term.name!r} estimates a divergence from tokens drawn from the student's whole "
                f"distribution at the loss's temperature ({term.temperature:g}). Set temperature to it, and top_p to 1."
            )
        if settings.fraction < 1:
            raise UserError(
                f"rollout.fraction: {term.name!r} means something on the student's own tokens only, and in the other "
                "steps the text is not the student's. Set fraction to 1, or use reverse_kl."
            )


@dataclass(frozen=True)
class Rollout:
    """Makes on-policy batches; see `open_rollout`."""

    settings: RolloutSettings
    writer: Writer
    seed: int
    rank: int
    length: int
    pad_id: int

    def on_policy(self, step: int) -> bool:
        """Return whether the optimisation step of this number (from 0) is on-policy: a share of them, evenly spread."""
        fraction = Fraction(str(self.settings.fraction))
        return (step + 1) * fraction // 1 > step * fraction // 1

    def __call__(self, batch: SignalBatch, step: int, micro_batch: int) -> SignalBatch:
        """Return the batch, or in an on-policy step the student's own completions of its prompts.

        Args:
            batch: rows of the dataset; each document of a packed row is a prompt of its own.
            step: the number of the optimisation step, from 0.
            micro_batch: the number of the batch within it, from 0.
        """
        if not self.on_policy(step):
            return batch
        prompts, sources = self._prompts(batch)
        seed = derive_seed(self.seed, "rollout", step, micro_batch, self.rank)
        settings = self.settings
        sampling = Sampling(
            temperature=settings.temperature, top_p=settings.top_p, max_tokens=settings.max_new_tokens,
            stop=settings.stop, seed=seed, n=settings.completions,
        )  # fmt: skip
        written = self.writer.write(prompts, sampling, step)  # also of no prompts: other ranks may wait for this one
        if not prompts:
            return batch
        rows = [_row(prompts[one.prompt], one, sources[one.prompt]) for one in written]
        rolled = collate(rows, self.pad_id)
        return replace(rolled, epoch=batch.epoch, step=batch.step).to(batch.input_ids.device)

    def close(self) -> None:
        """Let go of connections."""
        self.writer.close()

    def _prompts(self, batch: SignalBatch) -> tuple[list[list[int]], list[str]]:
        """Return the prompts of a batch, and the dataset that each is from; documents that train nothing have none."""
        ids_BT, trained_BT = batch.input_ids.cpu(), batch.trained.cpu()
        room = self.length - self.settings.max_new_tokens
        prompts, sources = [], []
        for row, first, last in stretches(batch):
            trained = trained_BT[row, first:last].nonzero()[:, 0]
            if last - first < 2 or not len(trained):
                continue
            begun = int(trained[0])
            size = begun if begun > 1 else min(max(self.settings.prompt_tokens, begun), last - first - 1)
            prompts.append(ids_BT[row, first : first + size].tolist()[-room:])
            sources.append(batch.sources[row] if batch.sources else "")
        return prompts, sources


class StudentWriter:
    """The student writes in this process, in batches with a key-value cache, without dropout and without gradients."""

    def __init__(
        self,
        student: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        batch_tokens: int,
        autocast: torch.dtype | None = None,
    ) -> None:
        self._student = student
        self._tokenizer = tokenizer
        self._engine = TransformersEngine(batch_tokens=batch_tokens)
        self._autocast = autocast

    def write(self, prompts: Sequence[Sequence[int]], sampling: Sampling, step: int) -> list[Completion]:
        """Return the student's completions; see `Writer`.

        Raises:
            UserError: its weights are sharded over ranks, which write texts of different lengths.
        """
        if is_sharded(self._student):
            raise UserError(
                "rollout.writer: the student's weights are sharded over ranks, and can't write in one process. Set "
                "rollout.writer to a vLLM server (kind: server), or train without sharding."
            )
        generator = TransformersGenerator(self._student, self._tokenizer, self._engine, "student")
        device = self._student.device.type
        enabled = self._autocast is not None
        with evaluating(self._student), torch.autocast(device, dtype=self._autocast, enabled=enabled):
            return generator.generate(prompts, sampling)

    def close(self) -> None:
        """Do nothing: the student is the trainer's."""


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, and each of its parts back into its own afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def is_sharded(model: nn.Module) -> bool:
    """Return whether a rank holds only a part of a parameter (FSDP, DeepSpeed ZeRO-3)."""
    return any(hasattr(one, "full_tensor") or hasattr(one, "ds_tensor") for one in model.parameters())


def _row(prompt: Sequence[int], completion: Completion, source: str) -> SignalRow:
    if not completion.ids:
        raise LimbeckError(f"rollout: prompt {completion.prompt}: the completion came without token ids.")
    ids_T = torch.tensor([*prompt, *completion.ids])
    return SignalRow(ids_T, torch.arange(len(ids_T)) >= len(prompt), None, source=source)
