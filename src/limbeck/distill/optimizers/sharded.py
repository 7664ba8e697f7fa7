"""Matrices whose rows are spread over ranks: each rank works on whole ones, a share of them, and gets its rows back.

All ranks hold the same rows of every matrix of one shape. One exchange gives rank r all rows of every matrix that is
its share, another one brings the results back; no rank ever holds more than its share of whole matrices.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard

from limbeck.errors import UserError


def local(tensor: Tensor) -> Tensor:
    """Return this rank's part of a tensor; writing to it writes to the tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def ranks_of(parameter: Tensor) -> int:
    """Return how many ranks share the work on a parameter."""
    return dist.get_world_size(_group_of(parameter)) if isinstance(parameter, DTensor) else 1


def on_whole_matrices(parts: list[Tensor], like: Tensor, compute: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Return this rank's rows of `compute([B, R, C])` for B matrices of one shape.

    Args:
        parts: this rank's rows of each matrix, `[r, C]` (of experts: whole ones, `[e, R, C]`).
        like: one of the parameters that they are parts of.
        compute: on whole matrices, of each by itself.

    Raises:
        UserError: the parameter is sharded in another way than by its first dimension.
    """
    shape = parts[0].shape
    if not isinstance(like, DTensor) or like.ndim == 3:  # experts are spread one by one
        if not parts[0].numel():
            return parts
        _group_of(like)
        stacked = torch.stack(parts).reshape(-1, *shape[-2:])
        return list(compute(stacked).reshape(len(parts), *shape).unbind())
    group = _group_of(like)
    ranks = dist.get_world_size(group)
    rows, columns = like.shape
    most, share = -(-rows // ranks), -(-len(parts) // ranks)
    sent = parts[0].new_zeros((ranks * share, most, columns), device=like.device_mesh.device_type)
    for index, part in enumerate(parts):
        sent[index, : len(part)] = part
    mine = _exchanged(sent.unflatten(0, (ranks, share)), group).transpose(0, 1).flatten(1, 2)
    done = torch.zeros_like(mine)
    done[:, :rows] = compute(mine[:, :rows])
    back = _exchanged(done.unflatten(1, (ranks, most)).transpose(0, 1).contiguous(), group).flatten(0, 1)
    return [back[index, : shape[0]].to(part.device) for index, part in enumerate(parts)]


def _exchanged(sent: Tensor, group: "dist.ProcessGroup | None") -> Tensor:
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent.contiguous(), group=group)
    return received


def _group_of(like: Tensor) -> "dist.ProcessGroup | None":
    """Return the ranks that the rows are spread over."""
    if not isinstance(like, DTensor):
        return None
    spread = [index for index, placement in enumerate(like.placements) if not isinstance(placement, Replicate)]
    if len(spread) != 1 or like.placements[spread[0]] != Shard(0):
        raise UserError(
            f"optimizer: Muon takes parameters that are whole or sharded by rows, and one here is sharded as "
            f"{like.placements}. Use FSDP2 without tensor parallelism, or another optimizer."
        )
    return like.device_mesh.get_group(spread[0])
