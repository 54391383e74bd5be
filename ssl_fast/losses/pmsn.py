"""PMSN: MSN with any prior on the prototypes (Assran et al. 2023)."""

from typing import Any

from torch import Tensor

from ._prior import Prior
from .msn import MSNLoss


class PMSNLoss(MSNLoss):
    """MSN's cross-entropy with the mean prediction drawn to a given prior.

        L = mean_i sum_k -q_ik log p_ik + prior_weight KL(mean p || prior)
            + entropy_weight mean_i H(p_i),       all as in `MSNLoss`

    Args:
        prior: "power_law": proportional to k^-exponent; "uniform", which is MSN; or a distribution
            (K,), all positive: class frequencies, say.
        exponent: of the power law, >= 0; 0.25 in the paper's Table 3, 0.5 in its toy setting.
        temperature: as in `MSNLoss`; prior_weight is the paper's lambda.
        sharpening: likewise.
        prior_weight: likewise.
        sinkhorn_iterations: likewise.
        entropy_weight: likewise.
        group: likewise.

    Source: paper, Eq. 9. No official code; Lightly's class has KL(prior || mean p) instead
        (`ssl_fast.compat.lightly`, or `prior_kl(reverse=True)`).
    Cost: as `MSNLoss`.
    """

    def __init__(
        self,
        prior: Tensor | str = "power_law",
        exponent: float = 0.25,
        temperature: float = 0.1,
        sharpening: float = 0.25,
        prior_weight: float = 1.0,
        sinkhorn_iterations: int = 0,
        entropy_weight: float = 0.0,
        group: Any = None,
    ):
        super().__init__(
            temperature, sharpening, prior_weight, sinkhorn_iterations, entropy_weight, group
        )
        self.prior = Prior(prior, exponent)
