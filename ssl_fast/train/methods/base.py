"""What the driver knows of a method."""

import math
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class Method(nn.Module):
    """Networks and loss of one method, built around an encoder."""

    paper: ClassVar[str]
    equation: ClassVar[str]
    loss_class: ClassVar[str]  # its name in ssl_fast.losses
    views: ClassVar[tuple[str, ...]]  # "weak" or "strong", in the order that `loss` expects

    def loss(self, views: list[Tensor], progress: float) -> Tensor:
        """Scalar; `views` as declared, (N, C, H, W) each; `progress` runs from 0 to 1."""
        raise NotImplementedError

    def evaluated(self) -> tuple[nn.Module, nn.Module]:
        """Encoder (images -> encodings) and projector (encodings -> embeddings) to be measured."""
        raise NotImplementedError

    def use_group(self, group: Any) -> None:
        """The processes that share the batch; called before training where there are several."""
        raise NotImplementedError


class MomentumNetwork(AveragedModel):
    """Exponential average of a network, decay rising from `start` to 1 along a cosine.

    Batch-norm statistics are averaged too, and updated by this network's own forward passes.
    """

    module: nn.ModuleList

    def __init__(self, network: nn.Module, start: float) -> None:
        super().__init__(network, use_buffers=True)
        self.start = start
        self.requires_grad_(False)

    def update(self, network: nn.Module, progress: float) -> None:
        decay = 1 - (1 - self.start) * (1 + math.cos(math.pi * progress)) / 2
        self.multi_avg_fn = get_ema_multi_avg_fn(decay)
        self.update_parameters(network)
