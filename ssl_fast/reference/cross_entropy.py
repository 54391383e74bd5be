"""Cross-entropy of softmax(logits * inv_temperature) against an assignment q.

    loss_i = a_i LSE_k(l_ik) - sum_k q_ik l_ik,    l = logits * inv_temperature,  a_i = sum_k q_ik
    dloss_i / dl_ik = a_i P_ik - q_ik

Symmetric adds the same with rows and columns exchanged (ReSA, Eq. 2; square logits).
Everything is float64, exponents relative to a maximum: logits of 1e4 lose nothing.
"""

import torch
from torch import Tensor

from . import sinkhorn


def forward(
    logits: Tensor, inv_temperature: float, targets, symmetric: bool, factor: float
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Loss times `factor`, and the statistics that backward needs.

    row_stats (4, N): shift, log, mass, loss, where LSE_k(l_ik) = shift * inv_temperature + log.
    col_stats (3, K): shift, log, mass of the columns, when symmetric.
    """
    q = _probabilities(targets)
    shift, log = _log_sum_exp(logits, inv_temperature, dim=1)
    relative = (shift[:, None] - logits.double()) * inv_temperature
    mass = q.sum(1)
    loss = mass * log + (q * relative).sum(1)
    row_stats = torch.stack([shift, log, mass, loss])
    total = loss.sum()
    col_stats = None
    if symmetric:
        shift, log = _log_sum_exp(logits, inv_temperature, dim=0)
        relative = (shift - logits.double()) * inv_temperature
        col_stats = torch.stack([shift, log, q.sum(0)])
        total = total + (q.sum(0) * log).sum() + (q * relative).sum()
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return (factor * total).to(dtype), row_stats, col_stats


def backward(
    logits: Tensor,
    inv_temperature: float,
    targets,
    row_stats: Tensor,
    col_stats: Tensor | None,
    d_loss: Tensor | None,
    factor: float,
    out: Tensor | None = None,
) -> Tensor:
    """d_logits (N, K) = g * inv_temperature * (a_i P_ik - q_ik), with g = factor * d_loss."""
    q = _probabilities(targets)
    shift, log, mass, _ = row_stats
    d_logits = mass[:, None] * _softmax(logits, inv_temperature, shift[:, None], log[:, None]) - q
    if col_stats is not None:
        shift, log, mass = col_stats
        d_logits += mass * _softmax(logits, inv_temperature, shift, log) - q
    d_logits *= factor * inv_temperature
    if d_loss is not None:
        d_logits *= d_loss if d_loss.dim() == 0 else d_loss[:, None]
    return d_logits.to(logits.dtype) if out is None else out.copy_(d_logits)


def at_once(logits: Tensor, inv_temperature: float, targets, factor: float) -> Tensor:
    """The symmetric loss times `factor`; its gradient takes the place of the logits."""
    loss, row_stats, col_stats = forward(logits, inv_temperature, targets, True, factor)
    backward(logits, inv_temperature, targets, row_stats, col_stats, None, factor, logits)
    return loss


def _probabilities(targets) -> Tensor:
    if targets.scale is None:
        return targets.values.double()
    return sinkhorn.evaluate(targets.values.double(), targets.scale, targets.row, targets.col)


def _log_sum_exp(logits: Tensor, inv_temperature: float, dim: int) -> tuple[Tensor, Tensor]:
    shift = logits.double().amax(dim, keepdim=True)
    log = ((logits - shift) * inv_temperature).exp().sum(dim).log()
    return shift.squeeze(dim), log


def _softmax(logits: Tensor, inv_temperature: float, shift: Tensor, log: Tensor) -> Tensor:
    return ((logits.double() - shift) * inv_temperature - log).exp()
