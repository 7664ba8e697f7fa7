"""Inspection: where the bytes go, to the byte, and bounds of what distributions say, against the distributions."""

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from limbeck.errors import UserError
from limbeck.settings import Settings
from limbeck.signals.codecs.dense import DenseSpec
from limbeck.signals.codecs.distillkit_spec import DistillkitSpec
from limbeck.signals.codecs.hidden_head import hidden_spec, write_head
from limbeck.signals.codecs.sampled_draw import sample_logits
from limbeck.signals.codecs.sampled_random import position_keys
from limbeck.signals.codecs.sampled_spec import SampledSpec
from limbeck.signals.codecs.token import TokenSpec
from limbeck.signals.codecs.topk_spec import TopkSpec
from limbeck.signals.dataset import SignalDataset, SignalRow
from limbeck.signals.inspection import TEXT, Inspection, inspect
from limbeck.signals.inspection_page import page_of
from limbeck.signals.inspection_table import print_inspection
from limbeck.signals.sparse import topk_of_logits
from limbeck.signals.types import DenseSignal, HiddenSignal, OutputHead, TokenSignal
from limbeck.signals.writer import DatasetWriter
from tests.signals.making import VOCABULARY, draw_logits, header_of

HEAD = OutputHead(draw_logits(VOCABULARY, 5, 6, 1.0))
SPECS: dict[str, Settings] = {
    "topk": TopkSpec(threshold=1e-2, cap=20),
    "kit": DistillkitSpec(d=VOCABULARY, k=6, exact_k=6, residual_bins=(), delta_encoding=False),
    "dense": DenseSpec(dtype="float32"),
    "hidden": hidden_spec(HEAD, "float32"),
    "token": TokenSpec(),
    "sampled": SampledSpec(threshold=0.05),
}
ROWS = 9


def states_of(index: int) -> torch.Tensor:
    return draw_logits(4 + index % 3, index, 6, 1.5)


def probabilities() -> torch.Tensor:
    """Of all positions that say something: all but the last one of each row."""
    return torch.cat([(states_of(index)[:-1] @ HEAD.weight.T).softmax(-1) for index in range(ROWS)])


def write(folder: Path, spec: Settings, finish: bool = True) -> SignalDataset:
    rows = []
    for index in range(ROWS):
        states = states_of(index)
        logits = states @ HEAD.weight.T
        mask = torch.arange(len(states)) < len(states) - 1
        signal: Any
        match spec:
            case DenseSpec():
                signal = DenseSignal(logits.log_softmax(-1), mask)
            case TokenSpec():
                signal = TokenSignal(logits.log_softmax(-1)[:, 0], mask)
            case SampledSpec():
                signal = sample_logits(logits, spec, position_keys(index, len(states)), mask)
            case TopkSpec():
                signal = topk_of_logits(logits, spec, mask_N=mask)
            case DistillkitSpec():
                signal = topk_of_logits(logits, TopkSpec(select="count", cap=6), (1.0,), mask)
            case _:
                signal = HiddenSignal(states, HEAD, mask)
        rows.append(SignalRow(torch.arange(len(states)), torch.arange(len(states)) > 1, signal))
    with DatasetWriter(folder, header_of(ROWS, samples_per_shard=4, codec=spec)) as writer:
        if getattr(spec, "codec", "") == "hidden":
            writer.write_beside(lambda beside: write_head(beside, HEAD, spec))  # type: ignore[arg-type]
        for samples in writer.missing_ranges()[: None if finish else 1]:
            writer.write_shard(samples, rows[samples.start : samples.stop])
        if finish:
            writer.finish()
    return SignalDataset.open(folder, incomplete=True)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Inspection]:
    folder = tmp_path_factory.mktemp("inspected")
    return {name: inspect(write(folder / name, spec)) for name, spec in SPECS.items()}


@pytest.mark.parametrize("name", SPECS)
def test_bytes_add_up(found: dict[str, Inspection], name: str) -> None:
    one = found[name]
    folder = Path(one.where)
    assert sum(one.parts.values()) == one.bytes == sum(path.stat().st_size for path in folder.glob("*.parquet"))
    assert one.beside == sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert (one.beside > 0) is (name == "hidden")
    assert one.parts[TEXT] > 0
    assert one.tokens == one.tokens_seen == sum(len(states_of(index)) for index in range(ROWS))
    assert one.said == one.tokens - ROWS and one.trained_seen == one.tokens - 2 * ROWS


def test_parts_that_columns_tell_apart(found: dict[str, Inspection]) -> None:
    tokens = found["kit"].tokens
    assert found["kit"].parts["values"] == tokens * 6 * 4
    assert found["kit"].parts["ids"] == tokens * 5  # six ids of six bits
    assert found["dense"].parts["values"] == tokens * VOCABULARY * 4


def test_entropy_lies_between_its_bounds(found: dict[str, Inspection]) -> None:
    p = probabilities()
    entropy = -(p * p.log()).sum(-1)
    for name in ("dense", "hidden"):
        torch.testing.assert_close(found[name].distributions.entropy_low, entropy, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found[name].distributions.entropy_high, entropy, atol=1e-4, rtol=1e-4)
    exact = found["kit"].distributions
    assert (exact.entropy_low <= entropy + 1e-4).all() and (entropy <= exact.entropy_high + 1e-4).all()
    assert (exact.entropy_low < exact.entropy_high - 1e-3).any()


def test_captured_mass_and_entries(found: dict[str, Inspection]) -> None:
    p = probabilities()
    torch.testing.assert_close(found["kit"].distributions.captured, p.topk(6).values.sum(1), atol=1e-4, rtol=1e-4)
    kept = p >= 1e-2
    assert torch.equal(found["topk"].distributions.entries, kept.sum(1).clamp(max=20).float())
    head = torch.where(p >= 0.05, p, 0.0).sum(1)
    torch.testing.assert_close(found["sampled"].distributions.captured, head, atol=0.1, rtol=0)
    assert len(found["token"].distributions.captured) == 0
    torch.testing.assert_close(found["token"].distributions.surprise, -p[:, 0].log(), atol=1e-4, rtol=1e-4)


def test_some_rows_stand_for_all(found: dict[str, Inspection]) -> None:
    few = inspect(SignalDataset.open(found["topk"].where), rows=3)
    assert few.rows_seen == 3 and few.rows == ROWS and few.bytes == found["topk"].bytes
    assert few.said == sum(len(states_of(index)) - 1 for index in (0, 3, 6))


def test_an_unfinished_dataset_can_be_looked_at(tmp_path: Path) -> None:
    one = inspect(write(tmp_path / "in", SPECS["topk"], finish=False))
    assert one.rows == 4 and not one.manifest.complete
    page = page_of(one).html()
    assert "4 of 9 rows" in page
    with DatasetWriter(tmp_path / "none", header_of(ROWS)):
        pass
    with pytest.raises(UserError, match="no rows are there yet"):
        inspect(SignalDataset.open(tmp_path / "none", incomplete=True))


@pytest.mark.parametrize(
    ("name", "figures"), [("topk", 4), ("kit", 4), ("dense", 2), ("hidden", 2), ("token", 2), ("sampled", 3)]
)
def test_the_page_and_the_tables_say_it(found: dict[str, Inspection], name: str, figures: int) -> None:
    one = found[name]
    page = page_of(one).html()
    assert page.count('class="plot plot-wide"') == figures
    assert "org/teacher" in page and "src=" not in page and "<script" not in page
    console = Console(record=True, width=120, file=io.StringIO())
    print_inspection(one, console)
    text = console.export_text()
    assert "org/teacher at abc" in text and f"{one.bytes / one.tokens:.2f}" in text
    assert all(part in text for part in one.parts)
