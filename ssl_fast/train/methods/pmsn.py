"""PMSN: MSN whose mean assignment is drawn to any prior."""

from typing import Any

from ...losses import PMSNLoss
from ..models import AnyEncoder
from ..prior import Prior
from .msn import MSN


class PMSN(MSN):
    """MSN with `--prior`: power_law of exponent .25 unless told otherwise, the paper's Table 3."""

    paper = "Assran et al., The Hidden Uniform Cluster Prior in SSL, ICLR 2023"
    equation = "Eq. 9: cross-entropy + lambda KL(mean assignment, prior)"
    loss_class = "PMSNLoss"
    recipe = MSN.recipe | {"prior": "power_law"}

    def __init__(
        self,
        encoder: AnyEncoder,
        *,
        prior: Prior | None = None,
        sinkhorn_iterations: int = 0,
        **options: Any,
    ) -> None:
        """Options of PMSN.

        Args:
            encoder: images to encodings.
            prior: of the driver: what the mean assignment is drawn to.
            sinkhorn_iterations: on the targets; it draws them to the uniform prior, so: 0.
            **options: those of MSN.
        """
        super().__init__(encoder, sinkhorn_iterations=sinkhorn_iterations, **options)
        prior = prior or Prior("power_law")
        if prior.order != "fixed":
            raise ValueError("the prior's order is fixed here: sorted is for swav, dino and ibot")
        shares = prior.shares(len(self.prototypes.weight))
        old = self.criterion
        self.criterion = PMSNLoss(
            "uniform" if shares is None else shares,
            temperature=old.temperature,
            sharpening=old.sharpening,
            prior_weight=old.prior_weight,
            sinkhorn_iterations=old.sinkhorn_iterations,
        )
