"""Entropic transport between clouds of points, many pairs of clouds a launch.

    f_i = -eps log 1/m sum_j exp((g_j - C_ij) / eps),   C_ij = |x_i - y_j|^p

A program owns a block of points of one cloud of one pair and visits the other cloud, at a running
maximum. Costs are formed from differences, coordinate by coordinate: no tensor cores, but identical
points are at distance 0. Not stored: any n x m. Operations of a launch: n m (3 D + 2 exponentials
or roots) a pair. Steps are launches; their number is fixed, nothing waits for the host.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._common import LOG2_E, cdiv, launch
from ._statistics import LOWEST

DESCENT = 10
ROWS, COLUMNS = 64, 64  # of a tile of costs                                    unmeasured
# Of the gradient: rows and columns, and coordinates that one program sums       unmeasured
OWN, OTHER, WIDTH = 16, 32, 8


def distance(
    x: Tensor, y: Tensor, epsilon: float, p: int, iterations: int, tolerance: float
) -> tuple[Tensor, Tensor]:
    """As `reference.transport.distance`, in float32; all iterations run."""
    problem = _two_clouds(x, y, epsilon, p)
    potentials, means = problem.solve(iterations)
    return means[: x.shape[0]].double().mean(), torch.stack([potentials, means])


def distance_backward(
    x: Tensor, y: Tensor, state: Tensor, epsilon: float, p: int, iterations: int, tolerance: float,
    d_value: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """As `reference.transport.distance_backward`."""
    problem = _two_clouds(x, y, epsilon, p)
    potentials, means = state[0], state[1].clone()
    problem.adjoint(potentials, means, iterations)
    gradient = problem.gradient(potentials, means) * d_value.float()
    d_x, d_y = gradient.split([x.shape[0], y.shape[0]])
    return d_x.to(x.dtype), d_y.to(y.dtype)


def distances(
    points: Tensor, starts: Tensor, pairs: Tensor, epsilon: float, p: int, iterations: int,
    tolerance: float,
) -> Tensor:  # fmt: skip
    """As `reference.transport.distances`. The sizes of clouds are read once."""
    sizes = starts.diff()[pairs]  # (Q, 2)
    ends = sizes.flatten().cumsum(0)
    offsets = (ends - sizes.flatten()).view_as(pairs)
    total, longest = torch.stack([ends[-1], sizes.max()]).tolist()
    problem = _Problem(points, starts, pairs, offsets, total, longest, epsilon, p)
    _, means = problem.solve(iterations)
    owner = torch.arange(2 * len(pairs), device=points.device).repeat_interleave(sizes.flatten())
    sums = means.new_zeros(2 * len(pairs), dtype=torch.float64)
    sums.index_add_(0, owner, means.double())
    return sums[::2] / sizes[:, 0]


class _Problem:
    """Pairs of clouds; potentials and means of all pairs lie in flat tensors, at `offsets`."""

    def __init__(self, points: Tensor, starts: Tensor, pairs: Tensor, offsets: Tensor, total: int,
                 longest: int, epsilon: float, p: int):  # fmt: skip
        self.points = points.float().contiguous()
        self.clouds = starts, pairs, offsets
        self.total, self.longest = total, longest
        self.epsilon, self.p = epsilon, p

    def solve(self, iterations: int) -> tuple[Tensor, Tensor]:
        """Potentials, and means (row means of the first clouds, zeros of the second)."""
        potentials = torch.zeros(self.total, dtype=torch.float32, device=self.points.device)
        means = torch.zeros_like(potentials)
        for k in range(-DESCENT, iterations):
            epsilon = self.epsilon * 2 ** max(0, -k)
            self._step(0, potentials, None, potentials, epsilon)
            self._step(1, potentials, None, potentials, epsilon)
        self._step(0, potentials, None, potentials, self.epsilon)
        self._step(0, potentials, means, means, self.epsilon)
        return potentials, means

    def adjoint(self, potentials: Tensor, means: Tensor, iterations: int) -> None:
        """`means` become u and v."""
        for _ in range(iterations):
            self._step(1, potentials, means, means, self.epsilon)
            self._step(0, potentials, means, means, self.epsilon)

    def gradient(self, potentials: Tensor, means: Tensor) -> Tensor:
        """(points, D) float32, of the sum of all pairs' distances, for pairs of two clouds."""
        d_points = torch.empty_like(self.points)
        d = self.points.shape[1]
        for side in (0, 1):
            launch(
                _gradient_kernel, (cdiv(self.longest, OWN), cdiv(d, WIDTH)), self.points,
                self.points, d, *self.clouds, potentials, means, d_points, self.epsilon,
                SIDE=side, P=self.p, ROWS=OWN, COLUMNS=OTHER, WIDTH=WIDTH, num_warps=4,
            )  # fmt: skip
        return d_points

    def _step(
        self, side: int, potentials: Tensor, means: Tensor | None, out: Tensor, epsilon: float
    ) -> None:
        launch(
            _step_kernel, (cdiv(self.longest, ROWS), self.clouds[1].shape[0]), self.points,
            self.points, self.points.shape[1], *self.clouds, potentials, means, out, epsilon,
            SIDE=side, P=self.p, ROWS=ROWS, COLUMNS=COLUMNS, num_warps=4,
        )  # fmt: skip


def _two_clouds(x: Tensor, y: Tensor, epsilon: float, p: int) -> _Problem:
    n, m = x.shape[0], y.shape[0]
    starts = torch.tensor([0, n, n + m], device=x.device)
    pairs = torch.tensor([[0, 1]], device=x.device)
    points = torch.cat([x.float(), y.float()])
    return _Problem(points, starts, pairs, starts[None, :2].contiguous(), n + m, max(n, m),
                    epsilon, p)  # fmt: skip


@triton.jit
def _cloud(starts, pairs, offsets, pair, SIDE: tl.constexpr):
    """First point, number of points, and place among the potentials, of one side of a pair."""
    cloud = tl.load(pairs + pair * 2 + SIDE)
    first = tl.load(starts + cloud)
    return first, tl.load(starts + cloud + 1) - first, tl.load(offsets + pair * 2 + SIDE)


@triton.jit
def _costs(points, D, rows, cols, valid_rows, valid_cols, P: tl.constexpr):
    """|x_i - y_j|^P (R, C) of points `rows` and `cols`."""
    square = tl.zeros((rows.shape[0], cols.shape[0]), tl.float32)
    for k in range(0, D):
        x = tl.load(points + rows * D + k, mask=valid_rows, other=0.0)
        y = tl.load(points + cols * D + k, mask=valid_cols, other=0.0)
        away = x[:, None] - y[None, :]
        square += away * away
    if P == 1:
        square = tl.sqrt(square)
    return square


@triton.jit
def _step_kernel(
    points,  # (T, D) float32
    D,
    starts,  # (G + 1,) int64
    pairs,  # (Q, 2) int64
    offsets,  # (Q, 2) int64
    potentials,  # (S,) float32
    means,  # (S,) float32, or None: then `out` gets potentials, else conditional means
    out,  # (S,) float32
    epsilon,
    SIDE: tl.constexpr,
    P: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    pair = tl.program_id(1).to(tl.int64)
    first, n, place = _cloud(starts, pairs, offsets, pair, SIDE)
    other_first, m, other_place = _cloud(starts, pairs, offsets, pair, 1 - SIDE)
    begin = tl.program_id(0).to(tl.int64) * ROWS
    rows = begin + tl.arange(0, ROWS)
    scale = LOG2_E / epsilon
    top = tl.full((ROWS,), LOWEST, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    weighted = tl.zeros((ROWS,), tl.float32)
    for start in range(0, tl.where(begin < n, m, 0), COLUMNS):
        cols = start + tl.arange(0, COLUMNS).to(tl.int64)
        valid = (cols < m)[None, :] & (rows < n)[:, None]
        costs = _costs(points, D, first + rows, other_first + cols, rows < n, cols < m, P)
        g = tl.load(potentials + other_place + cols, mask=cols < m, other=0.0)
        z = tl.where(valid, g[None, :] - costs, LOWEST)
        higher = tl.maximum(top, tl.max(z, 1))
        shrink = tl.exp2(tl.maximum((top - higher) * scale, -1000.0))
        e = tl.where(valid, tl.exp2(tl.where(valid, z - higher[:, None], 0.0) * scale), 0.0)
        total = total * shrink + tl.sum(e, 1)
        top = higher
        if means is not None:
            v = tl.load(means + other_place + cols, mask=cols < m, other=0.0)
            weighted = weighted * shrink + tl.sum(e * (costs - v[None, :]), 1)
    total = tl.where(rows < n, total, 1.0)
    if means is None:
        value = -(top + epsilon * (tl.log(total) - tl.log(m.to(tl.float32))))
    else:
        value = weighted / total
    tl.store(out + place + rows, value, mask=rows < n)


@triton.jit
def _gradient_kernel(
    points,  # (T, D) float32
    D,
    starts,  # (3,) int64
    pairs,  # (1, 2) int64
    offsets,  # (1, 2) int64
    potentials,  # (S,) float32
    means,  # (S,) float32: u and v
    d_points,  # (T, D) float32, out
    epsilon,
    SIDE: tl.constexpr,
    P: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """sum_j P_ij (1 + (u_i + v_j - C_ij) / eps) dC_ij/dx_i, P_ij from both potentials."""
    first, n, place = _cloud(starts, pairs, offsets, 0, SIDE)
    other_first, m, other_place = _cloud(starts, pairs, offsets, 0, 1 - SIDE)
    begin = tl.program_id(0).to(tl.int64) * ROWS
    rows = begin + tl.arange(0, ROWS)
    coords = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    f = tl.load(potentials + place + rows, mask=rows < n, other=0.0)
    u = tl.load(means + place + rows, mask=rows < n, other=0.0)
    own_mask = (rows < n)[:, None] & (coords < D)[None, :]
    own = tl.load(points + (first + rows)[:, None] * D + coords[None, :], mask=own_mask, other=0.0)
    scale = LOG2_E / epsilon
    d_own = tl.zeros((ROWS, WIDTH), tl.float32)
    for start in range(0, tl.where(begin < n, m, 0), COLUMNS):
        cols = start + tl.arange(0, COLUMNS).to(tl.int64)
        valid = (cols < m)[None, :] & (rows < n)[:, None]
        costs = _costs(points, D, first + rows, other_first + cols, rows < n, cols < m, P)
        g = tl.load(potentials + other_place + cols, mask=cols < m, other=0.0)
        v = tl.load(means + other_place + cols, mask=cols < m, other=0.0)
        w = tl.exp2(tl.where(valid, f[:, None] + g[None, :] - costs, LOWEST) * scale)
        w *= 1.0 + (u[:, None] + v[None, :] - costs) / epsilon
        if P == 1:
            w = tl.where(costs > 0.0, w / tl.where(costs > 0.0, costs, 1.0), 0.0)
        else:
            w *= 2.0
        w = tl.where(valid, w, 0.0)
        mask = (cols < m)[:, None] & (coords < D)[None, :]
        other = tl.load(
            points + (other_first + cols)[:, None] * D + coords[None, :], mask=mask, other=0.0
        )
        d_own += tl.sum(w[:, :, None] * (own[:, None, :] - other[None, :, :]), 1)
    d_own /= n.to(tl.float32) * m.to(tl.float32)
    tl.store(d_points + (first + rows)[:, None] * D + coords[None, :], d_own, mask=own_mask)
