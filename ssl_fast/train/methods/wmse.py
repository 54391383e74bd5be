"""W-MSE: whitened views are drawn together."""

from ...losses import WMSELoss
from ..heads import mlp
from ..models import AnyEncoder
from .base import Batch, Output
from .recipes import COMMON, solo
from .siamese import Siamese


class WMSE(Siamese):
    """Defaults are the official code's and solo-learn's for small images."""

    paper = "Ermolov et al., Whitening for Self-Supervised Representation Learning, ICML 2021"
    equation = "Eq. 6"
    loss_class = "WMSELoss"
    recipe = (
        COMMON
        | solo("wmse")
        | {"optimizer": "adam", "lr": 2e-3, "weight_decay": 1e-6, "decay_norms": True}
    )

    def __init__(
        self,
        encoder: AnyEncoder,
        *,
        whitening_size: int = 128,
        iterations: int = 1,
        hidden_dim: int = 1024,
        embedding_dim: int = 64,
    ) -> None:
        """Options of W-MSE.

        Args:
            encoder: images to encodings.
            whitening_size: samples that are whitened together, more than the embeddings' width.
            iterations: random partitions of the batch a step.
            hidden_dim: width of the projector's hidden layer.
            embedding_dim: width of the embeddings.
        """
        super().__init__(encoder, mlp([encoder.dim, hidden_dim, embedding_dim]))
        if whitening_size <= embedding_dim:
            raise ValueError(
                f"whitening_size {whitening_size} must be above embedding_dim {embedding_dim}"
            )
        self.size = whitening_size
        self.criterion = WMSELoss(whitening_size, iterations)

    def loss(self, batch: Batch) -> Output:
        z = self.project(batch.views)
        return Output(self.criterion(z), z)

    def check(self, batch_size: int, images: int) -> None:
        if batch_size % self.size:
            fits = max(1, batch_size // self.size) * self.size
            raise ValueError(
                f"the batch is whitened {self.size} samples at a time: batch_size {batch_size} "
                f"must be a multiple of it, such as {fits}"
            )
