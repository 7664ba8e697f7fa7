"""What is in a dataset, in numbers: where its bytes go, and what its signals say of their distributions.

Bytes are those of the whole dataset: each of the codec's columns is measured, and what is left of the files is text
(tokens, flags, document numbers) and Parquet's own. Signals are those of some rows, evenly spread over the dataset.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.progress import bar
from limbeck.settings import Settings
from limbeck.signals.codecs.sampled_spec import SampledSpec
from limbeck.signals.dataset import SignalDataset, SignalRow
from limbeck.signals.from_logits import logits_of
from limbeck.signals.manifest import Manifest
from limbeck.signals.types import (
    DenseSignal,
    HiddenSignal,
    SampledSignal,
    TeacherSignal,
    TokenSignal,
    TopkSignal,
    at,
)

ROWS, ROWS_AT_ONCE = 256, 32
CHUNK_LOGITS = 1 << 22
PARTS = {
    ("distillkit", "compressed_logprobs"): "values",
    ("distillkit", "bytepacked_indices"): "ids",
    ("distillkit_legacy", "exact_values"): "values, exact",
    ("distillkit_legacy", "coeffs"): "values, fitted",
    ("distillkit_legacy", "packed_indices"): "ids",
    ("topk", "topk"): "ids, values and tail",
    ("sampled", "sampled"): "ids and weights",
    ("hidden", "hidden"): "states",
    ("hidden", "scales"): "scales",
    ("dense", "logprobs"): "values",
    ("token", "logprobs"): "values",
}
TEXT = "text, flags and file format"


@dataclass(frozen=True)
class Distributions:
    """What signals say at each position that was looked at; an empty tensor where the kind doesn't tell.

    Attributes:
        captured: `[N]`, the mass of the tokens whose probabilities are stored.
        entropy_low: `[N]`, nats: what the distribution's entropy is at least.
        entropy_high: `[N]`, nats: and at most.
        entries: `[N]`, how many tokens are stored.
        surprise: `[N]`, nats: minus the log-probability of the token that follows (`token` only).
    """

    captured: Tensor = field(default_factory=lambda: torch.zeros(0))
    entropy_low: Tensor = field(default_factory=lambda: torch.zeros(0))
    entropy_high: Tensor = field(default_factory=lambda: torch.zeros(0))
    entries: Tensor = field(default_factory=lambda: torch.zeros(0))
    surprise: Tensor = field(default_factory=lambda: torch.zeros(0))


@dataclass(frozen=True)
class Inspection:
    """What is in a dataset.

    Attributes:
        where: the dataset.
        manifest: of it.
        rows: that are there; fewer than `manifest.samples` if the capture has not finished.
        tokens: of these rows.
        longest: the most tokens of a row.
        parts: bytes of each part of the shards, by name.
        beside: bytes of the files beside the manifest.
        rows_seen: rows whose signals were looked at.
        tokens_seen: of these rows.
        trained_seen: how many of those tokens are trained.
        said: positions that say something.
        distributions: what they say.
    """

    where: str
    manifest: Manifest
    rows: int
    tokens: int
    longest: int
    parts: dict[str, int]
    beside: int
    rows_seen: int
    tokens_seen: int
    trained_seen: int
    said: int
    distributions: Distributions

    @property
    def bytes(self) -> int:
        """Return the bytes of all shards."""
        return sum(self.parts.values())


def inspect(dataset: SignalDataset, rows: int = ROWS) -> Inspection:
    """Look into a dataset.

    Args:
        dataset: open; it need not be complete.
        rows: the signals of how many rows are looked at.

    Raises:
        UserError: there are no rows yet.
        IntegrityError: a shard is missing or damaged.
    """
    if not len(dataset):
        raise UserError(f"{dataset.storage.where()}: no rows are there yet.")
    manifest = dataset.manifest
    parts = _parts(dataset)
    count = min(rows, len(dataset))
    chosen = [index * len(dataset) // count for index in range(count)]
    found: list[Distributions] = []
    tokens = trained = said = 0
    with bar("looking at signals (rows)", count) as shown:
        for row in _rows(dataset, chosen):
            tokens, trained = tokens + len(row.input_ids), trained + int(row.trained.sum())
            if row.signal is not None:
                where = row.signal.mask.nonzero()[:, 0]
                said += len(where)
                found += _described(row.signal, where, dataset)
            shown.advance()
    return Inspection(
        where=dataset.storage.where(),
        manifest=manifest,
        rows=len(dataset),
        tokens=sum(record.tokens for record in manifest.shards),
        longest=dataset.longest,
        parts=parts,
        beside=sum(file.bytes for file in manifest.files),
        rows_seen=count,
        tokens_seen=tokens,
        trained_seen=trained,
        said=said,
        distributions=_joined(found),
    )


def _rows(dataset: SignalDataset, chosen: Sequence[int]) -> Iterator[SignalRow]:
    """Yield rows, some of which are decoded together."""
    at_once = 1 if dataset.kind in ("dense", "hidden") else ROWS_AT_ONCE
    for first in range(0, len(chosen), at_once):
        yield from dataset.rows(chosen[first : first + at_once])


def _parts(dataset: SignalDataset) -> dict[str, int]:
    """Return the bytes of each part of all shards."""
    codec = str(dataset.manifest.codec["codec"])
    names = {column: PARTS.get((codec, column), column) for column in dataset.codec.columns}
    parts = dict.fromkeys(names.values(), 0)
    start = 0
    with bar("measuring shards", len(dataset.shard_sizes)) as shown:
        for size in dataset.shard_sizes:
            _, columns = dataset.encoded(range(start, start + size))
            for column, strings in columns.items():
                parts[names[column]] += len(strings.data)
            start += size
            shown.advance()
    whole = sum(record.bytes for record in dataset.manifest.shards)
    return {**parts, TEXT: whole - sum(parts.values())}


def _described(signal: TeacherSignal, where: Tensor, dataset: SignalDataset) -> list[Distributions]:
    """Return what a row's signal says at the positions `where`."""
    if not len(where):
        return []
    whole = isinstance(signal, DenseSignal | HiddenSignal)
    vocabulary, spec = dataset.manifest.vocabulary, dataset.codec.spec
    step = max(16, CHUNK_LOGITS // vocabulary) if whole else len(where)
    return [_one(at(signal, where[first : first + step]), vocabulary, spec) for first in range(0, len(where), step)]


def _one(signal: TeacherSignal, vocabulary: int, spec: Settings) -> Distributions:
    match signal:
        case TopkSignal():
            return _of_entries(signal, vocabulary)
        case TokenSignal():
            return Distributions(surprise=-signal.logprobs)
        case SampledSignal():
            certain = signal.logprobs >= (spec.edge if isinstance(spec, SampledSpec) else 0.0)
            captured = torch.where(certain, signal.weights, 0.0).sum(1)
            return Distributions(captured=captured.clamp(max=1.0), entries=(signal.weights > 0).sum(1).float())
        case DenseSignal():
            entropy = _entropy(signal.logprobs.log_softmax(-1))
        case HiddenSignal():
            entropy = _entropy(logits_of(signal.hidden, signal.head).log_softmax(-1))
    ones = torch.ones_like(entropy)
    return Distributions(ones, entropy, entropy, ones * vocabulary)


def _of_entries(signal: TopkSignal, vocabulary: int) -> Distributions:
    """Return bounds of the entropy: the tail is one token at least, and as even as can be at most."""
    p_NK, tail_N = signal.logprobs.exp(), signal.log_tail_mass.exp()
    entries_N = (signal.logprobs > float("-inf")).sum(1).float()
    head_N = torch.where(p_NK > 0, -p_NK * signal.logprobs, 0.0).sum(1)
    rest_N = torch.where(tail_N > 0, -tail_N * signal.log_tail_mass, 0.0)
    spread_N = tail_N * torch.log((vocabulary - entries_N).clamp(min=1.0))
    low_N = head_N + rest_N
    return Distributions(p_NK.sum(1).clamp(max=1.0), low_N, low_N + spread_N, entries_N)


def _entropy(logprobs_NV: Tensor) -> Tensor:
    p_NV = logprobs_NV.exp()
    return torch.where(p_NV > 0, -p_NV * logprobs_NV, 0.0).sum(-1)


def _joined(found: Sequence[Distributions]) -> Distributions:
    names = ("captured", "entropy_low", "entropy_high", "entries", "surprise")
    return Distributions(*(torch.cat([torch.zeros(0), *(getattr(part, name) for part in found)]) for name in names))
