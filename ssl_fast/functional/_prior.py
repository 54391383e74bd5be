"""The operators behind `prior_kl`, and the divergence itself, which `msn` takes too."""

import math
from typing import Any

import torch
from torch import Tensor

from .. import backend
from . import _check, _distributed
from ._autograd import ClosedForm
from ._operator import operator
from ._stats import upstream
from ._tiles import product_dtype


def prior_logarithm(prior: Any, columns: int, device: torch.device, reverse: bool) -> Tensor | None:
    """Checked: log prior, (K,) float64, or None for a uniform one."""
    if prior is None:
        return None
    values = _check.prior(prior, columns, device)
    _check.constant("prior", prior)
    if not reverse and device.type == "cpu" and not torch.compiler.is_compiling():
        zeros = (values == 0).nonzero()
        if len(zeros):
            raise ValueError(
                f"prior[{int(zeros[0])}] is 0, where KL(p || prior) is infinite: give every "
                "prototype a positive share, or pass reverse=True for KL(prior || p)"
            )
    return values.double().log()


def divergence(
    log_mass: Tensor, count: Tensor | int, log_prior: Any, reverse: bool, weight: float
) -> tuple[Tensor, Tensor]:
    """weight * KL, 0-d float64, and its gradient as `reference.prior.backward` takes it, (2, K).

    log_mass (K,): log of the column sums of P over `count` rows. log_prior: (K,), or None for a
    uniform one, or a function of the mean (K,), float64.
    """
    log_p = log_mass - (count.log() if isinstance(count, Tensor) else math.log(count))
    if callable(log_prior):
        log_prior = log_prior(log_p.exp())
    if log_prior is None:
        log_prior = torch.full_like(log_p, -math.log(len(log_p)))
    ratio = log_p - log_prior
    if reverse:  # dKL/dp_k = -prior_k / p_k; of the mass, for its logarithm may swallow the count
        prior = log_prior.exp()
        value = -torch.where(prior > 0, prior * ratio, 0).sum()
        gradient = torch.stack([-weight * count * prior, log_mass])
    else:  # dKL/dp_k = log(p_k / prior_k) + 1, and the constant cancels
        value = (log_p.exp() * ratio).sum()
        gradient = torch.stack([weight * ratio, torch.zeros_like(ratio)])
    return weight * value, gradient


def _fake_forward(logits, inv_temperature, log_prior, reverse, name, group):
    rows, columns = logits.shape
    double = torch.float64
    return (
        logits.new_empty((), dtype=product_dtype(logits)),
        logits.new_empty((4, rows), dtype=double),
        logits.new_empty((2, columns), dtype=double),
        logits.new_empty((), dtype=double) if group else logits.new_empty(0),
    )


@operator(_fake_forward)
def prior_kl_forward(
    logits: Tensor,  # (N, K)
    inv_temperature: float,
    log_prior: Tensor | None,  # (K,) float64
    reverse: bool,
    name: str,
    group: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The divergence, row_stats, its gradient for `backward`, and with a group all ranks' rows."""
    kernels = backend.implementation(name, "prior")
    row_stats, log_mass = kernels.forward(logits, inv_temperature, None)
    count: Any = None
    if group:
        count = _distributed.all_reduce(log_mass.new_full((), logits.shape[0]), "sum", group)
        log_mass = _distributed.log_sum_exp(log_mass, group)
    rows = logits.shape[0] if count is None else count
    value, prior = divergence(log_mass, rows, log_prior, reverse, 1.0)
    outputs: Any = value.to(product_dtype(logits)), row_stats, prior, count
    return outputs


class PriorKL(ClosedForm):
    """(loss, row_stats, gradient of p, rows of all ranks); only the loss is for the caller."""

    run = prior_kl_forward

    @staticmethod
    def keep(ctx, inputs, outputs):
        logits, inv_temperature, _, _, name, group = inputs
        ctx.numbers = inv_temperature, name, group
        ctx.save_for_backward(logits, *outputs[1:])

    @staticmethod
    def backward(ctx, d_loss):
        logits, row_stats, prior, count = ctx.saved_tensors
        inv_temperature, name, group = ctx.numbers
        d_loss, factor = upstream(d_loss, count, len(logits), group)
        return (prior_kl_backward(logits, inv_temperature, row_stats, prior, d_loss, factor, name),)


def _fake_backward(logits: Tensor, *_: Any) -> Tensor:
    return logits.new_empty(logits.shape)


@operator(_fake_backward)
def prior_kl_backward(
    logits: Tensor,  # (N, K)
    inv_temperature: float,
    row_stats: Tensor,  # (4, N)
    prior: Tensor,  # (2, K)
    d_loss: Tensor,  # 0-d
    factor: float,
    name: str,
) -> Tensor:
    """d_logits (N, K), contiguous, in the logits' type."""
    kernels = backend.implementation(name, "prior")
    return kernels.backward(logits, inv_temperature, None, row_stats, prior, d_loss, factor)
