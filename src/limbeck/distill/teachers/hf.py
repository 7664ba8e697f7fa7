"""A teacher in this process: its final states and its head, or the most probable tokens, or its inner layers."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from limbeck.data.tokenizer import load_tokenizer, tokenizer_digest
from limbeck.distill.head import apply_head
from limbeck.distill.layers import block_count, decoder_config
from limbeck.distill.other_tokenizer import OtherTokenizerTeacher
from limbeck.distill.starting import open_config
from limbeck.distill.teachers.loading import described, load_teacher
from limbeck.distill.teachers.needs import Needs
from limbeck.distill.teachers.online import TeacherFacts
from limbeck.distill.teachers.reading import Reading, moved, read, spread
from limbeck.distill.teachers.settings import HfTeacher
from limbeck.distill.view import TeacherView
from limbeck.engines.scoring import check_head
from limbeck.engines.transformers import output_head
from limbeck.errors import UserError
from limbeck.signals.codecs.topk_spec import TopkSpec
from limbeck.signals.loader import SignalBatch
from limbeck.signals.sparse import topk_of_logits
from limbeck.signals.stacking import concatenate
from limbeck.signals.types import HiddenSignal, OutputHead, TopkSignal, to_device

CHUNK_LOGITS = 1 << 24
PROBE_TOKENS = 8
NO_SUCH_TOKEN = -200.0  # a logit so low that its token has no mass, and finite


def inspect_hf(settings: HfTeacher, needs: Needs, key: str) -> TeacherFacts:
    """Return what a teacher's folder says, without its weights; see `online.inspect_teacher`."""
    kind = "hidden" if settings.top_k is None else "topk"
    advice = "Set" if settings.top_k is None else "Leave out"
    needs.check(kind, f"{advice} {key}.top_k.", key)
    config = open_config(
        settings.path, f"{key}.path", revision=settings.revision, trust_remote_code=settings.trust_remote_code
    )
    blocks = block_count(config)
    for name, wanted in (("layer_mapping", needs.layers), ("attention_relation.layers", needs.relations)):
        if wanted and wanted[-1] >= blocks:
            raise UserError(
                f"{name}: block {wanted[-1]} of the teacher is asked for, and {settings.path} has {blocks} "
                f"(0 to {blocks - 1})."
            )
    tokenizer = load_tokenizer(settings.path, settings.revision)
    own = int(decoder_config(config).vocab_size)
    size = own if needs.ranks or needs.vocabulary is None else needs.vocabulary
    if size < min(len(tokenizer), own):
        raise UserError(
            f"{key}.path: the tokenizer of {settings.path} has {len(tokenizer)} entries, and the student's vocabulary "
            f"only {size}. Train a student with the teacher's tokenizer (limbeck tokenizer transplant "
            "makes one), or resize it (resize_embeddings_to_multiple_of)."
        )
    return TeacherFacts(
        kind=kind,
        temperatures=needs.temperatures if kind == "topk" else (),
        vocabulary=size,
        tokenizer_digest=tokenizer_digest(tokenizer),
        configs={settings.path: config},
    )


def open_hf(
    settings: HfTeacher,
    needs: Needs,
    facts: TeacherFacts,
    device: torch.device,
    student: PreTrainedTokenizerBase | None = None,
) -> "ModelTeacher | OtherTokenizerTeacher":
    """Load a teacher; see `online.open_teacher`. `student` is the student's tokenizer where it is another one."""
    if settings.special_tokens and student is None:
        raise UserError(
            "teacher.special_tokens: the student's tokenizer is the teacher's, so nothing is read in place of anything "
            "else. Leave the key out."
        )
    model = load_teacher(settings, device)
    if student is not None:
        own = load_tokenizer(settings.path, settings.revision)
        return OtherTokenizerTeacher.of(model, own, student, settings.special_tokens, described(settings, model))
    own_head = output_head(model)
    check_head(model, own_head, torch.arange(PROBE_TOKENS) % own_head.weight.shape[0])
    return ModelTeacher(
        model=model,
        head=fitted(own_head, facts.vocabulary),
        needs=needs,
        top_k=settings.top_k,
        vocabulary=facts.vocabulary,
        tokenizer_digest=facts.tokenizer_digest,
        description=described(settings, model),
    )


@dataclass
class ModelTeacher:
    """A loaded teacher; see `online.OnlineTeacher`.

    Attributes:
        model: frozen, in evaluation mode.
        head: its output head, over the student's vocabulary.
        needs: what is asked of it.
        top_k: entries of a `topk` signal; None: it gives `hidden` signals.
    """

    model: PreTrainedModel
    head: OutputHead
    needs: Needs
    top_k: int | None
    vocabulary: int
    tokenizer_digest: str
    description: dict[str, Any]

    @torch.no_grad()
    def annotate(self, batch: SignalBatch) -> tuple[SignalBatch, TeacherView | None]:
        """Read the batch; see `online.OnlineTeacher`."""
        reading = self.read(batch)
        device = batch.input_ids.device
        view = moved(reading.view, device) if self.needs.layers or self.needs.relations else None
        if not self.needs.losses:
            return batch, view
        signal: HiddenSignal | TopkSignal
        if self.top_k is None:
            signal = HiddenSignal(reading.hidden.to(device), self.head.to(device), batch.counted)
        else:
            signal = self._topk(reading, batch.counted)
        return replace(batch, signal=to_device(signal, device), encoded=None), view

    def read(self, batch: SignalBatch) -> Reading:
        """Return final states and inner layers, on the teacher's device."""
        return read(self.model, batch, self.needs.layers, self.needs.relations)

    def close(self) -> None:
        """Let go of the model."""
        del self.model, self.head

    def _topk(self, reading: Reading, counted_BT: Tensor) -> TopkSignal:
        """Return the most probable tokens where they count; logits are made for a chunk of positions at a time."""
        assert self.top_k is not None
        head = self.head.to(reading.hidden.device)
        spec = TopkSpec(select="count", cap=min(self.top_k, self.vocabulary), temperatures=self.needs.temperatures)
        places_BT = counted_BT.to(reading.hidden.device)
        hidden_ND = reading.hidden[places_BT]
        step = max(16, CHUNK_LOGITS // self.vocabulary)
        parts = [
            topk_of_logits(apply_head(hidden_ND[first : first + step], head), spec)
            for first in range(0, max(1, len(hidden_ND)), step)
        ]
        return spread(concatenate(parts), places_BT)


def fitted(head: OutputHead, vocabulary: int) -> OutputHead:
    """Return a head over the student's vocabulary, where padding beyond the tokenizer's entries differs.

    Rows that the student does not have are left out, and entries that the teacher does not have get no mass.
    """
    missing = vocabulary - head.weight.shape[0]
    if missing == 0:
        return head
    if missing < 0:
        return OutputHead(
            head.weight[:vocabulary], None if head.bias is None else head.bias[:vocabulary], head.soft_cap
        )
    if head.soft_cap is not None:
        raise UserError(
            f"teacher: it has {missing} entries fewer than the student and a soft-cap, which leaves every entry some "
            "mass. Give the student the teacher's vocabulary."
        )
    weight, bias = head.weight, head.bias
    bias = weight.new_zeros(len(weight)) if bias is None else bias
    return OutputHead(
        torch.cat([weight, weight.new_zeros(missing, weight.shape[1])]),
        torch.cat([bias, bias.new_full((missing,), NO_SUCH_TOKEN)]),
    )
