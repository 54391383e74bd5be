"""Measures of embeddings that nothing is trained on: whole sets, float64, Python numbers."""

from .uniformity import (
    alignment,
    effective_rank,
    gaussian_uniformity,
    spectrum,
    wasserstein_uniformity,
)

__all__ = [
    "alignment",
    "effective_rank",
    "gaussian_uniformity",
    "spectrum",
    "wasserstein_uniformity",
]
