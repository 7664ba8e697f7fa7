"""Small signals, rows and headers that the tests of this room are made of."""

from collections.abc import Sequence

import torch

from limbeck.settings import Settings
from limbeck.signals.codecs.topk_spec import TopkSpec
from limbeck.signals.dataset import SignalRow
from limbeck.signals.manifest import ManifestHeader, TeacherRef, make_header
from limbeck.signals.sparse import topk_of_logits
from limbeck.signals.types import DenseSignal, TeacherSignal, TokenSignal

VOCABULARY = 50
SPEC = TopkSpec(threshold=1e-2, cap=20)


def draw_logits(positions: int, seed: int, vocabulary: int = VOCABULARY, sharpness: float = 3.0) -> torch.Tensor:
    return torch.randn(positions, vocabulary, generator=torch.Generator().manual_seed(seed)) * sharpness


def make_signal(positions: int, seed: int, spec: Settings = SPEC, vocabulary: int = VOCABULARY) -> TeacherSignal:
    logits = draw_logits(positions, seed, vocabulary)
    mask = torch.ones(positions, dtype=torch.bool)
    if isinstance(spec, TopkSpec):
        return topk_of_logits(logits, spec)
    logprobs = logits.log_softmax(-1)
    if spec.codec == "dense":  # type: ignore[attr-defined]
        return DenseSignal(logprobs, mask)
    return TokenSignal(logprobs[:, 0], mask)


def make_row(index: int, spec: Settings = SPEC, documents: bool = False, vocabulary: int = VOCABULARY) -> SignalRow:
    """Row `index` is 3 to 9 tokens long; its first token is the index itself, so that rows can be told apart."""
    length = 3 + index % 7
    ids = torch.randint(vocabulary, (length,), generator=torch.Generator().manual_seed(1000 + index))
    ids[0] = index % vocabulary
    return SignalRow(
        input_ids=ids,
        trained=torch.arange(length) % 3 != 0,
        signal=make_signal(length, index, spec, vocabulary),
        documents=(torch.arange(length) // 4) if documents else None,
    )


def make_rows(samples: Sequence[int], **options: object) -> list[SignalRow]:
    return [make_row(index, **options) for index in samples]  # type: ignore[arg-type]


def header_of(samples: int = 23, samples_per_shard: int = 5, **changes: object) -> ManifestHeader:
    settings: dict[str, object] = {
        "codec": SPEC,
        "teacher": TeacherRef(repo="org/teacher", revision="abc"),
        "tokenizer_digest": "t" * 64,
        "vocabulary": VOCABULARY,
        "text_digest": "x" * 64,
        "samples": samples,
        "samples_per_shard": samples_per_shard,
        **changes,
    }
    return make_header(**settings)  # type: ignore[arg-type]
