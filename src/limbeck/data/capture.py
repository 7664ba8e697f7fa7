"""Capturing: a teacher reads a file of training text, and what it says becomes a dataset of signals.

Rows keep their order in the file; each shard holds a fixed range of them. A capture that was killed goes on at the
first missing shard and ends byte for byte like one that was not.
"""

import time
from pathlib import Path

import torch
from transformers import AutoConfig

import limbeck
from limbeck.data.rows import NamedRow, read_rows
from limbeck.data.tokenizer import load_tokenizer, tokenizer_digest
from limbeck.engines.scoring import score_rows
from limbeck.engines.transformers import load_model
from limbeck.errors import UserError
from limbeck.files import digest_of, sha256_file
from limbeck.progress import bar, say
from limbeck.settings import Settings, read_yaml
from limbeck.signals.codecs.registry import parse_spec
from limbeck.signals.codecs.topk_spec import TopkSpec
from limbeck.signals.dataset import SignalRow
from limbeck.signals.manifest import ManifestHeader, TeacherRef, make_header
from limbeck.signals.writer import DatasetWriter

ROWS_A_SHARD = 1024


def capture_file(
    model: str,
    text: Path,
    output: Path,
    *,
    codec: Settings,
    name: str | None = None,
    revision: str | None = None,
    sequence_length: int = 256,
    batch_tokens: int = 8192,
    device: str = "cpu",
) -> Path:
    """Capture what `model` says about the rows of a JSONL file, as a dataset of signals in `output`.

    Args:
        model: the teacher, a folder or a repository.
        text: the file; see `limbeck.data.rows`.
        output: the dataset's folder: empty, absent, or an unfinished capture of the same things.
        codec: settings of the codec that stores the signals.
        name: what the manifest calls the teacher; `model` when absent.
        revision: of the teacher's repository; for a local folder the digest of its weights is used.
        sequence_length: longest row, in tokens.
        batch_tokens: tokens that the teacher reads at a time.
        device: where the teacher runs.

    Returns:
        the dataset's folder.

    Raises:
        UserError: the file, the teacher or the folder can't be used; the message says which and why.
        LimbeckError: the disk is full; what was captured stays usable.
    """
    tokenizer = load_tokenizer(model, revision)
    if revision is None and not Path(model).is_dir():
        raise UserError(f"{model}: a repository changes; name the revision to capture (--revision).")
    rows = list(read_rows(text, tokenizer, sequence_length))
    if not rows:
        raise UserError(f"{text}: no rows to capture. Give one JSON object a line.")
    vocabulary = _vocabulary(model, revision, len(tokenizer))
    header = make_header(
        codec=codec,
        teacher=TeacherRef(repo=name or model, revision=revision or _weights_digest(Path(model))),
        tokenizer_digest=tokenizer_digest(tokenizer),
        vocabulary=vocabulary,
        text_digest=sha256_file(text),
        samples=len(rows),
        samples_per_shard=ROWS_A_SHARD,
        capture={
            "engine": "transformers", "dtype": "float32", "sequence_length": sequence_length,
            "batch_tokens": batch_tokens, "limbeck": limbeck.__version__,
        },
    )  # fmt: skip
    with DatasetWriter(output, header) as writer:
        if missing := writer.missing_ranges():
            _write(writer, header, missing, rows, model, revision, device, batch_tokens, codec)
        manifest = writer.finish()
    tokens, size = (sum(getattr(shard, part) for shard in manifest.shards) for part in ("tokens", "bytes"))
    say(f"{output}: {manifest.samples:,} rows, {tokens:,} tokens, {size / tokens:.1f} bytes a token on disk")
    return output


def read_codec(path: Path | None) -> Settings:
    """Return the codec's settings from a YAML file, or those of `topk` as it comes where there is no file.

    Raises:
        UserError: the file is missing, is not YAML, or describes no codec.
    """
    if path is None:
        return TopkSpec()
    return parse_spec(read_yaml(path), str(path))


def _write(
    writer: DatasetWriter,
    header: ManifestHeader,
    missing: list[range],
    rows: list[NamedRow],
    model: str,
    revision: str | None,
    device: str,
    batch_tokens: int,
    codec: Settings,
) -> None:
    teacher = load_model(model, revision=revision, device=device)
    total = sum(len(named.row.ids) for named in rows)
    left = sum(len(rows[sample].row.ids) for samples in missing for sample in samples)
    if left < total:
        say(f"Going on: {len(header.ranges()) - len(missing)} of {len(header.ranges())} shards are there")
    with bar("capturing signals (tokens)", total, total - left) as shown:
        started, read = time.perf_counter(), 0

        def advance(tokens: int) -> None:
            nonlocal read
            read += tokens
            shown.advance(tokens, note=f"{read / (time.perf_counter() - started):,.0f} tokens/s")

        for samples in missing:
            tensors = [
                (torch.tensor(rows[sample].row.ids), torch.tensor(rows[sample].row.trained)) for sample in samples
            ]
            signals = score_rows(teacher, tensors, codec, batch_tokens=batch_tokens, on_row=advance)
            writer.write_shard(
                samples,
                [SignalRow(ids, trained, signal) for (ids, trained), signal in zip(tensors, signals, strict=True)],
            )


def _vocabulary(model: str, revision: str | None, entries: int) -> int:
    """Return the size of the teacher's distributions, which may be padded beyond the tokenizer's entries."""
    try:
        size = int(AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=False).vocab_size)
    except (OSError, ValueError) as error:
        raise UserError(f"{model}: no configuration can be read from here ({str(error).splitlines()[0]}).") from error
    if size < entries:
        raise UserError(
            f"{model}: the tokenizer has {entries} entries, but the model's vocabulary only {size}. "
            "They do not belong together."
        )
    return size


def _weights_digest(folder: Path) -> str:
    """Return the digest that stands for a local teacher's revision: of its weight files' names and SHA-256."""
    return digest_of({path.name: sha256_file(path) for path in sorted(folder.glob("*.safetensors"))})
