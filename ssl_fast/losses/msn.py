"""MSN: masked Siamese networks (Assran et al. 2022)."""

from typing import Any

import torch
from torch import Tensor

from ..functional import _check, msn
from ..functional._entropy import mean_entropy
from ._prior import Prior


class MSNLoss(torch.nn.Module):
    """Cross-entropy of anchors against sharpened targets, with mean-entropy maximisation.

        p = softmax(a c.T / temperature),  a, c: anchors and prototypes at unit norm
        q = softmax(t c.T / (temperature sharpening)), through Sinkhorn-Knopp where asked
        L = mean_i sum_k -q_ik log p_ik + prior_weight KL(mean p || uniform)
            + entropy_weight mean_i H(p_i)

    KL(mean p || uniform) = log K - H(mean p), the official me-max term. Targets, and prototypes on
    their path, are constants; prototypes get the gradient of the anchors' path.

    Args:
        temperature: of the cosine similarities, > 0.
        sharpening: of the targets' probabilities, > 0 (official: T).
        prior_weight: of the mean's divergence, >= 0 (official: memax_weight).
        sinkhorn_iterations: on the sharpened probabilities; 0 is none. The official function's
            default; its ImageNet configurations take 3.
        entropy_weight: of the anchors' mean entropy, >= 0 (official: ent_weight, 0.0 in the
            configurations although use_ent is true).
        group: process group: means and Sinkhorn's sums are over the rows of all ranks, every rank
            returns the global loss, and DDP's mean of the gradients is exact. The official code
            adds up the prototypes' gradients over ranks: W times the mean's.

    Source: paper, section 3; facebookresearch/msn 4388dc1, src/losses.py, without label smoothing
        of the prototypes.
    Cost: one product for targets, one forward and two backward for anchors, by tiles; kept for
        backward: the inputs, a few numbers a row, and on a CPU tiles within the bytes of inputs
        and gradients. An entropy term costs four products more.
    """

    def __init__(
        self,
        temperature: float = 0.1,
        sharpening: float = 0.25,
        prior_weight: float = 1.0,
        sinkhorn_iterations: int = 0,
        entropy_weight: float = 0.0,
        group: Any = None,
    ):
        super().__init__()
        self.temperature = _check.positive("temperature", temperature)
        self.sharpening = _check.positive("sharpening", sharpening)
        self.prior_weight = _check.at_least_zero("prior_weight", prior_weight)
        self.sinkhorn_iterations = _check.count_or_zero("sinkhorn_iterations", sinkhorn_iterations)
        self.entropy_weight = _check.at_least_zero("entropy_weight", entropy_weight)
        self.prior = Prior(None, 0.0)
        self.group = _check.by_name(group)

    def forward(
        self,
        anchors: Tensor,
        targets: Tensor,
        prototypes: Tensor,
        *,
        sharpening: float | None = None,
    ) -> Tensor:
        """The loss, 0-d.

        Args:
            anchors: (V N, D), view-major: V views of the N images; gradients reach them.
            targets: (N, D) of the target network; a constant.
            prototypes: (K, D); gradients reach them. `prototypes.data` would cut them off.
            sharpening: overrides the constructor's in this call, for a schedule.
        """
        loss = msn(
            anchors,
            targets,
            prototypes,
            temperature=self.temperature,
            sharpening=self.sharpening if sharpening is None else sharpening,
            prior=self.prior(len(prototypes), prototypes.device),
            prior_weight=self.prior_weight,
            sinkhorn_iterations=self.sinkhorn_iterations,
            group=self.group,
        )
        if not self.entropy_weight:
            return loss
        entropy = mean_entropy(anchors, prototypes, temperature=self.temperature, group=self.group)
        return loss + self.entropy_weight * entropy

    def extra_repr(self) -> str:
        return (
            f"temperature={self.temperature}, sharpening={self.sharpening}, "
            f"prior_weight={self.prior_weight}, sinkhorn_iterations={self.sinkhorn_iterations}, "
            f"entropy_weight={self.entropy_weight}"
        )
