"""Numbers that change over the training: momentum, weight decay, the auxiliary term's weight."""

import math
from typing import Literal

Shape = Literal["cosine", "linear", "constant"]


def anneal(start: float, end: float, progress: float, shape: Shape = "cosine") -> float:
    """From `start` at progress 0 to `end` at 1; `constant` stays at `start`."""
    if shape == "constant":
        return start
    passed = progress if shape == "linear" else (1 - math.cos(math.pi * progress)) / 2
    return start + (end - start) * passed


def uniformity_weight(start: float, epoch: int, epochs: int, shape: Shape) -> float:
    """Of W2 in epoch 1 to `epochs`: one step down already in the first, zero in the last.

    Source: statsle/WassersteinSSL a16a931, lambd_min = 0; `constant` is lambd_min = lambd_max.
    """
    return start if shape == "constant" else start - start / epochs * epoch
