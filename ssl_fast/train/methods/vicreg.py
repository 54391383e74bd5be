"""VICReg: invariance, variance, covariance."""

from ...losses import VICRegLoss
from ..heads import mlp
from ..models import AnyEncoder
from .base import Batch, Output
from .recipes import lars, solo
from .siamese import Siamese


class VICReg(Siamese):
    """Optimiser and heads are solo-learn's for small images, the loss is the official code's.

    solo-learn's variance term weighs twice as much (the official code halves it).
    """

    paper = "Bardes et al., VICReg: Variance-Invariance-Covariance Regularization, ICLR 2022"
    equation = "Eq. 6"
    loss_class = "VICRegLoss"
    recipe = lars(0.3, 1e-4) | solo("vicreg")

    def __init__(
        self,
        encoder: AnyEncoder,
        *,
        invariance_weight: float = 25.0,
        variance_weight: float = 25.0,
        covariance_weight: float = 1.0,
        hidden_dim: int = 2048,
        embedding_dim: int = 2048,
    ) -> None:
        """Options of VICReg.

        Args:
            encoder: images to encodings.
            invariance_weight: lambda.
            variance_weight: mu.
            covariance_weight: nu.
            hidden_dim: width of the projector's two hidden layers.
            embedding_dim: width of the embeddings.
        """
        super().__init__(encoder, mlp([encoder.dim, hidden_dim, hidden_dim, embedding_dim]))
        self.criterion = VICRegLoss(invariance_weight, variance_weight, covariance_weight)

    def loss(self, batch: Batch) -> Output:
        z = self.project(batch.views)
        return Output(self.criterion(*z), z)
