"""Tokenizers trained from text of any source: the recipe, and what `limbeck tokenizer train` does with it.

Every `held_out`-th record is kept from training, and the tokenizer is measured on those: bytes of UTF-8 that a token
stands for. The same recipe and text give the same tokenizer.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field
from transformers import PreTrainedTokenizerFast

from limbeck.data.documents import read_documents
from limbeck.data.records import Format
from limbeck.data.shapes import Columns
from limbeck.data.tokenizer import SPECIAL_TOKENS, tokenizer_digest, train_tokenizer
from limbeck.errors import UserError
from limbeck.settings import Settings

BYTES = 256


class TokenizerRecipe(Settings):
    """Everything that decides what a tokenizer is.

    Attributes:
        texts: files, folders, globs, or datasets of the hub (`owner/name`), read one after another.
        format: what the files are; `auto` goes by their names.
        columns: which columns hold what; see `limbeck.data.shapes`. Of conversations the contents are read.
        configuration: of a dataset of the hub.
        split: of a dataset of the hub.
        revision: of a dataset of the hub.
        samples: how many records of each source to take, from the first on; None: all.
        vocabulary: entries, special tokens included.
        context: the longest input of the models that will use it, in tokens.
        held_out: every so-many-th record is measured instead of trained on.
    """

    texts: tuple[str, ...] = ()
    format: Format = "auto"
    columns: Columns = Columns()
    configuration: str | None = None
    split: str = "train"
    revision: str | None = None
    samples: int | None = Field(default=None, ge=1)
    vocabulary: int = Field(default=16384, ge=BYTES + len(SPECIAL_TOKENS))
    context: int = Field(default=2048, ge=2)
    held_out: int = Field(default=20, ge=2)


@dataclass(frozen=True)
class TrainedTokenizer:
    """What came of a training.

    Attributes:
        digest: names what the tokenizer does with text.
        entries: of the vocabulary; fewer than asked for where the text is too small.
        documents: trained on.
        held_out: documents measured.
        bytes_a_token: on these; None where there are none.
    """

    digest: str
    entries: int
    documents: int
    held_out: int
    bytes_a_token: float | None


def train_tokenizer_folder(recipe: TokenizerRecipe, out: Path) -> TrainedTokenizer:
    """Train a tokenizer and publish its folder, whole or not at all.

    Raises:
        UserError: there is no text, or the folder is in the way.
    """
    if not recipe.texts:
        raise UserError("texts: name at least one file, folder, glob or dataset to train on.")
    if out.exists() and any(out.iterdir() if out.is_dir() else [out]):
        raise UserError(f"{out}: there is something here already. Choose another --out, or remove it.")
    held: list[str] = []
    trained = 0

    def training_texts() -> Iterator[str]:
        nonlocal trained
        for index, text in enumerate(_documents(recipe)):
            if index % recipe.held_out == recipe.held_out - 1:
                held.append(text)
            else:
                trained += 1
                yield text

    tokenizer = train_tokenizer(training_texts(), recipe.vocabulary, recipe.context)
    if not trained:
        raise UserError(f"{', '.join(recipe.texts)}: there is no text in it to train on.")
    partial = out.with_name(f".{out.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        tokenizer.save_pretrained(partial)
        if out.exists():
            out.rmdir()
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    measured = bytes_a_token(tokenizer, held) if any(held) else None
    return TrainedTokenizer(tokenizer_digest(tokenizer), len(tokenizer), trained, len(held), measured)


def bytes_a_token(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> float:
    """Return how many bytes of UTF-8 a token stands for, over all texts together."""
    encoded = tokenizer(texts, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
    return sum(len(text.encode()) for text in texts) / sum(map(len, encoded))


def _documents(recipe: TokenizerRecipe) -> Iterator[str]:
    """Yield the texts of every source, in order."""
    for source in recipe.texts:
        documents = read_documents(
            source, format=recipe.format, columns=recipe.columns, configuration=recipe.configuration,
            split=recipe.split, revision=recipe.revision, samples=recipe.samples,
        )  # fmt: skip
        yield from (text for _, text in documents)
