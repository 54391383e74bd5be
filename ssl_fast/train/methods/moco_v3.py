"""MoCo v3: no queue; predictions find their key among the batch's."""

from torch import nn

from ...losses import MoCoLoss
from ..heads import mlp
from ..models import AnyEncoder
from .base import Batch, Output
from .recipes import lars, solo
from .siamese import MomentumSiamese


class MoCoV3(MomentumSiamese):
    """Defaults are solo-learn's for small images; the sum of both directions, times 2T each."""

    paper = "Chen et al., Training Self-Supervised Vision Transformers, ICCV 2021"
    equation = "Algorithm 1"
    loss_class = "MoCoLoss"
    recipe = lars(0.3, 1e-6) | solo("asymmetric")

    def __init__(
        self,
        encoder: AnyEncoder,
        *,
        temperature: float = 0.2,
        momentum: float = 0.99,
        hidden_dim: int = 4096,
        embedding_dim: int = 256,
        predictor_dim: int = 4096,
    ) -> None:
        """Options of MoCo v3.

        Args:
            encoder: images to encodings.
            temperature: of the cosine similarities.
            momentum: decay of the momentum network at the start; it rises to 1 along a cosine.
            hidden_dim: width of the projector's hidden layer.
            embedding_dim: width of the embeddings.
            predictor_dim: width of the predictor's hidden layer.
        """
        head = mlp([encoder.dim, hidden_dim, embedding_dim], last="plain")
        super().__init__(encoder, head, momentum)
        widths = [embedding_dim, predictor_dim, embedding_dim]
        self.predictor: nn.Module = mlp(widths, last="plain")
        self.criterion = MoCoLoss(queue_size=0, temperature=temperature)

    def loss(self, batch: Batch) -> Output:
        keys = self.keys(batch.views, batch.progress)
        z = self.project(batch.views)
        q = [self.predictor(view) for view in z]
        return Output(self.criterion(q[0], keys[1]) + self.criterion(q[1], keys[0]), z)
