"""Merging: several datasets of one teacher, tokenizer, vocabulary and codec become one, in the order given.

Signals are copied as bytes: nothing is decoded, and nothing is rounded again. Document numbers of each dataset are
raised above those of the ones before, so that they stay apart. A merge that is killed goes on at the first missing
shard, and ends with the same bytes as one that was not.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import limbeck
from limbeck.errors import UserError
from limbeck.files import digest_of
from limbeck.progress import bar
from limbeck.signals.codecs.columns import offsets_of
from limbeck.signals.dataset import SignalDataset
from limbeck.signals.encoded_rows import EncodedRows, copy_beside, encoded_rows, join, write_encoded
from limbeck.signals.manifest import Manifest, ManifestHeader, make_header
from limbeck.signals.writer import DatasetWriter

LARGEST_NUMBER = (1 << 31) - 1


def merge(sources: Sequence[Path | str], output: Path | str, *, samples_per_shard: int | None = None) -> Manifest:
    """Write the rows of all `sources`, in order, as one dataset.

    Args:
        sources: finished datasets, two at least.
        output: empty, absent, or the unfinished merge of the same datasets.
        samples_per_shard: rows in each shard; those of the first source's shards by default.

    Returns:
        The manifest of what was written. Its `text_digest` stands for the sources' text digests in their order, and
        `capture` names each source by the digest of its manifest.

    Raises:
        UserError: fewer than two datasets, two that are the same, or two that differ in teacher, revision, tokenizer,
            vocabulary, codec or in having document numbers; both sides are named.
        IntegrityError: a shard of a source is missing or damaged.
        LimbeckError: the disk is full; what was merged stays usable.
    """
    if len(sources) < 2:
        raise UserError("merge: name at least two datasets.")
    datasets = [SignalDataset.open(source) for source in sources]
    for dataset in datasets[1:]:
        _check_alike(datasets[0], dataset)
    _check_distinct(datasets)
    header = _header(datasets, samples_per_shard)
    starts = offsets_of([len(dataset) for dataset in datasets]).tolist()
    with DatasetWriter(output, header) as writer:
        copy_beside(datasets[0], writer)
        missing = writer.missing_ranges()
        firsts = _first_numbers(datasets) if missing and header.documents else [0] * len(datasets)
        with bar("merging (rows)", header.samples, header.samples - sum(map(len, missing))) as shown:
            for samples in missing:
                write_encoded(writer, samples, join(list(_parts(datasets, starts, firsts, samples))))
                shown.advance(len(samples))
        return writer.finish()


def _parts(
    datasets: Sequence[SignalDataset], starts: Sequence[int], firsts: Sequence[int], samples: range
) -> Iterator[EncodedRows]:
    """Yield the stored rows of `samples` of the whole, part by part, their document numbers counted from `firsts`."""
    for dataset, start, first in zip(datasets, starts, firsts, strict=False):
        inside = range(max(samples.start - start, 0), min(samples.stop - start, len(dataset)))
        if not inside:
            continue
        part = encoded_rows(dataset, inside)
        rows = [row if row.documents is None else replace(row, documents=row.documents + first) for row in part.rows]
        yield EncodedRows(rows, part.columns)


def _first_numbers(datasets: Sequence[SignalDataset]) -> list[int]:
    """Return what each dataset's document numbers are raised by: more than the largest before it."""
    firsts, following = [], 0
    with bar("reading document numbers (rows)", sum(map(len, datasets))) as shown:
        for dataset in datasets:
            firsts.append(following)
            largest, start = -1, 0
            for size in dataset.shard_sizes:
                rows = dataset.rows(range(start, start + size), decode=False)
                numbers = [row.documents for row in rows if row.documents is not None]
                largest = max([largest, *(int(part.max()) for part in numbers if len(part))])
                start += size
                shown.advance(size)
            following += largest + 1
            if following > LARGEST_NUMBER:
                raise UserError(
                    f"{dataset.storage.where()}: document numbers reach {following}, too many. Merge fewer."
                )
    return firsts


def _header(datasets: Sequence[SignalDataset], samples_per_shard: int | None) -> ManifestHeader:
    manifests = [dataset.manifest for dataset in datasets]
    first = manifests[0]
    merged: list[dict[str, Any]] = [
        {"manifest": dataset.digest, "samples": dataset.manifest.samples, "text_digest": dataset.manifest.text_digest}
        for dataset in datasets
    ]
    return make_header(
        codec=datasets[0].codec.spec,
        teacher=first.teacher,
        tokenizer_digest=first.tokenizer_digest,
        vocabulary=first.vocabulary,
        text_digest=digest_of([manifest.text_digest for manifest in manifests]),
        samples=sum(manifest.samples for manifest in manifests),
        samples_per_shard=samples_per_shard or first.samples_per_shard,
        documents=first.documents,
        capture={"merged": merged, "limbeck": limbeck.__version__},
    )


def _check_alike(one: SignalDataset, other: SignalDataset) -> None:
    ours, theirs = _identity(one.manifest), _identity(other.manifest)
    for name in sorted({*ours, *theirs}):
        a, b = ours.get(name, "none"), theirs.get(name, "none")
        if a != b:
            raise UserError(
                f"{one.storage.where()} and {other.storage.where()} can't be merged: {name} {a} in the first, {b} in "
                "the second. Merge what is alike; `limbeck signals convert` changes a codec."
            )


def _identity(manifest: Manifest) -> dict[str, object]:
    """Return what has to be the same, under the names that messages use."""
    return {
        "teacher": manifest.teacher.repo,
        "teacher's revision": manifest.teacher.revision,
        "tokenizer": manifest.tokenizer_digest,
        "vocabulary": manifest.vocabulary,
        "document numbers": "yes" if manifest.documents else "no",
        **{f"codec setting {key}": value for key, value in manifest.codec.items()},
        **{f"file {file.name}": file.sha256 for file in manifest.files},
    }


def _check_distinct(datasets: Sequence[SignalDataset]) -> None:
    seen: dict[str, str] = {}
    for dataset in datasets:
        where = dataset.storage.where()
        if (twin := seen.get(dataset.digest)) is not None:
            raise UserError(f"{twin} and {where} hold the same rows. Name each dataset once.")
        seen[dataset.digest] = where
