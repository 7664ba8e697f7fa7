"""Digests that say what weights are, however they are laid out; and the checks that use them.

- `weights`: SHA-256 of the canonical JSON of the sorted SHA-256s of the safetensors files. Cheap where a store knows
  its files' hashes; blind to re-sharding.
- `content`: SHA-256 of the canonical JSON of the sorted, distinct digests of all tensors. A tensor's digest is the
  SHA-256 of its shape (`2x3`), a zero byte, and its values rounded to bfloat16 (nearest, ties to even; little-endian).
  Neither names nor order nor files count, nor a tied head that is saved twice, nor saving fp32 as bf16 or back.

Changing values, by ever so little, gives another digest: near copies are not found here.
"""

import hashlib

import numpy as np

from limbeck.arena.admission.registry import RefusalError, Rules, check
from limbeck.arena.admission.submission import Submission
from limbeck.arena.identity import CommitmentId
from limbeck.arena.models import Repository
from limbeck.arena.safetensors_header import BITS, TensorInfo
from limbeck.files import digest_of

CHUNK_ELEMENTS = 1 << 22


@check("manifest", cost=30, needs=("files",))
def manifest(submission: Submission, rules: Rules) -> str:
    """The files are the very ones that were committed."""
    if rules.manifest is not None and submission.manifest != rules.manifest:
        raise RefusalError(
            f"the files are not those that were committed (manifest {submission.manifest[:12]}…, committed"
            f" {rules.manifest[:12]}…).",
            "Restore the committed files; another model needs another hotkey.",
        )
    return f"{submission.manifest[:12]}…" + ("" if rules.manifest else " (not committed yet)")


@check("duplicate", cost=40, needs=("weights", "dtype"))
def duplicate(submission: Submission, rules: Rules) -> str:
    """No earlier commitment has the same weights, under whatever names and files."""
    submission.contents["weights"] = weights_digest(submission)
    if (owner := _earlier("weights", submission, rules)) is not None:
        raise RefusalError(f"the weight files are those of {owner}, which committed them first.", _MEND)
    submission.contents["content"] = content_digest(submission)
    if (owner := _earlier("content", submission, rules)) is not None:
        raise RefusalError(f"the weights are those of {owner}, saved in another way; it committed them first.", _MEND)
    told = "new" if rules.first_owner else "compared with nothing: no arena was given"
    return f"{told} (content {submission.contents['content'][:12]}…)"


_MEND = "Submit a model of your own."


def _earlier(kind: str, submission: Submission, rules: Rules) -> CommitmentId | None:
    """Return the owner of a content when it is another, earlier commitment."""
    owner = rules.first_owner(kind, submission.contents[kind]) if rules.first_owner else None
    if owner is None or (rules.commitment is not None and owner >= rules.commitment):
        return None
    return owner


def weights_digest(submission: Submission) -> str:
    """Return the digest of the weight files as they are."""
    return digest_of(sorted(submission.repository.sha256(path) for path in submission.weight_files))


def content_digest(submission: Submission) -> str:
    """Return the digest of the tensors, whatever their names, order, files and float format; reads all of them."""
    digests = {
        tensor_digest(submission.repository, path, tensor)
        for path, tensors in submission.headers.items()
        for tensor in tensors
    }
    return digest_of(sorted(digests))


def tensor_digest(repository: Repository, path: str, tensor: TensorInfo) -> str:
    """Return the digest of one BF16, F16 or F32 tensor; reads it in pieces of bounded size."""
    digest = hashlib.sha256("x".join(str(size) for size in tensor.shape).encode() + b"\0")
    step = CHUNK_ELEMENTS * BITS[tensor.dtype] // 8
    for start in range(tensor.start, tensor.stop, step):
        data = repository.read(path, start, min(step, tensor.stop - start))
        digest.update(_as_bfloat16(data, tensor.dtype))
    return digest.hexdigest()


def _as_bfloat16(data: bytes, dtype: str) -> bytes:
    """Return values rounded to bfloat16, to nearest with ties to even; every NaN becomes one NaN."""
    if dtype == "BF16":
        bits = np.frombuffer(data, dtype="<u2").copy()
        bits[(bits & 0x7FFF) > 0x7F80] = 0x7FC0
        return bits.tobytes()
    values = np.frombuffer(data, dtype={"F16": "<f2", "F32": "<f4"}[dtype]).astype("<f4")
    words = values.view("<u4").astype(np.uint64)
    rounded = ((words + 0x7FFF + ((words >> 16) & 1)) >> 16).astype("<u2")
    rounded[np.isnan(values)] = 0x7FC0
    return rounded.tobytes()
