"""The queue of keys that serve later batches as negatives or neighbours."""

from typing import Any

import torch
from torch import Tensor

from ..functional._check import by_name, count, detached, group_name
from ..functional._distributed import gather
from ..functional._rows import nearest_in_queue
from ..functional._unit import unit_rows


class MemoryQueue(torch.nn.Module):
    """First in, first out: the last `size` keys of all ranks, with unit norm, as rows.

    `rows` (size, dim) and `pointer` (1,) are buffers and go into checkpoints. Nothing is cloned and
    nothing synchronises a GPU; no key is dropped where the buffer wraps. `enqueue` writes in place:
    the losses of this package keep no reference to `rows`, and PyTorch refuses the backward pass of
    any other graph that does, instead of giving it the new rows.

    Args:
        size: rows, at least 1. Need not be a multiple of the batch.
        dim: width of a key.
        group: process group: `enqueue` takes the keys of all ranks, so that queues stay equal if
            they start equal (as DDP makes buffers). Counting unequal batches reads sizes on the
            host.
        dtype: of the rows; half types halve the reads.

    Source: MoCo (He et al. 2020), Algorithm 1; facebookresearch/moco 8976944, which asks that size
        be a multiple of the batch. Rows start as random directions, as there.
    Cost: size times dim numbers; `enqueue` writes the new rows alone.
    """

    rows: Tensor
    pointer: Tensor

    def __init__(self, size: int, dim: int, group: Any = None, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.group = by_name(group)
        start = unit_rows(torch.randn(count("size", size), count("dim", dim)))
        self.register_buffer("rows", start.to(dtype))
        self.register_buffer("pointer", torch.zeros(1, dtype=torch.int64))

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Replace the oldest rows by `keys` (N, dim), normalised; of more than `size` the last."""
        keys = gather(unit_rows(detached("keys", keys)), group_name(self.group)).to(self.rows.dtype)
        size, new = len(self.rows), len(keys)
        at = self.pointer + torch.arange(new, device=keys.device)
        self.rows.index_copy_(0, at[-size:] % size, keys[-size:])
        self.pointer.add_(new).remainder_(size)

    def nearest(self, z: Tensor) -> Tensor:
        """(N, dim): the row nearest to each row of z by direction, without gradient."""
        return nearest_in_queue([detached("z", z)], self.rows)[0]

    def extra_repr(self) -> str:
        size, dim = self.rows.shape
        return f"size={size}, dim={dim}, dtype={self.rows.dtype}"
