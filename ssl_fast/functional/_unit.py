"""Rows of unit norm inside operators, with the gradient through the normalisation."""

import torch
from torch import Tensor

from .. import backend
from ._tiles import product_dtype

_TINY = 1e-12  # of torch.nn.functional.normalize


class UnitRows:
    """x / max(|x|, 1e-12) by rows, in float32 or better."""

    def __init__(self, x: Tensor, name: str = "reference"):
        self.kernels = None
        if name == "native" and not x.is_cuda:
            self.kernels = backend.implementation(name, "unit")
        self.dtype = x.dtype
        if self.kernels is not None:
            self.rows, self.norm = self.kernels.forward(x)
            return
        wide = x.to(product_dtype(x))
        self.norm = torch.linalg.vector_norm(wide, dim=1, keepdim=True)
        self.rows = wide / self.norm.clamp_min(_TINY)

    def backward(self, d_rows: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """d_x = (d - (d . u) u) / |x|, into d_rows where it fits; that of a zero row is zero."""
        dtype = dtype or self.dtype
        if self.kernels is not None:
            return self.kernels.backward(d_rows, self.rows, self.norm, dtype)
        along = (d_rows * self.rows).sum(1, keepdim=True) * (self.norm > _TINY)
        inverse = self.norm.clamp_min(_TINY).reciprocal() * (self.norm > 0)
        return torch.addcmul(d_rows, self.rows, along, value=-1).mul_(inverse).to(dtype)
