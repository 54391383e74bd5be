"""Alignment and uniformity on the unit sphere."""

import torch.nn.functional as F

from ...losses import AlignUniformLoss
from ..heads import mlp
from ..models import AnyEncoder
from .base import Batch, Output
from .recipes import sgd
from .siamese import Siamese


class AlignUniform(Siamese):
    """Loss as the authors' example; optimiser and projector as solo-learn's MoCo v2."""

    paper = "Wang and Isola, Understanding Contrastive Representation Learning, ICML 2020"
    equation = "L_align and L_uniform of section 4"
    loss_class = "AlignUniformLoss"
    recipe = sgd(0.3, 1e-4) | {"augmentation": "align_uniform"}

    def __init__(
        self,
        encoder: AnyEncoder,
        *,
        align_w: float = 1.0,
        unif_w: float = 1.0,
        alpha: float = 2.0,
        t: float = 2.0,
        hidden_dim: int = 2048,
        embedding_dim: int = 128,
    ) -> None:
        """Options of alignment and uniformity.

        Args:
            encoder: images to encodings.
            align_w: weight of the alignment.
            unif_w: weight of the uniformity.
            alpha: exponent of the alignment.
            t: of the Gaussian potential.
            hidden_dim: width of the projector's hidden layer.
            embedding_dim: width of the embeddings.
        """
        super().__init__(encoder, mlp([encoder.dim, hidden_dim, embedding_dim], norm=False))
        self.criterion = AlignUniformLoss(align_w, unif_w, alpha, t)

    def loss(self, batch: Batch) -> Output:
        z = self.project(batch.views)
        return Output(self.criterion(*(F.normalize(view) for view in z)), z)
