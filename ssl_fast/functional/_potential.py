"""The Gaussian potential of pairs of rows, behind both uniformities."""

import math
from typing import Any

import torch
from torch import Tensor

from .. import backend
from . import _distributed
from ._autograd import Scaled
from ._operator import fake_gradient, operator
from ._tiles import product_dtype


def _fake_potential(x, t, log, want_grad, name, group):
    return x.new_empty((), dtype=product_dtype(x)), fake_gradient(x, want_grad)


@operator(_fake_potential)
def gaussian_potential(
    x: Tensor,  # (N, D)
    t: float,
    log: bool,
    want_grad: bool,
    name: str,
    group: str,
) -> tuple[Tensor, Tensor]:
    """The mean over pairs, or its logarithm, and if wanted its gradient (N, D)."""
    kernels = backend.implementation(name, "uniformity")
    rows, own = x, (0, x.shape[0])
    if group:
        rows, own = _distributed.rows_of_all(x, group)
    count = rows.shape[0]
    if count < 2:
        raise ValueError("x must have at least 2 rows over all ranks, pairs are made of them")
    log_sum, gradient = kernels.potential(rows, *own, t, want_grad)
    if group:
        log_sum = torch.as_tensor(log_sum, dtype=torch.float64)
        total = _distributed.log_sum_exp(log_sum, group)
        if gradient is not None:
            share = (log_sum - total).exp() * _distributed.world_size(group)
            gradient = gradient * share.to(gradient.dtype)
        log_sum = total
    value = log_sum - math.log(count * (count - 1))
    if not log:
        value = torch.as_tensor(value, dtype=torch.float64).exp()
        if gradient is not None:
            gradient *= value.to(gradient.dtype)
    outputs: Any = torch.as_tensor(value, dtype=product_dtype(x)), gradient
    return outputs


class Potential(Scaled):
    """(value, gradient for d_value = 1) of x."""

    run = gaussian_potential
