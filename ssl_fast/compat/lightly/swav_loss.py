"""`lightly.loss.swav_loss`."""

import dataclasses

import torch
from torch import Tensor

from ...functional import Assignment, multi_crop_cross_entropy, soft_cross_entropy
from ...functional._check import group_name
from ...functional._distributed import all_reduce, log_sum_exp
from ._common import as_lightly, check_gather, world


class SwaVLoss(torch.nn.Module):
    """SwAV's swapped prediction from prototype scores, as Lightly's class of that name.

        loss = 1 / (H (V - 1)) sum over high-resolution crops i, crops v != i, of CE(q_i, s_v / T)

    with q_i = Sinkhorn(s_i). Scores of any size are fine (Lightly overflows from 4.4 on). Each
    process returns its own rows' loss; the gradient reaches all scores, the codes are constants.

    Args:
        temperature: T.
        sinkhorn_iterations: 0 leaves exp(s / epsilon), scaled to rows' number in total.
        sinkhorn_epsilon: entropy weight, in units of the scores.
        sinkhorn_gather_distributed: balance prototypes over all processes.

    Source: lightly 1.6.0 (the same in 1.5.26). Returns a tensor of shape (1,), as there.
    """

    def __init__(
        self,
        temperature: float = 0.1,
        sinkhorn_iterations: int = 3,
        sinkhorn_epsilon: float = 0.05,
        sinkhorn_gather_distributed: bool = False,
    ):
        super().__init__()
        check_gather("sinkhorn_gather_distributed", sinkhorn_gather_distributed)
        self.temperature = temperature
        self.sinkhorn_iterations = sinkhorn_iterations
        self.sinkhorn_epsilon = sinkhorn_epsilon
        self.sinkhorn_gather_distributed = sinkhorn_gather_distributed

    def subloss(self, z: Tensor, q: Tensor) -> Tensor:
        """Mean cross-entropy of softmax(z / temperature) against the codes q."""
        loss = soft_cross_entropy(z, q.detach(), temperature=self.temperature)
        return as_lightly(loss, z.dtype)

    def forward(
        self,
        high_resolution_outputs: list[Tensor],
        low_resolution_outputs: list[Tensor],
        queue_outputs: list[Tensor] | None = None,
    ) -> Tensor:
        """The loss, (1,).

        Args:
            high_resolution_outputs: H scores (N, K), each source of codes.
            low_resolution_outputs: further scores (N, K), predicted only.
            queue_outputs: H scores (Q, K) that take part in Sinkhorn alone.
        """
        high, low = high_resolution_outputs, low_resolution_outputs
        if len(high) + len(low) == 1:
            return high[0].new_full((1,), float("nan"))  # Lightly's mean over no pair
        queues = [None] * len(high) if queue_outputs is None else queue_outputs
        if len(queues) < len(high):
            raise ValueError(
                "queue_outputs must hold scores for each of the "
                f"{len(high)} high-resolution crops, got {len(queues)}"
            )
        codes = [self._codes(*both) for both in zip(high, queues, strict=False)]
        loss = multi_crop_cross_entropy([*high, *low], codes, None, temperature=self.temperature)
        return as_lightly(loss.reshape(1), high[0].dtype)

    @torch.no_grad()
    def _codes(self, scores: Tensor, queue: Tensor | None) -> Assignment:
        codes = _assign(
            scores if queue is None else torch.cat((scores, queue)),
            self.sinkhorn_iterations,
            self.sinkhorn_epsilon,
            self.sinkhorn_gather_distributed,
        )
        return codes if queue is None else codes[: len(scores)]


@torch.no_grad()
def sinkhorn(
    out: Tensor, iterations: int = 3, epsilon: float = 0.05, gather_distributed: bool = False
) -> Tensor:
    """SwAV's codes of the scores `out` (N, K): rows sum to one."""
    return _assign(out, iterations, epsilon, gather_distributed).dense().to(out.dtype)


def _assign(scores: Tensor, iterations: int, epsilon: float, gather: bool) -> Assignment:
    group = world(gather)
    if iterations > 0:
        return Assignment.sinkhorn(scores, epsilon=epsilon, iterations=iterations, group=group)
    rows = Assignment.softmax(scores, temperature=epsilon)
    assert rows.row is not None
    name = group_name(group)
    count = all_reduce(rows.row.new_full((), len(scores)), "sum", name)
    everything = log_sum_exp(torch.logsumexp(-rows.row, 0), name)
    return dataclasses.replace(
        rows, row=(count.log() - everything).expand(len(scores)).contiguous()
    )
