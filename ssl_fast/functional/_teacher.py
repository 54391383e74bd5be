"""What the prototype losses ask of a teacher's scores beside the assignment: N + K numbers each."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import backend
from . import _check, _distributed
from ._operator import full_precision, operator
from ._tiles import product_dtype
from .assignment import Assignment, Scores, _held
from .sinkhorn import sinkhorn_potentials

_UPCAST_ROWS = 4096  # of half prototypes at a time
_SMALLEST = 1e-300  # its logarithm, -690, is no assignment in any type


def mean_scores(teachers: list[Tensor], prototypes: Tensor | None, group: str) -> Tensor:
    """(K,): the mean of z @ prototypes.T, or of scores, over the rows of all teachers and ranks.

    The mean is taken of z: D numbers cross ranks, and no scores are formed.
    """
    return full_precision(_mean_scores, (teachers, prototypes, group))


def _mean_scores(teachers: list[Tensor], prototypes: Tensor | None, group: str) -> Tensor:
    wide = product_dtype(teachers[0])
    total = torch.stack([t.detach().sum(0, dtype=wide) for t in teachers]).sum(0)
    count = total.new_full((1,), sum(t.shape[0] for t in teachers))
    total = _distributed.all_reduce(torch.cat([total, count]), "sum", group)
    mean = total[:-1] / total[-1]
    if prototypes is None:
        return mean
    blocks = prototypes.detach().split(_UPCAST_ROWS)
    return torch.cat([block.to(wide) @ mean for block in blocks])


def centered(
    teachers: Sequence[Tensor], center: Tensor, temperature: float
) -> tuple[list[Assignment], Tensor]:
    """softmax((s - center) / temperature) of every teacher, and the mean (1, K) of all their rows.

    Args:
        teachers: scores (N, K) of the same samples.
        center: (1, K).
        temperature: > 0, in units of the scores.
    """
    scale = 1.0 / _check.positive("temperature", temperature)
    scores = [
        _check.rows_contiguous(_check.detached(f"teachers[{t}]", own))
        for t, own in enumerate(teachers)
    ]
    first, *others = scores
    for t, own in enumerate(others, 1):
        _check.same(f"teachers[{t}]", own, "teachers[0]", first)
        if own.shape != first.shape:
            raise ValueError(
                f"teachers[{t}] is {tuple(own.shape)}, but teachers[0] is {tuple(first.shape)}: "
                "all hold the same samples"
            )
    _check.tensor("center", center, (1, first.shape[1]), "teachers[0]", first.device)
    name = backend.select("sinkhorn", first.device, first.dtype)
    rows, col, mean = centered_potentials(first, others, center, scale, name)
    held = zip(scores, rows.unbind(), strict=True)
    return [Assignment(values=s, scale=scale, row=row, col=col) for s, row in held], mean


def _fake_centered(first: Tensor, others: list[Tensor], center: Tensor, *_: Any) -> tuple:
    rows, columns = first.shape
    return (
        first.new_empty((1 + len(others), rows), dtype=torch.float64),
        first.new_empty(columns, dtype=torch.float64),
        center.new_empty(center.shape, dtype=torch.promote_types(first.dtype, center.dtype)),
    )


@operator(_fake_centered)
def centered_potentials(
    first: Tensor,  # (N, K)
    others: list[Tensor],  # each (N, K)
    center: Tensor,  # (1, K)
    scale: float,
    name: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Row potentials (V, N) under col (K,) = -scale * center, col, and the rows' mean (1, K)."""
    kernels = backend.implementation(name, "sinkhorn")
    views = [first, *others]
    if name == "native" and not first.is_cuda:
        return kernels.centered(views, center, scale)
    col = center[0].double() * -scale
    row = torch.stack([kernels.row_potential(view, scale, col) for view in views])
    wide = torch.promote_types(first.dtype, center.dtype)
    return row, col, torch.stack(views).mean((0, 1), dtype=wide)[None]


def sorted_prior(scores: Scores, prior: Tensor, epsilon: float, group: str) -> Tensor:
    """`prior` with its largest entry at the prototype that has the largest mass now, and so on.

    A prototype's mass is sum_i softmax(s_i / epsilon)_k over the rows of all ranks; equal masses
    keep their order.
    """
    held = _held(scores)
    prior = _check.prior(prior, held.shape[1], held.device)
    first, prototypes, name = held._operands()
    scale = 1.0 / _check.positive("epsilon", epsilon)
    # One step from the softmax: col = -log of the masses.
    _, col = sinkhorn_potentials(first, prototypes, scale, None, 1, True, name, group)
    heaviest_first = torch.argsort(col, stable=True)
    values = torch.sort(prior, descending=True, stable=True).values
    return torch.empty_like(values).scatter(0, heaviest_first, values)


def last_rows(assignment: Assignment, z: Tensor) -> Assignment:
    """The assignment of z (N, D), which came last, without holding on to the rows before it."""
    last = assignment[-z.shape[0] :]
    if last.z is None or last.row is None:
        return last
    own = _check.rows_contiguous(z.detach().to(last.z.dtype))
    return dataclasses.replace(last, z=own, row=last.row.clone())


def weighted(assignment: Assignment, weights: Tensor) -> Assignment:
    """The assignment with row i multiplied by weights_i >= 0, (N,): `Targets` takes their logs."""
    assert assignment.row is not None
    log_weights = weights.double().clamp_min(_SMALLEST).log()
    return dataclasses.replace(assignment, row=torch.stack([assignment.row, log_weights]))


def token_weights(mask: Tensor, student: Tensor, group: str = "") -> Tensor:
    """1 / (B * masked tokens of the image) for each masked token, (M,), float32 or better.

    mask (B, ...) bool with M entries True, B images over all ranks; student (M, D) or (M, K).
    """
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.dim() < 2:
        found = f"{mask.dtype} {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask)
        raise TypeError(f"mask must be a bool tensor (B, tokens) or (B, H, W), got {found}")
    _check.device("mask", mask, "student", student.device)
    name = backend.select("cross_entropy", student.device, student.dtype)
    tokens, dtype = student.shape[0], product_dtype(student)
    if not group:
        return token_shares(mask, tokens, 1 / len(mask), dtype, name)
    images = student.new_full((), len(mask), dtype=torch.float64)
    shares = token_shares(mask, tokens, 1.0, dtype, name)
    return shares / _distributed.all_reduce(images, "sum", group).to(shares.dtype)


def _fake_shares(mask: Tensor, tokens: int, factor: float, dtype: torch.dtype, name: str) -> Tensor:
    return mask.new_empty(tokens, dtype=dtype)


@operator(_fake_shares)
def token_shares(
    mask: Tensor,  # (B, ...) bool, M entries True
    tokens: int,  # M
    factor: float,
    dtype: torch.dtype,
    name: str,
) -> Tensor:
    """factor / (masked tokens of the image) for each masked token, (M,)."""
    if name == "native" and not mask.is_cuda:
        shares = torch.empty(1, tokens, dtype=dtype)
        kernels = backend.implementation(name, "cross_entropy")
        _all_of(kernels.token_weights(mask, factor, shares), tokens)
        return shares[0]
    counts = mask.flatten(1).sum(1)
    if not mask.is_cuda:
        _all_of(int(counts.sum()), tokens)
    share = factor / counts.to(dtype)  # an image without masked tokens repeats none
    return share.repeat_interleave(counts, output_size=tokens)


def _all_of(marked: int, tokens: int) -> None:
    if marked != tokens:
        raise ValueError(
            f"mask marks {marked} tokens, but student has {tokens} rows: pass the masked tokens "
            "alone, tokens[mask]"
        )
