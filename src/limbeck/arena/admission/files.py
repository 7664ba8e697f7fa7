"""Checks of a model's files: what may lie in a repository, and what its small files may say."""

import re
from collections.abc import Iterator
from typing import Any

from limbeck.arena.admission.registry import RefusalError, Rules, check
from limbeck.arena.admission.submission import MAX_INDEX_BYTES, Submission

ALLOWED = (
    r"\.gitattributes", r"README\.md", r"LICENSE(\.(md|txt))?",
    r"config\.json", r"generation_config\.json", r"chat_template\.jinja",
    r"model\.safetensors", r"model-\d{5}-of-\d{5}\.safetensors", r"model\.safetensors\.index\.json",
    r"tokenizer\.json", r"tokenizer_config\.json", r"special_tokens_map\.json", r"added_tokens\.json",
    r"vocab\.json", r"merges\.txt", r"tokenizer\.model",
)  # fmt: skip
_ALLOWED = re.compile("|".join(f"(?:{pattern})" for pattern in ALLOWED))
_PICKLE = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz")
_CODE = (".py", ".pyc", ".so", ".sh", ".ipynb")

CODE_KEYS = frozenset({"auto_map", "custom_pipelines", "trust_remote_code", "custom_generate"})
"""Keys by which a loader is told to run a repository's code."""

KERNEL_KEYS = frozenset({"attn_implementation", "_attn_implementation", "experts_implementation", "use_kernels"})
"""Keys by which a loader is told to fetch a compiled kernel; harmless with the name of a built-in one."""


@check("repository", cost=0)
def repository(submission: Submission, rules: Rules) -> str:
    """The repository is there, at the revision, and not larger than allowed."""
    total = sum(file.size for file in submission.files.values())
    if total > rules.student.max_bytes:
        raise RefusalError(
            f"{total:,} bytes in all, at most {rules.student.max_bytes:,} are allowed.",
            "Remove what is not needed, or save the weights in bf16.",
        )
    return f"{len(submission.files)} files, {total:,} bytes"


@check("files", cost=1, needs=("repository",))
def files(submission: Submission, rules: Rules) -> str:
    """Only files that a model needs: no pickles, no code, no links."""
    for path, file in submission.files.items():
        if not file.regular:
            raise RefusalError(f"{path} is not a plain file.", "Put a copy of the file in its place.")
        if path.endswith(_PICKLE):
            raise RefusalError(
                f"{path} is a pickle or another format that can run code when it is loaded.",
                "Save the weights as safetensors: model.save_pretrained(folder); delete this file.",
            )
        if path.endswith(_CODE):
            raise RefusalError(f"{path} is code, and no repository's code is ever run.", "Delete it.")
        if not _ALLOWED.fullmatch(path):
            raise RefusalError(f"{path} is not a file that a model needs.", "Delete it, or move it elsewhere.")
    return "only files that a model needs"


@check("config", cost=2, needs=("repository",))
def config(submission: Submission, rules: Rules) -> str:
    """Configuration files are JSON and name no code to run."""
    for path in sorted(submission.files):
        if not path.endswith(".json"):
            continue
        if path in ("tokenizer.json", "vocab.json", "model.safetensors.index.json"):
            continue  # data, read by the checks that are about them
        for key, value in nested_keys(submission.json(path)):
            if key in CODE_KEYS and value:
                raise RefusalError(f"{path} has the key {key!r}, which asks for code to be run.", "Remove the key.")
            if key in KERNEL_KEYS and isinstance(value, str) and not re.fullmatch(r"[a-z0-9_]+", value):
                raise RefusalError(
                    f"{path}: {key} names a kernel outside the library ({value[:60]!r}).", "Remove the key."
                )
    submission.config  # noqa: B018 - reading it is the check
    return "JSON, and no code named"


@check("weights", cost=3, needs=("files", "config"))
def weights(submission: Submission, rules: Rules) -> str:
    """The weights are safetensors with sound headers, and the index agrees with them."""
    paths = submission.weight_files
    if not paths:
        raise RefusalError("there is no safetensors file.", "Save the weights with model.save_pretrained(folder).")
    names = [tensor.name for tensors in submission.headers.values() for tensor in tensors]
    if not names:
        raise RefusalError("the safetensors files hold no tensor.", "Save the weights again.")
    if len(submission.tensors) != len(names):
        raise RefusalError("a tensor stands in two files.", "Save the weights again with save_pretrained.")
    indexed = "model.safetensors.index.json" in submission.files
    if not indexed:
        if paths != ("model.safetensors",):
            raise RefusalError(
                f"{len(paths)} weight files and no index.", "Save the weights again with save_pretrained."
            )
        return f"{len(names)} tensors in {paths[0]}"
    index = submission.json("model.safetensors.index.json", MAX_INDEX_BYTES)
    actual = {tensor.name: path for path, tensors in submission.headers.items() for tensor in tensors}
    if index.get("weight_map") != actual:
        raise RefusalError("the index does not agree with the files' headers.", "Save the weights again.")
    return f"{len(names)} tensors in {len(paths)} files, as the index says"


def nested_keys(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield every key with its value, however deep; without recursion, since the depth is the candidate's."""
    waiting = [value]
    while waiting:
        current = waiting.pop()
        if isinstance(current, dict):
            yield from current.items()
            waiting += current.values()
        elif isinstance(current, list):
            waiting += current
