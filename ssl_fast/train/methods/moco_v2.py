"""MoCo v2: queries find their key among a queue of earlier keys."""

from torch import nn

from ...losses import MoCoLoss
from ..heads import mlp, widths
from ..models import AnyEncoder
from .base import Batch, Output
from .recipes import sgd, solo
from .siamese import MomentumSiamese


class MoCoV2(MomentumSiamese):
    """Defaults are solo-learn's for small images: both directions, a queue each, the mean."""

    paper = "Chen et al., Improved Baselines with Momentum Contrastive Learning, 2020"
    equation = "Eq. 1: InfoNCE"
    loss_class = "MoCoLoss"
    recipe = sgd(0.3, 1e-4) | solo("symmetric_weak")

    def __init__(
        self,
        encoder: AnyEncoder,
        *,
        temperature: float = 0.2,
        queue_length: int = 32768,
        momentum: float = 0.99,
        final_momentum: float = 0.999,
        hidden_dim: int = 2048,
        hidden_layers: int = 1,
        hidden_norm: bool = False,
        embedding_dim: int = 256,
    ) -> None:
        """Options of MoCo v2.

        Args:
            encoder: images to encodings.
            temperature: of the cosine similarities.
            queue_length: keys in each queue.
            momentum: decay of the momentum network at the start.
            final_momentum: at the end, reached along a cosine.
            hidden_dim: width of the projector's hidden layers.
            hidden_layers: how many.
            hidden_norm: batch norm behind them.
            embedding_dim: width of the embeddings.
        """
        dims = widths(encoder.dim, hidden_dim, hidden_layers, embedding_dim)
        head = mlp(dims, norm=hidden_norm)
        super().__init__(encoder, head, momentum, final_momentum)
        if queue_length < 1:
            raise ValueError(f"queue_length must be at least 1, got {queue_length}")
        self.criteria = nn.ModuleList(
            MoCoLoss(queue_length, embedding_dim, temperature) for _ in range(2)
        )

    def loss(self, batch: Batch) -> Output:
        keys = self.keys(batch.views, batch.progress)
        z = self.project(batch.views)
        first, second = self.criteria
        return Output((first(z[0], keys[1]) + second(z[1], keys[0])) / 2, z)
