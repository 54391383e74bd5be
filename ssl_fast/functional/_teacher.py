"""What the prototype losses ask of a teacher's scores beside the assignment: N + K numbers each."""

import dataclasses

import torch
from torch import Tensor

from . import _check, _distributed
from ._operator import full_precision
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


def token_weights(mask: Tensor, student: Tensor, group: str) -> Tensor:
    """1 / (B * masked tokens of the image) for each masked token, (M,) float64.

    mask (B, ...) bool with M entries True, B images over all ranks; student (M, D) or (M, K).
    """
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.dim() < 2:
        found = f"{mask.dtype} {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask)
        raise TypeError(f"mask must be a bool tensor (B, tokens) or (B, H, W), got {found}")
    _check.device("mask", mask, "student", student.device)
    counts, tokens = mask.flatten(1).sum(1), student.shape[0]
    if mask.device.type == "cpu" and not torch.compiler.is_compiling():
        marked = int(counts.sum())
        if marked != tokens:
            raise ValueError(
                f"mask marks {marked} tokens, but student has {tokens} rows: pass the masked "
                "tokens alone, tokens[mask]"
            )
    images = student.new_full((), len(mask), dtype=torch.float64)
    images = _distributed.all_reduce(images, "sum", group)
    share = 1 / (images * counts.clamp(min=1))
    return share.repeat_interleave(counts, output_size=tokens)
