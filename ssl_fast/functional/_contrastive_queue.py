"""InfoNCE against negatives that are constants: two products by tiles, both in the forward visit.

    gap_i = log sum_j exp(l_ij) - l_i,   l_ij = <u_i, w_j> / T,   l_i = <u_i, v_i> / T
    loss_i = log(1 + exp(gap_i)),        s_i = sigmoid(gap_i)
    dloss_i / du_i = s_i (sum_j P_ij w_j - v_i) / T,   dloss_i / dv_i = -s_i u_i / T

u, v: rows of query and key, of unit norm where wanted. The gradients wait for the upstream number.
"""

from typing import Any

from torch import Tensor

from .. import backend
from ._autograd import Scaled
from ._contrastive import ALL
from ._norms import inverse_norms
from ._operator import fake_loss, operator
from ._stats import loss_factor
from ._unit import TwoRows


def _fake_forward(query, key, negatives, inv_temperature, normalize, reduction, want_query,
                  want_key, name):  # fmt: skip
    return fake_loss(query, (query, want_query), (key, want_key))


@operator(_fake_forward)
def queue_forward(
    query: Tensor,  # (N, D)
    key: Tensor,  # (N, D)
    negatives: Tensor,  # (M, D)
    inv_temperature: float,
    normalize: int,
    reduction: str,
    want_query: bool,
    want_key: bool,
    name: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, d_query, d_key, in `product_dtype`; None for what is not wanted."""
    kernels = backend.implementation(name, "contrastive")
    both = TwoRows(query, key, bool(normalize), name)
    u, v = both.rows
    b = inverse_norms(negatives, query) if normalize == ALL else None
    factor = loss_factor(reduction, False, len(u))
    total, d_u, d_v = kernels.queue(
        u, v, negatives, b, inv_temperature, factor * inv_temperature, want_query, want_key
    )
    outputs: Any = u.new_full((), total * factor), *both.backward(d_u, d_v)
    return outputs


class Queue(Scaled):
    """(loss, d_query, d_key) at an upstream gradient of 1; only the loss is for the caller."""

    run = queue_forward
