"""Is a result right: the formula in float64, beside which eager PyTorch sets the scale."""

from collections.abc import Callable

import torch
from torch import Tensor

from ssl_fast import backend

from .cases import Case
from .timers import fresh, gradients

_SLACK = 4  # roundings of the output's type, beside twice the eager error


class WrongResult(Exception):
    """A contender's value or gradient is further from float64 than rounding explains."""


class Oracle:
    """The formula in float64, and how far from it a contender may be: eager sets the scale."""

    def __init__(self, case: Case, arguments: list[Tensor]):
        self.case, self.arguments = case, arguments
        self.exact = self._outputs(case.problem.eager, [_double(x) for x in arguments])
        eager = self._outputs(case.problem.eager, arguments)
        self.eager = [_error(a, b) for a, b in zip(eager, self.exact, strict=True)]
        self.errors = {"eager": max(self.eager)}

    def judge(
        self, name: str, function: Callable[..., Tensor], times: float, granted: float = 0.0
    ) -> None:
        """Record the largest relative error; raise beyond `times` eager's plus rounding."""
        found = self._outputs(function, self.arguments)
        for i, (value, exact) in enumerate(zip(found, self.exact, strict=True)):
            error = _error(value, exact)
            allowed = times * self.eager[i] + _SLACK * torch.finfo(value.dtype).eps
            allowed = max(allowed, granted)
            self.errors[name] = max(error, self.errors.get(name, 0.0))
            if not error <= allowed:
                what = f"gradient {i}" if i else "value"
                raise WrongResult(
                    f"{self.case}: {name}'s {what} is off by {error:.1e} of its largest entry; "
                    f"{allowed:.1e} is allowed"
                )

    def _outputs(self, function: Callable[..., Tensor], arguments: list[Tensor]) -> list[Tensor]:
        return outputs(function, fresh(arguments, self.case.problem.differentiable))


def check(oracle: Oracle) -> list[tuple[str, str]]:
    """Raise WrongResult, or return the (stem, backend) pairs that ran."""
    with backend.trace() as ran:
        oracle.judge("ours", oracle.case.problem.ours, times=2)
    return ran


def outputs(function: Callable[..., Tensor], leaves: list[Tensor]) -> list[Tensor]:
    """The value and the gradients of one step."""
    result = function(*leaves)
    return [result.detach(), *gradients(result, leaves)]


def _error(found: Tensor, exact: Tensor) -> float:
    largest = exact.abs().max()
    return float((found.double() - exact).abs().max() / largest.clamp(min=1e-300))


def _double(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x
