"""The output head of a dataset of hidden states: one file beside the manifest, named by its digest in the codec's spec.

`head.safetensors` holds `weight` `[V, D]`, `bias` `[V]` if there is one, and the soft-cap in the metadata key
`limbeck`. Its SHA-256 is part of the codec's settings, hence of the manifest's header: another head is another dataset.
"""

import hashlib
import json
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from safetensors import safe_open
from safetensors.torch import save

from limbeck.errors import IntegrityError, UserError
from limbeck.files import publish, sha256_file
from limbeck.settings import Settings
from limbeck.signals.types import OutputHead

HEAD = "head.safetensors"
METADATA = "limbeck"


class HiddenSpec(Settings):
    """Settings of codec `hidden`; `hidden_spec` makes them for a head.

    A user who asks for this codec need not know the head: `width` and `head_sha256` may be left out where a capture
    fills them in. Without them there is no codec, and no manifest.

    Attributes:
        dtype: how states are stored; `int8` with a scale for each position.
        width: D, numbers of a state; 0: not known yet.
        head_sha256: of the file `head.safetensors`; empty: not known yet.
    """

    codec: Literal["hidden"] = "hidden"
    version: Literal[1] = 1
    dtype: Literal["bfloat16", "float32", "int8"] = "bfloat16"
    width: int = Field(default=0, ge=0)
    head_sha256: str = Field(default="", pattern="^([0-9a-f]{64})?$")


def hidden_spec(head: OutputHead, dtype: Literal["bfloat16", "float32", "int8"] = "bfloat16") -> HiddenSpec:
    """Return the settings of a dataset of states that this head belongs to."""
    return HiddenSpec(dtype=dtype, width=head.weight.shape[1], head_sha256=hashlib.sha256(_bytes_of(head)).hexdigest())


def write_head(folder: Path | str, head: OutputHead, spec: HiddenSpec) -> None:
    """Publish a head in a dataset's folder; where it is already, check that it is the same.

    Args:
        folder: the dataset's. A writer takes an empty folder only, so open the writer first.
        head: what `hidden_spec` made `spec` for.
        spec: the dataset's.

    Raises:
        UserError: `spec` names another head.
        IntegrityError: the folder holds another file under that name.
    """
    path = Path(folder) / HEAD
    data = _bytes_of(head)
    digest = hashlib.sha256(data).hexdigest()
    if digest != spec.head_sha256:
        raise UserError(
            f"{path}: the head has SHA-256 {digest}, but the codec's settings name {spec.head_sha256}. "
            "Make the settings from the head that the states belong to."
        )
    if path.exists():
        _check(path, spec)
        return
    with publish(path) as temporary:
        temporary.write_bytes(data)


def read_head(folder: Path | str, spec: HiddenSpec, device: torch.device | str = "cpu") -> OutputHead:
    """Return a dataset's head, after checking its digest.

    Raises:
        IntegrityError: the file is missing, or is not the one that the settings name.
    """
    path = Path(folder) / HEAD
    _check(path, spec)
    with safe_open(path, framework="pt", device=str(device)) as file:
        note = json.loads((file.metadata() or {}).get(METADATA, "{}"))
        bias = file.get_tensor("bias") if "bias" in file.keys() else None  # noqa: SIM118 - no container, but a file
        return OutputHead(file.get_tensor("weight"), bias, note.get("soft_cap"))


def _check(path: Path, spec: HiddenSpec) -> None:
    if not path.exists():
        raise IntegrityError(f"{path}: the output head is missing; without it the states say nothing. Copy it here.")
    if (found := sha256_file(path)) != spec.head_sha256:
        raise IntegrityError(
            f"{path}: has SHA-256 {found}, but the manifest names {spec.head_sha256}. "
            "Copy the head that the dataset was captured with."
        )


def _bytes_of(head: OutputHead) -> bytes:
    tensors = {"weight": head.weight} | ({} if head.bias is None else {"bias": head.bias})
    whole = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    return save(whole, metadata={METADATA: json.dumps({"soft_cap": head.soft_cap})})
