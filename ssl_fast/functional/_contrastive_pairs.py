"""The operators behind NT-Xent and its kin: all rows of a batch, views of a sample no negatives.

Where the similarities fit into one tile of a few MB, as those of most batches do, a CPU forms them
once: they become their gradient, and those of the views wait for the upstream number. Else by tiles
on one side of the diagonal, formed again for backward; then nothing of size N x N exists, and some
numbers a row are kept.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import backend
from ._autograd import ClosedForm, scaled
from ._check import rows_contiguous
from ._norms import positives, stacked, through_norms, unit
from ._operator import operator
from ._tiles import product_dtype, times
from ._unit import UnitRows

# Bytes of float32 similarities up to which one tile is taken: a third faster at 1024 rows of 128
# columns; at 2048 little faster than tiles, which keep less. Measured on 2 cores.
_TILE_BYTES = 4 << 20


class Views:
    """All views' rows, those of a sample next to one another: `flat` (N V, D).

    On a CPU they have unit norm where wanted; other kernels multiply them by `inverse` (N V,).
    """

    def __init__(self, views: Sequence[Tensor], normalize: bool, name: str):
        self.units: list[UnitRows] = []
        self.inverse = None
        if name != "native" or views[0].is_cuda:
            self.rows, self.inverse = stacked(views, normalize)
        else:
            shape = len(views[0]), len(views), views[0].shape[1]
            self.rows = views[0].new_empty(shape, dtype=product_dtype(views[0]))
            for view, rows in zip(views, self.rows.unbind(1), strict=True):
                if normalize:
                    self.units.append(UnitRows(rows_contiguous(view), name, rows=rows))
                else:
                    rows.copy_(view)
        self.flat = self.rows.flatten(0, 1)

    def positives(self, inv_temperature: float) -> tuple[Tensor, Tensor]:
        inverse = None if self.inverse is None else self.inverse.view(self.rows.shape[:2])
        return positives(unit(self.rows, inverse), inv_temperature)

    def gradients(self, d_flat: Tensor, dtype: torch.dtype) -> Tensor:
        """(V, N, D) of `dtype`, from the gradient by `flat` times `inverse`."""
        d_rows = d_flat.view(self.rows.shape).transpose(0, 1)
        out = d_flat.new_empty(d_rows.shape, dtype=dtype)
        if self.inverse is not None:
            inverse = self.inverse.view(self.rows.shape[:2]).t()
            through_norms(d_rows, self.rows.transpose(0, 1), inverse, out=out)
        elif not self.units:
            out.copy_(d_rows)
        for unit_rows, d, d_view in zip(self.units, d_rows, out, strict=False):
            unit_rows.backward_into(d, d_view)
        return out


def fit_one_tile(views: Sequence[Tensor], name: str) -> bool:
    rows = len(views) * len(views[0])
    return name != "triton" and not views[0].is_cuda and 4 * rows * rows <= _TILE_BYTES


def _fake_at_once(z, others, weights, inv_temperature, normalize, decoupled, want, name):
    dtype, shape = product_dtype(z), (1 + len(others), *z.shape)
    return z.new_empty((), dtype=dtype), z.new_empty(shape if want else 0, dtype=dtype)


@operator(_fake_at_once)
def contrastive_pairs_at_once(
    z: Tensor,  # (N, D) the first view
    others: Sequence[Tensor],  # V - 1 further ones
    weights: Tensor | None,  # (N, V) of the positives
    inv_temperature: float,
    normalize: bool,
    decoupled: bool,  # positives do not join the denominator
    want: bool,
    name: str,
) -> tuple[Tensor, Tensor]:
    """The loss, and its gradients by the views, (V, N, D), in `product_dtype`."""
    kernels = backend.implementation(name, "contrastive")
    batch = Views([z, *others], normalize, name)
    u, views = unit(batch.flat, batch.inverse), 1 + len(others)
    weights = None if weights is None else weights.double().contiguous()
    total, tile = kernels.pairs_at_once(u, inv_temperature, views, weights, decoupled, want)
    loss = u.new_full((), total / len(u))
    if not want:
        return loss, u.new_empty(0)
    d_u = torch.empty_like(u)
    times(tile.to(u.dtype), u, inv_temperature / len(u), None, d_u)
    return loss, batch.gradients(d_u, u.dtype)


class PairsAtOnce(ClosedForm):
    """(loss, gradients at an upstream one of 1) of views of one batch."""

    @staticmethod
    def forward(weights, inv_temperature, normalize, decoupled, want, name, z, *others):
        return contrastive_pairs_at_once(
            z, others, weights, inv_temperature, normalize, decoupled, want, name
        )

    @staticmethod
    def keep(ctx, inputs, outputs):
        ctx.save_for_backward(outputs[1], *inputs[6:])  # views for their types, and to refuse

    @staticmethod
    def backward(ctx, d_loss):
        gradients, *views = ctx.saved_tensors
        needs = ctx.needs_input_grad[6:]
        return *(None,) * 6, *scaled(gradients.unbind(), d_loss, needs, views)


def _fake_pairs_forward(z, others, *_: Any):
    rows = z.shape[0] * (1 + len(others))
    return (
        z.new_empty((), dtype=product_dtype(z)),
        z.new_empty(rows, dtype=torch.float64),
        z.new_empty(rows, dtype=torch.float64),
    )


@operator(_fake_pairs_forward)
def contrastive_pairs_forward(
    z: Tensor,  # (N, D) the first view
    others: Sequence[Tensor],  # V - 1 further ones
    weights: Tensor | None,  # (N, V) of the positives
    inv_temperature: float,
    normalize: bool,
    decoupled: bool,  # positives do not join the denominator
    name: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, and (N V,) in float64: the denominators' logs, the gradients of -positives."""
    kernels = backend.implementation(name, "contrastive")
    batch = Views([z, *others], normalize, name)
    lse = kernels.pairs_forward(batch.flat, batch.inverse, inv_temperature, 1 + len(others))
    positive = batch.positives(inv_temperature)[0].flatten()
    if decoupled:
        coefficient = torch.ones_like(lse) if weights is None else weights.double().flatten()
        denominator, losses = lse, lse - coefficient * positive
    else:
        coefficient = (lse - positive).sigmoid()
        denominator = torch.logaddexp(lse, positive)
        losses = torch.logaddexp(lse - positive, lse.new_zeros(()))
    return losses.mean().to(product_dtype(z)), denominator, coefficient


def _fake_pairs_backward(z, others, *_: Any):
    return z.new_empty((1 + len(others), *z.shape))


@operator(_fake_pairs_backward)
def contrastive_pairs_backward(
    z: Tensor,  # (N, D)
    others: Sequence[Tensor],
    inv_temperature: float,
    normalize: bool,
    denominator: Tensor,  # (N V,)
    coefficient: Tensor,  # (N V,)
    d_loss: Tensor,  # 0-d
    name: str,
) -> Tensor:
    """(V, N, D): the views' gradients."""
    kernels = backend.implementation(name, "contrastive")
    batch, views = Views([z, *others], normalize, name), 1 + len(others)
    softmax = batch.positives(inv_temperature)[1]
    within = softmax * coefficient.view(-1, views, 1)
    blocks = (within + within.mT).neg_().flatten(0, 1)
    d_flat = kernels.pairs_backward(
        batch.flat, batch.inverse, inv_temperature, views, denominator, blocks
    )
    d_flat *= (d_loss * (inv_temperature / len(d_flat))).to(d_flat.dtype)
    return batch.gradients(d_flat, z.dtype)


class Pairs(ClosedForm):
    """(loss, denominators, coefficients) of views of one batch; only the loss is for the caller."""

    @staticmethod
    def forward(weights, inv_temperature, normalize, decoupled, name, z, *others):
        return contrastive_pairs_forward(
            z, others, weights, inv_temperature, normalize, decoupled, name
        )

    @staticmethod
    def keep(ctx, inputs, outputs):
        _, inv_temperature, normalize, _, name, *views = inputs
        ctx.numbers = inv_temperature, normalize, name
        ctx.save_for_backward(*outputs[1:], *views)

    @staticmethod
    def backward(ctx, d_loss):
        denominator, coefficient, z, *others = ctx.saved_tensors
        inv_temperature, normalize, name = ctx.numbers
        gradients = contrastive_pairs_backward(
            z, others, inv_temperature, normalize, denominator, coefficient, d_loss, name
        )
        return *(None,) * 5, *gradients
