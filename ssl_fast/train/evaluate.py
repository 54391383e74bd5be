"""How good the features are: k-nn, linear probe, clustering. All by scikit-learn."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.utils.data import DataLoader

from .. import metrics
from .labels import evenly

CLUSTERED = 5000  # rows: the silhouette costs their square


class Features(NamedTuple):
    train: np.ndarray  # (N, D)
    train_labels: np.ndarray  # (N,)
    test: np.ndarray  # (M, D)
    test_labels: np.ndarray  # (M,)


@torch.no_grad()
def encode(network: nn.Module, loader: DataLoader, device: torch.device) -> torch.Tensor:
    """(N, D): the network's output, in evaluation mode, for all of the loader's images."""
    with evaluating([network]):
        return torch.cat([network(images.to(device)).float() for images, _ in loader])


@torch.no_grad()
def extract(
    networks: Sequence[nn.Module], train: DataLoader, test: DataLoader, device: torch.device
) -> list[Features]:
    """Features after each of `networks`, applied one after the other, in evaluation mode.

    The modes that they were in are restored: a momentum network trains its statistics.
    """
    with evaluating(networks):
        rows, labels = _pass(networks, train, device)
        test_rows, test_labels = _pass(networks, test, device)
    return [Features(a, labels, b, test_labels) for a, b in zip(rows, test_rows, strict=True)]


@contextmanager
def evaluating(networks: Sequence[nn.Module]) -> Iterator[None]:
    modes = [(module, module.training) for network in networks for module in network.modules()]
    for network in networks:
        network.eval()
    yield
    for module, mode in modes:
        module.training = mode


def _pass(
    networks: Sequence[nn.Module], loader: DataLoader, device: torch.device
) -> tuple[list[np.ndarray], np.ndarray]:
    rows: list[list[torch.Tensor]] = [[] for _ in networks]
    labels = []
    for images, target in loader:
        value = images.to(device)
        for network, kept in zip(networks, rows, strict=True):
            value = network(value)
            kept.append(value.float().cpu())
        labels.append(torch.as_tensor(target))
    return [torch.cat(kept).numpy() for kept in rows], torch.cat(labels).numpy()


class Pixels(nn.Module):
    """Raw pixels as features, averaged down to at most 32 x 32."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        side = min(32, images.shape[-1])
        return F.adaptive_avg_pool2d(images, side).flatten(1)


def knn_accuracy(f: Features, neighbours: int = 5) -> float:
    """Majority of the 5 nearest by Euclidean distance of L2-normalised features, as ReSA's code."""
    return metrics.knn_accuracy(
        f.train, f.train_labels, f.test, f.test_labels, neighbours=neighbours
    )


def probe_accuracy(f: Features) -> float:
    """Logistic regression on standardised features."""
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    return float(probe.fit(f.train, f.train_labels).score(f.test, f.test_labels))


def measure(f: Features) -> dict[str, float]:
    keep = evenly(len(f.train), CLUSTERED)
    rows, labels = f.train[keep], f.train_labels[keep]
    shape = metrics.silhouette(rows, labels)
    return {
        "knn": knn_accuracy(f),
        "probe": probe_accuracy(f),
        "ari": metrics.kmeans_ari(rows, labels),
        "silhouette": shape.mean,
        "silhouette_std": shape.std,
    }
