"""`Crops` on a CPU: tiles of weight @ x.T, a quarter faster to form than those of x @ weight.T.

Several views of the same samples share a tile where they fit, and the tile of targets always.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .. import backend
from ._crops import Crops, Teachers

_TILE_BYTES = 8 << 20  # of float32: measured, K 1024 to 8142
_COLUMNS = 64, 352  # fewest and most rows of x in a tile

# Nats: P >= exp(-2 NARROW) / K then, so that float32 holds column sums of P and their inverses.
NARROW = 30.0


class ColumnCrops(Crops):
    """As `Crops`, for float32 and float64; a prior demands |logits| <= NARROW nats."""

    def __init__(self, x, weight, teachers: Teachers, inv_temperature: float):
        super().__init__(x, weight, teachers, inv_temperature)
        self.kernels = backend.implementation(teachers.name, "crops")
        columns = weight.shape[0]
        size = _TILE_BYTES // (4 * columns) // 16 * 16
        size = min(max(size, _COLUMNS[0]), _COLUMNS[1])
        self.rows = _equal(self.samples, size)
        self.views = _equal(len(teachers.sets), max(1, size // self.samples))
        self.largest = max(r.stop - r.start for r in self.rows) * max(
            v.stop - v.start for v in self.views
        )

    def forward(self, with_prior: bool, kept: int) -> tuple[Tensor, Tensor | None, Tensor]:
        columns = self.weight.shape[0]
        row_stats = self._stats(self.x.new_empty((4, self.x.shape[0]), dtype=torch.float64))
        cache = self.kernels.workspace(self.x, kept, columns)
        scratch = self._scratch(kept)
        mass = self.x.new_zeros(columns, dtype=torch.float64) if with_prior else None
        for rows, views, slot in self._tiles(kept):
            tile = self._place(cache if slot is not None else scratch, slot, rows, views)
            stats, targets = row_stats[:, views, rows], self._targets(rows)[views]
            torch.mm(self.weight, self._students(rows, views).t(), out=tile)
            self.kernels.forward(tile, targets, self.inv_temperature, stats, mass)
            if slot is not None and not with_prior:
                self.kernels.backward(tile, targets, self.inv_temperature, True, stats, None)
        log_mass = None if mass is None else mass.log()
        return row_stats.view(4, -1), log_mass, cache

    def finish_kept(self, cache: Tensor, row_stats: Tensor, prior: Tensor) -> None:
        stats = self._stats(row_stats)
        for rows, views, slot in self._tiles(cache.shape[0]):
            if slot is not None:
                tile = self._place(cache, slot, rows, views)
                self.kernels.backward(
                    tile, self._targets(rows)[views], self.inv_temperature, True,
                    stats[:, views, rows], prior,
                )  # fmt: skip

    def backward(
        self, cache: Tensor, row_stats: Tensor, prior: Tensor | None, d_loss: Tensor, factor: float,
        need_x: bool, need_weight: bool,
    ) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
        number = float(d_loss) * factor * self.inv_temperature
        stats, scratch = self._stats(row_stats), self._scratch(cache.shape[0])
        d_x = torch.empty_like(self.x) if need_x else None
        d_weight = torch.empty_like(self.weight) if need_weight else None
        beta = 0  # the first tile finds uninitialised memory
        for rows, views, slot in self._tiles(cache.shape[0]):
            tile = self._place(cache if slot is not None else scratch, slot, rows, views)
            students = self._students(rows, views)
            if slot is None:
                torch.mm(self.weight, students.t(), out=tile)
                self.kernels.backward(
                    tile, self._targets(rows)[views], self.inv_temperature, False,
                    stats[:, views, rows], prior,
                )  # fmt: skip
            if d_x is not None:
                out = self._students(rows, views, d_x)
                torch.addmm(out, tile.t(), self.weight, beta=0, alpha=number, out=out)
            if d_weight is not None:
                d_weight.addmm_(tile, students, beta=beta, alpha=number)
            beta = 1
        return d_x, d_weight

    def _tiles(self, kept: int) -> Iterator[tuple[slice, slice, int | None]]:
        """Samples and views of every tile, and the first row of the cache that it takes, if any."""
        filled = 0
        for rows, views in itertools.product(self.rows, self.views):
            count = (rows.stop - rows.start) * (views.stop - views.start)
            yield rows, views, filled if filled + count <= kept else None
            filled += count

    def _place(self, memory: Tensor, first: int | None, rows: slice, views: slice) -> Tensor:
        """(K, V r), contiguous, inside the memory's rows from `first` on."""
        count = (rows.stop - rows.start) * (views.stop - views.start)
        first = first or 0
        return memory[first : first + count].view(self.weight.shape[0], count)

    def _scratch(self, kept: int) -> Tensor:
        rows = self.largest if kept < self.x.shape[0] else 0
        return self.kernels.workspace(self.x, rows, self.weight.shape[0])

    def _students(self, rows: slice, views: slice, of: Tensor | None = None) -> Tensor:
        """Their rows of x: one view, or whole views."""
        first = views.start * self.samples + rows.start
        last = (views.stop - 1) * self.samples + rows.stop
        return (self.x if of is None else of)[first:last]

    def _stats(self, row_stats: Tensor) -> Tensor:
        return row_stats.view(4, len(self.teachers.sets), self.samples)

    def _targets(self, rows: slice) -> list[Tensor]:
        return self.teachers.columns(rows, self.x.dtype)


def _equal(count: int, size: int) -> list[slice]:
    """`count` things in as few slices of at most `size` as there can be, of like length."""
    parts = -(-count // size)
    bounds: Any = [count * i // parts for i in range(parts + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(bounds)]
