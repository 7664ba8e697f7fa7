"""Everything a run needs to go on exactly, as safetensors and JSON: nothing is pickled.

Tensors are stored whole under the names of parameters, whatever they were sharded over, so a checkpoint goes on with
another number of processes, too. Optimizer state is read back in the dtype it was stored in.
"""

import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from limbeck.errors import IntegrityError, UserError
from limbeck.files import read_json, write_json

OPTIMIZER = "optimizer"
WRAPPERS = ("_orig_mod", "_checkpoint_wrapped_module")


def own_name(name: str) -> str:
    """Return a parameter's name without the parts of the path that wrappers put into it."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor, gathered from all ranks if it is sharded, on the CPU; every rank takes part."""
    tensor = tensor.detach()
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).cpu().contiguous()


def like(tensor: Tensor, target: Tensor) -> Tensor:
    """Return a whole tensor on the device of `target` and sharded as it is; each rank cuts its own part."""
    tensor = tensor.to(target.device)
    if isinstance(target, DTensor) and tensor.shape == target.shape:
        return distribute_tensor(tensor, target.device_mesh, target.placements, src_data_rank=None)
    return tensor


def whole_weights(module: nn.Module, *, keep: bool) -> dict[str, Tensor]:
    """Return parameters and stored buffers of a module, each once, by name.

    Args:
        module: may be sharded.
        keep: False only takes part in gathering them and returns nothing.
    """
    weights, seen = {}, set()
    for name, tensor in module.state_dict(keep_vars=True).items():
        if id(tensor) in seen:  # tied to one that is there already
            continue
        seen.add(id(tensor))
        gathered = whole(tensor)
        if keep:
            weights[own_name(name)] = gathered
    return weights


@torch.no_grad()
def load_weights(module: nn.Module, files: list[Path], *, partly: bool = False) -> None:
    """Put stored weights into a module, which may be sharded.

    Args:
        module: parameters of the same names, or ties of them.
        files: safetensors.
        partly: what is not stored is left as it is.

    Raises:
        IntegrityError: a weight is missing, or has another shape.
    """
    stored = {name: path for path in files for name in _names(path)}
    found: set[int] = set()
    targets = {own_name(name): tensor for name, tensor in module.state_dict(keep_vars=True).items()}
    for name, target in targets.items():
        if name in stored:
            with safe_open(stored[name], framework="pt") as file:
                tensor = file.get_tensor(name)
            if tensor.shape != target.shape:
                raise IntegrityError(
                    f"{stored[name]}: {name} is {list(tensor.shape)}, and the student's is {list(target.shape)}. "
                    "The checkpoint is of another student; remove it, or choose another output_path."
                )
            target.copy_(like(tensor, target))
            found.add(id(target))
    missing = [name for name, target in targets.items() if id(target) not in found]
    if missing and not partly:
        where = files[0].parent if files else "the checkpoint"
        raise IntegrityError(f"{where}: {missing[0]} is not there. Remove this checkpoint; the one before it is used.")


def save_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, folder: Path, *, keep: bool) -> None:
    """Write `optimizer.safetensors` and `optimizer.json`; every rank takes part, the one that keeps writes.

    Raises:
        UserError: the optimizer holds something that is neither a tensor nor a number.
    """
    names = {id(parameter): own_name(name) for name, parameter in model.named_parameters()}
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    for parameter, state in optimizer.state.items():
        for path, value in _leaves(names[id(parameter)], state):
            if isinstance(value, Tensor):
                gathered = whole(value)
                if keep:
                    tensors[path] = gathered
            else:
                values[path] = _plain(value, path, optimizer)
    groups = [
        {
            "params": [names[id(parameter)] for parameter in group["params"]],
            "settings": {
                key: {"tensor": value.item()} if isinstance(value, Tensor) else _plain(value, key, optimizer)
                for key, value in group.items()
                if key != "params"
            },
        }
        for group in optimizer.param_groups
    ]
    if keep:
        save_file(tensors, folder / f"{OPTIMIZER}.safetensors")
        write_json(folder / f"{OPTIMIZER}.json", {"values": values, "groups": groups})


def check_storable(optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimizer whose state can't be stored without pickling it.

    Raises:
        UserError: it holds something that is neither a tensor nor a number; it is named.
    """
    for state in [*optimizer.state.values(), *optimizer.param_groups]:
        for name, value in _leaves("state", {key: value for key, value in state.items() if key != "params"}):
            if not isinstance(value, Tensor):
                _plain(value, name, optimizer)


def load_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, folder: Path) -> None:
    """Read what `save_optimizer` wrote into an optimizer of the same parameters.

    Raises:
        UserError: the checkpoint is of another optimizer.
    """
    stored = read_json(folder / f"{OPTIMIZER}.json")
    parameters = {own_name(name): parameter for name, parameter in model.named_parameters()}
    names = {id(parameter): name for name, parameter in parameters.items()}
    here = [[names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]
    if here != [group["params"] for group in stored["groups"]]:
        raise UserError(
            f"{folder}: its optimizer trains other parameters, or other groups of them. "
            "Go on with the recipe that this checkpoint was made by, or remove it."
        )
    on_device = {
        id(parameter)
        for group in optimizer.param_groups
        if group.get("fused") or group.get("capturable")
        for parameter in group["params"]
    }
    state: dict[Tensor, dict[str, Any]] = {}
    tensors = load_file(folder / f"{OPTIMIZER}.safetensors")
    for path, value in [*tensors.items(), *stored["values"].items()]:
        name, *keys = path.split("/")
        parameter = parameters[name]
        if isinstance(value, Tensor):
            # a counter of steps is on the CPU, unless the optimizer's kernels read it
            value = like(value, parameter) if value.ndim or id(parameter) in on_device else value
        inner = state.setdefault(parameter, {})
        for key in keys[:-1]:
            inner = inner.setdefault(key, {})
        inner[keys[-1]] = value
    optimizer.state.clear()
    optimizer.state.update(state)
    for group, kept in zip(optimizer.param_groups, stored["groups"], strict=True):
        for key, value in kept["settings"].items():
            if isinstance(value, dict) and isinstance(group.get(key), Tensor):
                group[key].fill_(value["tensor"])
            else:
                group[key] = tuple(value) if isinstance(group.get(key), tuple) else value


def save_process(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write what one process holds by itself: its generators of random numbers, and `tensors`."""
    version, words, gauss = random.getstate()
    kind, keys, *rest = np.random.get_state()
    state = {
        "random/python": torch.tensor(words, dtype=torch.int64),
        "random/numpy": torch.from_numpy(np.asarray(keys).astype(np.int64)),
        "random/torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state |= {f"random/cuda/{index}": part for index, part in enumerate(torch.cuda.get_rng_state_all())}
    plain = {"python": [version, gauss], "numpy": [str(kind), *(float(value) for value in rest)]}
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(state | stored, path, metadata={"plain": json.dumps(plain)})


def load_process(path: Path) -> dict[str, Tensor]:
    """Put the generators of random numbers back, and return the other tensors."""
    with safe_open(path, framework="pt") as file:
        plain = json.loads(file.metadata()["plain"])
    tensors = load_file(path)
    version, gauss = plain["python"]
    random.setstate((version, tuple(tensors.pop("random/python").tolist()), gauss))
    kind, place, has_gauss, cached = plain["numpy"]
    keys = tensors.pop("random/numpy").numpy().astype(np.uint32)
    np.random.set_state((kind, keys, int(place), int(has_gauss), cached))
    torch.set_rng_state(tensors.pop("random/torch"))
    devices = sorted(name for name in tensors if name.startswith("random/cuda/"))
    if devices and torch.cuda.is_available() and len(devices) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([tensors[f"random/cuda/{index}"] for index in range(len(devices))])
    return {name: tensor for name, tensor in tensors.items() if name not in devices}


def _names(path: Path) -> list[str]:
    with safe_open(path, framework="pt") as file:
        return list(file.keys())


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(f"{path}/{key}", inner)
    else:
        yield path, value


def _plain(value: Any, name: str, optimizer: torch.optim.Optimizer) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(part, name, optimizer) for part in value]
    raise UserError(
        f"{type(optimizer).__name__} keeps a {type(value).__name__} ({name}), which checkpoints can't hold without "
        "pickling it. Choose another optimizer, or set training_args.save_strategy to 'no'."
    )
