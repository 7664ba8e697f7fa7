"""The pocket world's text: what every Python installation carries.

Documents are the sources of the running Python's own standard library and the language reference topics of
`pydoc_data`. Each file belongs to one split, chosen by the SHA-256 of its path inside the library, so no file is in
two splits, and a file keeps its split in every Python version. The corpus is named by a digest over its files'
paths and contents: two Python versions have two corpora, and every manifest says which one it used.

Not included: test suites and optional parts that distributions leave out (IDLE, tkinter, lib2to3, distutils, …), and
tables that are data rather than text (the character maps of `encodings`).
"""

import ast
import hashlib
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from limbeck.errors import UserError

Split = Literal["train", "validation", "held_out"]
SPLITS: tuple[Split, ...] = ("train", "validation", "held_out")

EXCLUDED = {
    "__pycache__", "distutils", "encodings", "ensurepip", "idlelib", "lib2to3", "lib-dynload", "site-packages",
    "dist-packages", "test", "tests", "tkinter", "turtledemo",
}  # fmt: skip
TOPICS = "pydoc_data/topics.py"
MAX_DOCUMENT_CHARS = 400_000  # guards against a vendored monster file; the reference topics are the longest document


@dataclass(frozen=True)
class Document:
    """One text of the corpus, with the path that names it."""

    path: str
    text: str


@dataclass(frozen=True)
class Corpus:
    """The documents of every split, and the digest that identifies them."""

    documents: dict[Split, tuple[Document, ...]]
    digest: str


def split_of(path: str) -> Split:
    """Return the split of a file by the SHA-256 of its path: 1/16 validation, 3/16 held out, the rest for training."""
    if path == TOPICS:
        return "train"  # the one long text in plain English
    bucket = hashlib.sha256(path.encode()).digest()[0] % 16
    return "validation" if bucket == 0 else "held_out" if bucket <= 3 else "train"


@lru_cache(maxsize=2)
def load_corpus(root: Path | None = None) -> Corpus:
    """Read the corpus from `root`, by default the running Python's standard library.

    Raises:
        UserError: the folder holds no Python sources.
    """
    library = root or Path(sysconfig.get_path("stdlib"))
    documents: dict[Split, list[Document]] = {split: [] for split in SPLITS}
    digest = hashlib.sha256()
    for document in _documents(library):
        documents[split_of(document.path)].append(document)
        digest.update(f"{document.path}\0{len(document.text)}\0{document.text}\0".encode())
    if not documents["train"]:
        raise UserError(f"{library}: no Python sources here. The pocket world needs an installation with its library.")
    return Corpus({split: tuple(found) for split, found in documents.items()}, digest.hexdigest())


def _documents(library: Path) -> Iterator[Document]:
    for path in sorted(library.rglob("*.py"), key=lambda path: path.relative_to(library).as_posix()):
        name = path.relative_to(library).as_posix()
        if EXCLUDED.intersection(name.split("/")) or name.startswith(("_sysconfigdata", "config-")):
            continue
        if not path.is_file():
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        if name == TOPICS:
            text = _topics(text)
        if text.strip():
            yield Document(name, text[:MAX_DOCUMENT_CHARS])


def _topics(source: str) -> str:
    """Return the language reference as the prose it is, not as the string literals it is stored in."""
    assigned = (node.value for node in ast.parse(source).body if isinstance(node, ast.Assign))
    topics: dict[str, str] = ast.literal_eval(next(assigned))
    return "\n\n".join(topics[name] for name in sorted(topics))
