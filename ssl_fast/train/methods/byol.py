"""BYOL: the online network predicts the momentum network's view."""

from torch import nn

from ...losses import BYOLLoss
from ..heads import mlp, widths
from ..models import AnyEncoder
from .base import Batch, Output
from .recipes import lars, solo
from .siamese import MomentumSiamese


class BYOL(MomentumSiamese):
    """Defaults are solo-learn's for small images."""

    paper = "Grill et al., Bootstrap Your Own Latent, NeurIPS 2020"
    equation = "Eq. 2, both directions"
    loss_class = "BYOLLoss"
    recipe = lars(1.0, 1e-5) | solo("asymmetric")

    def __init__(
        self,
        encoder: AnyEncoder,
        *,
        momentum: float = 0.99,
        final_momentum: float = 1.0,
        hidden_dim: int = 4096,
        hidden_layers: int = 1,
        embedding_dim: int = 256,
        predictor_dim: int = 4096,
    ) -> None:
        """Options of BYOL.

        Args:
            encoder: images to encodings.
            momentum: decay of the momentum network at the start.
            final_momentum: at the end, reached along a cosine.
            hidden_dim: width of the projector's hidden layers.
            hidden_layers: how many.
            embedding_dim: width of the embeddings.
            predictor_dim: width of the predictor's hidden layer.
        """
        head = mlp(widths(encoder.dim, hidden_dim, hidden_layers, embedding_dim))
        super().__init__(encoder, head, momentum, final_momentum)
        self.predictor: nn.Module = mlp([embedding_dim, predictor_dim, embedding_dim])
        self.criterion = BYOLLoss()

    def loss(self, batch: Batch) -> Output:
        keys = self.keys(batch.views, batch.progress)
        z = self.project(batch.views)
        p = [self.predictor(view) for view in z]
        return Output(self.criterion(*p, *keys), z)
