"""What most methods share: encoder and projector, and their momentum copies."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..models import AnyEncoder
from ..schedules import Shape
from .base import Method, MomentumNetwork


class Siamese(Method):
    """An encoder with a projector; each view goes through them on its own, as solo-learn has it."""

    def __init__(self, encoder: AnyEncoder, head: nn.Module) -> None:
        super().__init__()
        self.online = nn.ModuleList([encoder, head])

    def project(self, views: Sequence[Tensor]) -> list[Tensor]:
        encoder, head = self.online
        return [head(encoder(view)) for view in views]

    def evaluated(self) -> tuple[nn.Module, nn.Module]:
        return self.online[0], self.online[1]


class MomentumSiamese(Siamese):
    """With a momentum encoder and projector, updated in front of their forward pass."""

    def __init__(
        self,
        encoder: AnyEncoder,
        head: nn.Module,
        momentum: float,
        final_momentum: float = 1.0,
        shape: Shape = "cosine",
    ) -> None:
        super().__init__(encoder, head)
        self.target = MomentumNetwork(self.online, momentum, final_momentum, shape)

    @torch.no_grad()
    def keys(self, views: Sequence[Tensor], progress: float) -> list[Tensor]:
        self.target.update(self.online, progress)
        encoder, head = self.target.module
        return [head(encoder(view)) for view in views]
