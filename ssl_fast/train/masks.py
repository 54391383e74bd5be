"""Which patches an image shows (MSN, PMSN, MAE) or hides (iBOT, data2vec).

Drawn on the CPU, seeded globally.
"""

import math

import torch
from torch import Tensor

Grid = tuple[int, int]  # rows and columns of patches


def random_keep(count: int, grid: Grid, drop: float) -> Tensor:  # (count, kept) long
    """Each image keeps its own random share 1 - drop of the patches, at least one."""
    patches = grid[0] * grid[1]
    kept = max(1, math.floor(patches * (1 - drop)))
    return torch.rand(count, patches).argsort(1)[:, :kept].sort(1).values


def focal_keep(count: int, grid: Grid, side: int) -> Tensor:  # (count, side * side) long
    """Each image keeps one square block of side x side patches."""
    side = min(side, *grid)
    top = torch.randint(grid[0] - side + 1, (count, 1))
    left = torch.randint(grid[1] - side + 1, (count, 1))
    steps = torch.arange(side)
    block = (steps[:, None] * grid[1] + steps).flatten()
    return top * grid[1] + left + block


def block_masks(  # (count, patches) bool, True is hidden
    count: int, grid: Grid, low: float, high: float, share: float, least: int = 4
) -> Tensor:
    """A `share` of the images hide between `low` and `high` of their patches, in rectangles.

    Rectangles have `least` patches or more where that many are left, aspect .3 to 1/.3; single
    patches fill up to the exact number. Source: bytedance/ibot's block masks, BEiT's before it.
    """
    patches = grid[0] * grid[1]
    out = torch.zeros(count, *grid, dtype=torch.bool)
    wanted = ((low + (high - low) * torch.rand(count)) * patches).round().long()
    wanted[torch.rand(count) >= share] = 0
    for mask, number in zip(out, wanted.tolist(), strict=True):
        _cover(mask, number, least)
    return out.flatten(1)


def _cover(mask: Tensor, number: int, least: int) -> None:
    rows, columns = mask.shape
    for _ in range(10):
        left = number - int(mask.sum())
        if left <= 0:
            return
        u = torch.rand(4).tolist()
        area = min(least, left) + u[0] * (left - min(least, left))
        ratio = math.exp((2 * u[1] - 1) * math.log(1 / 0.3))
        height = min(rows, max(1, round(math.sqrt(area * ratio))))
        width = min(columns, max(1, round(math.sqrt(area / ratio))))
        top, start = int(u[2] * (rows - height + 1)), int(u[3] * (columns - width + 1))
        block = mask[top : top + height, start : start + width]
        if int((~block).sum()) <= left:
            block.fill_(True)
    flat = mask.view(-1)
    free = (~flat).nonzero().flatten()
    flat[free[torch.randperm(len(free))[: number - int(mask.sum())]]] = True
