"""Several students, crops or masked views, against the same teachers and prototypes, by tiles.

    L = sum_s sum_t H(q_t, softmax(l_s)) = sum_s [ (sum_t a_t) LSE(l_s) - sum_k (sum_t q_tk) l_sk ]

Targets of several teachers are summed before a student's pass; the tile of targets of some samples
serves all students while it is there. Neither targets nor logits exist beyond tiles and a bounded
cache of the students' d_logits.
"""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from .. import backend
from ._linear_cross_entropy import Products
from ._stats import Targets
from ._tiles import MIN_ROWS, product, product_dtype, row_slices


class Teachers:
    """Assignments of the same samples; each student's target is the sum over its teachers.

    Student s learns from every teacher t, but not from t = s where `skip_same`.
    """

    def __init__(self, targets: list[Targets], students: int, skip_same: bool, name: str):
        self.targets, self.skip_same, self.name = targets, skip_same, name
        self.sets = [
            tuple(t for t in range(len(targets)) if not (skip_same and t == s))
            for s in range(students)
        ]
        self.pairs = sum(map(len, self.sets))
        self.scores: Tensor | None = None  # of the only teacher, prototypes as rows, if at hand
        self._held: tuple[slice, list[Tensor]] | None = None

    def tile(self, rows: slice) -> list[Any]:
        """Each student's targets of some samples, as kernels take them: evaluated if shared."""
        if self.pairs == len(self.sets) == 1:
            return [self.targets[self.sets[0][0]].tile(rows)]
        sums: dict[tuple[int, ...], Tensor] = {(t,): self._dense(t, rows) for t in self._used()}
        for teachers in set(self.sets) - set(sums):
            parts = [sums[t,].to(product_dtype(sums[t,])) for t in teachers]
            sums[teachers] = sum(parts[1:], parts[0]) if parts else self._nothing(rows)
        return [
            SimpleNamespace(values=sums[teachers], scale=None, row=None, col=None)
            for teachers in self.sets
        ]

    def columns(self, rows: slice, dtype: torch.dtype) -> list[Tensor]:
        """Each student's targets of some samples, prototypes as rows: (K, r), contiguous.

        The last tile is held: where all samples fit, they are evaluated once a pass.
        """
        if self._held is None or self._held[0] != rows:
            single = {t: self._columns(t, rows).to(dtype) for t in self._used()}
            sums: dict[tuple[int, ...], Tensor] = {}
            for teachers in set(self.sets):
                parts = [single[t] for t in teachers]
                sums[teachers] = (
                    sum(parts[1:], parts[0]) if parts else self._no_columns(rows, dtype)
                )
            self._held = rows, [sums[teachers] for teachers in self.sets]
        return self._held[1]

    def _columns(self, t: int, rows: slice) -> Tensor:
        held = self.targets[t]
        if held.z is None or held.z.dtype not in (torch.float32, torch.float64):
            return self._dense(t, rows).t().contiguous()
        if self.scores is None:
            scores = torch.mm(held.prototypes, held.z[rows].t())
        else:
            scores = self.scores[:, rows].contiguous()
        row = held.row.new_zeros(len(scores)) if held.col is None else held.col
        kernels = backend.implementation(self.name, "sinkhorn")
        q = kernels.evaluate(scores, held.scale, row, held.row[rows])
        return q.div_(q.sum(0))  # potentials came from a product that may round otherwise

    def _used(self) -> list[int]:
        return sorted({t for teachers in self.sets for t in teachers})

    def _dense(self, t: int, rows: slice) -> Tensor:
        tile = self.targets[t].tile(rows)
        if tile.scale is None:
            return tile.values
        kernels = backend.implementation(self.name, "sinkhorn")
        return kernels.evaluate(tile.values, tile.scale, tile.row, tile.col)

    def _nothing(self, rows: slice) -> Tensor:
        like, columns = self._like()
        zeros = like.new_zeros((1, columns), dtype=product_dtype(like))
        return zeros.expand(rows.stop - rows.start, columns)

    def _no_columns(self, rows: slice, dtype: torch.dtype) -> Tensor:
        like, columns = self._like()
        return like.new_zeros((columns, rows.stop - rows.start), dtype=dtype)

    def _like(self) -> tuple[Tensor, int]:
        held = self.targets[0]
        if held.values is not None:
            return held.values, held.values.shape[1]
        return held.z, held.prototypes.shape[0]


class Crops:
    """The students' rows x (V M, D), view by view, and the prototypes weight (K, D)."""

    def __init__(self, x: Tensor, weight: Tensor, teachers: Teachers, inv_temperature: float):
        self.x, self.weight, self.teachers = x, weight, teachers
        self.inv_temperature = inv_temperature
        self.samples = x.shape[0] // len(teachers.sets)

    def gradients(
        self, factor: float, need_x: bool, need_weight: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """row_stats (4, V M), and (d_x, d_weight) of factor * sum of the rows' losses.

        One visit a tile. Adding to d_weight moves 2 K D numbers a tile: with 2 D rows, no more than
        the tile has.
        """
        kernels = backend.implementation(self.teachers.name, "cross_entropy")
        row_stats = self.x.new_empty((4, self.x.shape[0]), dtype=torch.float64)
        sums = Products(self.x, self.weight, need_x, need_weight, factor=factor, wide=True)
        for _, own, target in self._visits(0, max(MIN_ROWS, 2 * self.x.shape[1])):
            tile = product(self.x[own], self.weight)
            stats = kernels.forward(tile, self.inv_temperature, target, False, 1.0)[1]
            row_stats[:, own] = stats
            if need_x or need_weight:
                kernels.backward(tile, self.inv_temperature, target, stats, None, None, 1.0, tile)
                sums.add(own, tile)
        return row_stats, *sums.result()

    def forward(self, kept: int) -> tuple[Tensor, Tensor, Tensor]:
        """With a prior: row_stats (4, V M), log of the column sums of P, the kept tiles (kept, K).

        These are logits until `finish_kept` makes them d_logits for d_loss = 1.
        """
        kernels = backend.implementation(self.teachers.name, "prior")
        row_stats = self.x.new_empty((4, self.x.shape[0]), dtype=torch.float64)
        cache = self.x.new_empty((kept, self.weight.shape[0]), dtype=product_dtype(self.x))
        log_masses = []
        for slot, own, target in self._visits(kept):
            tile = product(self.x[own], self.weight, out=None if slot is None else cache[slot])
            row_stats[:, own], log_mass = kernels.forward(tile, self.inv_temperature, target)
            log_masses.append(log_mass)
        return row_stats, torch.logsumexp(torch.stack(log_masses), 0), cache

    def finish_kept(self, cache: Tensor, row_stats: Tensor, prior: Tensor) -> None:
        """Turn the kept logits into d_logits, now that the prior's gradient is known."""
        for slot, own, target in self._visits(cache.shape[0]):
            if slot is not None:
                self._d_logits(cache[slot], target, row_stats[:, own], prior)

    def backward(
        self, cache: Tensor, row_stats: Tensor, prior: Tensor, d_loss: Tensor, factor: float,
        need_x: bool, need_weight: bool,
    ) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
        """(d_x, d_weight) = factor * d_loss * (d_logits @ weight, d_logits.T @ x)."""
        sums = Products(self.x, self.weight, need_x, need_weight, d_loss=d_loss, factor=factor)
        for slot, own, target in self._visits(cache.shape[0]):
            tile = product(self.x[own], self.weight) if slot is None else cache[slot]
            if slot is None:
                self._d_logits(tile, target, row_stats[:, own], prior)
            sums.add(own, tile)
        return sums.result()

    def _d_logits(self, tile: Tensor, target: Any, row_stats: Tensor, prior: Tensor) -> None:
        kernels = backend.implementation(self.teachers.name, "prior")
        kernels.backward(tile, self.inv_temperature, target, row_stats, prior, None, 1.0, tile)

    def _visits(self, kept: int, least: int = MIN_ROWS) -> Any:
        """(rows in the cache or None, rows of x, target) of every tile, in a fixed order."""
        filled = 0
        for rows in row_slices(0, self.samples, self.weight.shape[0], least):
            targets = self.teachers.tile(rows)
            for view, target in enumerate(targets):
                own = slice(view * self.samples + rows.start, view * self.samples + rows.stop)
                count = rows.stop - rows.start
                slot = slice(filled, filled + count) if filled + count <= kept else None
                filled += count
                yield slot, own, target
