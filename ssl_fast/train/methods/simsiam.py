"""SimSiam: a predictor and a stopped gradient are enough."""

from torch import nn

from ...losses import SimSiamLoss
from ..heads import mlp
from ..models import AnyEncoder
from .base import Batch, Output
from .recipes import sgd, solo
from .siamese import Siamese


class SimSiam(Siamese):
    """Defaults are solo-learn's for small images; every layer's rate falls, the predictor's too."""

    paper = "Chen and He, Exploring Simple Siamese Representation Learning, CVPR 2021"
    equation = "Eq. 4"
    loss_class = "SimSiamLoss"
    recipe = sgd(0.5, 1e-5) | solo("symmetric_weak")

    def __init__(
        self,
        encoder: AnyEncoder,
        *,
        hidden_dim: int = 2048,
        embedding_dim: int = 2048,
        predictor_dim: int = 512,
    ) -> None:
        """Options of SimSiam.

        Args:
            encoder: images to encodings.
            hidden_dim: width of the projector's two hidden layers.
            embedding_dim: width of the embeddings.
            predictor_dim: width of the predictor's hidden layer.
        """
        widths = [encoder.dim, hidden_dim, hidden_dim, embedding_dim]
        super().__init__(encoder, mlp(widths, last="plain"))
        self.predictor: nn.Module = mlp([embedding_dim, predictor_dim, embedding_dim])
        self.criterion = SimSiamLoss()

    def loss(self, batch: Batch) -> Output:
        z = self.project(batch.views)
        p = [self.predictor(view) for view in z]
        return Output(self.criterion(*p, *z), z)
