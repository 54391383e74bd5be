"""ProtoNCE and PAUC's terms of a batch in one operator, their gradient formed forward.

ProtoNCE, whose columns start with every row's own prototype:
    l_ik = <u_i, c_k> / phi_k,   loss_i = log sum_k exp(l_ik) - l_ii
    dloss_i / du_i = sum_k (P_ik - [i = k]) c_k / phi_k
PAUC's p_c = s_c / |s_c|, s_c the sum of the unit rows of cluster c: the direction of their mean.
"""

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import backend
from . import _check
from ._autograd import Scaled, apply
from ._contrastive_check import same_shape
from ._operator import fake_loss, operator
from ._tiles import is_one_tile
from ._unit import UnitRows


class Terms(NamedTuple):
    """Of `losses.PAUCLoss`, whose names these are."""

    alpha: float = 0.0
    beta: float = 0.0
    gamma: float = 0.0
    s: float = 2.0
    t: float = 2.0
    temperature: float = 1.0


# Numbers (C,) of the rows' own clusters, then of others; centroids (K, D); concentrations (K,).
Columns = tuple[Tensor, Tensor, Tensor]


def fit_one_tile(query: Tensor, columns: Sequence[Columns]) -> bool:
    """Whether `prototype_loss` may take them: beyond, tiles of narrower columns are faster."""
    name = backend.select("contrastive", query.device, query.dtype)
    fits = all(is_one_tile(query, chosen) for chosen, *_ in columns) and is_one_tile(query, query)
    return name == "native" and not query.is_cuda and fits


def prototype_loss(
    query: Tensor, key: Tensor, columns: Sequence[Columns], temperature: float, terms: Terms
) -> Tensor:
    """2 T info_nce + 1/M sum_m ProtoNCE + terms, where they `fit_one_tile`; T = 0: no InfoNCE.

    All but the query are constants.
    """
    query, key = _check.autocast(query, key)
    same_shape("query", query, "key", key)
    lists: list[list[Tensor]] = [[], [], []]
    for chosen, centroids, concentration in columns:
        _check.factors("query", query, "centroids", centroids.to(query.dtype))
        _check.tensor("concentration", concentration, (len(centroids),), "query", query.device)
        concentration = concentration[chosen]
        _check.all_positive("concentration", concentration)
        for held, tensor in zip(lists, (chosen, centroids, concentration), strict=True):
            held.append(tensor)
    return _apply(query, key, lists, temperature, terms, "native")


def prototype_terms(query: Tensor, key: Tensor, index: Sequence[Tensor], terms: Terms) -> Tensor:
    """The terms alone; index: clusters of the rows (N,), of each clustering. Checked elsewhere."""
    name = backend.select("uniformity", query.device, query.dtype)
    return _apply(query, key, [index, (), ()], 0.0, terms, name)


def _apply(
    query: Tensor, key: Tensor, lists: list, temperature: float, terms: Terms, name: str
) -> Tensor:
    query, key = _check.rows_contiguous(query), _check.rows_contiguous(key.detach())
    want = torch.is_grad_enabled() and query.requires_grad
    tensors = [x.detach() for some in lists for x in some]
    numbers = len(lists[0]), temperature, terms, want, name
    return apply(PrototypeLoss, query, key, *numbers, *tensors)


def _fake_forward(query, key, chosen, centroids, concentration, temperature, *rest):
    return fake_loss(query, (query, rest[-2]))


@operator(_fake_forward)
def prototypes_forward(
    query: Tensor,  # (N, D)
    key: Tensor,  # (N, D)
    chosen: Sequence[Tensor],  # M of (C,), the rows' own first
    centroids: Sequence[Tensor],  # M of (K, D); none: the terms alone
    concentration: Sequence[Tensor],  # M of (C,)
    temperature: float,
    alpha: float,
    beta: float,
    gamma: float,
    s: float,
    t: float,
    softmax_temperature: float,
    want: bool,
    name: str,
) -> tuple[Tensor, Tensor]:
    """Loss, d_query, in `product_dtype`; None if not wanted."""
    units, share = UnitRows(query, name), 1 / len(chosen)
    u = units.rows
    v = UnitRows(key, name).rows if temperature or alpha else None
    d_u = torch.zeros_like(u) if want else None
    loss: Any = 0.0
    if temperature and v is not None:
        loss = _one_of_many(u, v, 1 / temperature, 2 * temperature, d_u, name)
    for c, phi, k in zip(centroids, concentration, chosen, strict=False):
        w = c.index_select(0, k).to(u.dtype).div_(phi.to(u.dtype)[:, None])
        loss += _one_of_many(u, w, 1.0, share, d_u, name)
    if alpha or beta or gamma:
        terms = Terms(alpha, beta, gamma, s, t, softmax_temperature)
        loss += _terms(u, v, [k[: len(u)] for k in chosen], terms, d_u, name)
    d_query = None if d_u is None else units.backward(d_u, u.dtype)
    outputs: Any = torch.as_tensor(loss, dtype=u.dtype, device=u.device), d_query
    return outputs


class PrototypeLoss(Scaled):
    """(loss, d_query) at an upstream gradient of 1."""

    @staticmethod
    def forward(query, key, count, temperature, terms, want, name, *tensors):
        lists = [tensors[i : i + count] for i in (0, count, 2 * count)]
        return prototypes_forward(query, key, *lists, temperature, *terms, want, name)


def _one_of_many(
    u: Tensor, w: Tensor, scale: float, weight: float, d_u: Tensor | None, name: str
) -> float:
    """weight * mean_i (log sum_j exp(scale <u_i, w_j>) - scale <u_i, w_i>); adds to d_u."""
    weight /= len(u)
    tile = torch.mm(u, w.t())
    kernels = backend.implementation(name, "contrastive")
    total = kernels.in_batch(tile, 0, scale, weight * scale, d_u is not None)
    if d_u is not None:
        d_u.addmm_(tile, w)
    return total * weight


def _terms(
    u: Tensor, v: Tensor | None, index: list[Tensor], terms: Terms, d_u: Tensor | None, name: str
) -> Any:
    """The terms of unit rows of queries and keys; adds to d_u."""
    own, count = [_Prototypes(u, _Clusters(k), d_u is not None, name) for k in index], len(index)
    loss: Any = 0.0
    for p in own:
        if len(p.rows) > 1 and terms.beta:
            loss += p.uniformity(terms.t, terms.beta / count)
        if len(p.rows) > 1 and terms.gamma:
            loss += p.correlation(1 / terms.temperature, terms.gamma / count)
    if v is not None and terms.alpha:
        each = terms.alpha / (count * (count + 1) / 2)
        for p in own:
            loss += p.alignment(UnitRows(p.clusters.sums(v), name).rows, terms.s, each)
        for p, q in combinations(own, 2):
            loss += _aligned(p, q, terms.s, each)
    if d_u is not None:
        for p in own:
            d_u += p.d_members()
    return loss


class _Clusters:
    """Which rows of a batch belong together."""

    def __init__(self, index: Tensor):
        _, self.own, self.sizes = index.unique(return_inverse=True, return_counts=True)
        self.order = self.own.argsort(stable=True)
        self.first = self.sizes.cumsum(0) - self.sizes

    def sums(self, rows: Tensor) -> Tensor:
        """(C, D) of (N, D), in a fixed order."""
        return torch.nn.functional.embedding_bag(self.order, rows, self.first, mode="sum")

    def of_rows(self, prototypes: Tensor) -> Tensor:
        """(N, D) of (C, D): every row has its cluster's."""
        return prototypes.index_select(0, self.own)


class _Prototypes:
    """p (C, D) of unit rows u (N, D), and what the terms give for its gradient."""

    def __init__(self, u: Tensor, clusters: _Clusters, want: bool, name: str):
        self.clusters, self.units = clusters, UnitRows(clusters.sums(u), name)
        self.rows = self.units.rows
        self.d = torch.zeros_like(self.rows) if want else None
        self.kernels = backend.implementation(name, "uniformity")

    def uniformity(self, t: float, weight: float) -> Tensor | float:
        """weight * the mean over pairs; the kernel has its logarithm."""
        count = len(self.rows)
        log_sum, gradient = self.kernels.potential(self.rows, 0, count, t, self.d is not None)
        log_mean = log_sum - math.log(count * (count - 1))
        value = weight * (log_mean.exp() if isinstance(log_mean, Tensor) else math.exp(log_mean))
        if self.d is not None:
            self.d += gradient * value
        return value

    def correlation(self, inv_temperature: float, weight: float) -> Tensor:
        value, row, col = self.kernels.correlation(self.rows, inv_temperature)
        if self.d is not None:
            one = value.new_ones(())
            self.d += self.kernels.correlation_backward(
                self.rows, inv_temperature, row, col, one, weight
            )
        return value * weight

    def alignment(self, others: Tensor, s: float, weight: float) -> Tensor:
        """weight * mean |p - q|^s over the rows, q (C, D) the others: a cluster's by its size."""
        apart = self.rows - others
        norm = torch.linalg.vector_norm(apart, dim=1, dtype=torch.float64)
        shares = self.clusters.sizes * (weight / len(self.clusters.own))
        powers = norm.pow(s) * shares
        if self.d is not None:
            # d|p - q|^s / dp = s |p - q|^(s - 2) (p - q), zero where they coincide
            factor = torch.where(norm > 0, powers * s / norm.square(), 0.0)
            self.d.addcmul_(apart, factor.to(apart.dtype)[:, None])
        return powers.sum()

    def d_members(self) -> Tensor:
        """(N, D), by the unit rows."""
        assert self.d is not None
        return self.clusters.of_rows(self.units.backward(self.d))


def _aligned(p: _Prototypes, q: _Prototypes, s: float, weight: float) -> Tensor:
    """weight * mean |p_i - q_i|^s over the rows' clusters in two clusterings."""
    x, y = (side.clusters.of_rows(side.rows) for side in (p, q))
    weight, value = weight / len(x), p.kernels.distance_power(x, y, s)
    if p.d is not None and q.d is not None:
        one = value.new_ones(())
        d_x, d_y = p.kernels.distance_power_backward(x, y, s, one, weight)
        p.d += p.clusters.sums(d_x)
        q.d += q.clusters.sums(d_y)
    return value * weight
