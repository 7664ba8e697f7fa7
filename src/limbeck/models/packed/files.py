"""A packed student on disk: `packed.safetensors` beside `config.json` and the tokenizer.

Tensors, with the names of the student's own:

    NAME.codes    uint8 [out, padded(in) / 4]   a ternary layer; see `layout`
    NAME.gamma    float32 [1] or [out]          its scale, or one a row
    NAME.table    int8 [V, D]                   the embedding, and the output head where it is another tensor
    NAME.scales   float32 [V]                   of its rows
    NAME.weight   float32                       gains of norms

The metadata of the file's header says `format` ("limbeck packed"), `version` ("1") and `sha256`, of all bytes behind
the header. The ternary part is exact: `unpack_student` gives a student with the same codes and scales.
"""

import hashlib
import json
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from limbeck.errors import IntegrityError, UserError
from limbeck.files import publish
from limbeck.models.bitnet import LimbeckBitNetConfig, LimbeckBitNetForCausalLM
from limbeck.models.bitnet.linear import ternary_layers
from limbeck.models.packed.layout import pack_codes, padded, round_table, unpack_codes

NAME, FORMAT, VERSION = "packed.safetensors", "limbeck packed", "1"
TABLES = ("model.embed_tokens", "lm_head")


@dataclass(frozen=True)
class PackedFile:
    """What a folder holds; tensors share the memory of the mapped file.

    Attributes:
        config: of the student.
        tensors: by name.
        bytes: of the file.
    """

    config: LimbeckBitNetConfig
    tensors: dict[str, Tensor]
    bytes: int


def save_packed(student: LimbeckBitNetForCausalLM, folder: Path) -> int:
    """Write a student's packed file and configuration; return the file's bytes.

    Raises:
        UserError: the student is dense, or its inputs are not rounded to 8 bits.
    """
    config = student.config
    if not config.ternary or config.activation_bits != 8:
        raise UserError(
            "packed: only students with ternary weights and 8-bit inputs can be packed "
            f"(ternary: {config.ternary}, activation_bits: {config.activation_bits})."
        )
    tensors: dict[str, Tensor] = {}
    layers = ternary_layers(student)
    for name, layer in layers.items():
        codes, gamma = layer.codes()
        tensors[f"{name}.codes"], tensors[f"{name}.gamma"] = pack_codes(codes), gamma.flatten().clone()
    for name, parameter in student.named_parameters():
        owner = name.removesuffix(".weight")
        if owner in TABLES:
            tensors[f"{owner}.table"], tensors[f"{owner}.scales"] = round_table(parameter.detach())
        elif owner not in layers:
            tensors[name] = parameter.detach().float()
    folder.mkdir(parents=True, exist_ok=True)
    plain = save({name: tensor.cpu().contiguous() for name, tensor in sorted(tensors.items())})
    length = int.from_bytes(plain[:8], "little")
    digest = hashlib.sha256(plain[8 + length :]).hexdigest()
    header = json.loads(plain[8 : 8 + length])
    header = {"__metadata__": {"format": FORMAT, "version": VERSION, "sha256": digest}, **header}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    whole = len(text).to_bytes(8, "little") + text + plain[8 + length :]
    config.save_pretrained(folder)
    with publish(folder / NAME) as temporary:
        temporary.write_bytes(whole)
    return len(whole)


def read_packed(folder: Path) -> PackedFile:
    """Read and check a packed student.

    Raises:
        UserError: there is none here, or it is of a version that this program does not know.
        IntegrityError: the file is cut short, changed, or not what the configuration calls for.
    """
    path = folder / NAME
    if not path.exists():
        raise UserError(f"{folder}: no {NAME} here. `limbeck export --format packed` makes one.")
    config = LimbeckBitNetConfig.from_pretrained(folder)
    try:
        with safe_open(path, framework="pt") as opened:
            said = opened.metadata() or {}
    except SafetensorError as error:
        raise IntegrityError(f"{path}: not a whole safetensors file ({error}). Export it again.") from error
    if said.get("format") != FORMAT or said.get("version") != VERSION:
        raise UserError(
            f"{path}: format {said.get('format')!r}, version {said.get('version')!r}; this program reads "
            f"{FORMAT!r}, version {VERSION!r}."
        )
    data = np.memmap(path, dtype=np.uint8, mode="r")
    length = int.from_bytes(data[:8].tobytes(), "little")
    if hashlib.sha256(data[8 + length :].data).hexdigest() != said.get("sha256"):
        raise IntegrityError(f"{path}: its bytes are not those that were written. Export it again, or copy it anew.")
    tensors = _tensors(json.loads(data[8 : 8 + length].tobytes()), data[8 + length :])
    for name, (dtype, shape) in expected(config).items():
        tensor = tensors.get(name)
        if tensor is None or tensor.dtype != dtype or tuple(tensor.shape) != shape:
            found = "is missing" if tensor is None else f"is {tensor.dtype} {tuple(tensor.shape)}"
            raise IntegrityError(f"{path}: {name} {found}, but config.json calls for {dtype} {shape}.")
    if extra := sorted(set(tensors) - set(expected(config))):
        raise IntegrityError(f"{path}: {extra[0]} is in the file, but config.json calls for no such tensor.")
    return PackedFile(config, tensors, path.stat().st_size)


def expected(config: LimbeckBitNetConfig) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Return dtype and shape of each tensor that a packed student of this configuration has."""
    with torch.device("meta"):
        student = LimbeckBitNetForCausalLM(config)
    layers = ternary_layers(student)
    found: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
    for name, parameter in student.named_parameters():
        owner, rows = name.removesuffix(".weight"), parameter.shape[0]
        if owner in layers:
            found[f"{owner}.codes"] = torch.uint8, (rows, padded(parameter.shape[1]) // 4)
            found[f"{owner}.gamma"] = torch.float32, (rows if config.weight_scale == "row" else 1,)
        elif owner in TABLES:
            found[f"{owner}.table"] = torch.int8, tuple(parameter.shape)
            found[f"{owner}.scales"] = torch.float32, (rows,)
        else:
            found[name] = torch.float32, tuple(parameter.shape)
    return found


def unpack_student(packed: PackedFile) -> LimbeckBitNetForCausalLM:
    """Return a student that computes what the packed one does: packing it again gives the same codes and tables.

    Weights are chosen so that their mean magnitude is the scale: gamma over the share of codes that are not 0.
    """
    student = LimbeckBitNetForCausalLM(packed.config).eval()
    weights: dict[str, Tensor] = {}
    layers = ternary_layers(student)
    for name, layer in layers.items():
        codes = unpack_codes(packed.tensors[f"{name}.codes"], layer.in_features).double()
        share = codes.abs().mean(dim=1, keepdim=True) if packed.config.weight_scale == "row" else codes.abs().mean()
        gamma = packed.tensors[f"{name}.gamma"].double().view(-1, 1)
        weights[f"{name}.weight"] = (codes * gamma / share.clamp(min=1e-12)).float()
    for name, tensor in packed.tensors.items():
        if name.endswith(".table"):
            owner = name.removesuffix(".table")
            weights[f"{owner}.weight"] = tensor.float() * packed.tensors[f"{owner}.scales"][:, None]
        elif name.endswith(".weight"):
            weights[name] = tensor.clone()
    student.load_state_dict(weights, strict=False)
    student.tie_weights()
    return student


TYPES = {"U8": torch.uint8, "I8": torch.int8, "F32": torch.float32}


def _tensors(header: dict[str, Any], data: np.ndarray) -> dict[str, Tensor]:
    """Return the file's tensors, as views of its bytes."""
    found = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        start, stop = entry["data_offsets"]
        dtype = TYPES.get(entry["dtype"])
        size = math.prod(entry["shape"])
        if dtype is None or stop - start != size * torch.empty(0, dtype=dtype).element_size():
            raise IntegrityError(f"{NAME}: {name} is {entry['dtype']}, or not as long as its shape says.")
        part = np.ndarray((stop - start,), dtype=np.uint8, buffer=data, offset=start)
        with warnings.catch_warnings(action="ignore"):  # torch would rather have memory that can be written to
            found[name] = torch.from_numpy(part).view(dtype).view(entry["shape"])
    return found
