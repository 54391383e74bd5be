"""Mean softmax over rows, its gradient, and both inside the cross-entropy (MSN, PMSN).

    p_k = sum_i P_ik,    P = softmax(logits * inv_temperature),    p / N is the mean
    dloss / dl_ik = P_ik (G_k - sum_j P_ij G_j),    G = gradient of a function of p, times N

`targets` None leaves the prior's term alone; else loss_i of `cross_entropy` comes from the same
read. Sums are kept as logarithms: a prototype that nobody picks may have p_k = exp(-500).
"""

import torch
from torch import Tensor

from . import cross_entropy


def forward(logits: Tensor, inv_temperature: float, targets) -> tuple[Tensor, Tensor]:
    """row_stats (4, N): shift, log, mass, loss, as in `cross_entropy`; log p (K,), float64."""
    if targets is None:
        shift = logits.double().amax(1)
        log = ((logits - shift[:, None]) * inv_temperature).exp().sum(1).log()
        row_stats = torch.stack([shift, log, torch.zeros_like(log), torch.zeros_like(log)])
    else:
        row_stats = cross_entropy.forward(logits, inv_temperature, targets, False, 1.0)[1]
    return row_stats, torch.logsumexp(_log_softmax(logits, inv_temperature, row_stats), 0)


def backward(
    logits: Tensor,
    inv_temperature: float,
    targets,
    row_stats: Tensor,
    prior: Tensor,
    d_loss: Tensor | None,
    factor: float,
    out: Tensor | None = None,
) -> Tensor:
    """d_logits (N, K) = g * inv_temperature * (a_i P_ik - q_ik + R_ik - P_ik sum_j R_ij).

    g = factor * d_loss. prior (2, K) float64 holds w and c with R_ik = w_k exp(log P_ik - c_k),
    that is P_ik G_k without forming G_k = w_k exp(-c_k), which may overflow. a and q are 0
    without targets.
    """
    log_p = _log_softmax(logits, inv_temperature, row_stats)
    weight, offset = prior
    term = weight * (log_p - offset).exp()
    d_logits = term - log_p.exp() * term.sum(1, keepdim=True)
    d_logits *= factor * inv_temperature
    if targets is not None:
        d_logits += cross_entropy.backward(
            logits.double(), inv_temperature, targets, row_stats, None, None, factor
        )
    if d_loss is not None:
        d_logits *= d_loss
    return d_logits.to(logits.dtype) if out is None else out.copy_(d_logits)


def _log_softmax(logits: Tensor, inv_temperature: float, row_stats: Tensor) -> Tensor:
    shift, log = row_stats[0], row_stats[1]
    return (logits.double() - shift[:, None]) * inv_temperature - log[:, None]
