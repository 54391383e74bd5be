"""PAUC: PCL whose prototypes are aligned, uniform and uncorrelated."""

from typing import Any

from ...losses import PAUCLoss
from ..models import AnyEncoder
from .pcl import PCL


class PAUC(PCL):
    """Defaults are the paper's for ImageNet-1k; the weights, which it does not print, are 1."""

    paper = "Mo et al., Rethinking Prototypical Contrastive Learning, NeurIPS 2022"
    equation = "Eq. 7: ProtoNCE + alpha alignment + beta uniformity + gamma correlation"
    loss_class = "PAUCLoss"

    def __init__(
        self,
        encoder: AnyEncoder,
        *,
        alpha: float = 1.0,
        beta: float = 1.0,
        gamma: float = 1.0,
        **options: Any,
    ) -> None:
        """Options of PAUC.

        Args:
            encoder: images to encodings.
            alpha: weight of the prototypes' alignment.
            beta: weight of their uniformity.
            gamma: weight of their correlation.
            **options: those of PCL.
        """
        super().__init__(encoder, **options)
        old = self.criterion
        self.criterion = PAUCLoss(
            len(old.instances.queue.rows),
            old.instances.queue.rows.shape[1],
            self.temperature,
            old.negatives,
            alpha,
            beta,
            gamma,
        )
