"""Sums over the ranks of a named process group, by functional collectives."""

import torch
import torch.distributed._functional_collectives as collectives
from torch import Tensor
from torch.distributed.distributed_c10d import ProcessGroup, _resolve_process_group

# PyTorch 2.11 has it under its older name, of which 2.15 warns.
_all_gather = getattr(collectives, "all_gather_single", None) or collectives.all_gather_tensor


def world_size(group: str) -> int:
    return _resolve(group).size() if group else 1


def rank(group: str) -> int:
    return _resolve(group).rank() if group else 0


def row_counts(value: Tensor, group: str) -> list[int]:
    """The rows that each rank holds; the host waits for them."""
    counts = value.new_zeros(world_size(group), dtype=torch.int64)
    counts[rank(group)] = value.shape[0]
    return all_reduce(counts, "sum", group).tolist()


def all_reduce(value: Tensor, op: str, group: str) -> Tensor:
    """The sum ("sum") or maximum ("max") of `value` over the ranks; as it is without group."""
    if not group:
        return value
    return collectives.wait_tensor(collectives.all_reduce(value, op, _resolve(group)))


def log_sum_exp(value: Tensor, group: str) -> Tensor:
    """log of the ranks' sum of exp(value), elementwise; -inf everywhere stays -inf."""
    if not group:
        return value
    largest = all_reduce(value, "max", group)
    shift = largest.nan_to_num(neginf=0.0)
    return shift + all_reduce((value - shift).exp(), "sum", group).log()


def _resolve(group: str) -> ProcessGroup:
    return _resolve_process_group(group)  # type: ignore[arg-type]  # torch 2.15 names the type


def rows_of_all(value: Tensor, group: str) -> tuple[Tensor, tuple[int, int]]:
    """Rows of all ranks, in rank order, and the range of them that is this rank's."""
    with torch.no_grad():
        counts = value.new_zeros(world_size(group), dtype=torch.int64)
        rank = _resolve(group).rank()
        counts[rank] = value.shape[0]
        first = int(all_reduce(counts, "sum", group)[:rank].sum())
        return gather(value, group), (first, first + value.shape[0])


class _Gather(torch.autograd.Function):
    """Rows of all ranks, in rank order; ranks may hold unequal numbers of rows."""

    @staticmethod
    def forward(ctx, value: Tensor, group: str) -> Tensor:
        ctx.group = group
        ctx.counts = row_counts(value, group)
        ctx.rank = rank(group)
        longest = max(ctx.counts)
        padded = value.new_zeros((longest, *value.shape[1:]))
        padded[: value.shape[0]] = value
        everything = collectives.wait_tensor(_all_gather(padded, 0, _resolve(group)))
        parts = everything.split(longest)
        return torch.cat([p[:n] for p, n in zip(parts, ctx.counts, strict=True)])

    @staticmethod
    def backward(ctx, d_everything: Tensor):
        d_everything = all_reduce(d_everything.contiguous(), "sum", ctx.group)
        return d_everything.split(ctx.counts)[ctx.rank], None


def gather(value: Tensor, group: str) -> Tensor:
    """Rows of all ranks; the gradient is the ranks' sum, this rank's rows of it."""
    return _Gather.apply(value, group) if group else value
