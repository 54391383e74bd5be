"""`--prior`: how often each prototype is wanted."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .errors import UsageError


class Prior(NamedTuple):
    """`name` is uniform, power_law, class or a file of K numbers (.npy, or text)."""

    name: str = "uniform"
    exponent: float = 0.25
    order: str = "fixed"
    labels: Any = None  # of the training images, for `class`

    def shares(self, prototypes: int) -> Tensor | None:  # (K,), sums to 1; None is uniform
        if self.name == "uniform":
            return None
        if self.name == "power_law":
            weight = torch.arange(1, prototypes + 1, dtype=torch.float64) ** -self.exponent
        elif self.name == "class":
            weight = self._by_class(prototypes)
        else:
            weight = self._from_file(prototypes)
        return (weight / weight.sum()).float()

    def _by_class(self, prototypes: int) -> Tensor:
        counts = torch.bincount(torch.as_tensor(self.labels).long()).double()
        each, rest = divmod(prototypes, len(counts))
        if rest or not each:
            raise UsageError(
                f"--prior class needs as many prototypes for each of the {len(counts)} classes, "
                f"got {prototypes}: try {max(1, each) * len(counts)}"
            )
        return (counts.sort(descending=True).values / each).repeat_interleave(each)

    def _from_file(self, prototypes: int) -> Tensor:
        path = Path(self.name)
        if not path.is_file():
            raise UsageError(f"--prior {self.name} is no file; or say uniform, power_law or class")
        try:
            values = np.load(path) if path.suffix == ".npy" else np.loadtxt(path, ndmin=1)
        except ValueError as error:
            raise UsageError(f"{path} must hold one number for each prototype: {error}") from error
        weight = torch.as_tensor(values, dtype=torch.float64)
        if weight.shape != (prototypes,):
            raise UsageError(
                f"{path} holds {tuple(weight.shape)} numbers, --prior needs one for each of the "
                f"{prototypes} prototypes"
            )
        if not torch.isfinite(weight).all() or weight.min() < 0 or weight.sum() <= 0:
            raise UsageError(f"{path} must hold finite numbers of at least 0, not all of them 0")
        return weight
