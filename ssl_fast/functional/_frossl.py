"""FroSSL: the loss and its gradients, formed forward.

    L = sum_v (log |G_v|_F^2 - 2 log tr G_v) + w V / N sum_v |u_v - m|_F^2,   G_v = u_v^T u_v
    dL / du_v = 4 u_v G_v / |G_v|_F^2 - 4 u_v / tr G_v + 2 w V / N (u_v - m)

The columns of u_v are those of view v at unit norm, m is the mean of all u_v. Where u_v u_v^T is
smaller, it is G_v. Going back through the norms takes off what is along u_v.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import backend
from . import _distributed
from ._autograd import ClosedForm, scaled
from ._covariance_products import add_gram, mirror, scratch
from ._operator import operator
from ._tiles import part
from ._unit import TINY


def _fake_frossl(z, others, weight, want, name, group):
    shape = (1 + len(others), *z.shape) if want else (0,)
    return z.new_empty(()), z.new_empty(shape)


@operator(_fake_frossl)
def frossl_forward(
    z: Tensor,  # (N, D) the first view, in `product_dtype`
    others: Sequence[Tensor],  # V - 1 further ones
    weight: float,
    want: bool,
    name: str,
    group: str,
) -> tuple[Tensor, Tensor]:
    """The loss and, if wanted, its gradients by the views, (V, N, D), times the number of ranks."""
    kernels = backend.implementation(name, "cross_correlation")
    views, mine = _of_all([z, *others], group)
    units, norms, inverse = _unit_columns(kernels, views)
    grams = [_gram(u) for u in units]
    squares, traces = _numbers(kernels, grams)
    centres, share, distances = _about_mean(units, name)
    pull = weight * len(views) / len(views[0])
    loss = ((squares.log() - 2 * traces.log()).sum() + pull * distances).to(z.dtype)
    if not want:
        return loss, z.new_empty(0)
    gradients, pull = z.new_empty((len(views), *z.shape)), 2 * share * pull
    beta, scale = torch.full_like(norms[0], -pull), inverse * _distributed.world_size(group)
    # u_v is left out where it comes off again: in all columns whose norm is not clamped.
    short, along = norms < TINY, 4 / traces - pull
    each = zip(units, centres, grams, 4 / squares, short, along, scale, gradients, strict=True)
    for u, centre, gram, rate, is_short, own, s, out in each:
        gram *= rate
        _push(u, gram, mine, out)
        u, centre = part(u, mine), part(centre, mine)
        dots = _distributed.all_reduce(kernels.dots(out, u, centre, 1.0, beta), "sum", group)
        dots = torch.where(is_short, own, dots)
        kernels.gradient(out, u, centre, 1.0, beta, dots, s, out)
    return loss, gradients


class FroSSL(ClosedForm):
    """(loss, gradients at an upstream one of 1) of the views of one batch."""

    @staticmethod
    def forward(weight, want, name, group, z, *others):
        return frossl_forward(z, others, weight, want, name, group)

    @staticmethod
    def keep(ctx, inputs, outputs):
        ctx.save_for_backward(outputs[1], *inputs[4:])  # views for their types, and to refuse

    @staticmethod
    def backward(ctx, d_loss):
        gradients, *views = ctx.saved_tensors
        needs = ctx.needs_input_grad[4:]
        return *(None,) * 4, *scaled(gradients.unbind(), d_loss, needs, views)


def _of_all(views: list[Tensor], group: str) -> tuple[list[Tensor], slice]:
    """The views' rows of all ranks, and which of them are this rank's."""
    if not group:
        return views, slice(0, len(views[0]))
    rows, mine = _distributed.rows_of_all(torch.cat(views, 1), group)
    return list(rows.chunk(len(views), 1)), slice(*mine)


def _unit_columns(kernels: Any, views: list[Tensor]) -> tuple[list[Tensor], Tensor, Tensor]:
    """Views with columns of unit norm, in memory that a thread keeps; the norms and inverse ones.

    Both are (V, D), float64; a column of zeros has 0 and 0.
    """
    norms = torch.stack([kernels.dots(view, view, None, 1.0, None) for view in views]).sqrt_()
    inverse = (norms > 0) / norms.clamp_min(TINY)
    (rows, width), zeros = views[0].shape, torch.zeros_like(norms[0])
    units = scratch(views[0], len(views) * rows, width, views[0].dtype, 0).split(rows)
    for view, scale, unit in zip(views, inverse, units, strict=True):
        kernels.center(view, zeros, scale, unit)
    return list(units), norms, inverse


def _gram(u: Tensor) -> Tensor:
    """u^T u or u u^T, whichever is smaller."""
    x = u.t() if _is_tall(u) else u
    gram = u.new_empty((x.shape[0], x.shape[0]))
    add_gram(gram, x, False)
    mirror(gram)
    return gram


def _push(u: Tensor, gram: Tensor, mine: slice, out: Tensor) -> None:
    """out = u gram or gram u, these rows of it."""
    factors = (part(u, mine), gram) if _is_tall(u) else (part(gram, mine), u)
    torch.mm(*factors, out=out)


def _is_tall(u: Tensor) -> bool:
    return u.shape[0] > u.shape[1]


def _numbers(kernels: Any, grams: list[Tensor]) -> tuple[Tensor, Tensor]:
    """|G|_F^2 and tr G, (V,) float64: 1 and 1, whose entropy is 0, for a view of zeros."""
    numbers = grams[0].new_empty((2, len(grams)), dtype=torch.float64)
    for v, gram in enumerate(grams):
        numbers[0, v], numbers[1, v] = kernels.inner(gram, gram), gram.trace()
    squares, traces = numbers.masked_fill_(numbers[1] == 0, 1.0)
    return squares, traces


def _about_mean(units: list[Tensor], name: str) -> tuple[list[Tensor], float, Any]:
    """Centres c and a share s, u - mean = s (u - c); the sum of squares about the mean."""
    distance = backend.implementation(name, "covariance").squared_distance
    if len(units) == 2:
        return units[::-1], 0.5, distance(*units) / 2
    mean = torch.stack(units).mean(0)
    return [mean] * len(units), 1.0, sum(distance(u, mean) for u in units)
