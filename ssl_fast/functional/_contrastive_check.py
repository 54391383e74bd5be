"""Checks that the contrastive functions share."""

from collections.abc import Sequence

from torch import Tensor

from . import _check


def same_views(views: Sequence[Tensor]) -> tuple[Tensor, ...]:
    if not isinstance(views, list | tuple) or len(views) < 2:
        came = f"{len(views)} of them" if isinstance(views, list | tuple) else type(views).__name__
        raise ValueError(
            f"views must be a list of at least two (N, D) tensors, got {came}: write [z0, z1]"
        )
    operands = _check.autocast(*views)
    for i in range(1, len(operands)):
        same_shape("z0", operands[0], f"z{i}", operands[i])
    return operands


def same_shape(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Two views of one batch: equal shapes, types, devices."""
    _check.factors(name, value, other_name, other)
    if value.shape != other.shape:
        raise ValueError(
            f"{name} and {other_name} must be views of the same samples, got "
            f"{tuple(value.shape)} and {tuple(other.shape)}"
        )


def columns(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    _check.matrix(name, value)
    _check.device(name, value, other_name, other.device)
    if value.shape[1] != other.shape[1]:
        raise ValueError(
            f"{name} must have {other_name}'s width {other.shape[1]}, got {tuple(value.shape)}"
        )


def at_least_two(count: int, what: str, remedy: str) -> None:
    if count < 2:
        raise ValueError(f"one sample alone has no {what} to be told from: {remedy}")
