"""x @ weight.T by tiles of rows, so that no N x K matrix is stored beyond a bounded cache.

On a CPU a recomputed product costs what it saves, hence the cache: tiles stay in memory while they
take no more bytes than inputs and gradients do. On a GPU, D is small and recomputing is the faster.
"""

import functools
import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

# Bytes of a float32 tile: large enough for the product's full rate, small enough for the caches.
TILE_BYTES = 4 << 20
MIN_ROWS = 128
# Rows of a half-precision weight upcast at a time.
_UPCAST_ROWS = 4096


def product_dtype(x: Tensor) -> torch.dtype:
    """Products accumulate and stay in float32 (float64 for float64)."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def row_slices(first: int, last: int, columns: int, least: int = MIN_ROWS) -> list[slice]:
    """Equal slices of the rows first to last, each about TILE_BYTES of float32 columns."""
    size = max(least, TILE_BYTES // (4 * columns))
    if 0 < last - first <= size:
        return [slice(first, last)]
    count = -(-(last - first) // size)
    bounds = [first + (last - first) * i // count for i in range(count + 1)] if count else []
    return [slice(a, b) for a, b in itertools.pairwise(bounds)]


def is_one_tile(x: Tensor, weight: Tensor) -> bool:
    return len(row_slices(0, x.shape[0], weight.shape[0])) == 1


def product(x: Tensor, weight: Tensor, out: Tensor | None = None) -> Tensor:
    """x @ weight.T in `product_dtype`; half inputs are upcast by tile, never whole."""
    if x.dtype in (torch.float32, torch.float64):
        return torch.mm(x, weight.t(), out=out)
    if x.is_cuda:
        tile = torch.mm(x, weight.t(), out_dtype=torch.float32)
        return tile if out is None else out.copy_(tile)
    if out is None:
        out = x.new_empty((x.shape[0], weight.shape[0]), dtype=torch.float32)
    x = x.float()
    for first in range(0, weight.shape[0], _UPCAST_ROWS):
        last = first + _UPCAST_ROWS
        out[:, first:last] = x @ weight[first:last].float().t()
    return out


def times(tile: Tensor, weight: Tensor, number: float, g: Tensor | None, out: Tensor) -> None:
    """out = number * g * (tile @ weight), the tile in `product_dtype`; half weights by blocks."""
    if weight.dtype == tile.dtype:
        scaled_product(tile, weight, number, out)
        if g is not None:
            out *= g
        return
    blocks = range(0, weight.shape[0], _UPCAST_ROWS)
    parts = (tile[:, k : k + _UPCAST_ROWS] @ weight[k : k + _UPCAST_ROWS].float() for k in blocks)
    total = functools.reduce(Tensor.add_, parts)
    torch.mul(total, number if g is None else g * number, out=out)


def scaled_product(a: Tensor, b: Tensor, number: float, out: Tensor) -> None:
    """out = number * (a @ b); uninitialised memory will do."""
    if number == 1:  # a twentieth faster, where small
        torch.mm(a, b, out=out)
    else:
        torch.addmm(out, a, b, beta=0, alpha=number, out=out)


def part(matrix: Tensor, rows: slice) -> Tensor:
    """These rows; the matrix itself, with no view made, where they are all."""
    return matrix if rows == slice(0, matrix.shape[0]) else matrix[rows]


def joined(parts: list[Tensor], dim: int = 0) -> Tensor:
    """The rows of all tiles; no copy of one."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def is_no_larger(x: Tensor, weight: Tensor) -> bool:
    """Whether x @ weight.T takes no more bytes than its factors."""
    return 4 * x.shape[0] * weight.shape[0] <= nbytes(x, weight)


class Tiles:
    """Rows of x @ weight.T, tile by tile; the first `kept` rows stay in `cache`."""

    def __init__(self, x: Tensor, weight: Tensor, kept: int):
        self.x, self.weight = x, weight
        rows, columns = x.shape[0], weight.shape[0]
        self.cache = x.new_empty((kept, columns), dtype=product_dtype(x))
        # None straddles the end of the cache.
        self._slices = row_slices(0, kept, columns) + row_slices(kept, rows, columns)
        self._filled = 0

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        return ((rows, self[rows]) for rows in self._slices)

    def keeps(self, rows: slice) -> bool:
        return rows.stop <= self.cache.shape[0]

    def __getitem__(self, rows: slice) -> Tensor:
        if not self.keeps(rows):
            return product(part(self.x, rows), self.weight)
        tile = part(self.cache, rows)
        if rows.start >= self._filled:
            product(part(self.x, rows), self.weight, out=tile)
            self._filled = rows.stop
        return tile


def kept_rows(budget_bytes: int, x: Tensor, columns: int) -> int:
    """How many rows of a product x @ weight.T fit into the budget; none on a GPU."""
    if x.is_cuda:
        return 0
    return min(x.shape[0], budget_bytes // (columns * product_dtype(x).itemsize))


def nbytes(*tensors: Tensor) -> int:
    return sum([t.numel() * t.element_size() for t in tensors])
