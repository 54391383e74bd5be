"""k-means once an epoch, by faiss: the prototypes and concentrations of PCL and PAUC."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .errors import UsageError

# As the official code has it: steps, and samples of a cluster that take part (faiss subsamples).
STEPS = 20
REPEATS = 5
MOST_POINTS = 1000
# Keeps tiny clusters from tiny concentrations: log(n + SMOOTH).
SMOOTH = 10
# Share of their mean below which concentrations do not fall: of clusters of identical samples.
LEAST = 1e-2


class Clustering(NamedTuple):
    """One clustering of all samples.

    An empty cluster keeps its centroid and has the largest concentration: as a negative it is as
    soft as the loosest cluster, and as a positive it never occurs.
    """

    centroids: Tensor  # (K, D), unit norm
    concentration: Tensor  # (K,) > 0, mean `temperature`
    index: Tensor  # type: ignore[assignment]  # (N,) long: the cluster of each sample


def cluster(
    features: Tensor,
    counts: Sequence[int],
    *,
    temperature: float = 0.2,
    seed: int = 0,
    steps: int = STEPS,
    repeats: int = REPEATS,
    progress: bool = True,
) -> list[Clustering]:
    """k-means of the same features for every number of clusters in `counts`.

        phi_c = mean_{i in c} |z_i - centroid_c| / log(n_c + 10)

    clusters of fewer than two samples take the largest phi; phi is then clipped to its 10th and
    90th percentile and scaled to the mean `temperature`.

    Args:
        features: (N, D), in the order of the training set; used as given (PCL: unit norm).
        counts: numbers of clusters, each at most N. Clustering m starts from seed + m.
        temperature: mean of the concentrations, > 0.
        seed: the same seed gives the same clusterings, bit for bit on one machine.
        steps: of each k-means.
        repeats: k-means of which the best counts.
        progress: a bar on a terminal, a line each elsewhere.

    Returns:
        One `Clustering` for each number, on the features' device.

    Source: Li et al. 2021 (PCL), salesforce/PCL 964da1f: run_kmeans; faiss on a GPU where its
        build has one.
    """
    _check(features, counts, temperature)
    rows = np.ascontiguousarray(features.detach().float().cpu().numpy())
    if not np.isfinite(rows).all():
        raise ValueError("features hold NaN or infinity: the network diverged before the k-means")
    found = []
    for m, count in _shown(counts, progress):
        centroids, squares, index = _kmeans(rows, count, seed + m, steps, repeats)
        phi = concentrations(squares.clip(min=0) ** 0.5, index, count, temperature)
        unit = torch.nn.functional.normalize(torch.from_numpy(centroids), dim=1)
        parts = unit, torch.from_numpy(phi).float(), torch.from_numpy(index)
        found.append(Clustering(*(part.to(features.device) for part in parts)))
    return found


def concentrations(
    distances: np.ndarray, index: np.ndarray, clusters: int, temperature: float
) -> np.ndarray:
    """(K,) float64 from each sample's distance to its centroid and its cluster."""
    size = np.bincount(index, minlength=clusters)
    total = np.bincount(index, weights=distances, minlength=clusters)
    phi = total / np.maximum(size, 1) / np.log(size + SMOOTH)
    phi[size < 2] = phi[size >= 2].max(initial=0.0)
    phi = phi.clip(*np.percentile(phi, (10, 90)))
    if not phi.mean() > 0:  # every cluster is one point: there is nothing to tell them apart by
        return np.full(clusters, temperature)
    phi = np.maximum(phi, LEAST * phi.mean())
    return temperature * phi / phi.mean()


def _kmeans(
    rows: np.ndarray, clusters: int, seed: int, steps: int, repeats: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centroids (K, D), squared distances (N,), index (N,)."""
    faiss = _faiss()
    gpu = getattr(faiss, "get_num_gpus", lambda: 0)() > 0
    kmeans = faiss.Kmeans(
        rows.shape[1], clusters, niter=steps, nredo=repeats, seed=seed, gpu=gpu,
        min_points_per_centroid=1, max_points_per_centroid=MOST_POINTS,
    )  # fmt: skip
    kmeans.train(rows)
    squares, index = kmeans.index.search(rows, 1)
    return kmeans.centroids, squares[:, 0], index[:, 0].astype(np.int64)


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise UsageError(
            "k-means of PCL and PAUC needs faiss: pip install faiss-cpu (or 'ssl_fast[train]')"
        ) from error
    return faiss


def _shown(counts: Sequence[int], progress: bool) -> Iterator[tuple[int, int]]:
    """(m, clusters) one by one; inside another live display, such as Lightning's bar, plainly."""
    items = list(enumerate(counts))
    if not progress:
        yield from items
        return
    from rich.console import Console
    from rich.errors import LiveError
    from rich.progress import Progress

    console = Console(stderr=True)
    try:
        bar = Progress(console=console, transient=True) if console.is_terminal else None
        if bar is not None:
            bar.start()
    except LiveError:
        bar = None
    if bar is None:
        for m, count in items:
            console.print(f"k-means {m + 1}/{len(items)}: {count} clusters", highlight=False)
            yield m, count
        return
    task = bar.add_task("k-means", total=len(items))
    try:
        for m, count in items:
            bar.update(task, description=f"k-means: {count} clusters")
            yield m, count
            bar.advance(task)
    finally:
        bar.stop()


def _check(features: Tensor, counts: Sequence[int], temperature: float) -> None:
    if features.dim() != 2 or features.numel() == 0:
        raise ValueError(f"features must be a non-empty matrix, got shape {tuple(features.shape)}")
    if not temperature > 0:
        raise ValueError(f"temperature must be > 0, got {temperature}")
    for count in counts:
        if not 1 <= count <= len(features):
            raise UsageError(
                f"{count} clusters of {len(features)} samples: choose between 1 and "
                f"{len(features)}, a tenth of the samples or fewer to be of use"
            )
