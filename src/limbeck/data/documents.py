"""Whole documents of any source, as plain text: what a tokenizer is trained on, and what spans are cut out of."""

from collections.abc import Iterator

import numpy as np

from limbeck.data.records import Format, open_records
from limbeck.data.shapes import Columns, Text, contents, document_of
from limbeck.progress import bar


def read_documents(
    source: str,
    *,
    format: Format = "auto",
    columns: Columns | None = None,
    configuration: str | None = None,
    split: str = "train",
    revision: str | None = None,
    samples: int | None = None,
) -> Iterator[tuple[str, str]]:
    """Yield name and text of a source's documents, in order; empty ones are left out.

    Of conversations the contents are the text, a line each.

    Args:
        source: a file, a folder, a glob, or a dataset of the hub (`owner/name`).
        format: of the files; `auto` goes by their names.
        columns: which columns hold what.
        configuration: of a dataset of the hub.
        split: of a dataset of the hub.
        revision: of a dataset of the hub.
        samples: how many records to take, from the first on; None: all.

    Raises:
        UserError: the source or a record of it can't be read; the message names file and line.
    """
    columns = columns or Columns()
    records = open_records(
        source, format=format, columns=columns, configuration=configuration, split=split, revision=revision,
        answered=False, samples=samples,
    )  # fmt: skip
    chosen = np.zeros(records.count(), dtype=np.bool_)
    chosen[:samples] = True
    with bar(f"reading {source} (records)", int(chosen.sum())) as shown:
        for place, record in records.read(chosen):
            for one in contents(record, columns, place, answered=False):
                text = one.text if isinstance(one, Text) else "\n".join(m["content"] for m in one.messages)
                if text:
                    yield document_of(record, columns, place), text
            shown.advance()
