"""`limbeck signals`: each command from files to files, and wrong requests in one line."""

import json
from pathlib import Path

import pytest
import typer
import yaml
from typer.testing import CliRunner, Result

from limbeck.cli.signals import signals
from limbeck.errors import IntegrityError, UserError
from limbeck.pocket.world import load_teacher
from limbeck.signals.codecs.topk_spec import TopkSpec
from limbeck.signals.dataset import SignalDataset
from limbeck.signals.writer import DatasetWriter
from tests.signals.making import VOCABULARY, header_of, make_rows

app = typer.Typer()
app.add_typer(signals, name="signals")
COUNT = TopkSpec(select="count", cap=6, temperatures=(1.0,))
KIT = {"d": VOCABULARY, "k": 4, "exact_k": 4, "residual_bins": [], "delta_encoding": False}
WHO = ("--teacher", "org/teacher", "--revision", "abc", "--tokenizer", "pocket")


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(app, ["signals", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def write(folder: Path, samples: range = range(8)) -> Path:
    with DatasetWriter(folder, header_of(len(samples), codec=COUNT)) as writer:
        for part in writer.missing_ranges():
            rows = make_rows([samples[index] for index in part], spec=COUNT)
            for row in rows:
                row.signal.mask[-1] = False  # type: ignore[union-attr]
            writer.write_shard(part, rows)
        writer.finish()
    return folder


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return write(tmp_path / "in")


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    path = tmp_path / "kit.yaml"
    path.write_text(yaml.safe_dump({"logprob_compressor": KIT}))
    return path


def test_inspect_prints_and_draws(dataset: Path, tmp_path: Path) -> None:
    result = run("inspect", dataset, "--html", tmp_path / "page.html")
    assert result.exit_code == 0 and "org/teacher at abc" in result.stdout and "captured mass" in result.stdout
    assert "<svg" in (tmp_path / "page.html").read_text()


def test_verify_says_what_is_whole_and_names_what_is_not(dataset: Path) -> None:
    result = run("verify", dataset)
    assert result.exit_code == 0 and "2 shards" in result.stdout and "complete" in result.stdout
    shard = max(dataset.glob("*.parquet"))
    data = bytearray(shard.read_bytes())
    data[40] ^= 1
    shard.write_bytes(data)
    with pytest.raises(IntegrityError, match=shard.name):
        run("verify", dataset)


def test_verify_with_a_teacher(world: Path) -> None:
    result = run("verify", world / "signals", "--teacher", "pocket", "--sample", 2)
    assert result.exit_code == 0 and "What is stored is what this teacher says." in result.stdout
    assert "another teacher" not in result.stdout


def test_verify_says_that_a_teacher_is_another_one(world: Path) -> None:
    result = run("verify", world / "signals", "--teacher", world / "student", "--sample", 2)
    assert result.exit_code == 1
    assert "is another teacher than the dataset's: its weights are" in result.stdout
    assert "NOT what this teacher says" in result.stdout


@pytest.mark.parametrize(
    ("format", "options"),
    [("distillkit-parquet", ()), ("distillkit-arrow", ()), ("axolotl", ()), ("megatron", ("--dtype", "fp32"))],
)
def test_to_another_format_and_back(
    dataset: Path, tmp_path: Path, kit: Path, format: str, options: tuple[str, ...]
) -> None:
    codec = ("--codec", kit) if format.startswith("distillkit") else ()
    there = run("convert", dataset, tmp_path / "there", "--to", format, *codec, *options)
    assert there.exit_code == 0 and there.stdout.strip() == str(tmp_path / "there")
    vocabulary = () if codec else ("--vocabulary", VOCABULARY)
    run("convert", tmp_path / "there", tmp_path / "back", "--from", format, *WHO, *vocabulary)
    before, after = SignalDataset.open(dataset), SignalDataset.open(tmp_path / "back")
    assert after.manifest.teacher == before.manifest.teacher
    for one, other in zip(before, after, strict=True):
        assert one.input_ids.tolist() == other.input_ids.tolist() and one.trained.tolist() == other.trained.tolist()
        assert one.signal.mask.tolist() == other.signal.mask.tolist()  # type: ignore[union-attr]
        said = one.signal.mask  # type: ignore[union-attr]
        assert one.signal.ids[said][:, 0].tolist() == other.signal.ids[said][:, 0].tolist()  # type: ignore[union-attr]


def test_to_another_codec(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "codec.yaml").write_text("codec: topk\nselect: count\ncap: 3\ntemperatures: [1.0]\n")
    run("convert", dataset, tmp_path / "out", "--codec", tmp_path / "codec.yaml")
    assert SignalDataset.open(tmp_path / "out").manifest.codec["cap"] == 3


def test_axolotls_messages_become_tokens(tmp_path: Path) -> None:
    _, tokenizer = load_teacher()
    messages = [{"role": "user", "content": "1 + 1"}, {"role": "assistant", "content": "2"}]
    ids = tokenizer(tokenizer.apply_chat_template(messages, tokenize=False), add_special_tokens=False)["input_ids"]
    lists = [[{"token": f"token_id:{token}", "logprob": -0.1}] for token in ids[-2:]]
    (tmp_path / "in.jsonl").write_text(json.dumps({"messages_combined": messages, "logprobs": lists}) + "\n")
    run("convert", tmp_path / "in.jsonl", tmp_path / "out", "--from", "axolotl", *WHO, "--vocabulary", 4096)
    row = SignalDataset.open(tmp_path / "out").row(0)
    assert row.input_ids.tolist() == ids
    assert row.signal is not None and row.signal.mask.nonzero()[:, 0].tolist() == [len(ids) - 3, len(ids) - 2]
    (tmp_path / "in.jsonl").write_text(json.dumps({"text": "x", "logprobs": lists}) + "\n")
    with pytest.raises(UserError, match=r"in.jsonl, line 1: a row with neither"):
        run("convert", tmp_path / "in.jsonl", tmp_path / "no", "--from", "axolotl", *WHO, "--vocabulary", 4096)


def test_pack_and_merge(dataset: Path, tmp_path: Path) -> None:
    packed = run("pack", dataset, "--output", tmp_path / "packed", "--length", 12)
    assert "8 documents in" in packed.stdout and "% full" in packed.stdout and packed.exit_code == 0
    merged = run("merge", dataset, write(tmp_path / "more", range(8, 11)), "--output", tmp_path / "merged")
    assert "11 rows in" in merged.stdout and len(SignalDataset.open(tmp_path / "merged")) == 11


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("inspect", "nowhere"), "nowhere: no manifest.json here"),
        (("convert", "in", "out"), "to which codec"),
        (("convert", "in", "out", "--to", "axolotll"), "no format is called 'axolotll'. Did you mean 'axolotl'"),
        (("convert", "in", "out", "--to", "axolotl", "--from", "megatron"), "one of them has to be limbeck"),
        (("convert", "in", "out", "--to", "axolotl", "--teacher", "x"), "--teacher: the source is a dataset"),
        (
            ("convert", "in", "out", "--to", "axolotl", "--dtype", "fp16"),
            "--dtype: not an option of the format axolotl",
        ),
        (("convert", "in", "out", "--to", "megatron", "--dtype", "fp8"), "--dtype fp8: expected fp16, bf16, fp32"),
        (("convert", "in", "out", "--to", "distillkit-parquet"), "in codec topk. Name DistillKit's settings"),
        (("convert", "in", "out", "--from", "axolotl"), "Say it: --teacher, --revision, --tokenizer"),
        (("convert", "nowhere", "out", "--from", "axolotl", *WHO), "nowhere: no such file or folder"),
        (
            ("convert", "in", "out", "--from", "megatron", "--config", "x", *WHO),
            "--config: not an option of the format",
        ),
        (("merge", "in", "--output", "out"), "at least two"),
    ],
)
def test_wrong_requests(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        run(*arguments)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
