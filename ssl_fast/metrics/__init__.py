"""Measures of embeddings that nothing is trained on: whole sets, float64, Python numbers."""

from .clustering import Silhouette, kmeans_ari, knn_accuracy, silhouette
from .nemd import nemd
from .uniformity import (
    alignment,
    effective_rank,
    gaussian_uniformity,
    spectrum,
    wasserstein_uniformity,
)

__all__ = [
    "Silhouette",
    "alignment",
    "effective_rank",
    "gaussian_uniformity",
    "kmeans_ari",
    "knn_accuracy",
    "nemd",
    "silhouette",
    "spectrum",
    "wasserstein_uniformity",
]
