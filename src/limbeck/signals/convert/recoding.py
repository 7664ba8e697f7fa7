"""From one codec to another: a dataset is read shard by shard, and written as a dataset in the target's settings.

Killed, it goes on at the first missing shard. Where the target's settings are the source's, there is nothing to do, and
that is said.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import limbeck
from limbeck.errors import LimbeckError, UserError
from limbeck.progress import bar, say
from limbeck.settings import Settings
from limbeck.signals.codecs.hidden_head import HiddenSpec
from limbeck.signals.codecs.registry import parse_spec
from limbeck.signals.convert.dropping import left_out
from limbeck.signals.convert.kinds import conversion_between
from limbeck.signals.dataset import SignalDataset
from limbeck.signals.encoded_rows import copy_beside
from limbeck.signals.manifest import Manifest, make_header
from limbeck.signals.writer import DatasetWriter


def completed_spec(data: dict[str, Any], dataset: SignalDataset, source: str = "codec") -> Settings:
    """Return a codec's settings, with what only the dataset knows filled in where it is left out.

    That is `d` or `vocab_size` of DistillKit's codecs, and width and head of `hidden`.

    Raises:
        UserError: there is no such codec or key, or a value is out of range.
    """
    known: dict[str, Any] = {}
    match data.get("codec"):
        case "distillkit":
            known = {"d": dataset.manifest.vocabulary}
        case "distillkit_legacy":
            known = {"vocab_size": dataset.manifest.vocabulary}
        case "hidden" if isinstance(dataset.codec.spec, HiddenSpec):
            known = {"width": dataset.codec.spec.width, "head_sha256": dataset.codec.spec.head_sha256}
    return parse_spec({**known, **data}, source)


def recode(
    dataset: SignalDataset, output: Path | str, spec: Settings, *, samples_per_shard: int | None = None
) -> Manifest:
    """Write a dataset's rows in another codec.

    Args:
        dataset: what is read.
        output: empty, absent, or the unfinished conversion of the same dataset.
        spec: of the target codec.
        samples_per_shard: rows in each shard; the dataset's own by default.

    Raises:
        UserError: the target would say more than the source does, or is the source's codec itself.
        IntegrityError: a shard of the source is missing or damaged.
        LimbeckError: a signal can't be represented (the sample is named), or the disk is full; what was converted
            stays.
    """
    manifest = dataset.manifest
    if spec == dataset.codec.spec:
        raise UserError(
            f"{dataset.storage.where()}: in this codec already, with these settings. There is nothing to do."
        )
    convert = conversion_between(dataset.codec.spec, spec, manifest.vocabulary)
    header = make_header(
        codec=spec,
        teacher=manifest.teacher,
        tokenizer_digest=manifest.tokenizer_digest,
        vocabulary=manifest.vocabulary,
        text_digest=manifest.text_digest,
        samples=manifest.samples,
        samples_per_shard=samples_per_shard or manifest.samples_per_shard,
        documents=manifest.documents,
        capture={
            "converted": {"source": dataset.digest, "codec": manifest.codec},
            "source": manifest.capture,
            "limbeck": limbeck.__version__,
        },
    )
    with DatasetWriter(output, header) as writer:
        if isinstance(spec, HiddenSpec):
            copy_beside(dataset, writer)
        missing = writer.missing_ranges()
        with bar("converting (rows)", header.samples, header.samples - sum(map(len, missing))) as shown:
            for samples in missing:
                rows = []
                for sample, row in zip(samples, dataset.rows(samples), strict=True):
                    if row.signal is not None:
                        rows.append(replace(row, signal=convert(row.signal, row.input_ids, sample)))
                    shown.advance()
                try:
                    writer.write_shard(samples, rows)
                except LimbeckError as error:
                    raise type(error)(f"{writer.storage.where()}, samples from {samples.start}: {error}") from error
        finished = writer.finish()
    if dropped := left_out(dataset.codec.spec, spec, manifest.vocabulary):
        say(f"{output}: codec {finished.codec['codec']} does not hold {'; '.join(dropped)}")
    return finished
