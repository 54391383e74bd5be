"""Alignment and uniformity of two views on the unit sphere, their gradients formed forward."""

import math
from typing import Any

from torch import Tensor

from .. import backend
from ._autograd import Scaled
from ._operator import fake_loss, operator
from ._tiles import product_dtype
from ._unit import UnitRows


def _fake_sphere(x, y, t, weight, alpha, want_x, want_y, name):
    return fake_loss(x, (x, want_x), (y, want_y))


@operator(_fake_sphere)
def sphere_forward(
    x: Tensor,  # (N, D)
    y: Tensor,  # (N, D)
    t: float,
    weight: float,
    alpha: float,
    want_x: bool,
    want_y: bool,
    name: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, d_x, d_y, in `product_dtype`; None for what is not wanted."""
    kernels, n = backend.implementation(name, "uniformity"), x.shape[0]
    units, wanted = [UnitRows(z, name) for z in (x, y)], (want_x, want_y)
    u, v = (unit.rows for unit in units)
    loss = kernels.distance_power(u, v, alpha) / n
    potentials = [
        kernels.potential(unit.rows, 0, n, t, want)
        for unit, want in zip(units, wanted, strict=True)
    ]
    loss += weight * (potentials[0][0] + potentials[1][0] - 2 * math.log(n * (n - 1)))
    gradients: list[Tensor | None] = [None, None]
    if want_x or want_y:
        one = loss.new_ones(())
        aligned = kernels.distance_power_backward(u, v, alpha, one, 1 / n)
        gradients = [
            unit.backward(d.add_(uniform, alpha=weight), d.dtype) if want else None
            for unit, d, (_, uniform), want in zip(units, aligned, potentials, wanted, strict=True)
        ]
    outputs: Any = loss.to(product_dtype(x)), *gradients
    return outputs


class Sphere(Scaled):
    """(loss, d_x, d_y) at an upstream gradient of 1; only the loss is for the caller."""

    run = sphere_forward
