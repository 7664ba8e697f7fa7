"""A made-up library to read a corpus from: a few short files in every split."""

from pathlib import Path

from limbeck.pocket.corpus import Corpus, load_corpus

FILES = 48


def write_library(root: Path) -> Path:
    """Write `module_0.py`, … in a folder and a folder below it; half of them in each."""
    for index in range(FILES):
        folder = root if index % 2 else root / "package"
        folder.mkdir(parents=True, exist_ok=True)
        lines = [f"def function_{index}_{line}(argument):\n    return argument + {index * line}\n" for line in range(6)]
        (folder / f"module_{index}.py").write_text("\n\n".join(lines))
    return root


def read(root: Path) -> Corpus:
    """Read the corpus as it is on the disk now."""
    load_corpus.cache_clear()
    return load_corpus(root)
