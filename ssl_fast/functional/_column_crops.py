"""`Crops` on a CPU: tiles of weight @ x.T, a quarter faster to form than those of x @ weight.T.

Several views of the same samples share a tile where they fit, and the tile of targets always.
"""

import functools
import itertools

import torch
from torch import Tensor

from .. import backend
from ._crops import Crops, Teachers
from ._tiles import TILE_BYTES

_COLUMNS = 64, 352  # fewest and most rows of x in a tile
_KEPT_COLUMNS = 768  # most in a tile that is kept: wider products are faster

# Nats: P >= exp(-2 NARROW) / K then, so that float32 holds column sums of P and their inverses.
NARROW = 30.0


class ColumnCrops(Crops):
    """As `Crops`, for float32 and float64; a prior demands |logits| <= NARROW nats."""

    def __init__(self, x, weight, teachers: Teachers, inv_temperature: float):
        super().__init__(x, weight, teachers, inv_temperature)
        self.kernels = backend.implementation(teachers.name, "crops")

    def gradients(
        self, factor: float, need_x: bool, need_weight: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        row_stats, scratch = self._new_stats(), self._scratch(0)
        sums = _Sums(self, factor * self.inv_temperature, need_x, need_weight)
        for rows, views, _ in self._tiles(0):
            tile, stats = self._place(scratch, None, rows, views), row_stats[:, views, rows]
            targets = self._targets(rows)[views]
            torch.mm(self.weight, self.students(rows, views).t(), out=tile)
            self.kernels.forward(tile, targets, self.inv_temperature, stats, None)
            if need_x or need_weight:
                self.kernels.backward(tile, targets, self.inv_temperature, True, stats, None)
                sums.add(rows, views, tile)
        return row_stats.view(4, -1), sums.d_x, sums.d_weight

    def forward(self, kept: int) -> tuple[Tensor, Tensor, Tensor]:
        columns = self.weight.shape[0]
        cache, scratch = self.kernels.workspace(self.x, kept, columns), self._scratch(kept)
        row_stats, mass = self._new_stats(), self.x.new_zeros(columns, dtype=torch.float64)
        for rows, views, slot in self._tiles(kept):
            tile = self._place(scratch if slot is None else cache, slot, rows, views)
            torch.mm(self.weight, self.students(rows, views).t(), out=tile)
            self.kernels.forward(
                tile, self._targets(rows)[views], self.inv_temperature, row_stats[:, views, rows],
                mass,
            )  # fmt: skip
        return row_stats.view(4, -1), mass.log(), cache

    def finish_kept(self, cache: Tensor, row_stats: Tensor, prior: Tensor) -> None:
        for rows, views, slot in self._tiles(cache.shape[0]):
            if slot is not None:
                tile = self._place(cache, slot, rows, views)
                self._d_columns(tile, rows, views, True, row_stats, prior)

    def backward(
        self, cache: Tensor, row_stats: Tensor, prior: Tensor, d_loss: Tensor, factor: float,
        need_x: bool, need_weight: bool,
    ) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
        number = float(d_loss) * factor * self.inv_temperature
        sums = _Sums(self, number, need_x, need_weight)
        scratch = self._scratch(cache.shape[0])
        for rows, views, slot in self._tiles(cache.shape[0]):
            tile = self._place(scratch if slot is None else cache, slot, rows, views)
            if slot is None:
                torch.mm(self.weight, self.students(rows, views).t(), out=tile)
                self._d_columns(tile, rows, views, False, row_stats, prior)
            sums.add(rows, views, tile)
        return sums.d_x, sums.d_weight

    def _d_columns(self, tile, rows, views, has_exp, row_stats, prior) -> None:
        """Turn a tile into d_logits / inv_temperature."""
        stats = row_stats.view(4, len(self.teachers.sets), self.samples)[:, views, rows]
        targets = self._targets(rows)[views]
        self.kernels.backward(tile, targets, self.inv_temperature, has_exp, stats, prior)

    def _tiles(self, kept: int) -> tuple[tuple[slice, slice, int | None], ...]:
        return _tiles(self.samples, len(self.teachers.sets), self.weight.shape[0], kept)

    def _place(self, memory: Tensor, first: int | None, rows: slice, views: slice) -> Tensor:
        """(K, V r), contiguous, inside the memory's rows from `first` on."""
        count = (rows.stop - rows.start) * (views.stop - views.start)
        first = first or 0
        return memory[first : first + count].view(self.weight.shape[0], count)

    def _scratch(self, kept: int) -> Tensor:
        tiles = [(r, v) for r, v, slot in self._tiles(kept) if slot is None]
        rows = max(((r.stop - r.start) * (v.stop - v.start) for r, v in tiles), default=0)
        return self.kernels.workspace(self.x, rows, self.weight.shape[0])

    def students(self, rows: slice, views: slice, of: Tensor | None = None) -> Tensor:
        """Their rows of x: one view, or whole views."""
        first = views.start * self.samples + rows.start
        last = (views.stop - 1) * self.samples + rows.stop
        return (self.x if of is None else of)[first:last]

    def _new_stats(self) -> Tensor:
        return self.x.new_empty((4, len(self.teachers.sets), self.samples), dtype=torch.float64)

    def _targets(self, rows: slice) -> list[Tensor]:
        return self.teachers.columns(rows, self.x.dtype)


class _Sums:
    """d_x = number * tile.T @ weight and d_weight = number * tile @ x, over tiles."""

    def __init__(self, crops: ColumnCrops, number: float, need_x: bool, need_weight: bool):
        self.crops, self.number = crops, number
        self.d_x = torch.empty_like(crops.x) if need_x else None
        self.d_weight = torch.empty_like(crops.weight) if need_weight else None
        self.beta = 0  # the first tile finds uninitialised memory

    def add(self, rows: slice, views: slice, tile: Tensor) -> None:
        crops, number = self.crops, self.number
        if self.d_x is not None:
            out = crops.students(rows, views, self.d_x)
            torch.addmm(out, tile.t(), crops.weight, beta=0, alpha=number, out=out)
        if self.d_weight is not None:
            students = crops.students(rows, views)
            self.d_weight.addmm_(tile, students, beta=self.beta, alpha=number)
        self.beta = 1


@functools.lru_cache
def _tiles(
    samples: int, views: int, columns: int, kept: int
) -> tuple[tuple[slice, slice, int | None], ...]:
    """Samples and views of every tile, and the first row of the cache that it takes, if any."""
    size = TILE_BYTES // (4 * columns) // 16 * 16
    size = min(max(size, _COLUMNS[0]), _COLUMNS[1])
    stay = min(views, kept // samples) if samples <= size else 0
    groups = [
        *_equal(0, stay, max(1, _KEPT_COLUMNS // samples)),
        *_equal(stay, views, max(1, size // samples)),
    ]
    tiles: list[tuple[slice, slice, int | None]] = []
    filled = 0
    for rows, group in itertools.product(_equal(0, samples, size), groups):
        held = (rows.stop - rows.start) * (group.stop - group.start)
        tiles.append((rows, group, filled if filled + held <= kept else None))
        filled += held
    return tuple(tiles)


def _equal(first: int, last: int, size: int) -> list[slice]:
    """`first` to `last` in as few slices of at most `size` as there can be, of like length."""
    count = last - first
    parts = -(-count // size)
    bounds = [first + count * i // parts for i in range(parts + 1)] if parts else []
    return [slice(a, b) for a, b in itertools.pairwise(bounds)]
