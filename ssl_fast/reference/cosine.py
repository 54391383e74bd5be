"""Cosines of paired rows, and the nearest other row.

c_i = <x_i, y_i> / (max(|x_i|, eps) max(|y_i|, eps))
n_i = argmax_{j != own_i} t_ij
loss = -mean_i log(|u_i - u_n(i) + eps|_p + eps)
"""

import torch
from torch import Tensor


def forward(x: Tensor, y: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """sum_i c_i, 0-d float64; stats (3, N) float64: <x, y>, |x|, |y|."""
    a, b = x.double(), y.double()
    stats = torch.stack([(a * b).sum(1), a.norm(dim=1), b.norm(dim=1)])
    xy, nx, ny = stats
    return (xy / (nx.clamp_min(eps) * ny.clamp_min(eps))).sum(), stats


def backward(
    x: Tensor,
    y: Tensor,
    eps: float,
    stats: Tensor,
    d_value: Tensor,
    factor: float,
    need_x: bool,
    need_y: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """d_x, d_y times factor * d_value; None for what is not needed.

    d c / d x = (y - x <x, y> / (nx |x|)) / (nx ny), n = max(norm, eps): as torch's
    cosine_similarity, whose norms are clamped outside the derivative; zero for a zero row.
    """
    xy, nx, ny = (s[:, None] for s in stats)
    across = d_value.double() * factor / (nx.clamp_min(eps) * ny.clamp_min(eps))
    d_x = d_y = None
    if need_x:
        along = torch.where(nx > 0, across * xy / (nx.clamp_min(eps) * nx), 0)
        d_x = ((y.double() * across - x.double() * along) * (nx > 0)).to(x.dtype)
    if need_y:
        along = torch.where(ny > 0, across * xy / (ny.clamp_min(eps) * ny), 0)
        d_y = ((x.double() * across - y.double() * along) * (ny > 0)).to(y.dtype)
    return d_x, d_y


def nearest(tile: Tensor, own: Tensor | None = None) -> Tensor:
    """(R,) the column of the largest entry of each row but that in column own, the first."""
    if own is None:
        return tile.argmax(1)
    columns = torch.arange(tile.shape[1], device=tile.device)
    return tile.masked_fill(columns == own[:, None], -torch.inf).argmax(1)


def koleo(
    u: Tensor, index: Tensor, p: float, eps: float, want_grad: bool
) -> tuple[Tensor, Tensor | None]:
    """Loss, 0-d, and d_u (N, D), of rows u whose neighbours are index (N,); in u's type.

    d |e|_p / d e = sign(e) (|e| / |e|_p)^(p - 1), for p infinite shared by the largest entries.
    """
    difference = u.double() - u.double()[index] + eps
    distance = torch.linalg.vector_norm(difference, p, dim=1, keepdim=True)
    loss = -(distance + eps).log().mean().to(u.dtype)
    if not want_grad:
        return loss, None
    ratio = difference.abs() / torch.where(distance > 0, distance, torch.inf)
    slope = ratio ** (p - 1)
    slope = slope / (slope.sum(1, keepdim=True) if p == torch.inf else 1)
    push = torch.where(ratio > 0, slope * difference.sign(), 0) / (-len(u) * (distance + eps))
    return loss, push.index_put((index,), -push, accumulate=True).to(u.dtype)
