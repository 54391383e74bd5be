"""VICReg (Bardes et al. 2022) and VICRegL (Bardes et al. 2022b)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..functional import vicreg
from ..functional._check import at_least_zero, by_name, count, positive, share
from ..functional.covariance import view_terms


class VICRegLoss(torch.nn.Module):
    """Variance, invariance and covariance of two views.

        L = 25 mean (z0 - z1)^2 + 25 (v(z0) + v(z1)) / 2 + c(z0) + c(z1)
        v(z) = mean_d relu(gamma - sqrt(var_d + eps))
        c(z) = sum_{d != e} cov_de^2 / D                       var and cov with N - 1

    Nothing is normalised inside: pass the expander's outputs. The half on the variance is the
    official code's; the paper's Eq. 6 and solo-learn have none.

    Args:
        invariance_weight: the paper's lambda, mu, nu.
        variance_weight: the paper's lambda, mu, nu.
        covariance_weight: the paper's lambda, mu, nu.
        gamma: the wanted standard deviation, > 0.
        eps: added to the variance, > 0.
        group: process group. Statistics are those of all ranks' rows; every rank returns the
            global loss, and DDP's mean of the gradients is exact. The official invariance is of
            each rank's rows: with equal N the mean over ranks is the same.

    Source: Eq. 1 to 6; facebookresearch/vicreg 4e12602.
    Cost: `functional.vicreg`: no D x D matrix.
    """

    def __init__(
        self,
        invariance_weight: float = 25.0,
        variance_weight: float = 25.0,
        covariance_weight: float = 1.0,
        gamma: float = 1.0,
        eps: float = 1e-4,
        group: Any = None,
    ):
        super().__init__()
        self.invariance_weight = at_least_zero("invariance_weight", invariance_weight)
        self.variance_weight = at_least_zero("variance_weight", variance_weight)
        self.covariance_weight = at_least_zero("covariance_weight", covariance_weight)
        self.gamma = positive("gamma", gamma)
        self.eps = positive("eps", eps)
        self.group = by_name(group)

    def forward(self, z0: Tensor, z1: Tensor) -> Tensor:
        """The loss, 0-d.

        Args:
            z0: (N, D), or (N, ..., D) with one covariance a position in between.
            z1: likewise.
        """
        invariance, variance, covariance = vicreg(
            z0, z1, gamma=self.gamma, eps=self.eps, group=self.group
        )
        return (
            self.invariance_weight * invariance
            + self.variance_weight * variance
            + self.covariance_weight * covariance
        )

    def extra_repr(self) -> str:
        return (
            f"invariance_weight={self.invariance_weight}, variance_weight={self.variance_weight}, "
            f"covariance_weight={self.covariance_weight}, gamma={self.gamma}, eps={self.eps}"
        )


class VICRegLLoss(torch.nn.Module):
    """VICReg of global features, and of local features matched across views.

        L = alpha G + (1 - alpha) P
        G = lambda mean over pairs of mean (g_a - g_b)^2 + mu mean v(g) + nu mean c(g)
        P = mean over pairs of [M(features) + M(locations)]
        M = half the sum, from a to b and back, of VICReg with nu / 2 between the local features
            whose nearest neighbours in the other view are nearest, and those neighbours

    Pairs (a, b): a a global view, b any other view. Neighbours are by Euclidean distance of the
    features, then of their locations; the first search takes `matches[0]`, the search back
    `matches[1]`, whatever the view, as the official code has it.

    Args:
        invariance_weight: lambda, mu, nu.
        variance_weight: lambda, mu, nu.
        covariance_weight: lambda, mu, nu.
        alpha: weight of the global part, in [0, 1].
        gamma: the wanted standard deviation, > 0.
        eps: added to the variance, > 0.
        matches: how many local features are kept in each direction.
        group: process group, as in `VICRegLoss`.

    Source: VICRegL, Eq. 1 to 7; facebookresearch/VICRegL 803ae4c as lightly 1.6 follows it.
    Cost: `functional.vicreg` a position of the matched features, a distance matrix a sample.
    """

    def __init__(
        self,
        invariance_weight: float = 25.0,
        variance_weight: float = 25.0,
        covariance_weight: float = 1.0,
        alpha: float = 0.75,
        gamma: float = 1.0,
        eps: float = 1e-4,
        matches: tuple[int, int] = (20, 4),
        group: Any = None,
    ):
        super().__init__()
        self.alpha = share("alpha", alpha, whole=True)
        if not isinstance(matches, Sequence) or len(matches) != 2:
            raise ValueError(f"matches must be two numbers, as (20, 4), got {matches!r}")
        self.matches = tuple(count("matches", m) for m in matches)
        self.covariance_weight = at_least_zero("covariance_weight", covariance_weight)
        half = 0.5 * self.covariance_weight
        self.local = VICRegLoss(invariance_weight, variance_weight, half, gamma, eps, group)

    def forward(
        self,
        global_views: Sequence[tuple[Tensor, Tensor]],
        global_locations: Sequence[Tensor],
        local_views: Sequence[tuple[Tensor, Tensor]] = (),
        local_locations: Sequence[Tensor] = (),
    ) -> Tensor:
        """The loss, 0-d.

        Args:
            global_views: pairs of global features (N, D) and local features (N, H, W, C).
            global_locations: (N, H, W, 2) of each, where its features lie in the image.
            local_views: the same of small crops, whose H and W may differ.
            local_locations: the same of small crops.
        """
        for name, views, locations in (
            ("global", global_views, global_locations),
            ("local", local_views, local_locations),
        ):
            if len(views) != len(locations):
                raise ValueError(
                    f"{name}_views and {name}_locations must have one length, got {len(views)} "
                    f"and {len(locations)}"
                )
        views = [*global_views, *local_views]
        locations = [*global_locations, *local_locations]
        pairs = [(a, b) for a in range(len(global_views)) for b in range(len(views)) if a != b]
        if not pairs:
            raise ValueError(
                "VICRegL compares a global view with another view: pass two global views, or one "
                f"and a local one; got {len(global_views)} and {len(local_views)}"
            )
        matched = [self._matched(views[a][1], views[b][1], locations[a], locations[b])
                   for a, b in pairs]  # fmt: skip
        local = torch.stack(matched).mean()
        return self.alpha * self._global([g for g, _ in views], pairs) + (1 - self.alpha) * local

    def _global(self, views: list[Tensor], pairs: list[tuple[int, int]]) -> Tensor:
        numbers = self.local.gamma, self.local.eps, self.local.group
        invariance = torch.stack([
            vicreg(views[a], views[b], gamma=numbers[0], eps=numbers[1], group=numbers[2])[0]
            for a, b in pairs
        ])  # fmt: skip
        terms = [view_terms(view, *numbers) for view in views]
        variance, covariance = (torch.stack(each).mean() for each in zip(*terms, strict=True))
        return (
            self.local.invariance_weight * invariance.mean()
            + self.local.variance_weight * variance
            + self.covariance_weight * covariance
        )

    def _matched(self, a: Tensor, b: Tensor, where_a: Tensor, where_b: Tensor) -> Tensor:
        a, b, where_a, where_b = (x.flatten(1, 2) for x in (a, b, where_a, where_b))
        total = []
        for own, other in ((a, b), (where_a, where_b)):
            distances = torch.cdist(own.detach().float(), other.detach().float())
            total.append(self.local(*_nearest(a, b, distances, self.matches[0])))
            total.append(self.local(*_nearest(b, a, distances.mT, self.matches[1])))
        return torch.stack(total).sum() / 2

    def extra_repr(self) -> str:
        weight = self.covariance_weight
        return f"covariance_weight={weight}, alpha={self.alpha}, matches={self.matches}"


def _nearest(own: Tensor, other: Tensor, distances: Tensor, matches: int) -> tuple[Tensor, Tensor]:
    """The `matches` rows of `own` (N, P, C) nearest to a row of `other` (N, Q, C), and those."""
    nearest, index = distances.min(2)
    chosen = nearest.topk(min(matches, own.shape[1]), 1, largest=False).indices
    batch = torch.arange(len(own), device=own.device)[:, None]
    return own[batch, chosen], other[batch, index.gather(1, chosen)]
