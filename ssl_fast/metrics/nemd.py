"""Normalised earth mover's distance between prototypes (PAUC, Eq. 3)."""

from typing import Any

import torch
from torch import Tensor

from ..functional._check import count, device, matrix
from ..functional.transport import EPSILON, ITERATIONS, sinkhorn_distances


def nemd(
    features: Tensor,
    assignments: Tensor,
    *,
    epsilon: float = EPSILON,
    iterations: int = ITERATIONS,
    points: int | None = None,
) -> float:
    """Mean transport cost between the clouds of different prototypes on the unit sphere.

        mean over pairs p < q of inf over couplings of E |x - y|,  x in cloud p, y in cloud q

    by the entropic plan of `functional.sinkhorn_distance`. The higher it is, the further apart the
    prototypes lie: PAUC reads that as collapse, voids on the sphere. It is 0 when all features
    coincide, which is no good solution either.

    Args:
        features: (N, D), any floating-point type; rows are scaled to unit norm first.
        assignments: (N,) integers, the prototype of each row. Numbers that do not occur are
            prototypes without a cloud: they take part in no pair.
        epsilon: of the entropic plan, in units of the distance; the sphere's diameter is 2.
        iterations: at most, as in `functional.sinkhorn_distance`.
        points: at most this many of each cloud, evenly spread over it in the given order; None
            takes all. A cost grows with the square of it.

    Returns:
        In [0, 2]; for one clustering, take the mean over several yourself.

    Raises:
        TypeError, ValueError: no matrix of features, no integer assignments, one cloud alone.

    Source: PAUC (papers' Eq. 3); Sinkhorn for the infimum, as the paper does.
    Cost: G (G - 1) / 2 pairs of clouds; on a GPU all of them in one launch a step. No matrix of
        costs is stored.
    """
    matrix("features", features)
    _check_assignments(assignments, len(features))
    device("assignments", assignments, "features", features.device)
    if points is not None:
        count("points", points)
    _, cluster, sizes = torch.unique(assignments, return_inverse=True, return_counts=True)
    if len(sizes) < 2:
        raise ValueError(
            f"assignments name {len(sizes)} prototype: NEMD is between the clouds of at least 2"
        )
    order = cluster.argsort(stable=True)
    if points is not None:
        order, sizes = _thinned(order, sizes, points)
    wide = torch.promote_types(features.dtype, torch.float32)
    clouds = torch.nn.functional.normalize(features.detach()[order].to(wide), dim=1)
    starts = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
    pairs = torch.combinations(torch.arange(len(sizes), device=features.device))
    found = sinkhorn_distances(clouds, starts, pairs, epsilon=epsilon, iterations=iterations)
    return float(found.mean())


def _thinned(order: Tensor, sizes: Tensor, points: int) -> tuple[Tensor, Tensor]:
    """At most `points` of each cloud."""
    clouds = []
    for cloud in order.split(sizes.tolist()):
        kept = min(points, len(cloud))
        clouds.append(cloud[torch.arange(kept, device=order.device) * len(cloud) // kept])
    return torch.cat(clouds), sizes.clamp_max(points)


def _check_assignments(assignments: Any, rows: int) -> None:
    if not isinstance(assignments, Tensor) or assignments.is_floating_point():
        kind = assignments.dtype if isinstance(assignments, Tensor) else type(assignments).__name__
        raise TypeError(f"assignments must be a tensor of integers, (N,), got {kind}")
    if tuple(assignments.shape) != (rows,):
        raise ValueError(
            f"assignments must have one number for each of the {rows} rows of features, got shape "
            f"{tuple(assignments.shape)}"
        )
