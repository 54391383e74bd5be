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
        self.a = x if self.tall else x.t()
        self.finite, self.scale = True, 1.0
        self.stranger = 0.0  # a value of A's squares that stands for a 0
        gram = reduce(self.a.t() @ self.a, "sum")
        trace = gram.trace().item()
        if not _TRACES[0] < trace < _TRACES[1]:
            gram, trace = self._scaled(gram, reduce)
        if centred and not self.tall and trace > 0:
            gram = self._lift(gram, trace)
        values, self.vectors = torch.linalg.eigh(gram)
        self.squares = values.double().clamp_(min=0)
        self.small = 0
        limit = _SMALL[x.dtype] * self.squares[-1].item()
        if self.squares[0].item() < limit:
            self.small = int((self.squares < limit).sum())
            self.squares[: self.small] = self._again(reduce)

    def _scaled(self, gram: Tensor, reduce: Reduce) -> tuple[Tensor, float]:
        """Gram and trace of the batch divided by its largest entry."""
        largest = reduce(self.a.abs().max(), "max").item()
        self.finite = largest < float("inf")
        if not self.finite or largest == 0:
            return torch.zeros_like(gram), 0.0
        self.scale = largest
        self.a = self.a / largest
        gram = reduce(self.a.t() @ self.a, "sum")
        return gram, gram.trace().item()

    def _lift(self, gram: Tensor, trace: float) -> Tensor:
        """The rows of a centred batch sum to zero: that eigenvalue is moved among the large ones.

        It meets nothing of X, so that its weight does not count.
        """
        self.stranger = gram.square().sum().item() / trace  # the eigenvalues' mean, by size
        return gram + self.stranger / gram.shape[0]

    def _again(self, reduce: Reduce) -> Tensor:
        """The small squares, and in `_v`, `_b` what `combine` needs of their vectors."""
        a, v = self.a, self.vectors[:, : self.small]
        b, wide = (a @ v).double(), v.double()
        squares, rotation = _rotation(wide, b, reduce)
        if squares[0].item() < _MIXED[a.dtype] * self.squares[-1].item():
            b = _product(a, wide)
            shift = self._mixed(b, reduce)
            b, wide = b - a @ shift, wide - shift
            squares, rotation = _rotation(wide, b, reduce)
        self._v, self._b = wide @ rotation, b @ rotation
        return squares.clamp(min=0)

    def _mixed(self, b: Tensor, reduce: Reduce) -> Tensor:
        """V_L T."""
        a, large, squares = self.a, self.vectors[:, self.small :], self.squares[self.small :, None]
        mixed = large.t() @ reduce(a.t() @ b.to(a.dtype), "sum")
        return large @ (mixed / squares.to(a.dtype))

    def combine(self, weight: Tensor, row: Tensor | None) -> Tensor:
        """sum_i weight_i s_i u_i v_i^T + row, (N, D) in X's type; weights as the squares stand."""
        a, k = self.a, self.small
        v, weight = self.vectors[:, k:], weight * self.scale
        root = (v * weight[k:].to(v.dtype)) @ v.t()
        if self.tall:
            out = a @ root if row is None else torch.addmm(row, a, root)
        else:
            out = root @ a.t() if row is None else torch.addmm(row, root, a.t())
        if k:
            # One root of both would leave no digit of the small ones.
            left, right = (self._b * weight[:k]).to(a.dtype), self._v.to(a.dtype)
            left, right = (left, right) if self.tall else (right, left)
            out.addmm_(left, right.t())
        return out


def _rotation(v: Tensor, b: Tensor, reduce: Reduce) -> tuple[Tensor, Tensor]:
    """Squares of b = A v, and what turns v into their vectors, orthonormal; float64."""
    # float32 vectors are orthonormal to 1e-6: one step towards orthonormal leaves 1e-12.
    straight = 1.5 * torch.eye(v.shape[1], dtype=v.dtype) - 0.5 * (v.t() @ v)
    squares, rotation = torch.linalg.eigh(straight @ reduce(b.t() @ b, "sum") @ straight)
    return squares, straight @ rotation


def _product(a: Tensor, v: Tensor) -> Tensor:
    """a @ v in float64; a is upcast by blocks."""
    v = v.contiguous()  # else the library's product of two transposed operands: 10 x
    if a.dtype == v.dtype:
        return a @ v
    return torch.cat([block.double() @ v for block in a.split(_BLOCK_ROWS)])
