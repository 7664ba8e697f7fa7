"""Where models are kept: the `ModelStore` port, and `FolderStore`, local folders with revisions.

A model's **manifest** is the list of all its files; its digest is the SHA-256 of the canonical JSON of
`[[path, bytes, sha256], …]`, sorted by path. It is what a miner commits to. In a `FolderStore` the revision is the
first 40 digits of the manifest digest, so a revision can't change.

Nothing here opens a model: files are listed and bytes are read.
"""

import os
import shutil
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from limbeck.arena.faults import CandidateError, ForeignError
from limbeck.arena.identity import ModelRef
from limbeck.errors import UserError
from limbeck.files import digest_of, sha256_file, write_text

MAX_FILES = 10_000


@dataclass(frozen=True)
class ModelFile:
    """A file of a repository; `regular` is False for links, sockets and whatever else is no plain file."""

    path: str
    size: int
    regular: bool = True


class Repository(Protocol):
    """One revision of a model, by its files."""

    @property
    def name(self) -> str:
        """What messages call it."""
        ...

    def files(self) -> Sequence[ModelFile]:
        """Return all files, sorted by path."""
        ...

    def read(self, path: str, start: int, length: int) -> bytes:
        """Return up to `length` bytes of a file."""
        ...

    def sha256(self, path: str) -> str:
        """Return the SHA-256 of a file's bytes."""
        ...

    def folder(self) -> Path:
        """Return a local folder that holds exactly these files."""
        ...


class ModelStore(Protocol):
    """A place that keeps repositories by revision."""

    def open(self, ref: ModelRef) -> Repository:
        """Return a revision; raise `CandidateError` when it is not there, `ForeignError` when that can't be told."""
        ...


def manifest_digest(repository: Repository) -> str:
    """Return the digest of the list of all files; reads every byte where the store doesn't know the hashes."""
    return digest_of([[file.path, file.size, repository.sha256(file.path)] for file in repository.files()])


@dataclass(frozen=True)
class LocalRepository:
    """A plain folder, seen as a repository.

    Raises:
        ForeignError: the disk can't be read: this machine's fault, not the model's.
    """

    root: Path
    label: str = ""

    @property
    def name(self) -> str:
        """The label, or the folder."""
        return self.label or str(self.root)

    def files(self) -> list[ModelFile]:
        """Return all files, sorted by path; links are listed and not followed."""
        found: list[ModelFile] = []
        try:
            for folder, folders, names in os.walk(self.root, onerror=_stop):
                for name in [*names, *(entry for entry in folders if (Path(folder) / entry).is_symlink())]:
                    path = Path(folder) / name
                    status = path.lstat()
                    relative = os.fsencode(path.relative_to(self.root)).decode("utf-8", "backslashreplace")
                    found.append(ModelFile(relative, status.st_size, stat.S_ISREG(status.st_mode)))
                    if len(found) > MAX_FILES:
                        raise CandidateError(f"{self.name}: more than {MAX_FILES:,} files.")
        except OSError as error:
            raise ForeignError(f"{self.name}: cannot be listed ({error}).") from error
        return sorted(found, key=lambda file: file.path)

    def read(self, path: str, start: int, length: int) -> bytes:
        """Return up to `length` bytes of a file."""
        try:
            with (self.root / path).open("rb") as file:
                file.seek(start)
                return file.read(length)
        except OSError as error:
            raise ForeignError(f"{self.name}/{path}: cannot be read ({error.strerror}).") from error

    def sha256(self, path: str) -> str:
        """Return the SHA-256 of a file's bytes."""
        try:
            return sha256_file(self.root / path)
        except OSError as error:
            raise ForeignError(f"{self.name}/{path}: cannot be read ({error.strerror}).") from error

    def folder(self) -> Path:
        """Return the folder itself."""
        return self.root


@dataclass(frozen=True)
class FolderStore:
    """Repositories under one folder: `<root>/<owner>/<name>/<revision>/`, and `refs/main` with the newest revision."""

    root: Path

    def open(self, ref: ModelRef) -> LocalRepository:
        """Return a revision.

        Raises:
            CandidateError: the repository or the revision is not there.
            ForeignError: the store itself is not there.
        """
        if not self.root.is_dir():
            raise ForeignError(f"{self.root}: the model store is not there.")
        folder = self.root / ref.repo / ref.revision
        if not folder.is_dir():
            raise CandidateError(f"{ref}: not in the model store.")
        return LocalRepository(folder, str(ref))

    def latest(self, repo: str) -> ModelRef:
        """Return the revision that was published last.

        Raises:
            UserError: the repository is not there.
        """
        pointer = self.root / repo / "refs" / "main"
        if not pointer.is_file():
            raise UserError(f"{repo}: no such repository in {self.root}.")
        return ModelRef(repo, pointer.read_text(encoding="ascii").strip())

    def publish(self, repo: str, source: Path) -> ModelRef:
        """Copy a folder's files in as the newest revision of `repo`; the same files again are the same revision.

        Raises:
            UserError: the folder is missing or empty, or holds something that is no plain file.
        """
        if not source.is_dir():
            raise UserError(f"{source}: no such folder.")
        local = LocalRepository(source)
        files = local.files()
        if not files:
            raise UserError(f"{source}: the folder is empty.")
        if odd := [file.path for file in files if not file.regular]:
            raise UserError(f"{source}/{odd[0]}: not a plain file. Put a copy of the file in its place.")
        ModelRef(repo, "0" * 40)  # refuses a bad name before anything is copied
        temporary = self.root / repo / f".{os.getpid()}.part"
        try:
            for file in files:
                (temporary / file.path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source / file.path, temporary / file.path)
            ref = ModelRef(repo, manifest_digest(LocalRepository(temporary))[:40])
            if not (self.root / repo / ref.revision).is_dir():
                temporary.replace(self.root / repo / ref.revision)
        except OSError as error:
            raise ForeignError(f"{source}: cannot be copied into {self.root} ({error.strerror}).") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        write_text(self.root / repo / "refs" / "main", ref.revision + "\n")
        return ref


def _stop(error: OSError) -> None:
    raise error
