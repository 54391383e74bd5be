"""A prior over prototypes as the losses take it: by name, or as numbers."""

from typing import Any

import torch
from torch import Tensor

from ..functional import _check, power_law_prior

_NAMES = ("uniform", "power_law")
ORDERS = ("fixed", "sorted")


class Prior(torch.nn.Module):
    """`prior` is "uniform" or None, "power_law" (k^-exponent), or a distribution (K,).

    A given distribution moves with the module, but keeps its type: rounded to half it would not
    sum to 1. It is no part of the state: it is an argument.
    """

    given: Tensor | None

    def __init__(self, prior: Tensor | str | None, exponent: float):
        super().__init__()
        given = None
        if isinstance(prior, Tensor):
            _check.prior(prior.detach().cpu(), prior.numel(), torch.device("cpu"))
            given, prior = prior.detach().clone(), "given"
        elif prior is None:
            prior = "uniform"
        elif not isinstance(prior, str) or prior not in _NAMES:
            raise ValueError(
                f"prior must be one of {', '.join(map(repr, _NAMES))}, or a tensor (K,) that sums "
                f"to 1, got {prior!r}"
            )
        self.name, self.exponent = prior, _check.at_least_zero("exponent", exponent)
        self.register_buffer("given", given, persistent=False)

    def forward(self, prototypes: int, device: torch.device) -> Tensor | None:
        """(prototypes,) on `device`; None is uniform."""
        if self.name != "power_law":
            return self.given
        if device.type == "cpu":
            return power_law_prior(prototypes, self.exponent)
        with device:  # made where it is needed: a copy from the host would synchronise
            return power_law_prior(prototypes, self.exponent)

    def _apply(self, fn: Any, recurse: bool = True) -> torch.nn.Module:
        given = self.given
        super()._apply(fn, recurse)
        if given is not None and self.given is not None and self.given.dtype != given.dtype:
            self.given = given.to(self.given.device)
        return self

    def extra_repr(self) -> str:
        return f"{self.name}, exponent={self.exponent}" if self.name == "power_law" else self.name
