"""Forms that other libraries' functions need: means over this rank's rows, positives by class."""

from typing import Any

import torch
from torch import Tensor

from . import _check
from ._contrastive import ALL
from ._contrastive_check import same_shape
from ._contrastive_group import first_row
from ._contrastive_rows import in_batch_loss, rows_loss
from ._distributed import gather
from ._norms import normalized
from ._tiles import product_dtype


def in_batch_info_nce(
    query: Tensor, key: Tensor, *, temperature: float, group: Any, constant: bool = False
) -> Tensor:
    """`info_nce` within the batch, the mean over this rank's rows alone, the keys of all ranks.

    `constant` keys get no gradient; others the sum over the ranks' losses.
    """
    query, key = _check.autocast(query, key.detach() if constant else key)
    same_shape("query", query, "key", key)
    name = _check.group_name(group)
    return in_batch_loss(query, key, gather(key, name), temperature, normalize=ALL, ranks=name)


def class_nt_xent(z: Tensor, index: Tensor, *, temperature: float, group: Any) -> Tensor:
    """`multi_view_nt_xent` whose positives are the rows of one `index`, the mean over this rank's.

    Negatives by tiles; the similarities of positives are a dense (N, M) matrix over all M rows.
    """
    _check.matrix("z", z)
    name = _check.group_name(group)
    everyone, classes = gather(z, name), gather(index, name)
    order = classes.argsort(stable=True)
    classes = classes[order]
    lo, hi = (torch.searchsorted(classes, index.contiguous(), right=r) for r in (False, True))
    everyone = everyone[order]
    negatives = rows_loss(z, everyone, None, temperature, without=(lo, hi), normalize=ALL,
                      reduction="none").double()  # fmt: skip
    own = first_row(z, name) + torch.arange(len(z), device=z.device)
    positive = (classes == index[:, None]) & (order != own[:, None])
    logits = (normalized(z) @ normalized(everyone).t()) / temperature
    positives = logits.masked_fill(~positive, -torch.inf).logsumexp(1)
    losses = torch.logaddexp(negatives - positives.double(), negatives.new_zeros(()))
    return losses.mean().to(product_dtype(z))
