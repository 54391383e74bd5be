"""`lightly.models.modules.center`: the running mean of teacher logits."""

import torch
from torch import Tensor

from ...functional._distributed import all_reduce
from ._common import world


class Center(torch.nn.Module):
    """Moving average of a batch mean over the dimensions in which `size` is 1.

    Args:
        size: of the kept mean, as (1, K).
        mode: "mean" alone.
        momentum: m in m * center + (1 - m) * batch mean.
    """

    center: Tensor

    def __init__(self, size: tuple[int, ...], mode: str = "mean", momentum: float = 0.9) -> None:
        super().__init__()
        self._center_fn = center_function(mode)
        self.size = size
        self.dim = tuple(i for i, extent in enumerate(size) if extent == 1)
        self.register_buffer("center", torch.zeros(self.size))
        self.momentum = momentum

    @property
    def value(self) -> Tensor:
        """The present mean."""
        return self.center

    def update(self, x: Tensor) -> None:
        """Take a batch in; over all processes where there are several."""
        self._move(self._center_fn(x=x, dim=self.dim))

    def take_in(self, mean: Tensor) -> None:
        """`update` with the mean of this process's batch."""
        self._move(over_processes(mean))

    def _move(self, mean: Tensor) -> None:
        self.center = center_momentum(self.center, mean, self.momentum)


@torch.no_grad()
def center_mean(x: Tensor, dim: tuple[int, ...]) -> Tensor:
    """Mean over `dim`, which stay with extent 1, and over all processes."""
    return over_processes(torch.mean(x, dim=dim, keepdim=True))


@torch.no_grad()
def center_momentum(center: Tensor, batch_center: Tensor, momentum: float) -> Tensor:
    """momentum * center + (1 - momentum) * batch_center."""
    wide = torch.promote_types(center.dtype, batch_center.dtype)
    return torch.lerp(center.to(wide), batch_center.to(wide), 1 - momentum)


def over_processes(mean: Tensor) -> Tensor:
    """The processes' average of equal-sized batches' means."""
    group = world()
    if group is None:
        return mean
    return all_reduce(mean, "sum", group.group_name) / group.size()


CENTER_MODE_TO_FUNCTION = {"mean": center_mean}


def center_function(mode: str):
    if mode not in CENTER_MODE_TO_FUNCTION:
        raise ValueError(
            f"Unknown mode '{mode}'. Valid modes are {sorted(CENTER_MODE_TO_FUNCTION)}."
        )
    return CENTER_MODE_TO_FUNCTION[mode]
