"""Axolotl's JSON lines: entry by entry what its trainer reads, and back; what can't be aligned is refused."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.errors import LimbeckError, UserError
from limbeck.settings import Settings
from limbeck.signals.codecs.dense import DenseSpec
from limbeck.signals.codecs.distillkit_spec import DistillkitSpec
from limbeck.signals.codecs.topk_spec import TopkSpec
from limbeck.signals.convert.axolotl import AxolotlReader
from limbeck.signals.convert.axolotl_export import AxolotlExporter
from limbeck.signals.convert.exporting import export
from limbeck.signals.convert.importing import Identity, import_rows
from limbeck.signals.dataset import SignalDataset, SignalRow
from limbeck.signals.manifest import TeacherRef
from limbeck.signals.sparse import topk_of_logits
from limbeck.signals.types import DenseSignal, TopkSignal
from limbeck.signals.writer import DatasetWriter
from tests.signals.making import VOCABULARY, draw_logits, header_of

IDENTITY = Identity(TeacherRef(repo="org/teacher", revision="abc"), "t" * 64, VOCABULARY)
COUNT = TopkSpec(select="count", cap=4, temperatures=(1.0,))


def entries(*pairs: tuple[int, float]) -> list[dict[str, Any]]:
    return [{"token": f"token_id:{token}", "logprob": value} for token, value in pairs]


def write_lines(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def take_in(path: Path, output: Path, spec: Settings | None = None, **options: Any) -> SignalDataset:
    import_rows(AxolotlReader(path, IDENTITY, **options), IDENTITY, output, spec, samples_per_shard=3)
    return SignalDataset.open(output)


def signal_of(record: dict[str, Any], tmp_path: Path, **options: Any) -> TopkSignal:
    signal = AxolotlReader(write_lines(tmp_path / "in.jsonl", record), IDENTITY, **options).rows(range(1))[0].signal
    assert isinstance(signal, TopkSignal)
    return signal


def test_lists_are_about_the_last_tokens(tmp_path: Path) -> None:
    signal = signal_of(
        {"input_ids": [3, 4, 9, 14], "logprobs": [entries((9, -0.5), (1, -2.0)), entries((14, -0.25), (2, -3.0))]},
        tmp_path,
    )
    assert signal.mask.tolist() == [False, True, True, False]  # positions 1 and 2 are about tokens 2 and 3
    assert signal.ids[1:3].tolist() == [[9, 1], [14, 2]]
    assert signal.logprobs[1:3].tolist() == [[-0.5, -2.0], [-0.25, -3.0]]
    tail = 1 - math.exp(-0.5) - math.exp(-2.0)
    assert math.isclose(math.exp(float(signal.log_tail_mass[1])), tail, rel_tol=1e-5)


@pytest.mark.parametrize("nothing", [None, []])
def test_as_many_lists_as_tokens_begin_with_nothing(tmp_path: Path, nothing: Any) -> None:
    """As vLLM's `prompt_logprobs` do."""
    signal = signal_of(
        {"input_ids": [3, 9, 14], "logprobs": [nothing, entries((9, -0.5)), entries((14, -1.0))]}, tmp_path, entries=1
    )
    assert signal.mask.tolist() == [True, True, False]
    assert signal.ids[:2, 0].tolist() == [9, 14]


def test_numbers_beside_ids(tmp_path: Path) -> None:
    record = {"input_ids": [3, 9], "logprobs": [[-0.5, -2.0]], "target_token_ids": [[9, 1]]}
    signal = signal_of(record, tmp_path)
    assert signal.ids[0].tolist() == [9, 1] and signal.logprobs[0].tolist() == [-0.5, -2.0]


def test_entries_in_any_order_come_sorted(tmp_path: Path) -> None:
    signal = signal_of({"input_ids": [3, 9], "logprobs": [entries((1, -2.0), (9, -0.5))]}, tmp_path)
    assert signal.ids[0].tolist() == [9, 1]


def test_another_field_and_a_way_to_tokenise(tmp_path: Path) -> None:
    record = {"messages_combined": [{"role": "user", "content": "x"}], "vllm": [entries((9, -0.5))]}
    path = write_lines(tmp_path / "in.jsonl", record)
    with pytest.raises(UserError, match=r"line 1: no list 'logprobs' \(it has messages_combined, vllm\)"):
        take_in(path, tmp_path / "out")
    with pytest.raises(UserError, match="nothing says which tokens its text is"):
        take_in(path, tmp_path / "out", field="vllm")
    dataset = take_in(path, tmp_path / "out", field="vllm", tokenise=lambda record: ([3, 9], [False, True]))
    assert dataset.row(0).input_ids.tolist() == [3, 9] and dataset.row(0).trained.tolist() == [False, True]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"input_ids": [9], "logprobs": [entries((9, -0.5))]}, "1 lists of 'logprobs' for 1 tokens"),
        ({"input_ids": [3, 9], "logprobs": [[], [], entries((9, -0.5))]}, "3 lists of 'logprobs' for 2 tokens"),
        ({"input_ids": [3, 9], "labels": [9, -100], "logprobs": [entries((9, -0.5))]}, "not the tokens themselves"),
        ({"input_ids": [3, 9], "labels": [3], "logprobs": [entries((9, -0.5))]}, "lists of equally many"),
        ({"input_ids": [3, 9], "logprobs": [[{"token": "nine", "logprob": -0.5}]]}, "list 0 .* is not one of entries"),
        ({"input_ids": [3, 9], "logprobs": [[{"logprob": -0.5}]]}, "list 0 .* is not one of entries"),
        ({"input_ids": [3, 9], "logprobs": [entries((VOCABULARY, -0.5))]}, "outside the vocabulary of 50"),
        ({"input_ids": [3, 9], "logprobs": [entries((9, -0.5), (9, -1.0))]}, "a token id is there twice"),
        ({"input_ids": [3, 9], "logprobs": [[]]}, "none of its positions has an entry"),
        ([1, 2], "expected an object, found list"),
    ],
)
def test_records_that_are_wrong(tmp_path: Path, record: Any, message: str) -> None:
    path = write_lines(tmp_path / "in.jsonl", record)
    with pytest.raises(LimbeckError, match=message) as caught:
        take_in(path, tmp_path / "out")
    assert "in.jsonl, line 1" in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_later_row_with_more_entries_is_refused(tmp_path: Path) -> None:
    rows = [
        {"input_ids": [3, 9], "logprobs": [entries(*((token, -3.0) for token in range(count)))]} for count in (2, 3)
    ]
    path = write_lines(tmp_path / "in.jsonl", *rows)
    with pytest.raises(UserError, match=r"line 2: a position of 3 entries, more than the 2 .* --entries 3"):
        take_in(path, tmp_path / "out")
    assert take_in(path, tmp_path / "more", entries=3).manifest.codec["cap"] == 3


def test_a_vocabulary_has_to_be_named(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "in.jsonl", {"input_ids": [3, 9], "logprobs": [entries((9, -0.5))]})
    with pytest.raises(UserError, match="--vocabulary"):
        AxolotlReader(path, Identity(IDENTITY.teacher, IDENTITY.tokenizer_digest))
    with pytest.raises(UserError, match="no rows"):
        AxolotlReader(write_lines(tmp_path / "empty.jsonl"), IDENTITY)


def write_ours(folder: Path, spec: Settings, last: int = 1) -> SignalDataset:
    """Rows whose prompt, of two tokens, is not trained, nor said anything of."""
    rows = []
    for index in range(7):
        size = 4 + index % 4
        logits, mask = draw_logits(size, index), (torch.arange(size) > 0) & (torch.arange(size) < size - last)
        signal = (
            topk_of_logits(logits, spec, mask_N=mask)
            if isinstance(spec, TopkSpec)
            else DenseSignal(logits.log_softmax(-1), mask)
        )
        rows.append(SignalRow((torch.arange(size) * 7 + index) % VOCABULARY, torch.arange(size) > 1, signal))
    with DatasetWriter(folder, header_of(7, samples_per_shard=3, codec=spec)) as writer:
        for samples in writer.missing_ranges():
            writer.write_shard(samples, rows[samples.start : samples.stop])
        writer.finish()
    return SignalDataset.open(folder)


def test_what_is_written_entry_by_entry(tmp_path: Path) -> None:
    spec = DistillkitSpec(d=VOCABULARY, k=2, exact_k=2, residual_bins=(), delta_encoding=False)
    gone = [-torch.inf] * 2
    signal = TopkSignal(
        ids=torch.tensor([[0, 0], [9, 1], [0, 0], [14, 2], [0, 0]]),
        logprobs=torch.tensor([gone, [-0.5, -2.0], gone, [-0.25, -3.0], gone]),
        log_tail_mass=torch.zeros(5), log_normalisers=torch.zeros(5, 1), temperatures=(1.0,),
        mask=torch.tensor([False, True, False, True, False]),
    )  # fmt: skip
    row = SignalRow(torch.tensor([3, 4, 9, 14, 20]), torch.tensor([False, False, True, False, True]), signal)
    with DatasetWriter(tmp_path / "in", header_of(1, codec=spec)) as writer:
        writer.write_shard(range(1), [row])
        writer.finish()
    dataset = SignalDataset.open(tmp_path / "in")
    lists = [entries((9, -0.5), (1, -2.0)), [], entries((14, -0.25), (2, -3.0))]
    for count in (None, 2):
        export(dataset, tmp_path / str(count), AxolotlExporter(dataset, count))
        (line,) = (tmp_path / str(count) / "0000000000-0000000001.jsonl").read_text().splitlines()
        assert json.loads(line) == {
            "input_ids": [3, 4, 9, 14, 20],
            "labels": [-100, -100, 9, -100, 20],
            "logprobs": lists,
        }
        lists[1] = entries((0, -1e9), (1, -1e9))  # with a number to keep to, no list is empty


@pytest.mark.parametrize("count", [None, 4])
def test_there_and_back(tmp_path: Path, count: int | None) -> None:
    dataset = write_ours(tmp_path / "in", COUNT)
    export(dataset, tmp_path / "lines", AxolotlExporter(dataset, count))
    assert sorted(path.name for path in (tmp_path / "lines").glob("*.jsonl"))[1] == "0000000003-0000000006.jsonl"
    again = take_in(tmp_path / "lines", tmp_path / "out")
    assert again.manifest.codec == dataset.manifest.codec
    for before, after in zip(dataset, again, strict=True):
        assert torch.equal(before.input_ids, after.input_ids) and torch.equal(before.trained, after.trained)
        assert isinstance(before.signal, TopkSignal) and isinstance(after.signal, TopkSignal)
        said = before.signal.mask
        assert torch.equal(said, after.signal.mask)
        torch.testing.assert_close(
            before.signal.logprobs[said].exp(), after.signal.logprobs[said].exp(), atol=1e-2, rtol=0
        )


def test_every_digit_is_written(tmp_path: Path) -> None:
    dataset = write_ours(tmp_path / "in", DenseSpec(dtype="float32"))
    export(dataset, tmp_path / "lines", AxolotlExporter(dataset, 5))
    reader = AxolotlReader(tmp_path / "lines", IDENTITY)
    for source, row in zip(dataset, reader.rows(range(7)), strict=True):
        assert isinstance(source.signal, DenseSignal) and isinstance(row.signal, TopkSignal)
        said = source.signal.mask
        best = source.signal.logprobs[said].log_softmax(-1).topk(5)
        assert torch.equal(row.signal.logprobs[said], best.values)
        assert torch.equal(row.signal.ids[said], best.indices)


def test_fewer_entries_than_asked_for_are_refused(tmp_path: Path) -> None:
    dataset = write_ours(tmp_path / "in", COUNT)
    with pytest.raises(UserError, match="sample 0, position 1: 4 entries, but 5 of each"):
        export(dataset, tmp_path / "lines", AxolotlExporter(dataset, 5))
    assert not list((tmp_path / "lines").glob("*.jsonl"))
