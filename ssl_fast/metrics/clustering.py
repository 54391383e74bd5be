"""How well features cluster by class: silhouette, ARI of k-means, k-nn (ReSA, Appendices A and B).

Silhouette and k-means are scikit-learn's: pip install 'ssl_fast[train]'. Rows are scaled to unit
norm first, unless `normalize` is False.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray | Tensor
_BLOCK_ROWS = 1024


class Silhouette(NamedTuple):
    """Mean and standard deviation of the samples' silhouette coefficients."""

    mean: float
    std: float


def silhouette(features: Array, labels: Array, *, normalize: bool = True) -> Silhouette:
    """Silhouette coefficients with the classes as clusters, Euclidean distance.

        sc_i = (b_i - a_i) / max(a_i, b_i),   a_i mean distance to the own class's other samples,
                                              b_i the least mean distance to another class's

    Args:
        features: (N, D).
        labels: (N,), at least 2 classes and fewer than N.
        normalize: scale rows to unit norm first.

    Returns:
        (mean, std) over samples. A higher mean is better local clustering, a lower std steadier.

    Source: ReSA, Eq. 9 (Rousseeuw 1987). Cost: N^2 D.
    """
    from sklearn.metrics import silhouette_samples

    rows, classes = _rows(features, labels, normalize)
    if not 2 <= len(np.unique(classes)) < len(rows):
        raise ValueError(
            f"labels must name at least 2 classes and fewer than the {len(rows)} samples, got "
            f"{len(np.unique(classes))}"
        )
    found = silhouette_samples(rows, classes)
    return Silhouette(float(found.mean()), float(found.std()))


def kmeans_ari(
    features: Array,
    labels: Array,
    *,
    clusters: int | None = None,
    seed: int = 0,
    normalize: bool = True,
) -> float:
    """Adjusted Rand index between the labels and a k-means clustering: 1 is equal, 0 is chance.

    Args:
        features: (N, D).
        labels: (N,).
        clusters: of the k-means; None takes as many as there are classes.
        seed: of its initialisation; the best of 3 runs counts.
        normalize: scale rows to unit norm first.

    Source: ReSA, Appendix A (Hubert and Arabie 1985).
    """
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score

    rows, classes = _rows(features, labels, normalize)
    wanted = len(np.unique(classes)) if clusters is None else clusters
    if not 1 <= wanted <= len(rows):
        raise ValueError(f"clusters must be between 1 and the {len(rows)} samples, got {wanted}")
    found = KMeans(wanted, n_init=3, random_state=seed).fit_predict(rows)
    return float(adjusted_rand_score(classes, found))


def knn_accuracy(
    train: Array,
    train_labels: Array,
    test: Array,
    test_labels: Array,
    *,
    neighbours: int = 5,
    weighted: bool = False,
    temperature: float = 0.07,
    normalize: bool = True,
) -> float:
    """Share of test samples whose nearest training samples vote for their class.

    Args:
        train: (N, D) features that vote.
        train_labels: (N,).
        test: (M, D).
        test_labels: (M,).
        neighbours: that vote, at most N; 5 in ReSA's plain form.
        weighted: votes of exp(<t_i, x> / temperature), as DINO and Wu et al. 2018 have it, rather
            than of 1. Ties go to the lesser label.
        temperature: of the weights, > 0.
        normalize: scale rows to unit norm first: the nearest by distance are then those by cosine.

    Source: ReSA, Appendix B.3: 5-nn by Euclidean distance; weighted with temperature 0.07.
    Cost: N M D, in blocks of 1024 test samples.
    """
    rows, classes = _rows(train, train_labels, normalize)
    queries, truth = _rows(test, test_labels, normalize)
    if neighbours < 1 or temperature <= 0:
        raise ValueError(
            f"neighbours must be >= 1 and temperature > 0, got {neighbours} and {temperature}"
        )
    names, votes_for = np.unique(classes, return_inverse=True)
    bank, columns = torch.from_numpy(rows), torch.from_numpy(votes_for)
    right = 0
    for block, expected in zip(
        torch.from_numpy(queries).split(_BLOCK_ROWS), np.split(
            truth, range(_BLOCK_ROWS, len(truth), _BLOCK_ROWS)), strict=True
    ):  # fmt: skip
        products = block @ bank.T
        nearness = products - bank.square().sum(1) / 2
        chosen = nearness.topk(min(neighbours, len(rows)), dim=1).indices
        weights = torch.ones(chosen.shape, dtype=torch.float64)
        if weighted:
            near = products.gather(1, chosen).double()
            weights = ((near - near.amax(1, keepdim=True)) / temperature).exp()
        votes = torch.zeros(len(block), len(names), dtype=torch.float64)
        votes.scatter_add_(1, columns[chosen], weights)
        right += int((names[votes.argmax(1).numpy()] == expected).sum())
    return right / len(truth)


def _rows(features: Array, labels: Array, normalize: bool) -> tuple[np.ndarray, np.ndarray]:
    """float32 rows and their labels."""
    x = torch.as_tensor(features).detach().cpu().float()
    y = torch.as_tensor(labels).detach().cpu()
    if x.dim() != 2 or x.numel() == 0 or tuple(y.shape) != (len(x),):
        raise ValueError(
            "features must be a non-empty matrix (N, D) and labels (N,), got "
            f"{tuple(x.shape)} and {tuple(y.shape)}"
        )
    return (torch.nn.functional.normalize(x, dim=1) if normalize else x).numpy(), y.numpy()
