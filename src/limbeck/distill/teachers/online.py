"""The one door to teachers that answer while the student trains.

    needs = Needs.of(terms, layers=…, vocabulary=student.config.vocab_size)
    facts = inspect_teacher(recipe.teacher, needs)          # nothing is loaded: the recipe can be checked with it
    teacher = open_teacher(recipe.teacher, needs, device)   # under torchrun each rank opens its own
    batch, view = teacher.annotate(batch)                   # inside compute_loss, just before the forward
    teacher.close()

A teacher is no module of the student's: its weights are in no optimizer, no state dict and no checkpoint, get no
gradients, and are not sharded with the student's.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from transformers import PreTrainedTokenizerBase

from limbeck.data.tokenizer import tokenizer_digest
from limbeck.distill.teachers.needs import Needs
from limbeck.distill.teachers.settings import HfTeacher, MixedTeachers, OnlineTeacherSettings
from limbeck.distill.view import TeacherView
from limbeck.errors import UserError
from limbeck.signals.loader import SignalBatch

__all__ = ["Needs", "OnlineTeacher", "TeacherFacts", "inspect_teacher", "open_teacher"]


@dataclass(frozen=True)
class TeacherFacts:
    """What is known of a teacher before its weights are loaded.

    Attributes:
        kind: of the signal that it will give.
        temperatures: at which a `topk` signal will have exact normalisers; empty for other kinds.
        vocabulary: size of its distributions as it gives them (the student's, where only padding differs).
        tokenizer_digest: of its tokenizer.
        configs: the configurations of its text models by path, one for each teacher in process; none for servers.
    """

    kind: str
    temperatures: tuple[float, ...]
    vocabulary: int
    tokenizer_digest: str
    configs: Mapping[str, Any] = field(default_factory=dict)


class OnlineTeacher(Protocol):
    """A teacher that is ready to be asked.

    Attributes:
        vocabulary: size of its distributions.
        tokenizer_digest: of its tokenizer.
        description: for logs and results: paths, revisions, dtypes, devices. No secrets.
    """

    vocabulary: int
    tokenizer_digest: str
    description: dict[str, Any]

    def annotate(self, batch: SignalBatch) -> tuple[SignalBatch, TeacherView | None]:
        """Return the batch with what the teacher says about its tokens, and the inner layers that losses compare.

        The signal is on the batch's device. `counted` is the batch's own; where the teacher can't say anything (which
        does not happen with a teacher in process) it is False. The view is None where no inner layer is needed.

        Raises:
            LimbeckError: a server's answer is not about this batch, or it goes on failing.
        """
        ...

    def close(self) -> None:
        """Let go of the model or the connections."""
        ...


def inspect_teacher(settings: OnlineTeacherSettings, needs: Needs, key: str = "teacher") -> TeacherFacts:
    """Return what can be known of a teacher without loading it; tokenizer and configuration are read.

    Args:
        settings: which one.
        needs: what will be asked of it.
        key: where the settings stand in the recipe, for messages.

    Raises:
        UserError: it can't feed a loss, lacks a layer, has another vocabulary, or is not there.
    """
    _refuse_shares(settings)
    if isinstance(settings, MixedTeachers):
        from limbeck.distill.teachers.mixed import inspect_mixed

        return inspect_mixed(settings, needs)
    if isinstance(settings, HfTeacher):
        from limbeck.distill.teachers.hf import inspect_hf

        return inspect_hf(settings, needs, key)
    from limbeck.distill.teachers.served import inspect_served

    return inspect_served(settings, needs, key)


def open_teacher(
    settings: OnlineTeacherSettings,
    needs: Needs,
    device: torch.device | str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> OnlineTeacher:
    """Return a teacher that is ready to be asked.

    Args:
        settings: which one.
        needs: what will be asked of it.
        device: where it goes unless its settings say so; by default this rank's GPU, or the processor.
        tokenizer: the student's; a teacher in process that has another reads the text in tokens of its own. None: the
            teacher's.

    Raises:
        UserError: as `inspect_teacher`; or the weights can't be loaded, or a server can't be reached.
    """
    facts = inspect_teacher(settings, needs)
    here = torch.device(device) if device is not None else default_device()
    other = tokenizer is not None and tokenizer_digest(tokenizer) != facts.tokenizer_digest
    if other and not isinstance(settings, HfTeacher):
        raise UserError(
            "teacher.kind: a teacher of another tokenizer than the student's has to be one in process (hf). "
            "limbeck tokenizer transplant moves a student to the teacher's."
        )
    if isinstance(settings, MixedTeachers):
        from limbeck.distill.teachers.mixed import open_mixed

        return open_mixed(settings, needs, here)
    if isinstance(settings, HfTeacher):
        from limbeck.distill.teachers.hf import open_hf

        return open_hf(settings, needs, facts, here, tokenizer if other else None)
    from limbeck.distill.teachers.served import open_served

    return open_served(settings, needs, facts)


def default_device() -> torch.device:
    """Return this rank's GPU, or the processor where there is none."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def _refuse_shares(settings: OnlineTeacherSettings) -> None:
    if not isinstance(settings, MixedTeachers) and (settings.weight != 1.0 or settings.datasets):
        named = "datasets" if settings.datasets else "weight"
        raise UserError(
            f"teacher.{named}: means something where there are several teachers (kind: mixed). With one, leave it out."
        )
