"""Softmax cross-entropy against soft assignments, from logits or from embeddings."""

from typing import Any

import torch
from torch import Tensor

from .. import backend
from . import _check
from ._autograd import ClosedForm, apply
from ._linear_cross_entropy import linear_cross_entropy_backward, linear_cross_entropy_forward
from ._linear_symmetric import LinearSymmetric
from ._multi_crop import LinearCrops
from ._operator import operator
from ._stats import Targets, fake_outputs, finish, loss_factor, upstream
from ._tiles import product_dtype, row_slices
from .assignment import Assignment

_REDUCTIONS = ("mean", "sum", "none")


def soft_cross_entropy(
    logits: Tensor,
    targets: Assignment | Tensor,
    *,
    temperature: float = 1.0,
    symmetric: bool = False,
    reduction: str = "mean",
    group: Any = None,
) -> Tensor:
    """Cross-entropy of softmax(logits / temperature) against soft targets q.

        loss_i = a_i LSE_k(l_ik) - sum_k q_ik l_ik,   l = logits / temperature,  a_i = sum_k q_ik
        symmetric: half the row loss plus half the same over columns (ReSA, Eq. 2), divided by N

    Args:
        logits: (N, K), float64, float32, bfloat16 or float16.
        targets: an `Assignment`, or a dense (N, K) tensor of probabilities without gradient;
            rows need not sum to one.
        temperature: > 0, in units of the logits.
        symmetric: also over columns; needs square logits (N equal to K, over all ranks).
        reduction: "mean" over rows, "sum", or "none" for (N,) (not with `symmetric`).
        group: process group: every rank returns the global loss, and gradients such that the
            mean over ranks, as DDP takes it, is exact. Ranks may hold unequal N.

    Returns:
        0-d, or (N,) for "none"; float32, float64 for float64 logits. The gradient has the
        logits' type and the same shape; differentiable once.

    Raises:
        TypeError, ValueError: naming the argument, what came and what was expected.

    Source: ReSA (Weng et al. 2025), Eq. 2; SwAV, DINO, MSN without `symmetric`.
    Cost: forward one read of logits and targets, backward the same and one write. Kept for
        backward: the inputs and 4 N numbers. Targets given as potentials are never stored.
    """
    _check.matrix("logits", logits)
    target = _target(targets, logits.shape, logits, "logits")
    group = _arguments(logits.shape, symmetric, reduction, group)
    inv_temperature = 1.0 / _check.positive("temperature", temperature)
    name = backend.select("cross_entropy", logits.device, logits.dtype)
    logits = _check.rows_contiguous(logits)
    return apply(
        _SoftCrossEntropy, logits, inv_temperature, *target, symmetric, reduction, name, group
    )


def linear_soft_cross_entropy(
    x: Tensor,
    weight: Tensor,
    targets: Assignment | Tensor,
    *,
    temperature: float = 1.0,
    symmetric: bool = False,
    reduction: str = "mean",
    group: Any = None,
) -> Tensor:
    """`soft_cross_entropy(x @ weight.T, targets, ...)` without storing the (N, K) logits.

    Args:
        x: (N, D) embeddings.
        weight: (K, D) prototypes or keys, same type as x.
        targets: an `Assignment`, or a dense (N, K) tensor, as in `soft_cross_entropy`.
        temperature: > 0, in units of the logits.
        symmetric: also over columns; needs as many rows, over all ranks, as columns.
        reduction: "mean", "sum", or "none".
        group: process group, as in `soft_cross_entropy`.

    Returns:
        0-d, or (N,) for "none". Gradients reach x and weight, in their types; with `group`,
        weight is taken as replicated: its gradient is this rank's share times the world size.

    Raises:
        TypeError, ValueError: naming the argument, what came and what was expected.

    Source: ReSA, Eq. 2; cut cross-entropy (Wijmans et al. 2024) for the product.
    Cost: three products of 2 N K D operations. Where the result is one number, the native backend
        takes all of them in the forward pass: kept for backward are the gradients themselves,
        float32. Else one is forward, two are backward, and kept are the inputs, 4 N numbers and, on
        a CPU, tiles of at most the bytes of inputs and gradients. Rows of logits that were not
        kept, or that found no place among such tiles where `symmetric`, cost one product more.
    """
    x, weight = _check.autocast(x, weight)
    _check.factors("x", x, "weight", weight)
    shape = (x.shape[0], weight.shape[0])
    target = _target(targets, shape, x, "x @ weight.T")
    group = _arguments(shape, symmetric, reduction, group)
    inv_temperature = 1.0 / _check.positive("temperature", temperature)
    name = backend.select("linear_cross_entropy", x.device, x.dtype)
    x, weight = _check.rows_contiguous(x), _check.rows_contiguous(weight)
    need = [torch.is_grad_enabled() and t.requires_grad for t in (x, weight)]
    if symmetric and name != "triton":
        return apply(
            LinearSymmetric, x, weight, inv_temperature, *target, reduction, *need, name, group
        )
    if name == "native" and reduction != "none":
        values, z, prototypes, scale, *potentials = target
        fields = values, z, prototypes, *potentials
        numbers = 1, inv_temperature, [scale or 0.0], False, reduction, *need, name, group
        return apply(LinearCrops, x, weight, *numbers, *fields)
    return apply(
        _LinearSoftCrossEntropy,
        x, weight, inv_temperature, *target, symmetric, reduction, any(need), name, group,
    )  # fmt: skip


def _arguments(shape: Any, symmetric: bool, reduction: str, group: Any) -> str:
    if reduction not in _REDUCTIONS:
        _check.choice("reduction", reduction, _REDUCTIONS)
    if symmetric and reduction == "none":
        raise ValueError(
            'reduction="none" has no meaning with symmetric=True, whose terms belong to rows and '
            'columns: use "mean" or "sum"'
        )
    if symmetric and group is None and shape[0] != shape[1]:
        raise ValueError(f"symmetric=True needs square logits, got {tuple(shape)}")
    return _check.group_name(group)


def _target(targets: Any, shape: Any, like: Tensor, name: str) -> tuple:
    """The fields of `targets` that cross into operators: values, z, prototypes, scale, row, col."""
    if isinstance(targets, Assignment):
        t = targets.unchanged()
        fields = t.values, t.z, t.prototypes, t.scale, t.row, t.col
    else:
        _check.matrix("targets", targets)
        _check.constant("targets", targets)
        fields = _check.rows_contiguous(targets), None, None, None, None, None
    if targets.shape != shape:
        raise ValueError(f"targets are {tuple(targets.shape)}, but {name} is {tuple(shape)}")
    _check.device("targets", targets, name, like.device)
    values = fields[0]
    if values is not None and values.dtype != like.dtype and values.dtype != product_dtype(like):
        values = values.to(product_dtype(like))
    return values, *fields[1:]


class _LinearSoftCrossEntropy(ClosedForm):
    """As `_SoftCrossEntropy`, from x and weight; one more output: the kept rows of d_logits."""

    run = linear_cross_entropy_forward

    @staticmethod
    def keep(ctx, inputs, outputs):
        x, weight, inv_temperature, values, z, prototypes, scale, row, col = inputs[:9]
        ctx.numbers = inv_temperature, scale, *inputs[9:]
        ctx.save_for_backward(x, weight, values, z, prototypes, row, col, *outputs[1:])

    @staticmethod
    def backward(ctx, d_loss):
        saved = ctx.saved_tensors
        x, weight, values, z, prototypes, row, col, row_stats, col_stats, count, cache = saved
        inv_temperature, scale, symmetric, reduction, _, name, group = ctx.numbers
        d_loss, factor = upstream(d_loss, count, len(x), group, reduction, symmetric)
        return linear_cross_entropy_backward(
            x, weight, inv_temperature, values, z, prototypes, scale, row, col,
            row_stats, col_stats, cache, d_loss, factor, *ctx.needs_input_grad[:2], name,
        )  # fmt: skip


def _fake_forward(logits, inv_temperature, values, z, prototypes, scale, row, col,
                  symmetric, reduction, name, group):  # fmt: skip
    rows, columns = logits.shape
    return fake_outputs(logits, rows, columns, symmetric, reduction, group)


@operator(_fake_forward)
def cross_entropy_forward(
    logits: Tensor,  # (N, K)
    inv_temperature: float,
    values: Tensor | None,  # (N, K) scores or probabilities
    z: Tensor | None,  # (N, D), or scores as z @ prototypes.T
    prototypes: Tensor | None,  # (K, D)
    scale: float | None,
    row: Tensor | None,  # (N,) float64
    col: Tensor | None,  # (K,) float64
    symmetric: bool,
    reduction: str,
    name: str,
    group: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss, row_stats, col_stats if symmetric, and with a group the rows of all ranks."""
    kernels = backend.implementation(name, "cross_entropy")
    targets = Targets(values, z, prototypes, scale, row, col, name)
    if values is not None and not group:
        factor = loss_factor(reduction, symmetric, logits.shape[0])
        loss, row_stats, col_stats = kernels.forward(
            logits, inv_temperature, targets, symmetric, factor
        )
        if reduction == "none":
            loss = row_stats[3].to(loss.dtype)
        outputs: Any = loss, row_stats, col_stats, None
        return outputs
    parts: Any = [
        kernels.forward(logits[rows], inv_temperature, targets.tile(rows), symmetric, 1.0)[1:]
        for rows in _slices(logits, values)
    ]
    outputs = finish(parts, logits, inv_temperature, symmetric, reduction, group)
    return outputs


class _SoftCrossEntropy(ClosedForm):
    """(loss, row_stats, col_stats, rows) of logits; only the loss is for the caller."""

    run = cross_entropy_forward

    @staticmethod
    def keep(ctx, inputs, outputs):
        logits, inv_temperature, values, z, prototypes, scale, row, col = inputs[:8]
        ctx.numbers = inv_temperature, scale, *inputs[8:]
        ctx.save_for_backward(logits, values, z, prototypes, row, col, *outputs[1:])

    @staticmethod
    def backward(ctx, d_loss):
        logits, values, z, prototypes, row, col, row_stats, col_stats, count = ctx.saved_tensors
        inv_temperature, scale, symmetric, reduction, name, group = ctx.numbers
        d_loss, factor = upstream(d_loss, count, len(logits), group, reduction, symmetric)
        d_logits = cross_entropy_backward(
            logits, inv_temperature, values, z, prototypes, scale, row, col,
            row_stats, col_stats, d_loss, factor, name,
        )  # fmt: skip
        return (d_logits,)


def _fake_backward(logits: Tensor, *_: Any) -> Tensor:
    return logits.new_empty(logits.shape)


@operator(_fake_backward)
def cross_entropy_backward(
    logits: Tensor,  # (N, K)
    inv_temperature: float,
    values: Tensor | None,
    z: Tensor | None,
    prototypes: Tensor | None,
    scale: float | None,
    row: Tensor | None,
    col: Tensor | None,
    row_stats: Tensor,  # (4, N)
    col_stats: Tensor | None,  # (3, K), nothing unless symmetric
    d_loss: Tensor,  # 0-d, or (N,)
    factor: float,
    name: str,
) -> Tensor:
    """d_logits (N, K), contiguous, in the logits' type."""
    kernels = backend.implementation(name, "cross_entropy")
    targets = Targets(values, z, prototypes, scale, row, col, name)
    columns = col_stats if col_stats is not None and col_stats.numel() else None
    if values is not None:
        return kernels.backward(
            logits, inv_temperature, targets, row_stats, columns, d_loss, factor
        )
    d_logits = logits.new_empty(logits.shape)
    for rows in _slices(logits, values):
        d_rows = d_loss if d_loss.dim() == 0 else d_loss[rows]
        kernels.backward(
            logits[rows], inv_temperature, targets.tile(rows), row_stats[:, rows], columns,
            d_rows, factor, d_logits[rows],
        )  # fmt: skip
    return d_logits


def _slices(logits: Tensor, values: Tensor | None) -> list[slice]:
    """One slice where the targets' values exist; else tiles of rows, whose scores are formed."""
    rows, columns = logits.shape
    return [slice(0, rows)] if values is not None else row_slices(0, rows, columns)
