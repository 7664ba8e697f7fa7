"""Re-scoring: the teacher reads some rows of a dataset again, and what is stored is held against what it says now.

A stored signal is rounded by its codec, and a teacher is not computed to the last bit twice. So what it says now is put
through the same codec, and before it through those that the dataset was converted from, and that shows how far rounding
alone goes at these very positions. Deviations are of probabilities: of each stored entry and of the tail (`topk`), of
all tokens (`dense`, `hidden`), of the token that follows (`token`), of the tokens kept for certain (`sampled`).
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from limbeck.data.capture.teacher import weights_digest
from limbeck.data.tokenizer import load_tokenizer, tokenizer_digest
from limbeck.engines.transformers import final_hidden, load_model, output_head
from limbeck.errors import UserError
from limbeck.progress import bar
from limbeck.seeds import derive_seed
from limbeck.settings import Settings
from limbeck.signals.codecs.registry import make_codec, parse_spec
from limbeck.signals.codecs.sampled_random import position_keys
from limbeck.signals.codecs.sampled_spec import SampledSpec
from limbeck.signals.convert.kinds import conversion_between
from limbeck.signals.dataset import SignalDataset, SignalRow
from limbeck.signals.from_logits import LogitsChunk, kind_stored, logits_of, maker_of
from limbeck.signals.order import permutation
from limbeck.signals.types import (
    DenseSignal,
    HiddenSignal,
    OutputHead,
    SampledSignal,
    TeacherSignal,
    TokenSignal,
    TopkSignal,
    at,
)

POSITIONS_A_ROW = 64
ROUNDINGS_ALLOWED = 2.0
NOISE = 2e-3  # of a probability: what another order of additions, another batch or another device may change


@dataclass(frozen=True)
class Deviation:
    """How far probabilities lie apart: the largest of any, and the mean over positions of each one's largest."""

    largest: float
    mean: float


@dataclass(frozen=True)
class Rescoring:
    """What re-scoring found.

    Attributes:
        rows: which of the dataset's rows were read.
        positions: how many positions were compared.
        stored: what is stored, against the teacher.
        rounding: what the teacher says now after the same codec, against the teacher.
        other_teacher: empty, or in which way this teacher is not the dataset's.
    """

    rows: tuple[int, ...]
    positions: int
    stored: Deviation
    rounding: Deviation
    other_teacher: str

    @property
    def allowed(self) -> float:
        """Return the largest deviation that rounding and computing again explain."""
        return ROUNDINGS_ALLOWED * self.rounding.largest + NOISE

    @property
    def agrees(self) -> bool:
        """Return whether what is stored is what this teacher says."""
        return self.stored.largest <= self.allowed


def rescore(
    dataset: SignalDataset,
    model: str,
    *,
    revision: str | None = None,
    sample: int = 16,
    seed: int = 0,
    device: str = "cpu",
) -> Rescoring:
    """Have `model` read a random sample of a dataset's rows again.

    Args:
        dataset: what is checked.
        model: a folder or a repository.
        revision: of the repository.
        sample: how many rows, at most; of each at most 64 positions are compared.
        seed: decides which.
        device: where the model runs.

    Raises:
        UserError: there is no such model, its vocabulary is not the dataset's, no sampled position says anything, or
            packing has cut documents.
        IntegrityError: a shard is missing or damaged.
    """
    if cuts := dataset.manifest.capture.get("packed", {}).get("cuts"):
        raise UserError(
            f"{dataset.storage.where()}: packing cut documents in {cuts} places, and what follows a cut can't be "
            "scored without what was before it. Verify the dataset that was packed."
        )
    other = _what_is_other(dataset, model, revision)
    teacher = load_model(model, revision=revision, device=device)
    head = output_head(teacher)
    if head.weight.shape[0] != dataset.manifest.vocabulary:
        raise UserError(
            f"{model}: distributions over {head.weight.shape[0]} tokens, but {dataset.storage.where()} has "
            f"{dataset.manifest.vocabulary}. Name the teacher that was captured: {dataset.manifest.teacher.repo}."
        )
    rows = sorted(permutation(derive_seed(seed, "rescore"), len(dataset))[:sample].tolist())
    stored, rounded = [], []
    with bar("scoring again (rows)", len(rows)) as shown:
        for number in rows:
            if (found := _compare(dataset, teacher, head, number, dataset.row(number), seed)) is not None:
                stored.append(found[0])
                rounded.append(found[1])
            shown.advance()
    if not stored:
        raise UserError(f"{dataset.storage.where()}: no position of the {len(rows)} sampled rows says anything.")
    return Rescoring(
        tuple(rows), sum(map(len, stored)), _deviation(torch.cat(stored)), _deviation(torch.cat(rounded)), other
    )


@torch.no_grad()
def _compare(
    dataset: SignalDataset, teacher: PreTrainedModel, head: OutputHead, number: int, row: SignalRow, seed: int
) -> tuple[Tensor, Tensor] | None:
    """Return `[P]`, the largest deviation at each compared position: of what is stored, and of rounding alone."""
    signal = row.signal
    if signal is None or not signal.mask.any():
        return None
    said = signal.mask.nonzero()[:, 0]
    chosen = permutation(derive_seed(seed, "rescore", number), len(said))[:POSITIONS_A_ROW]
    at_P = said[torch.from_numpy(chosen)].sort().values
    hidden_PD = _states(teacher, row)[at_P.to(teacher.device)]
    logits_PV = logits_of(hidden_PD, head).cpu()
    targets_P = torch.cat([row.input_ids[1:], row.input_ids[:1]])[at_P]
    again = _stored_again(dataset, _Heard(hidden_PD.cpu(), logits_PV, targets_P, head), number, seed)
    p_PV, spec = logits_PV.log_softmax(-1).exp(), dataset.codec.spec
    return _largest(at(signal, at_P), p_PV, targets_P, spec), _largest(again, p_PV, targets_P, spec)


@dataclass(frozen=True)
class _Heard:
    """What the teacher says now at P positions: states `[P, D]`, logits `[P, V]`, following tokens `[P]`, its head."""

    hidden: Tensor
    logits: Tensor
    targets: Tensor
    head: OutputHead


def _stored_again(dataset: SignalDataset, heard: _Heard, number: int, seed: int) -> TeacherSignal:
    """Return what the teacher says now after the codecs that what is stored went through."""
    vocabulary, count = dataset.manifest.vocabulary, len(heard.targets)
    specs = codecs_behind(dataset)
    if kind_stored(specs[0], vocabulary) == "hidden":
        fresh: TeacherSignal = HiddenSignal(heard.hidden, heard.head, torch.ones(count, dtype=torch.bool))
    else:
        keys = position_keys(derive_seed(seed, "rescore again", number), count)
        fresh = maker_of(specs[0], vocabulary)(LogitsChunk(heard.logits, heard.targets, keys))
    for index, spec in enumerate(specs):
        if index:
            fresh = conversion_between(specs[index - 1], spec, vocabulary)(fresh, heard.targets, number)
        codec = dataset.codec if spec == dataset.codec.spec else make_codec(spec, vocabulary)
        if kind_stored(spec, vocabulary) == "hidden" and codec is not dataset.codec:
            continue  # its head lies with the dataset that was converted
        fresh = codec.decode(codec.encode(fresh, [count]), [count])
    return fresh


def codecs_behind(dataset: SignalDataset) -> list[Settings]:
    """Return the settings of the codecs that a dataset's signals went through, its own last.

    Where the last one stores `token` signals only that one is returned: it rounds nothing.
    """
    specs = [dataset.codec.spec]
    capture = dataset.manifest.capture
    while "packed" in capture or "converted" in capture:
        if "converted" in capture:
            specs.insert(0, parse_spec(capture["converted"]["codec"]))
        capture = capture.get("source", {})
    return specs[-1:] if dataset.kind == "token" else specs


def _states(teacher: PreTrainedModel, row: SignalRow) -> Tensor:
    """Return the final hidden states `[T, D]` of a row, each of its documents read on its own."""
    lengths = [len(row.input_ids)]
    if row.documents is not None:
        lengths = torch.unique_consecutive(row.documents, return_counts=True)[1].tolist()
    parts = row.input_ids.to(teacher.device).split(lengths)
    return torch.cat([final_hidden(teacher, part[None])[0] for part in parts])


def _largest(signal: TeacherSignal, p_PV: Tensor, targets_P: Tensor, spec: object) -> Tensor:
    """Return `[P]`, the largest deviation of a probability at each position."""
    match signal:
        case DenseSignal():
            return (signal.logprobs.exp() - p_PV).abs().amax(1)
        case HiddenSignal():
            return (logits_of(signal.hidden, signal.head).log_softmax(-1).exp() - p_PV).abs().amax(1)
        case TokenSignal():
            return (signal.logprobs.exp() - p_PV.gather(1, targets_P[:, None])[:, 0]).abs()
        case TopkSignal():
            present = signal.logprobs > float("-inf")
            true_PK = torch.where(present, p_PV.gather(1, signal.ids), 0.0)
            entries = torch.where(present, signal.logprobs.exp() - true_PK, 0.0).abs().amax(1)
            tail = (signal.log_tail_mass.exp() - (1 - true_PK.sum(1))).abs()
            return torch.maximum(entries, tail)
        case SampledSignal():
            edge = spec.edge if isinstance(spec, SampledSpec) else float("inf")
            certain = (signal.weights > 0) & (signal.logprobs >= edge)
            return torch.where(certain, signal.weights - p_PV.gather(1, signal.ids), 0.0).abs().amax(1)


def _what_is_other(dataset: SignalDataset, model: str, revision: str | None) -> str:
    """Return in which way a model is not the one that a dataset names; empty: in none."""
    named = dataset.manifest.teacher
    if (found := tokenizer_digest(load_tokenizer(model, revision))) != dataset.manifest.tokenizer_digest:
        return f"its tokenizer is {found[:12]}…, the dataset's {dataset.manifest.tokenizer_digest[:12]}…"
    if Path(model).is_dir():
        weights = weights_digest(Path(model))
        return (
            ""
            if weights == named.revision
            else f"its weights are {weights[:12]}…, the dataset's {named.revision[:12]}…"
        )
    if (model, revision) != (named.repo, named.revision):
        return f"it is {model} at {revision}, the dataset's is {named.repo} at {named.revision}"
    return ""


def _deviation(values: Tensor) -> Deviation:
    return Deviation(float(values.max()), float(values.mean()))
