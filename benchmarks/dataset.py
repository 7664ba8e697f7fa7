"""From a dataset on disk to training tensors: rows of a batch decoded together against one at a time."""

import tempfile
from pathlib import Path

from benchmarks.timing import Row, in_turn
from limbeck.data.capture import capture_file
from limbeck.pocket.corpus import load_corpus
from limbeck.pocket.texts import write_training_text
from limbeck.pocket.world import teacher_folder
from limbeck.signals.codecs.topk_spec import TopkSpec
from limbeck.signals.dataset import SignalDataset
from limbeck.signals.loader import collate

TITLE = "A captured dataset to batches of 16 rows"


def run() -> list[Row]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_training_text(folder / "text.jsonl", load_corpus(), seed=1, texts=60, exercises=200)
        capture_file(str(teacher_folder()), folder / "text.jsonl", folder / "signals", codec=TopkSpec())
        dataset = SignalDataset.open(folder / "signals")
        batches = [list(range(first, first + 16)) for first in range(0, len(dataset) - 16, 16)]

        def together() -> None:
            for batch in batches:
                collate(dataset.rows(batch))

        def one_by_one() -> None:
            for batch in batches:
                collate([dataset.row(row) for row in batch])

        return [Row("read, decode, collate", *in_turn(together, one_by_one), "rows decoded one by one")]
