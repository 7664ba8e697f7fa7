"""From one codec to another: what is there comes along, what is not there is refused with the reason."""

from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.errors import UserError
from limbeck.files import sha256_file
from limbeck.settings import Settings
from limbeck.signals.codecs.dense import DenseSpec
from limbeck.signals.codecs.distillkit_spec import DistillkitSpec
from limbeck.signals.codecs.hidden_head import HiddenSpec, hidden_spec, write_head
from limbeck.signals.codecs.sampled_spec import SampledSpec
from limbeck.signals.codecs.token import TokenSpec
from limbeck.signals.codecs.topk_spec import TopkSpec
from limbeck.signals.convert.kinds import conversion_between
from limbeck.signals.convert.recoding import completed_spec, recode
from limbeck.signals.dataset import SignalDataset, SignalRow
from limbeck.signals.sparse import topk_of_logits
from limbeck.signals.types import DenseSignal, HiddenSignal, OutputHead, SampledSignal, TokenSignal, TopkSignal
from limbeck.signals.writer import DatasetWriter
from tests.signals.making import VOCABULARY, draw_logits, header_of

FEW = TopkSpec(threshold=2e-2, cap=10, power=1.0)
MORE = TopkSpec(threshold=1e-2, cap=20, power=1.0)
COUNT = TopkSpec(select="count", cap=8, temperatures=(1.0,), power=1.0)
KIT = DistillkitSpec(d=VOCABULARY, k=8, exact_k=8, residual_bins=(), delta_encoding=False)
SMALLER_KIT = DistillkitSpec(d=VOCABULARY, k=5, exact_k=5, residual_bins=(), delta_encoding=False)
FITTED_KIT = DistillkitSpec(d=VOCABULARY, k=8, exact_k=2, polynomial_terms=(0, 1), residual_bins=())
EXACT = DenseSpec(dtype="float32")
HEAD = OutputHead(draw_logits(VOCABULARY, 99, 6, 1.0))
STATES = hidden_spec(HEAD, "float32")
SAMPLED = SampledSpec(threshold=0.05)
TOKEN = TokenSpec()


def logits_of_row(index: int) -> torch.Tensor:
    """The logits that every dataset of these tests is made of: row `index`, 4 to 8 positions."""
    return states_of_row(index) @ HEAD.weight.T


def states_of_row(index: int) -> torch.Tensor:
    return draw_logits(4 + index % 5, index, 6, 1.5)


def write(folder: Path, spec: Settings, rows: int = 7) -> SignalDataset:
    header = header_of(rows, samples_per_shard=3, codec=spec)
    made = []
    for index in range(rows):
        logits = logits_of_row(index)
        mask = torch.arange(len(logits)) % 4 != 3
        signal: Any
        match spec:
            case DenseSpec():
                signal = DenseSignal(logits.log_softmax(-1), mask)
            case HiddenSpec():
                signal = HiddenSignal(states_of_row(index), HEAD, mask)
            case TokenSpec():
                signal = TokenSignal(logits.log_softmax(-1)[:, 0], mask)
            case TopkSpec():
                signal = topk_of_logits(logits, spec, mask_N=mask)
            case _:
                signal = topk_of_logits(logits, COUNT, mask_N=mask)
        ids = torch.arange(len(logits)) * 3 % VOCABULARY
        made.append(SignalRow(ids, torch.arange(len(logits)) > 0, signal))
    with DatasetWriter(folder, header) as writer:
        if isinstance(spec, HiddenSpec):
            writer.write_beside(lambda beside: write_head(beside, HEAD, spec))
        for samples in writer.missing_ranges():
            writer.write_shard(samples, made[samples.start : samples.stop])
        writer.finish()
    return SignalDataset.open(folder)


@pytest.mark.parametrize("source", [EXACT, STATES], ids=["dense", "hidden"])
def test_whole_distributions_become_anything(tmp_path: Path, source: Settings) -> None:
    dataset = write(tmp_path / "in", source)
    for name, spec in {"topk": MORE, "kit": KIT, "token": TOKEN, "sampled": SAMPLED}.items():
        recode(dataset, tmp_path / name, spec)
    recode(dataset, tmp_path / "dense", DenseSpec() if source == EXACT else EXACT)
    for index, row in enumerate(dataset):
        assert row.signal is not None
        p = logits_of_row(index).log_softmax(-1).exp()
        said = row.signal.mask
        made = {
            name: SignalDataset.open(tmp_path / name).row(index)
            for name in ("topk", "kit", "token", "sampled", "dense")
        }
        assert all(torch.equal(other.input_ids, row.input_ids) for other in made.values())
        assert all(torch.equal(other.trained, row.trained) for other in made.values())
        for name, other in made.items():
            assert other.signal is not None
            expected = said & (torch.arange(len(said)) < len(said) - 1) if name == "token" else said
            assert torch.equal(other.signal.mask, expected)
        topk, kit, token, sampled, dense = (part.signal for part in made.values())
        assert isinstance(topk, TopkSignal) and isinstance(kit, TopkSignal) and isinstance(token, TokenSignal)
        assert isinstance(sampled, SampledSignal) and isinstance(dense, DenseSignal)
        there = topk.logprobs[said] > float("-inf")
        torch.testing.assert_close(
            topk.logprobs[said].exp()[there], p[said].gather(1, topk.ids[said])[there], atol=1e-2, rtol=0
        )
        assert torch.equal(there.sum(1), (p[said] >= 1e-2).sum(1).clamp(max=20))
        torch.testing.assert_close(kit.logprobs[said], p[said].topk(8).values.log(), atol=1e-4, rtol=1e-4)
        following = torch.cat([row.input_ids[1:], row.input_ids[:1]])
        at = token.mask
        torch.testing.assert_close(token.logprobs[at], p[at].gather(1, following[at, None])[:, 0].log())
        torch.testing.assert_close(dense.logprobs[said].exp(), p[said], atol=2e-3, rtol=0.02)
        assert (sampled.weights[said].sum(1) - 1).abs().max() < 0.2


def test_entries_become_fewer_entries(tmp_path: Path) -> None:
    dataset = write(tmp_path / "in", MORE)
    recode(dataset, tmp_path / "out", FEW)
    again = SignalDataset.open(tmp_path / "out")
    assert again.manifest.codec["threshold"] == FEW.threshold
    for before, after in zip(dataset, again, strict=True):
        assert isinstance(before.signal, TopkSignal) and isinstance(after.signal, TopkSignal)
        kept = (before.signal.logprobs.exp() >= 2e-2) & before.signal.mask[:, None]
        assert torch.equal((after.signal.logprobs > float("-inf")).sum(1), kept.sum(1).clamp(max=10))
        mass = [(signal.logprobs.exp().sum(1) + signal.log_tail_mass.exp()) for signal in (before.signal, after.signal)]
        torch.testing.assert_close(mass[0][before.signal.mask], mass[1][after.signal.mask])


def test_topk_to_distillkit_and_back(tmp_path: Path) -> None:
    dataset = write(tmp_path / "in", COUNT)
    recode(dataset, tmp_path / "kit", KIT)
    recode(SignalDataset.open(tmp_path / "kit"), tmp_path / "back", COUNT)
    for before, after in zip(dataset, SignalDataset.open(tmp_path / "back"), strict=True):
        assert isinstance(before.signal, TopkSignal) and isinstance(after.signal, TopkSignal)
        assert torch.equal(before.signal.mask, after.signal.mask)
        said = before.signal.mask
        assert [sorted(ids) for ids in before.signal.ids[said].tolist()] == [
            sorted(ids) for ids in after.signal.ids[said].tolist()
        ]
        torch.testing.assert_close(
            before.signal.logprobs[said].exp(), after.signal.logprobs[said].exp(), atol=1e-2, rtol=0
        )


def test_states_are_stored_in_fewer_bits_with_their_head(tmp_path: Path) -> None:
    dataset = write(tmp_path / "in", STATES)
    spec = completed_spec({"codec": "hidden", "dtype": "int8"}, dataset)
    recode(dataset, tmp_path / "out", spec)
    again = SignalDataset.open(tmp_path / "out")
    again.verify()
    for before, after in zip(dataset, again, strict=True):
        assert isinstance(before.signal, HiddenSignal) and isinstance(after.signal, HiddenSignal)
        assert torch.equal(after.signal.head.weight, HEAD.weight)
        said = before.signal.mask
        torch.testing.assert_close(before.signal.hidden[said], after.signal.hidden[said], atol=0.05, rtol=0)


@pytest.mark.parametrize(
    ("source", "target", "reason"),
    [
        (MORE, EXACT, "tokens beyond the stored entries are known only as a sum"),
        (MORE, SAMPLED, "known only as a sum"),
        (MORE, TOKEN, "known only as a sum"),
        (
            MORE,
            TopkSpec(threshold=5e-3, cap=20),
            "only tokens of probability 0.01 or more were stored, .* ask for 0.005",
        ),
        (MORE, TopkSpec(threshold=1e-2, cap=21), "at most 20 entries of a position were stored, .* ask for 21"),
        (MORE, TopkSpec(threshold=1e-2, cap=20, temperatures=(1.0, 4.0)), "normaliser at temperature 4 was not stored"),
        (MORE, COUNT, "as many entries as its threshold took"),
        (MORE, FITTED_KIT, "as many entries as its threshold took"),
        (KIT, MORE, r"temperature 2 was not stored \(those at 1 are: set temperatures: \[1\]\)"),
        (KIT, TopkSpec(select="count", cap=9, temperatures=(1.0,)), "at most 8 entries"),
        (SMALLER_KIT, KIT, "at most 5 entries"),
        (TopkSpec(select="mass", mass=0.9), TopkSpec(select="mass", mass=0.95), "up to a mass of 0.9 were stored"),
        (TopkSpec(select="mass", mass=0.9), TopkSpec(threshold=0.3), "as many entries as its mass took"),
        (EXACT, STATES, "don't tell the states"),
        (STATES, HiddenSpec(width=6, head_sha256="0" * 64), "the settings name another"),
        (SAMPLED, MORE, "don't tell which are its most probable"),
        (SAMPLED, SampledSpec(threshold=0.1), "unbiased only with the settings that it was drawn by"),
        (TOKEN, MORE, "doesn't tell those of the others"),
    ],
)
def test_nothing_is_invented(source: Settings, target: Settings, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        conversion_between(source, target, VOCABULARY)
    assert str(caught.value).startswith(f"codec {source.codec} to {target.codec}: ")  # type: ignore[attr-defined]


@pytest.mark.parametrize("target", [FEW, TopkSpec(select="mass", mass=0.5, temperatures=(1.0,), cap=8), SMALLER_KIT])
def test_a_fixed_number_of_entries_can_be_chosen_from(target: Settings) -> None:
    source = TopkSpec(select="count", cap=10, temperatures=(1.0, 2.0))
    conversion_between(source, target, VOCABULARY)


def bytes_of(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in folder.iterdir()}


class KilledError(Exception):
    pass


def test_killed_and_resumed_is_as_if_never_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = write(tmp_path / "in", EXACT)
    recode(dataset, tmp_path / "whole", SAMPLED)
    write_shard, written = DatasetWriter.write_shard, []

    def dying(writer: DatasetWriter, samples: range, rows: Any) -> Any:
        if len(written) == 2:
            raise KilledError
        written.append(samples)
        return write_shard(writer, samples, rows)

    with monkeypatch.context() as patch:
        patch.setattr(DatasetWriter, "write_shard", dying)
        with pytest.raises(KilledError):
            recode(dataset, tmp_path / "out", SAMPLED)
    recode(dataset, tmp_path / "out", SAMPLED)
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")


def test_the_manifest_says_what_it_was_made_of(tmp_path: Path) -> None:
    dataset = write(tmp_path / "in", EXACT)
    manifest = recode(dataset, tmp_path / "out", COUNT)
    assert manifest.capture["converted"] == {"source": dataset.digest, "codec": dataset.manifest.codec}
    assert manifest.teacher == dataset.manifest.teacher and manifest.text_digest == dataset.manifest.text_digest


def test_the_codec_it_is_in_already_is_refused(tmp_path: Path) -> None:
    dataset = write(tmp_path / "in", EXACT)
    with pytest.raises(UserError, match="in this codec already"):
        recode(dataset, tmp_path / "out", EXACT)
    assert not (tmp_path / "out").exists()


def test_a_signal_without_a_position_that_says_anything(tmp_path: Path) -> None:
    logits = draw_logits(4, 1)
    row = SignalRow(
        torch.arange(4), torch.ones(4, dtype=torch.bool), DenseSignal(logits, torch.zeros(4, dtype=torch.bool))
    )
    with DatasetWriter(tmp_path / "in", header_of(1, codec=EXACT)) as writer:
        writer.write_shard(range(1), [row])
        writer.finish()
    for name, spec in {"topk": MORE, "kit": KIT, "sampled": SAMPLED, "token": TOKEN}.items():
        recode(SignalDataset.open(tmp_path / "in"), tmp_path / name, spec)
        signal = SignalDataset.open(tmp_path / name).row(0).signal
        assert signal is not None and signal.mask.tolist() == [False] * 4
