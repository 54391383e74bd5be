"""Singular values and vectors of a batch on a CPU, from the eigenvalues of its smaller Gram.

A float32 Gram squares the condition number: what lies far under the largest singular value is lost
in rounding. So the float32 decomposition serves the large directions L, and the small ones S, if
there are any, are taken again from the batch itself:

    G = A^T A = V diag(lambda) V^T          A = X or X^T, whichever has fewer columns
    B = A V_S                               B^T B is decomposed relative to its own largest, float64

What float32 mixed into V_S from the large ones stays where it is small beside the smallest; else

    T = lambda_L^-1 V_L^T G V_S
    B = A (V_S - V_L T)                     float64

It costs what the float32 decomposition does where nothing is small, as in random batches; where
something is, singular values of 1e-9 of the largest, and their gradients, come out right.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from . import DTYPE_CODES, cpu, matrix, pointer

# lambda / lambda_max under which directions are taken again; error left: rounding / this.
_SMALL = {torch.float32: 1e-3, torch.float64: 1e-6}
# lambda / lambda_max from which T may stay: it moves vectors by rounding / sqrt(this).
_MIXED = {torch.float32: 1e-6, torch.float64: 1e-8}
_BLOCK_ROWS = 1024
# Traces of Grams whose float32 squares lose nothing; other batches are scaled first.
_TRACES = (1e-20, 1e30)

Reduce = Callable[[Tensor, str], Tensor]


class Spectrum:
    """The decomposition of X = `scale` * A or its transpose; `squares` are A's, float64 (r,)."""

    def __init__(self, x: Tensor, centred: bool, rows: int, reduce: Reduce):
        """x (N, D) float32 or float64; `rows` of all ranks, whose Grams of columns are added."""
        self.tall = rows > x.shape[1]
        self.a, self.a_t = (x, x.t()) if self.tall else (x.t(), x)
        self.finite, self.scale = True, 1.0
        self.stranger = 0.0  # a value of A's squares that stands for a 0
        gram = reduce(self.a_t @ self.a, "sum")
        trace = gram.trace().item()
        if not _TRACES[0] < trace < _TRACES[1]:
            gram, trace = self._scaled(gram, reduce)
        if centred and not self.tall and trace > 0:
            # Its rows sum to zero, an eigenvalue that meets nothing of X: moved among the large.
            self.stranger = cpu().lift(matrix(gram), trace)
        values, vectors = torch.linalg.eigh(gram)
        self.rows = vectors.t()  # of V^T, contiguous
        self.squares = torch.empty(len(values), dtype=torch.float64)
        self._largest = pointer(self.squares, len(values) - 1)
        self.small = self._take(values, _SMALL[x.dtype])
        if self.small:
            self._again(reduce)

    def _take(self, values: Tensor, ratio: float) -> int:
        """The first squares from eigenvalues; how many are under `ratio` of the largest."""
        return cpu().eigen_squares(
            values.data_ptr(), DTYPE_CODES[values.dtype], values.shape[0], self._largest, ratio,
            self.squares.data_ptr(),
        )  # fmt: skip

    def _scaled(self, gram: Tensor, reduce: Reduce) -> tuple[Tensor, float]:
        """Gram and trace of the batch divided by its largest entry."""
        largest = reduce(self.a.abs().max(), "max").item()
        self.finite = largest < float("inf")
        if not self.finite or largest == 0:
            return torch.zeros_like(gram), 0.0
        self.scale = largest
        self.a = self.a / largest
        self.a_t = self.a.t()
        gram = reduce(self.a_t @ self.a, "sum")
        return gram, gram.trace().item()

    def _again(self, reduce: Reduce) -> None:
        """The small squares, and what `combine` needs of their vectors."""
        v, ratio = self.rows[: self.small], _MIXED[self.a.dtype]
        # Vectors, and B's columns, are rows here: as columns the library takes up to 6 x as long.
        mixed = self._take(self.squares, ratio) > 0
        if not mixed:
            b = (v @ self.a_t).double()
            mixed = self._take(self._decomposed(b, reduce), ratio) > 0
        if mixed:
            wide = v.double()
            b = _product(wide, self.a_t)
            shift = self._mixed(b, reduce)
            v, b = (wide - shift).to(v.dtype), b - shift @ self.a_t
            self._take(self._decomposed(b, reduce), ratio)
        self._v, self._b = v, b

    def _decomposed(self, b: Tensor, reduce: Reduce) -> Tensor:
        """Eigenvalues of B^T B; their vectors stay."""
        values, self._rotation = torch.linalg.eigh(reduce(b @ b.t(), "sum"))
        return values

    def _mixed(self, b: Tensor, reduce: Reduce) -> Tensor:
        """(V_L T)^T."""
        a, large, squares = self.a, self.rows[self.small :], self.squares[self.small :]
        mixed = reduce(b.to(a.dtype) @ a, "sum") @ large.t()
        return (mixed / squares.to(a.dtype)) @ large

    def combine(self, weight: Tensor, row: Tensor | None) -> Tensor:
        """sum_i weight_i s_i u_i v_i^T + row, (N, D) in X's type; weights times `scale`."""
        a, k = self.a, self.small
        large = self.rows[k:] if k else self.rows
        weighed = torch.empty_like(large)
        cpu().weigh_rows(matrix(large), pointer(weight, k), weighed.data_ptr())
        root = weighed.t() @ large
        left, right = (a, root) if self.tall else (root, self.a_t)
        out = left @ right if row is None else torch.addmm(row, left, right)
        if k:
            # One root of both would leave no digit of the small ones.
            root = (self._rotation * weight[:k]) @ self._rotation.t()
            b = (root @ self._b).to(a.dtype)
            left, right = (b, self._v) if self.tall else (self._v, b)
            out.addmm_(left.t(), right)
        return out


def _product(v: Tensor, a_t: Tensor) -> Tensor:
    """v @ a_t in float64; A is upcast by blocks of its rows."""
    if a_t.dtype == v.dtype:
        return v @ a_t
    return torch.cat([v @ block.double() for block in a_t.split(_BLOCK_ROWS, 1)], 1)
