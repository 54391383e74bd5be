"""Inputs and options of the compat tests' table, in float64."""

from collections.abc import Callable
from typing import Any

import torch
from checks import normal
from torch import Tensor

Inputs = Callable[[int, int], Any]  # (rows, step) -> the arguments of forward, float64


def views(count: int, columns: int, scale: float = 1.0) -> Inputs:
    """`count` arguments (rows, columns)."""
    return lambda rows, step: tuple(
        normal(rows, columns, dtype=torch.float64, seed=100 * step + i) * scale
        for i in range(count)
    )


def swav(rows: int, step: int) -> tuple:
    scores = [normal(rows, 50, dtype=torch.float64, seed=i) / 3 for i in range(7)]
    return scores[:2], scores[2:5], [scores[5], scores[6][: rows // 2 + 1]]


def dino(rows: int, step: int) -> tuple:
    logits = [normal(rows, 50, dtype=torch.float64, seed=10 * step + i) for i in range(7)]
    return logits[:2], logits[2:]


def ibot(rows: int, step: int) -> tuple:
    mask = torch.zeros(4, 8, 16, dtype=torch.bool)
    per_image = (rows // 2, 0, rows // 3, rows - rows // 2 - rows // 3)
    for image, count in zip(mask, per_image, strict=True):
        image.view(-1)[
            torch.randperm(128, generator=torch.Generator().manual_seed(step))[:count]
        ] = True
    teacher, student = views(2, 50)(rows, step)
    return teacher, student, mask


def ibot_plus_plus(rows: int, step: int) -> tuple:
    teacher, student = views(2, 50)(4 * rows, step)
    mask = normal(4, rows, seed=step) > 0.3
    if step == 0:
        return teacher.view(4, rows, 50), student.view(4, rows, 50)
    return teacher, student, mask, 0.1, 0.5


def msn(rows: int, step: int) -> tuple:
    shapes = (3 * rows, rows, 30)
    tensors = [normal(n, 24, dtype=torch.float64, seed=i) for i, n in enumerate(shapes)]
    return (*tensors, 0.4) if rows == 13 else tuple(tensors)


def power_law(mean: Tensor) -> Tensor:
    prior = torch.arange(1, len(mean) + 1) ** -0.5
    return (prior / prior.sum()).to(mean)


def following(mean: Tensor) -> Tensor:
    """A target that has a gradient of its own."""
    return (mean * 2).softmax(0)


def gaps(out0: Tensor, out1: Tensor) -> Tensor:
    """Weights that have a gradient, as in DCLLoss's documentation."""
    return ((out0 - out1) ** 2).sum(1)


def vicreg(rows: int, step: int) -> tuple:
    """A map of positions for 13 rows, else plain views; spread about the hinge."""
    shape = (13, 3, 10) if rows == 13 else (rows, 40)
    return tuple(normal(*shape, dtype=torch.float64, seed=i) for i in range(2))


def vicregl(rows: int, step: int) -> tuple:
    def view(seed: int, side: int) -> tuple:
        drawn = [normal(rows, 16, seed=seed), normal(rows, side, side, 6, seed=seed + 1)]
        return tuple(x.double() for x in drawn), normal(rows, side, side, 2, seed=seed + 2).double()

    views = [view(10 * i, 4 if i < 2 else 3) for i in range(2 if rows == 13 else 4)]
    features, grids = [v[0] for v in views], [v[1] for v in views]
    if rows == 13:
        return features, grids
    return features[:2], grids[:2], features[2:], grids[2:]


def maps() -> tuple:
    """Shapes that broadcast, of more than two dimensions."""
    shapes = ((4, 5, 6), (4, 1, 6))
    return tuple(normal(*shape, dtype=torch.float64, seed=i) for i, shape in enumerate(shapes))


def ordered(x0: Tensor, x1: Tensor) -> Tensor:
    """A loss that sees which row stands where."""
    weights = torch.linspace(0, 1, len(x0), dtype=x0.dtype)
    return ((x0 - x1).square().sum(1) * weights).mean()
