"""Codec `topk`: compiled against the plain reference that it is held to, byte for byte."""

import torch

from benchmarks.timing import Row, in_turn
from limbeck.signals.codecs.topk import TopkCodec
from limbeck.signals.codecs.topk_spec import TopkSpec
from limbeck.signals.sparse import topk_of_logits

TITLE = "Codec topk, 1,024 positions, V = 32,768, default settings"
N, V = 1024, 32_768


def run() -> list[Row]:
    logits = 3 * torch.randn(N, V, generator=torch.Generator().manual_seed(1))
    spec = TopkSpec()
    signal = topk_of_logits(logits, spec)
    compiled, reference = TopkCodec(spec, V, path="compiled"), TopkCodec(spec, V, path="reference")
    columns = compiled.encode(signal, [N])
    return [
        Row(
            "encode",
            *in_turn(lambda: compiled.encode(signal, [N]), lambda: reference.encode(signal, [N]), runs=3),
            "the plain reference",
        ),
        Row(
            "decode",
            *in_turn(lambda: compiled.decode(columns, [N]), lambda: reference.decode(columns, [N]), runs=3),
            "the plain reference",
        ),
    ]
