"""A teacher behind a server: what it says about each token of given text, by prompt log-probabilities.

Each document is a request of its own, so that none sees another. With `top_k` the most probable tokens come, with what
mass is left; without, the exact log-probability of the token that the text goes on with, which on text that the student
wrote is the score of the student's own choice. Answers are checked as a capture's are: aligned by ids, never shifted.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from limbeck.data.tokenizer import load_tokenizer, tokenizer_digest
from limbeck.distill.teachers.needs import Needs
from limbeck.distill.teachers.online import TeacherFacts
from limbeck.distill.teachers.reading import spread, stretches
from limbeck.distill.teachers.settings import ServedTeacher
from limbeck.distill.view import TeacherView
from limbeck.engines.scorer import Row, Scorer, open_scorer, vocabulary_of
from limbeck.errors import UserError
from limbeck.settings import Settings
from limbeck.signals.codecs.token import TokenSpec
from limbeck.signals.codecs.topk_spec import TopkSpec
from limbeck.signals.loader import SignalBatch
from limbeck.signals.stacking import concatenate
from limbeck.signals.types import TeacherSignal, at, to_device


def inspect_served(settings: ServedTeacher, needs: Needs, key: str) -> TeacherFacts:
    """Return what is known of a served teacher without asking it; see `online.inspect_teacher`."""
    if needs.layers or needs.relations:
        raise UserError(
            f"layer_mapping: a served teacher shows no inner layers. Set {key}.kind to hf, or drop "
            "the losses on layers."
        )
    kind = "token" if settings.top_k is None else "topk"
    advice = "Set" if settings.top_k is None else "Leave out"
    needs.check(kind, f"{advice} {key}.top_k.", key)
    tokenizer = load_tokenizer(settings.source, settings.revision)
    own = settings.engine.vocabulary or vocabulary_of(settings.source, settings.revision, tokenizer)
    if needs.vocabulary is not None and needs.vocabulary < len(tokenizer):
        raise UserError(
            f"{key}: the tokenizer of {settings.source} has {len(tokenizer)} entries, and the student's vocabulary "
            f"only {needs.vocabulary}. Train a student with the teacher's tokenizer."
        )
    return TeacherFacts(
        kind=kind,
        temperatures=(1.0,) if kind == "topk" else (),
        vocabulary=needs.vocabulary or own,
        tokenizer_digest=tokenizer_digest(tokenizer),
    )


def open_served(settings: ServedTeacher, needs: Needs, facts: TeacherFacts) -> "ServerTeacher":
    """Reach the server; see `online.open_teacher`."""
    tokenizer = load_tokenizer(settings.source, settings.revision)
    spec: Settings = TokenSpec()
    if settings.top_k is not None:
        spec = TopkSpec(select="count", cap=settings.top_k, temperatures=(1.0,))
    engine = settings.engine.model_copy(update={"vocabulary": facts.vocabulary})
    scorer = open_scorer(settings.source, settings.revision, engine, tokenizer)
    return ServerTeacher(
        scorer, spec, facts.vocabulary, facts.tokenizer_digest, {"kind": "server"} | scorer.description
    )


@dataclass
class ServerTeacher:
    """A server that was reached; see `online.OnlineTeacher`.

    Attributes:
        scorer: asks it.
        spec: which entries are asked for.
    """

    scorer: Scorer
    spec: Settings
    vocabulary: int
    tokenizer_digest: str
    description: dict[str, Any]

    def annotate(self, batch: SignalBatch) -> tuple[SignalBatch, TeacherView | None]:
        """Have the batch scored; see `online.OnlineTeacher`."""
        ids_BT, counted_BT = batch.input_ids.cpu(), batch.counted.cpu()
        rows: list[Row] = []
        parts = [one for one in stretches(batch) if bool(counted_BT[one.row, one.first : one.last].any())]
        for row, first, last in parts:
            rows.append((ids_BT[row, first:last], _trained(counted_BT[row, first:last])))
        if not rows:
            return replace(batch, signal=self._silent(counted_BT, batch.input_ids.device), encoded=None), None
        said: list[TeacherSignal] = self.scorer.score(rows, self.spec)
        heard_BT, found = torch.zeros_like(counted_BT), []
        for (row, first, last), signal in zip(parts, said, strict=True):
            heard_BT[row, first:last] = signal.mask
            found.append(at(signal, signal.mask))
        counted_BT = counted_BT & heard_BT
        signal_BT = replace(spread(concatenate(found), heard_BT), mask=counted_BT)
        signal_BT = to_device(signal_BT, batch.input_ids.device)
        return replace(batch, signal=signal_BT, counted=signal_BT.mask, encoded=None), None

    def _silent(self, counted_BT: Tensor, device: torch.device) -> TeacherSignal:
        """Return the signal of a batch in which nothing counts; the server is not asked."""
        [nothing] = self.scorer.score(
            [(torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.bool))], self.spec
        )
        return to_device(spread(at(nothing, nothing.mask), torch.zeros_like(counted_BT)), device)

    def close(self) -> None:
        """Close the connections."""
        self.scorer.close()


def _trained(counted_T: Tensor) -> Tensor:
    """Return flags of tokens from flags of positions: token t + 1 is asked about where position t counts."""
    return torch.cat([counted_T.new_zeros(1), counted_T[:-1]])
