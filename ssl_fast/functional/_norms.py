"""Rows of unit norm: x / max(norm, 1e-12), its gradient, and products of the views of a sample."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ._tiles import product_dtype

_EPS = 1e-12  # as torch.nn.functional.normalize


def inverse_norms(x: Tensor, other: Tensor | None = None) -> Tensor:
    """1 / max(norm, 1e-12) of the rows, 0 for a zero row, as precise as products with `other`."""
    dtype = product_dtype(x)
    dtype = dtype if other is None else torch.promote_types(dtype, other.dtype)
    norms = torch.linalg.vector_norm(x, dim=-1, dtype=dtype)
    return (norms > 0) / norms.clamp_min(_EPS)


def normalized(x: Tensor, dim: int = -1, eps: float = _EPS) -> Tensor:
    """F.normalize in `product_dtype`, but that a zero row gets a zero gradient."""
    x = x.to(product_dtype(x))
    norms = torch.linalg.vector_norm(x, dim=dim, keepdim=True)
    return x / torch.where(norms > 0, norms.clamp_min(eps), torch.inf)


def unit(x: Tensor, inverse: Tensor | None) -> Tensor:
    x = x.to(product_dtype(x))
    return x if inverse is None else x * inverse.to(x.dtype)[..., None]


def through_norms(d_unit: Tensor, x: Tensor, inverse: Tensor, out: Tensor | None = None) -> Tensor:
    """d_x from the gradient of x / max(norm, 1e-12), in the type of x; zero for a zero row."""
    u = unit(x, inverse)
    along = (u * d_unit).sum(-1, keepdim=True) * (inverse < 1 / _EPS)[..., None]
    return torch.mul(d_unit - u * along, inverse[..., None], out=out).to(x.dtype)


def stacked(views: Sequence[Tensor], normalize: bool) -> tuple[Tensor, Tensor | None]:
    """(N, V, D), the views of a sample next to one another, and the inverse norms (N V,)."""
    rows = torch.stack(list(views), 1)
    return rows, inverse_norms(rows).flatten() if normalize else None


def positives(u: Tensor, inv_temperature: float) -> tuple[Tensor, Tensor]:
    """(N, V) log-sum-exp over the other views, (N, V, V) their softmax, 0 for oneself; float64."""
    views = u.shape[1]
    if views == 2:
        logit = (u[:, 0] * u[:, 1]).sum(1).double() * inv_temperature
        return logit[:, None].expand(-1, 2), 1 - torch.eye(2, dtype=logit.dtype, device=u.device)
    logits = (u @ u.mT).double() * inv_temperature
    logits.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
    return logits.logsumexp(2), logits.softmax(2)
