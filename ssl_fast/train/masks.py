"""Which patches an image shows (MSN, PMSN, MAE) or hides (iBOT, data2vec).

Made of uniform numbers `u`, a row an image, so that several processes mask as one would.
"""

import math

import torch
from torch import Tensor

Grid = tuple[int, int]  # rows and columns of patches
TRIES = 10  # rectangles that an image tries to hide


def random_keep(u: Tensor, drop: float) -> Tensor:  # (N, T) -> (N, kept) long
    """Each image keeps its own random share 1 - drop of its T patches, at least one."""
    kept = max(1, math.floor(u.shape[1] * (1 - drop)))
    return u.argsort(1)[:, :kept].sort(1).values


def hidden(keep: Tensor, patches: int) -> Tensor:  # (N, kept) -> (N, patches) bool
    """The patches that are not kept."""
    everything = torch.ones(len(keep), patches, dtype=torch.bool, device=keep.device)
    return everything.scatter(1, keep, False)


def focal_keep(u: Tensor, grid: Grid, side: int) -> Tensor:  # (N, 2) -> (N, side * side) long
    """Each image keeps one square block of side x side patches."""
    side = min(side, *grid)
    top, left = (u * (torch.tensor(grid) - side + 1)).long().split(1, 1)
    steps = torch.arange(side)
    block = (steps[:, None] * grid[1] + steps).flatten()
    return top * grid[1] + left + block


def block_numbers(grid: Grid) -> int:
    """How many numbers an image of `block_masks` takes."""
    return 2 + 4 * TRIES + grid[0] * grid[1]


def block_masks(  # (N, block_numbers) -> (N, T) bool, True is hidden
    u: Tensor, grid: Grid, low: float, high: float, share: float, least: int = 4
) -> Tensor:
    """A `share` of the images hide between `low` and `high` of their patches, in rectangles.

    Rectangles have `least` patches or more where that many are left, aspect .3 to 1/.3; single
    patches fill up to the exact number. Source: bytedance/ibot's block masks, BEiT's before it.
    """
    patches = grid[0] * grid[1]
    out = torch.zeros(len(u), *grid, dtype=torch.bool)
    amount, which, tries, order = u.split([1, 1, 4 * TRIES, patches], 1)
    wanted = ((low + (high - low) * amount) * patches).round().long()
    wanted[which >= share] = 0
    rest = zip(wanted.flatten().tolist(), tries.unflatten(1, (TRIES, 4)), order, strict=True)
    for mask, (number, draws, places) in zip(out, rest, strict=True):
        _cover(mask, number, least, draws.tolist())
        free = (~mask.flatten()).nonzero().flatten()
        chosen = free[places[free].argsort()[: number - int(mask.sum())]]
        mask.view(-1)[chosen] = True
    return out.flatten(1)


def _cover(mask: Tensor, number: int, least: int, draws: list[list[float]]) -> None:
    """Rectangles, as many as fit into `number`."""
    rows, columns = mask.shape
    for u in draws:
        left = number - int(mask.sum())
        if left <= 0:
            return
        area = min(least, left) + u[0] * (left - min(least, left))
        ratio = math.exp((2 * u[1] - 1) * math.log(1 / 0.3))
        height = min(rows, max(1, round(math.sqrt(area * ratio))))
        width = min(columns, max(1, round(math.sqrt(area / ratio))))
        top, start = int(u[2] * (rows - height + 1)), int(u[3] * (columns - width + 1))
        block = mask[top : top + height, start : start + width]
        if int((~block).sum()) <= left:
            block.fill_(True)
