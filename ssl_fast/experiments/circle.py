"""Embeddings on the unit circle: what they measure, and their picture."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ..metrics import gaussian_uniformity, knn_accuracy, nemd
from ..train.clustering import cluster
from ..train.random import generator


class Found(NamedTuple):
    """Embeddings of all samples and what they measure."""

    z: Tensor  # (N, 2)
    labels: Tensor  # (N,)
    nemd: float
    by_class: float
    knn: float
    uniformity: float


def measured(z: Tensor, labels: Tensor, classes: int, seed: int, points: int) -> Found:
    """Prototypes are the clusters of a k-means; NEMD looks at `points` of a cloud."""
    (prototypes,) = cluster(z, [classes], seed=seed, steps=30, repeats=2, progress=False)
    order = torch.randperm(len(z), generator=generator(seed, 2))
    half, some = order[: len(z) // 2], order[len(z) // 2 :][:2000]
    return Found(
        z,
        labels,
        nemd(z, prototypes.index, points=points),
        nemd(z, labels, points=points),
        knn_accuracy(z[half], labels[half], z[some], labels[some]),
        -gaussian_uniformity(z[order[:2000]]),
    )


def draw(counts: Sequence[int], results: dict[tuple, Found], rows: list[tuple]) -> Figure:
    """The circles of the first seed, a column for each number of classes, and NEMD below."""
    figure = Figure(figsize=(3 * len(counts), 9), layout="constrained")
    grid = figure.add_gridspec(3, len(counts))
    for line, name in enumerate(("PCL", "PAUC")):
        for column, classes in enumerate(counts):
            plot = figure.add_subplot(grid[line, column], aspect="equal")
            found = results[name, classes, 0]
            _circle(plot, found)
            plot.set_title(f"{name}, {classes} classes\nNEMD {found.nemd:.3f}", fontsize=10)
    plot = figure.add_subplot(grid[2, :])
    for name, color in (("PCL", "tab:blue"), ("PAUC", "tab:orange")):
        own = [row for row in rows if row[1] == name and row[0] in counts]
        x, y, spread = ([row[i] for row in own] for i in (0, 2, 3))
        plot.errorbar(x, y, spread, marker="o", capsize=4, color=color, label=name)
    plot.set_xlabel("classes")
    plot.set_ylabel("NEMD (mean and std over seeds)")
    plot.grid(alpha=0.3)
    plot.legend()
    return figure


def _circle(plot, found: Found) -> None:
    """Every tenth sample, coloured by class, pushed outwards a little so that density shows."""
    z, labels = found.z[::10], found.labels[::10]
    radius = 1 + 0.15 * torch.rand(len(z), 1, generator=generator(5))
    plot.scatter(*(z * radius).T.numpy(), c=labels.numpy(), cmap="hsv", s=2, linewidths=0)
    plot.set_xlim(-1.25, 1.25)
    plot.set_ylim(-1.25, 1.25)
    plot.set_axis_off()
