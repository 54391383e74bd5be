"""Barlow Twins: the views' cross-correlation is drawn to the identity."""

from ...losses import BarlowTwinsLoss
from ..heads import mlp
from ..models import AnyEncoder
from .base import Batch, Output
from .recipes import lars, solo
from .siamese import Siamese


class BarlowTwins(Siamese):
    """Defaults are solo-learn's for small images."""

    paper = "Zbontar et al., Barlow Twins: Self-Supervised Learning via Redundancy Reduction, 2021"
    equation = "Eq. 1 and 2"
    loss_class = "BarlowTwinsLoss"
    recipe = lars(0.3, 1e-4) | solo("asymmetric")

    def __init__(
        self,
        encoder: AnyEncoder,
        *,
        off_diagonal_weight: float = 0.0051,
        scale: float = 0.1,
        hidden_dim: int = 2048,
        embedding_dim: int = 2048,
    ) -> None:
        """Options of Barlow Twins.

        Args:
            encoder: images to encodings.
            off_diagonal_weight: lambda.
            scale: of the whole loss.
            hidden_dim: width of the projector's two hidden layers.
            embedding_dim: width of the embeddings.
        """
        super().__init__(encoder, mlp([encoder.dim, hidden_dim, hidden_dim, embedding_dim]))
        self.criterion = BarlowTwinsLoss(off_diagonal_weight, scale)

    def loss(self, batch: Batch) -> Output:
        z = self.project(batch.views)
        return Output(self.criterion(*z), z)
