"""Texts of the pocket world for the rest of the house: training text as JSONL, and rows to measure on."""

import json
from collections.abc import Iterator
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from limbeck.evaluate.divergences import TextRow
from limbeck.files import publish
from limbeck.pocket.corpus import Corpus, Document, Split
from limbeck.pocket.exercises import all_families
from limbeck.seeds import derive_random

EXCERPT_CHARS = 800


def write_training_text(path: Path, corpus: Corpus, *, seed: int, texts: int, exercises: int) -> None:
    """Publish a JSONL file of excerpts of the training documents and of exercises, in a random order.

    Args:
        path: the file to write.
        corpus: only its training split is read.
        seed: decides which excerpts and exercises, and their order.
        texts: number of excerpts, of about 800 characters from a line's start.
        exercises: number of exercises, the families in turn, as `prompt` and `response`.
    """
    rng = derive_random(seed, "training text")
    documents = corpus.documents["train"]
    chosen = rng.choices(documents, weights=[len(document.text) for document in documents], k=texts)
    records: list[dict[str, str]] = [
        {"document": document.path, "text": _excerpt(document, rng.randrange(len(document.text)))}
        for document in chosen
    ]
    families = all_families()
    for index in range(exercises):
        family = families[index % len(families)]
        item = family.draw_for_training(derive_random(seed, "training exercise", index))
        records.append({"document": family.name, "prompt": item.prompt, "response": f"Answer: {item.answer.written()}"})
    rng.shuffle(records)
    with publish(path) as temporary:
        temporary.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def _excerpt(document: Document, near: int) -> str:
    start = document.text.rfind("\n", 0, near) + 1
    return document.text[start : start + EXCERPT_CHARS]


def text_rows(
    documents: Iterator[Document] | tuple[Document, ...],
    tokenizer: PreTrainedTokenizerBase,
    *,
    length: int,
    rows_a_document: int,
) -> list[TextRow]:
    """Return rows of at most `length` tokens, evenly spread over each document, none overlapping another.

    The tokenizer has to be byte-level BPE, as the pocket world's is.
    """
    rows = []
    for document in documents:
        ids = tokenizer(document.text, add_special_tokens=False, verbose=False)["input_ids"]
        starts = [first for first in range(0, len(ids), length) if len(ids) - first > 1]
        step = max(1, len(starts) // rows_a_document)
        for first in starts[::step][:rows_a_document]:
            last = min(first + length, len(ids)) - 1
            tokens = tokenizer.convert_ids_to_tokens(ids[first + 1 : last + 1])
            predicted = sum(map(len, tokens))  # byte-level BPE writes each byte as one character
            rows.append(TextRow(document.path, tuple(ids[first : last + 1]), predicted))
    return rows


def held_out_rows(
    corpus: Corpus, tokenizer: PreTrainedTokenizerBase, *, length: int, rows_a_document: int, split: Split = "held_out"
) -> list[TextRow]:
    """Return rows of documents that nobody was trained on."""
    return text_rows(corpus.documents[split], tokenizer, length=length, rows_a_document=rows_a_document)
