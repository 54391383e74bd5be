"""ReSA: clustering-guided self-assignment (Weng et al. 2025)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..functional._check import by_name, count, positive
from ..functional._resa import resa


class ReSALoss(torch.nn.Module):
    """Cross-entropy of embedding similarities against a Sinkhorn assignment of the encodings.

        A = Sinkhorn(h h_mᵀ / epsilon)                          no gradient, once for all views
        L = mean over q != v of CE(A, z_q z_m,vᵀ / temperature)
        CE(A, S) = -1/(2N) sum_ij A_ij (log softmax_rows(S)_ij + log softmax_columns(S)_ij)

    Nothing is normalised inside: pass rows of unit norm, as the official ForwardWrapper does. With
    the identity for A this is InfoNCE.

    Args:
        temperature: of the embeddings' similarities, > 0.
        epsilon: of Sinkhorn-Knopp, in units of the encodings' similarities, > 0.
        iterations: of Sinkhorn-Knopp, at least 1.
        symmetric: rows and columns, as the paper's Eq. 2 and pseudo-code have it; False is the
            released code, rows alone.
        group: process group. Momentum views of all ranks become the columns; every rank returns
            the global loss, and DDP's mean of the gradients is exact.

    Source: paper Eq. 2; winci-ai/resa e7869d1 for the order of views and `symmetric=False`.
    Cost: one product and Sinkhorn for A; a pair takes one product, and one more for each view that
        needs a gradient. With `symmetric`, and but for Triton, all of it forward, and the gradients
        are what is kept.
    """

    def __init__(
        self,
        temperature: float = 0.4,
        epsilon: float = 0.05,
        iterations: int = 3,
        symmetric: bool = True,
        group: Any = None,
    ):
        super().__init__()
        self.temperature = positive("temperature", temperature)
        self.epsilon = positive("epsilon", epsilon)
        self.iterations = count("iterations", iterations)
        self.symmetric = symmetric
        self.group = by_name(group)

    def forward(
        self,
        embeddings: Sequence[Tensor],
        momentum_embeddings: Sequence[Tensor],
        encodings: Tensor,
        momentum_encodings: Tensor,
    ) -> Tensor:
        """The loss, 0-d.

        Args:
            embeddings: Q views (N, D) of the online network; gradients reach them.
            momentum_embeddings: V views (N, D) of the momentum network, in the same order;
                view v is not compared with embedding v. Gradients reach those that require them.
            encodings: (N, H) of the weak view, online network; a constant.
            momentum_encodings: (N, H) of the weak view, momentum network; a constant.
        """
        return resa(
            embeddings,
            momentum_embeddings,
            _pairs(embeddings, momentum_embeddings),
            encodings,
            momentum_encodings,
            temperature=self.temperature,
            epsilon=self.epsilon,
            iterations=self.iterations,
            symmetric=self.symmetric,
            group=self.group,
        )

    def extra_repr(self) -> str:
        return (
            f"temperature={self.temperature}, epsilon={self.epsilon}, "
            f"iterations={self.iterations}, symmetric={self.symmetric}"
        )


def _pairs(embeddings: Sequence[Tensor], momentum: Sequence[Tensor]) -> list[tuple[int, int]]:
    if isinstance(embeddings, Tensor) or isinstance(momentum, Tensor):
        raise TypeError(
            "embeddings and momentum_embeddings must be lists of (N, D) views: write [z0, z1]"
        )
    pairs = [(q, v) for q in range(len(embeddings)) for v in range(len(momentum)) if q != v]
    if not pairs:
        raise ValueError(
            "ReSA compares different views: pass at least two embeddings, or one of each kind "
            f"beside another; got {len(embeddings)} embeddings and {len(momentum)} momentum views"
        )
    return pairs
