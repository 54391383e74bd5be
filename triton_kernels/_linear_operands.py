"""What `_linear_cross_entropy.py` has its kernels read: rows of both sides, targets of a tile."""

import triton
import triton.language as tl
from torch import Tensor

from ._common import assignment, choose, factored_assignment, stride_of
from ._products import dot, input_precision, load_rows, padded, product


class Problem:
    """The operands as a kernel sees them: rows that programs own, against all other rows."""

    def __init__(self, x: Tensor, weight: Tensor, targets):
        self.own, self.other = x, weight
        self.values, self.scale = targets.values, targets.scale or 0.0
        self.potentials = (targets.row, targets.col)
        self.factors = (None, None)
        self.strides = (0, 0)
        if self.values is None:
            self.factors = (targets.z, targets.prototypes)
        else:
            self.strides = self.values.stride()

    def transposed(self) -> "Problem":
        self.own, self.other = self.other, self.own
        self.potentials, self.factors = self.potentials[::-1], self.factors[::-1]
        self.strides = self.strides[::-1]
        return self

    def operands(self) -> list:
        z, prototypes = self.factors
        return [
            self.own, self.own.stride(0), self.other, self.other.stride(0),
            z, stride_of(z),
            prototypes, stride_of(prototypes),
            self.values, *self.strides, self.scale, *self.potentials,
            self.own.shape[0], self.other.shape[0], *self.widths(),
        ]  # fmt: skip

    def widths(self) -> tuple[int, int]:
        """D and H, the widths of x and z; H = 0 when values are given."""
        z = self.factors[0]
        return self.own.shape[1], 0 if z is None else z.shape[1]

    def settings(self, table: dict[int, tuple]) -> tuple:
        """(rows, columns, width or None, warps, stages) of a tile."""
        tensors = [self.own, *(z for z in self.factors[:1] if z is not None)]
        itemsize = max(t.element_size() for t in tensors)
        return choose(table[itemsize], itemsize * sum(padded(t.shape[1]) for t in tensors))

    def tile(self, rows: int, columns: int, width: int | None) -> dict:
        """The compile-time arguments that both kernels share."""
        width_x, width_z = self.widths()
        return {
            "ROWS": rows,
            "COLUMNS": columns,
            "WIDTH": width or padded(width_x),
            "WIDTH_Z": width or padded(width_z),
            "WHOLE": width is None,
            "PRECISION": input_precision(),
        }


@triton.jit
def target_tile(
    z_tile,  # (R, H), z[rows]; None where it is read by slices
    z,  # (N, H), or None
    z_stride,
    prototypes,  # (K, H), or None
    prototypes_stride,
    values,  # (N, K), or None
    values_stride_row,
    values_stride_col,
    scale,
    row,  # (N,) float64, or None
    col,  # (K,) float64, or None
    rows,  # (R,) indices
    cols,  # (C,) indices
    N,
    K,
    H,
    first_row,
    first_col,
    WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """q (R, C) float32, 0 outside."""
    if z is None:
        q = assignment(
            values, values_stride_row, values_stride_col, scale, row, col, rows, cols, N, K,
            first_row, first_col,
        )  # fmt: skip
    else:
        if z_tile is None:
            scores = product(
                z, z_stride, rows, N, prototypes, prototypes_stride, cols, K, H, WIDTH, PRECISION
            )
        else:
            prototypes_tile = load_rows(prototypes, prototypes_stride, cols, K, 0, H, WIDTH)
            scores = dot(z_tile, tl.trans(prototypes_tile), None, PRECISION)
        q = factored_assignment(scores, scale, row, col, rows, cols, N, K, first_row)
    return q
