"""TiCo: the loss and its gradients, formed forward from one product with the second moment."""

from typing import Any

import torch
from torch import Tensor

from .. import backend
from . import _check
from ._autograd import Scaled, apply
from ._distributed import gather
from ._operator import fake_loss, full_precision, operator
from ._unit import TINY, UnitRows, through_unit, unit_rows_forward


def tico(
    z0: Tensor, z1: Tensor, held: Tensor | None, beta: float, rho: float, group: str
) -> tuple[Tensor, Tensor]:
    """The loss, 0-d, and the second moment (D, D) in it: `held`, None at first, moved on."""
    _check.matrix("z0", z0)
    _check.matrix("z1", z1)
    _check.same("z0", z0, "z1", z1)
    if z0.shape != z1.shape:
        raise ValueError(
            f"z0 and z1 must have one shape, got z0 {tuple(z0.shape)}, z1 {tuple(z1.shape)}"
        )
    if held is not None and held.shape[0] != z0.shape[1]:
        raise ValueError(
            f"this loss holds the second moment of {held.shape[0]} features and got "
            f"{z0.shape[1]}: make a new TiCoLoss for another width"
        )
    z0, z1 = (_check.rows_contiguous(gather(z, group)) for z in (z0, z1))
    name = backend.select("cosine", z0.device, z0.dtype)
    a, norm = unit_rows_forward(z0.detach(), TINY, name)
    moment = full_precision(_moved, (held, a, beta))
    wants = [torch.is_grad_enabled() and z.requires_grad for z in (z0, z1)]
    return apply(TiCo, z0, z1, a, norm, moment, rho, *wants, name), moment


def _moved(held: Tensor | None, a: Tensor, beta: float) -> Tensor:
    """beta C + (1 - beta) A^T A / N."""
    start, keep = (a[0], 0.0) if held is None else (held.to(a), beta)  # times 0 nothing is read
    return torch.addmm(start, a.t(), a, beta=keep, alpha=(1 - beta) / len(a))


def _fake_tico(z0, z1, a, norm, moment, rho, want_z0, want_z1, name):
    return fake_loss(z0, (z0, want_z0), (z1, want_z1))


@operator(_fake_tico)
def tico_forward(
    z0: Tensor,  # (N, D)
    z1: Tensor,  # (N, D)
    a: Tensor,  # (N, D), unit rows of z0
    norm: Tensor,  # (N,), of z0
    moment: Tensor,  # (D, D)
    rho: float,
    want_z0: bool,
    want_z1: bool,
    name: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, d_z0, d_z1, in `product_dtype`; None for what is not wanted."""
    units, share = UnitRows(z1, name), 1 / len(z0)
    b, d_z0, d_z1 = units.rows, None, None
    # L = 1 + sum_i <a_i, pull_i>
    pull = torch.addmm(b, a, moment, beta=-share, alpha=rho * share)
    loss = (pull * a).sum() + 1
    if want_z0:
        # dL/da = (2 rho a C - b) / N
        d_a = pull.mul_(2).add_(b, alpha=share)
        d_z0 = through_unit(d_a, z0, a, norm, name)
    if want_z1:
        # dL/db = -a / N
        d_z1 = units.backward(a * -share, a.dtype)
    outputs: Any = loss, d_z0, d_z1
    return outputs


class TiCo(Scaled):
    """(loss, d_z0, d_z1) at an upstream gradient of 1."""

    run = tico_forward
