"""Zero-CL: features whitened per view, then drawn together; no negatives."""

from ...losses import ZeroCLLoss
from ..heads import mlp
from ..models import AnyEncoder
from .base import Batch, Output
from .recipes import lars, solo
from .siamese import Siamese


class ZeroCL(Siamese):
    """The released CIFAR script trains the feature-wise term alone, and so does the default.

    Optimiser, projector, stem and views are solo-learn's of Barlow Twins: that script's are not at
    hand.
    """

    paper = "Zhang et al., Zero-CL: Instance and Feature Decorrelation, ICLR 2022"
    equation = "Eq. 8 and 9"
    loss_class = "ZeroCLLoss"
    recipe = lars(0.3, 1e-4) | solo("asymmetric")

    def __init__(
        self,
        encoder: AnyEncoder,
        *,
        hidden_dim: int = 2048,
        embedding_dim: int = 256,
    ) -> None:
        """Options of Zero-CL.

        Args:
            encoder: images to encodings.
            hidden_dim: width of the projector's two hidden layers.
            embedding_dim: width of the embeddings.
        """
        super().__init__(encoder, mlp([encoder.dim, hidden_dim, hidden_dim, embedding_dim]))
        self.criterion = ZeroCLLoss()

    def loss(self, batch: Batch) -> Output:
        z = self.project(batch.views)
        return Output(self.criterion(*z), z)
