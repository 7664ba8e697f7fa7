"""The corpus: no file in two splits, a split by path alone, and a digest that moves with every file."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.errors import UserError
from limbeck.pocket.corpus import EXCLUDED, MAX_DOCUMENT_CHARS, SPLITS, TOPICS, Corpus, load_corpus, split_of
from tests.pocket.small_library import FILES, read, write_library


@pytest.fixture
def library(tmp_path: Path) -> Iterator[Path]:
    yield write_library(tmp_path / "library")
    load_corpus.cache_clear()


def paths_of(corpus: Corpus) -> dict[str, str]:
    """The split of every path."""
    pairs = [(document.path, split) for split in SPLITS for document in corpus.documents[split]]
    assert len({path for path, _ in pairs}) == len(pairs), "a file is in two splits"
    return dict(pairs)


def test_the_running_pythons_library_is_read_into_three_splits() -> None:
    corpus = load_corpus()
    paths = paths_of(corpus)
    assert {"ast.py", "json/decoder.py", TOPICS} <= paths.keys()
    for split, share in (("train", 12 / 16), ("validation", 1 / 16), ("held_out", 3 / 16)):
        assert len(corpus.documents[split]) / len(paths) == pytest.approx(share, abs=0.05)
    assert not any(EXCLUDED & set(path.split("/")) for path in paths)


def test_no_text_is_in_two_splits() -> None:
    corpus = load_corpus()
    texts = [{hashlib.sha256(document.text.encode()).digest() for document in corpus.documents[s]} for s in SPLITS]
    assert not texts[0] & texts[1]
    assert not texts[0] & texts[2]
    assert not texts[1] & texts[2]


def test_the_reference_topics_are_prose_for_training() -> None:
    (topics,) = [document for document in load_corpus().documents["train"] if document.path == TOPICS]
    assert 'The "if" statement' in topics.text
    assert "\\n" not in topics.text[:2000]


def test_the_library_is_read_once() -> None:
    assert load_corpus() is load_corpus()


@given(path=st.text(min_size=1))
def test_a_path_alone_decides_the_split(path: str) -> None:
    assert split_of(path) == split_of(path) in SPLITS


def test_splits_are_the_same_on_every_machine() -> None:
    paths = ("ast.py", "abc.py", "json/decoder.py", "os.py", TOPICS)
    assert [split_of(path) for path in paths] == ["train", "train", "train", "train", "train"]


def test_a_file_keeps_its_split_whatever_it_says_and_wherever_the_library_lies(library: Path, tmp_path: Path) -> None:
    before = paths_of(read(library))
    (library / "module_1.py").write_text("nothing = 'like before'\n")
    (library / "a_new_one.py").write_text("x = 1\n")
    library.rename(tmp_path / "elsewhere")
    after = paths_of(read(tmp_path / "elsewhere"))
    assert len(before) == FILES
    assert after == before | {"a_new_one.py": split_of("a_new_one.py")}


def test_the_digest_does_not_depend_on_where_the_library_lies(library: Path, tmp_path: Path) -> None:
    assert read(library).digest == read(write_library(tmp_path / "other")).digest


@pytest.mark.parametrize("index", range(0, FILES, 7))
def test_the_digest_moves_when_any_file_changes(library: Path, index: int) -> None:
    before = read(library).digest
    (path,) = library.rglob(f"module_{index}.py")
    path.write_text(path.read_text().replace("return", "yield ", 1))
    assert read(library).digest != before


@pytest.mark.parametrize("change", ["new", "gone", "renamed", "moved text"])
def test_the_digest_moves_when_files_come_and_go(library: Path, change: str) -> None:
    before = read(library).digest
    one, other = library / "module_1.py", library / "module_3.py"
    match change:
        case "new":
            (library / "new.py").write_text("x = 1\n")
        case "gone":
            one.unlink()
        case "renamed":
            one.rename(library / "module_1b.py")
        case _:
            first, second = one.read_text(), other.read_text()
            one.write_text(second)
            other.write_text(first)
    assert read(library).digest != before


def test_the_topics_are_those_of_the_library_that_is_read(library: Path) -> None:
    before = read(library).digest
    (library / "pydoc_data").mkdir()
    (library / TOPICS).write_text("topics = {'if': 'one thing'}\n")
    one = read(library).digest
    (library / TOPICS).write_text("topics = {'if': 'another'}\n")
    assert len({before, one, read(library).digest}) == 3


def test_what_is_left_out_leaves_no_trace(library: Path) -> None:
    before = read(library)
    for name in [*EXCLUDED, "package/tests", "package/deep/__pycache__"]:
        (library / name).mkdir(parents=True)
        (library / name / "module.py").write_text("x = 1\n")
    for name in ("empty.py", "_sysconfigdata__linux.py", "config-3.py", "notes.txt", "binary.so"):
        (library / name).write_text("" if name == "empty.py" else "x = 1\n")
    assert read(library) == before


def test_bytes_that_are_no_text_do_not_stop_it(library: Path) -> None:
    (library / "latin.py").write_bytes("# café\n".encode("latin-1"))
    assert "latin.py" in paths_of(read(library))


def test_a_monster_is_cut(library: Path) -> None:
    (library / "monster.py").write_text("x = 1\n" * MAX_DOCUMENT_CHARS)
    corpus = read(library)
    (monster,) = [d for documents in corpus.documents.values() for d in documents if d.path == "monster.py"]
    assert len(monster.text) == MAX_DOCUMENT_CHARS


def test_a_folder_without_sources_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{tmp_path}: no Python sources here"):
        read(tmp_path)
