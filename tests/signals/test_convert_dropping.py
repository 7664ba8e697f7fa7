"""What a conversion leaves out is said, and nothing is said where nothing is left out."""

from pathlib import Path

import pytest

from limbeck.progress import console
from limbeck.settings import Settings
from limbeck.signals.codecs.dense import DenseSpec
from limbeck.signals.codecs.distillkit_spec import DistillkitSpec
from limbeck.signals.codecs.hidden_head import HiddenSpec
from limbeck.signals.codecs.sampled_spec import SampledSpec
from limbeck.signals.codecs.token import TokenSpec
from limbeck.signals.codecs.topk_spec import TopkSpec
from limbeck.signals.convert.axolotl_export import AxolotlExporter
from limbeck.signals.convert.dropping import left_out
from limbeck.signals.convert.exporting import export
from limbeck.signals.convert.recoding import recode
from limbeck.signals.dataset import SignalDataset
from limbeck.signals.writer import DatasetWriter
from tests.signals.making import VOCABULARY, header_of, make_rows

COUNT = TopkSpec(select="count", cap=6, temperatures=(1.0, 2.0))
KIT = DistillkitSpec(d=VOCABULARY, k=6, exact_k=6, residual_bins=())
FEWER_KIT = DistillkitSpec(d=VOCABULARY, k=4, exact_k=4, residual_bins=())
HIDDEN = HiddenSpec(width=4, head_sha256="0" * 64)


@pytest.mark.parametrize(
    ("source", "target", "words"),
    [
        (COUNT, COUNT.model_copy(update={"cap": 3}), ["entries beyond the 3"]),
        (COUNT, COUNT.model_copy(update={"step": 0.02}), []),
        (COUNT, COUNT.model_copy(update={"temperatures": (1.0,)}), ["normalisers at temperature 2"]),
        (TopkSpec(threshold=0.01, cap=9), TopkSpec(threshold=0.1, cap=9), ["entries below 0.1 or beyond the 9"]),
        (COUNT, KIT, ["normalisers at temperature 2", "the mass of the tail"]),
        (KIT, FEWER_KIT, ["entries beyond the 4"]),
        (KIT, COUNT.model_copy(update={"temperatures": (1.0,)}), []),
        (DenseSpec(), COUNT, ["each token that is no entry"]),
        (DenseSpec(dtype="float32"), DenseSpec(), ["what bfloat16 can't hold of float32"]),
        (HIDDEN, DenseSpec(), ["the hidden states"]),
        (HIDDEN, SampledSpec(), ["all but the likely tokens"]),
        (DenseSpec(), TokenSpec(), ["all but the probability of the token"]),
        (TokenSpec(), TokenSpec(), []),
    ],
)
def test_what_is_left_out_is_named(source: Settings, target: Settings, words: list[str]) -> None:
    found = left_out(source, target, VOCABULARY)
    assert len(found) == len(words)
    assert all(word in said for word, said in zip(words, found, strict=True)), found


def test_conversions_and_exports_say_it(tmp_path: Path) -> None:
    with DatasetWriter(tmp_path / "in", header_of(4, codec=COUNT)) as writer:
        for samples in writer.missing_ranges():
            writer.write_shard(samples, make_rows(samples, spec=COUNT))
        writer.finish()
    dataset = SignalDataset.open(tmp_path / "in")
    with console.capture() as said:
        recode(dataset, tmp_path / "out", COUNT.model_copy(update={"cap": 3}))
    assert "codec topk does not hold entries beyond the 3 most probable" in " ".join(said.get().split())
    with console.capture() as said:
        export(dataset, tmp_path / "lines", AxolotlExporter(dataset, 2))
    words = " ".join(said.get().split())
    assert (
        "axolotl does not hold entries beyond the 2 most probable; the normalisers at temperature 2; the mass" in words
    )
