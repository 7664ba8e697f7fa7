"""A model's files as the checks see them: listed once, small files parsed once, weights by their headers alone."""

import json
from collections.abc import Callable
from functools import cached_property
from typing import Any

from limbeck.arena.faults import CandidateError
from limbeck.arena.models import ModelFile, Repository, manifest_digest
from limbeck.arena.safetensors_header import HeaderError, TensorInfo, read_header

MAX_JSON_BYTES = 1 << 20
MAX_INDEX_BYTES = 16 << 20


class Submission:
    """Lazily read facts about one model.

    Args:
        open_repository: opens the model; called once, by the first check.
    """

    def __init__(self, open_repository: Callable[[], Repository]) -> None:
        self._open = open_repository
        self.contents: dict[str, str] = {}
        """Digests of what the weights are, by kind, as far as they were computed."""

    @cached_property
    def repository(self) -> Repository:
        """The model's repository; raises `CandidateError` where it is not there."""
        return self._open()

    @cached_property
    def files(self) -> dict[str, ModelFile]:
        """All files by path."""
        return {file.path: file for file in self.repository.files()}

    @cached_property
    def weight_files(self) -> tuple[str, ...]:
        """Paths of the safetensors files, sorted."""
        return tuple(path for path in sorted(self.files) if path.endswith(".safetensors"))

    @cached_property
    def headers(self) -> dict[str, tuple[TensorInfo, ...]]:
        """The tensors of each safetensors file; raises `CandidateError` for a header that is not sound."""
        found = {}
        for path in self.weight_files:
            try:
                found[path] = read_header(self._reader(path), self.files[path].size)
            except HeaderError as error:
                raise CandidateError(f"{path}: {error}.") from error
        return found

    @cached_property
    def tensors(self) -> dict[str, TensorInfo]:
        """All tensors by name."""
        return {tensor.name: tensor for tensors in self.headers.values() for tensor in tensors}

    @cached_property
    def config(self) -> dict[str, Any]:
        """The parsed `config.json`."""
        return self.json("config.json")

    @cached_property
    def manifest(self) -> str:
        """The manifest digest; reads every byte of the model."""
        return manifest_digest(self.repository)

    def json(self, path: str, limit: int = MAX_JSON_BYTES) -> dict[str, Any]:
        """Parse a JSON object.

        Raises:
            CandidateError: the file is missing, too large, or no JSON object.
        """
        if path not in self.files:
            raise CandidateError(f"{path} is missing.")
        size = self.files[path].size
        if size > limit:
            raise CandidateError(f"{path} has {size:,} bytes, at most {limit:,} are read.")
        try:
            value = json.loads(self.repository.read(path, 0, limit))
        except (ValueError, RecursionError) as error:
            raise CandidateError(f"{path} is not JSON ({error}).") from error
        if not isinstance(value, dict):
            raise CandidateError(f"{path} is not a JSON object.")
        return value

    def _reader(self, path: str) -> Callable[[int, int], bytes]:
        return lambda start, length: self.repository.read(path, start, length)
