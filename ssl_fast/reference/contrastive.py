"""Log-sum-exps over negatives, of rows against other rows and of rows against themselves.

    rows:   l_ij = c <u_i, v_j>,   u_i = a_i x_i,  v_j = b_j w_j,  without columns lo_i <= j < hi_i
    pairs:  l_ij = c <u_i, u_j>,   u_i = a_i z_i,  without the block of `views` rows that holds i

    lse_i = log sum_j exp(l_ij),   P_ij = exp(l_ij - lse_i)

Positives are no concern of these: a loss joins them to lse_i afterwards (InfoNCE, van den Oord et
al. 2018; NT-Xent, Chen et al. 2020, Eq. 1; DCL, Yeh et al. 2021, Eq. 6). Everything is float64.
"""

import torch
from torch import Tensor


def rows_forward(
    x: Tensor,
    w: Tensor,
    a: Tensor | None,
    b: Tensor | None,
    scale: float,
    lo: Tensor | None,
    hi: Tensor | None,
    want_pull: bool,
) -> tuple[Tensor, Tensor | None]:
    """lse (N,) float64, -inf for a row without negatives; pull (N, D): sum_j P_ij v_j."""
    u, v = _scaled(x, a), _scaled(w, b)
    logits = _logits(u, v, scale, lo, hi)
    lse = logits.logsumexp(1)
    pull = _exp(logits, lse[:, None]) @ v if want_pull else None
    return lse, None if pull is None else pull.to(_wide(x))


def rows_backward(
    x: Tensor,
    w: Tensor,
    a: Tensor | None,
    b: Tensor | None,
    scale: float,
    lo: Tensor | None,
    hi: Tensor | None,
    lse: Tensor,
    weight: Tensor,
) -> Tensor:
    """push (K, D): sum_i weight_i P_ij u_i."""
    u = _scaled(x, a)
    p = _exp(_logits(u, _scaled(w, b), scale, lo, hi), lse[:, None])
    return ((weight.double()[:, None] * p).T @ u).to(_wide(w))


def queue(
    u: Tensor, v: Tensor, w: Tensor, b: Tensor | None, scale: float, weight: float,
    want_u: bool, want_v: bool,
) -> tuple[float, Tensor | None, Tensor | None]:  # fmt: skip
    """Sum of the losses of rows u against their positive v and all b w; weight times d_u, d_v.

    loss_i = log(1 + exp(lse_i - c <u_i, v_i>)), the derivatives by c u and c v.
    """
    lse, pull = rows_forward(u, w, None, b, scale, None, None, True)
    assert pull is not None
    gap = lse - scale * (u.double() * v.double()).sum(1)
    share = weight * gap.sigmoid()[:, None]
    d_u, d_v = (share * (pull - v)).to(u.dtype), (-share * u).to(u.dtype)
    losses = torch.logaddexp(gap, gap.new_zeros(()))
    return float(losses.sum()), d_u if want_u else None, d_v if want_v else None


def in_batch(tile: Tensor, first: int, scale: float, weight: float, store: bool) -> float:
    """Sum of the losses of rows first + i, whose positive is their own column of the batch.

    loss_i = log sum_j exp(l_ij) - l_ii,  l = scale * tile;  the tile becomes weight * dloss / dl.
    """
    logits = tile.double() * scale
    own = torch.arange(len(tile), device=tile.device)
    losses = logits.logsumexp(1) - logits[own, first + own]
    if store:
        gradient = logits.softmax(1)
        gradient[own, first + own] -= 1
        tile.copy_(weight * gradient)
    return float(losses.sum())


def pairs_forward(z: Tensor, a: Tensor | None, scale: float, views: int) -> Tensor:
    """lse (M,) float64 of the M rows, those of one sample next to one another."""
    u = _scaled(z, a)
    return _pair_logits(u, scale, views).logsumexp(1)


def pairs_backward(
    z: Tensor, a: Tensor | None, scale: float, views: int, lse: Tensor, blocks: Tensor
) -> Tensor:
    """d_u (M, D) = sum_j d_ij u_j; d = P + P.T with the given `lse`, `blocks` (M, views) within."""
    u = _scaled(z, a)
    logits = _pair_logits(u, scale, views)
    p = _exp(logits, lse[:, None]) + _exp(logits, lse)
    samples = u.shape[0] // views
    within = u.view(samples, views, -1)
    d_u = p @ u + (blocks.double().view(samples, views, views) @ within).view(u.shape)
    return d_u.to(_wide(z))


def pairs_at_once(
    u: Tensor, scale: float, views: int, weights: Tensor | None, decoupled: bool, store: bool
) -> tuple[float, Tensor]:
    """Sum of the M rows' losses, those of one sample next to one another, and its gradient.

    pos_i = log sum_p exp(l_ip) over the sample's other views p
    loss_i = log(1 + exp(lse_i - pos_i));  decoupled: lse_i - weights_i pos_i
    With `store` (M, M) by l, both sides of a pair together, else nothing of use.
    """
    u = u.double()
    own = torch.arange(len(u), device=u.device) // views
    logits, same = _pair_logits(u, scale, views), own[:, None] == own
    others = (u @ u.T * scale).masked_fill(~same, -torch.inf).fill_diagonal_(-torch.inf)
    lse, pos = logits.logsumexp(1), others.logsumexp(1)
    weights = torch.ones_like(lse) if weights is None else weights.double().flatten()
    if decoupled:
        losses, pull, denominator = lse - weights * pos, weights, lse
    else:
        losses = torch.logaddexp(lse, pos) - pos
        pull, denominator = (lse - pos).sigmoid(), torch.logaddexp(lse, pos)
    gradient = _exp(logits, denominator[:, None]) - pull[:, None] * others.softmax(1)
    return float(losses.sum()), gradient + gradient.T if store else gradient


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _scaled(x: Tensor, factors: Tensor | None) -> Tensor:
    return x.double() if factors is None else x.double() * factors.double()[:, None]


def _logits(u: Tensor, v: Tensor, scale: float, lo: Tensor | None, hi: Tensor | None) -> Tensor:
    logits = u @ v.T * scale
    if lo is None or hi is None:
        return logits
    columns = torch.arange(len(v), device=v.device)
    return logits.masked_fill((lo[:, None] <= columns) & (columns < hi[:, None]), -torch.inf)


def _pair_logits(u: Tensor, scale: float, views: int) -> Tensor:
    first = torch.arange(len(u), device=u.device) // views * views
    return _logits(u, u, scale, first, first + views)


def _exp(logits: Tensor, lse: Tensor) -> Tensor:
    """exp(logits - lse); a row without negatives has none of either."""
    return (logits - lse.nan_to_num(neginf=0.0)).exp()
