"""Loading a teacher of the `transformers` library: frozen, in evaluation mode, where and in which dtype it is wanted.

Weights are safetensors; code from a repository runs only where the recipe says so.
"""

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel
from transformers.integrations import deepspeed

from limbeck.distill.teachers.settings import HfTeacher
from limbeck.engines.transformers import check_source, quiet
from limbeck.errors import UserError

QUANTIZED: dict[str, dict[str, Any]] = {
    "int8": {"quant_method": "bitsandbytes", "load_in_8bit": True},
    "int4": {
        "quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_compute_dtype": "bfloat16",
    },
}  # fmt: skip
SPARING = "FSDP_CPU_RAM_EFFICIENT_LOADING"
DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")


def load_teacher(settings: HfTeacher, device: torch.device) -> PreTrainedModel:
    """Return the teacher, without gradients.

    Args:
        settings: which, and how.
        device: where it goes unless the settings say so.

    Raises:
        UserError: there is no such model, its weights are incomplete or pickled, or a package or device is missing.
    """
    check_source(settings.path)
    where = _device(settings, device)
    arguments: dict[str, Any] = {**settings.kwargs, "dtype": _dtype(settings, where)}
    arguments.pop("torch_dtype", None)
    if settings.quantization is not None:
        arguments["quantization_config"] = QUANTIZED[settings.quantization]
    _check_packages(settings, arguments)
    placed = "device_map" in arguments or "quantization_config" in arguments
    if placed:  # such weights can't be moved once they are loaded
        arguments.setdefault("device_map", {"": str(where)})
    try:
        with quiet(), on_this_rank_alone():
            model, report = getattr(transformers, settings.model_auto_class).from_pretrained(
                settings.path, revision=settings.revision, use_safetensors=True, output_loading_info=True,
                trust_remote_code=settings.trust_remote_code, **arguments,
            )  # fmt: skip
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, ImportError, AttributeError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UserError(f"teacher.path: {settings.path}: no teacher can be loaded from here ({first}).") from error
    if missing := sorted(report["missing_keys"]):
        raise UserError(
            f"teacher.path: {settings.path}: its weights lack {len(missing)} tensors that config.json calls for, "
            f"{missing[0]} among them. Save the whole model again."
        )
    model = model if placed else model.to(where)
    return model.eval().requires_grad_(False)


@contextmanager
def on_this_rank_alone() -> Iterator[None]:
    """Load a whole model, whatever is said about dividing the student among ranks.

    DeepSpeed's ZeRO-3 and FSDP's sparing of memory reach into any `from_pretrained` of the process: the one would cut a
    teacher up that no engine puts together again, the other would leave it empty on all ranks but the first.
    """
    config, said = deepspeed._hf_deepspeed_config_weak_ref, os.environ.get(SPARING)
    deepspeed._hf_deepspeed_config_weak_ref = None
    os.environ[SPARING] = "false"
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = config
        os.environ.pop(SPARING)
        if said is not None:
            os.environ[SPARING] = said


def described(settings: HfTeacher, model: PreTrainedModel) -> dict[str, Any]:
    """Return what logs say of a loaded teacher."""
    return {
        "kind": "hf", "path": settings.path, "revision": settings.revision, "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."), "quantization": settings.quantization,
        "parameters": model.num_parameters(),
    }  # fmt: skip


def _device(settings: HfTeacher, device: torch.device) -> torch.device:
    try:
        where = torch.device(settings.device) if settings.device is not None else device
    except RuntimeError as error:
        raise UserError(f"teacher.device: {settings.device!r} is no device; such as cpu, cuda, cuda:1.") from error
    if where.type == "cuda" and (where.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"teacher.device: {str(where)!r} is not here: torch sees {torch.cuda.device_count()} GPUs. "
            "Name another, or leave the key out."
        )
    return where


def _dtype(settings: HfTeacher, device: torch.device) -> torch.dtype | str:
    asked = settings.kwargs.get("dtype", settings.kwargs.get("torch_dtype", settings.dtype))
    name = str(asked).removeprefix("torch.")
    if name not in DTYPES:
        raise UserError(f"teacher.kwargs: {asked!r} is no dtype of weights; these are: {', '.join(DTYPES)}.")
    if name == "auto":
        return torch.float32 if device.type == "cpu" and "device_map" not in settings.kwargs else "auto"
    chosen: torch.dtype = getattr(torch, name)
    return chosen


def _check_packages(settings: HfTeacher, arguments: dict[str, Any]) -> None:
    if settings.quantization is not None and importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            f"teacher.quantization: {settings.quantization} needs the package bitsandbytes, which is not installed: "
            "pip install bitsandbytes."
        )
    if str(arguments.get("attn_implementation", "")).startswith("flash") and Path(settings.path).is_dir():
        wanted = "flash_attn_interface" if arguments["attn_implementation"].endswith("3") else "flash_attn"
        if importlib.util.find_spec(wanted) is None:
            raise UserError(
                f"teacher.kwargs.attn_implementation: {arguments['attn_implementation']} needs the package {wanted}, "
                "which is not installed. Use sdpa."
            )
