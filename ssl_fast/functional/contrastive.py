"""Contrastive losses: InfoNCE, NT-Xent and its kin, ProtoNCE; no matrix of similarities is kept."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import backend
from . import _check
from ._autograd import apply
from ._contrastive import ALL, NOTHING, ROWS
from ._contrastive_check import at_least_two, columns, same_shape, same_views
from ._contrastive_group import pairs_over_ranks
from ._contrastive_pairs import Pairs, PairsAtOnce, fit_one_tile
from ._contrastive_rows import in_batch_loss, queue_loss, rows_loss
from ._distributed import gather
from ._tiles import product_dtype


def info_nce(
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None = None,
    *,
    temperature: float = 0.2,
    normalize: bool = True,
    reduction: str = "mean",
    group: Any = None,
) -> Tensor:
    """Each query finds its key among negatives.

        loss_i = -log( exp(q_i k_i / T) / (exp(q_i k_i / T) + sum_n exp(q_i n / T)) )

    The negatives are the other keys of the batch (of all ranks), or `negatives` alone.

    Args:
        query: (N, D), float64, float32, bfloat16 or float16.
        key: (N, D), row i belongs to query i.
        negatives: (M, D), a queue say, of any floating-point type; None: the other keys (N >= 2).
        temperature: > 0, in units of the similarities.
        normalize: divide all rows by max(norm, 1e-12) first; a zero row gets a zero gradient.
        reduction: "mean" over rows, "sum", or "none" for (N,).
        group: process group. In-batch negatives are the keys of all ranks. Every rank returns the
            global loss, and gradients such that the mean over ranks, as DDP takes it, is exact;
            `negatives` count as replicated. Ranks may hold unequal N.

    Returns:
        0-d, or (N,); float32, float64 for float64 queries. Gradients reach query, key and
        negatives, in their types; differentiable once.

    Raises:
        TypeError, ValueError: naming the argument, what came and what was expected.

    Source: van den Oord et al. 2018, Eq. 4; with `negatives` facebookresearch/moco 8976944.
    Cost: products of 2 N M D operations: one forward, one more for the query's gradient, formed in
        the same visit, two for the gradient of keys or negatives. Kept for backward: query, key,
        the query's gradient and 2 N numbers; `negatives` only if they require a gradient, so a
        queue may be written to before backward. On a CPU, without ranks and reduced, gradients of
        query and key are formed forward and kept: two products against constant `negatives`, three
        in the batch.
    """
    query, key = _check.autocast(query, key)
    same_shape("query", query, "key", key)
    group = _check.group_name(group)
    options: Any = {"reduction": reduction, "group": group}
    options["normalize"] = ALL if normalize else NOTHING
    if negatives is not None:
        columns("negatives", negatives, "query", query)
        return queue_loss(query, key, negatives, temperature, **options)
    keys = gather(key, group)
    at_least_two(len(keys), "negatives", "pass negatives=, a queue of keys, or a larger batch")
    return in_batch_loss(query, key, keys, temperature, **options)


def nt_xent(
    z0: Tensor,
    z1: Tensor,
    *,
    temperature: float = 0.5,
    normalize: bool = True,
    group: Any = None,
) -> Tensor:
    """SimCLR's loss of two views: each of the 2N rows finds its other view among 2N - 1 rows.

        loss = 1/(2N) sum_i [ LSE_{j != i} (u_i u_j / T) - u_i u_p(i) / T ]

    Args:
        z0: (N, D), N >= 2, float64, float32, bfloat16 or float16.
        z1: (N, D), the other view.
        temperature: > 0, in units of the similarities.
        normalize: u = z / max(norm, 1e-12); False: u = z. A zero row gets a zero gradient.
        group: process group: rows of all ranks are negatives. Every rank returns the global loss,
            and gradients such that DDP's mean is exact. Ranks may hold unequal N.

    Returns:
        0-d; float32, float64 for float64 views. Differentiable once.

    Raises:
        TypeError, ValueError: naming the argument, what came and what was expected.

    Source: Chen et al. 2020, Eq. 1; lightly e8d317fc NTXentLoss. google-research/simclr 383d414
        returns twice this value.
    Cost: two products of 2 (2N)^2 D operations. Tiles on one side of the diagonal: half a product
        forward, one and a half backward; kept for backward: the views and 4 N numbers. On a CPU, up
        to N = 512, both forward by one tile; kept are the gradients.
    """
    return multi_view_nt_xent([z0, z1], temperature=temperature, normalize=normalize, group=group)


def multi_view_nt_xent(
    views: Sequence[Tensor],
    *,
    temperature: float = 0.5,
    normalize: bool = True,
    group: Any = None,
) -> Tensor:
    """`nt_xent` of V >= 2 views; the positives of a row are summed inside the logarithm.

        loss = mean_i -log( sum_{p in pos(i)} e_ip / sum_{j != i} e_ij ),  e_ij = exp(u_i u_j / T)

    Args:
        views: V tensors (N, D), N >= 2.
        temperature: as in `nt_xent`.
        normalize: as in `nt_xent`.
        group: as in `nt_xent`.

    Returns:
        0-d; float32, float64 for float64 views.

    Raises:
        TypeError, ValueError: naming the argument, what came and what was expected.

    Source: solo-learn 9187ea3 simclr_loss_func, of any number of views.
    Cost: as `nt_xent` with V N rows; N V^2 numbers more while a pass runs.
    """
    views = same_views(views)
    inv_temperature = 1.0 / _check.positive("temperature", temperature)
    return _pairs(views, None, inv_temperature, normalize, False, _check.group_name(group))


def decoupled_nt_xent(
    z0: Tensor,
    z1: Tensor,
    *,
    temperature: float = 0.1,
    weights: Tensor | None = None,
    normalize: bool = True,
    group: Any = None,
) -> Tensor:
    """DCL: `nt_xent` whose denominator leaves the positive out; its positives may have weights.

        loss = 1/(2N) sum_i [ LSE_{j != i, p(i)} (u_i u_j / T) - w_i u_i u_p(i) / T ]

    Args:
        z0: (N, D), N >= 2.
        z1: (N, D), the other view.
        temperature: > 0, in units of the similarities.
        weights: (N,) for both views of a sample, or (N, 2), without gradient; None: ones.
        normalize: as in `nt_xent`.
        group: as in `nt_xent`.

    Returns:
        0-d; float32, float64 for float64 views.

    Raises:
        TypeError, ValueError: naming the argument, what came and what was expected.

    Source: Yeh et al. 2021, Eq. 6; lightly DCLLoss.
    Cost: as `nt_xent`.
    """
    views = same_views([z0, z1])
    inv_temperature = 1.0 / _check.positive("temperature", temperature)
    if weights is not None:
        two = isinstance(weights, Tensor) and weights.dim() == 2
        shape = (len(z0), 2) if two else (len(z0),)
        _check.tensor("weights", weights, shape, "z0", z0.device)
        _check.constant("weights", weights)
        weights = weights if two else weights[:, None].expand(-1, 2)
    return _pairs(views, weights, inv_temperature, normalize, True, _check.group_name(group))


def proto_nce(
    z: Tensor,
    centroids: Tensor,
    concentration: Tensor,
    index: Tensor,
    *,
    negatives: Tensor | None = None,
    reduction: str = "mean",
    duplicates: str = "count",
) -> Tensor:
    """Each embedding finds its cluster's centroid among others, every centroid at its own scale.

        loss_i = -log( e_i,y(i) / (e_i,y(i) + sum_k e_ik) ),   e_ik = exp(z_i c_k / concentration_k)

    Args:
        z: (N, D), used as given.
        centroids: (K, D), used as given; gradients reach them if they require them.
        concentration: (K,), > 0, without gradient: the temperature of each centroid.
        index: (N,) long, the cluster y(i) of each row.
        negatives: (M,) long, the centroids k that serve as negatives of all rows; None: all
            centroids but y(i).
        reduction: "mean" over rows, "sum", or "none" for (N,).
        duplicates: what becomes of a negative that is y(i) itself: "count" it, as the published
            code does, or "ignore" it.

    Returns:
        0-d, or (N,); float32, float64 for float64 z. Differentiable once.

    Raises:
        TypeError, ValueError: naming the argument, what came and what was expected. Values of
            `index` and `concentration` are read on a CPU only.

    Source: Li et al. 2021, Eq. 11; salesforce/PCL 964da1f, whose negatives are the batch's own
        centroids and sampled ones: `proto_nce(z, c[chosen], phi[chosen], torch.arange(N))`.
    Cost: as `info_nce` with K or M negatives.
    """
    z, centroids = _check.autocast(z, centroids)
    _check.factors("z", z, "centroids", centroids)
    _check.tensor("concentration", concentration, (len(centroids),), "z", z.device)
    _check.constant("concentration", concentration)
    _check.all_positive("concentration", concentration)
    _check.index("index", index, len(centroids), "z", z, len(z))
    _check.choice("duplicates", duplicates, ("count", "ignore"))
    scale = concentration.to(product_dtype(z)).reciprocal()
    if centroids.requires_grad:  # gradients of all rows meet in a centroid: half would lose them
        centroids = centroids.to(product_dtype(z))
    positives = torch.nn.functional.embedding(index, centroids)
    without: Any = (index, index + 1)
    others, column_scale = centroids, scale
    if negatives is not None:
        _check.index("negatives", negatives, len(centroids), "z", z)
        negatives = negatives.sort().values if duplicates == "ignore" else negatives
        without = None
        if duplicates == "ignore":
            without = tuple(torch.searchsorted(negatives, index, right=r) for r in (False, True))
        others = torch.nn.functional.embedding(negatives, centroids)
        column_scale = scale[negatives]
    return rows_loss(z, others, positives, 1.0, without=without, normalize=NOTHING,
                 scales=(column_scale, scale[index]), reduction=reduction)  # fmt: skip


def queue_info_nce(
    query: Tensor, key: Tensor, queue: Tensor, temperature: float, group: Any = None
) -> Tensor:
    """`info_nce` with negatives that have unit norm already: their norms are not formed again."""
    query, key = _check.autocast(query, key)
    same_shape("query", query, "key", key)
    columns("queue", queue, "query", query)
    group = _check.group_name(group)
    return queue_loss(query, key, queue, temperature, normalize=ROWS, group=group)


def local_nt_xent(
    views: Sequence[Tensor],
    *,
    temperature: float,
    decoupled: bool = False,
    weights: Tensor | None = None,
    group: Any = None,
) -> Tensor:
    """`multi_view_nt_xent` or `decoupled_nt_xent`, the mean over this rank's rows alone.

    With `group` the negatives are those of all ranks, and the gradients the sum over the ranks'
    losses, as a gather with gradients gives it: for equal N those of the global loss. The
    temperature may be negative; weights are (N, V).
    """
    views = same_views(views)
    name = _check.group_name(group)
    return _pairs(views, weights, 1.0 / temperature, True, decoupled, name, local=True)


def _pairs(
    views: Sequence[Tensor], weights: Tensor | None, inv_temperature: float, normalize: bool,
    decoupled: bool, group: str, local: bool = False,
) -> Tensor:  # fmt: skip
    if group:
        return pairs_over_ranks(views, weights, inv_temperature, normalize, decoupled, group, local)
    at_least_two(len(views[0]), "samples", "use a larger batch")
    name = backend.select("contrastive", views[0].device, views[0].dtype)
    numbers = inv_temperature, normalize, decoupled
    if fit_one_tile(views, name):
        want = torch.is_grad_enabled() and any(z.requires_grad for z in views)
        return apply(PairsAtOnce, weights, *numbers, want, name, *views)
    return apply(Pairs, weights, *numbers, name, *views)
