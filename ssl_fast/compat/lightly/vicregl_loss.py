"""`lightly.loss.vicregl_loss`."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ...functional._tiles import product_dtype
from ...functional.covariance import view_terms
from ._common import as_lightly, check_gather, world
from .vicreg_loss import VICRegLoss, covariance_loss, invariance_loss, variance_loss

View = tuple[Tensor, Tensor]  # global (N, D), local (N, height, width, D')


class VICRegLLoss(torch.nn.Module):
    """VICReg on images and on matched local features, as Lightly's class of that name.

        loss = alpha * global + (1 - alpha) * local
        global = lambda_param * invariance + mu_param * variance + nu_param * covariance
        local = mean over pairs of views of VICReg on features matched by distance and by place

    Every global view is compared with every other view; variance and covariance are means over
    views. Matches: the nearest candidates of each feature, then the `num_matches` nearest of
    those pairs, by rising distance.

    Args:
        lambda_param, mu_param, nu_param: weights; nu_param counts half in the local loss.
        alpha: weight of the global loss.
        gather_distributed: variances and covariances over the rows of all processes.
        eps: added to the variances.
        num_matches: of the first view's features and of the second's.

    Source: lightly 1.6.0 (the same in 1.5.26). Returns a tensor of shape (1,), as there.
    """

    def __init__(
        self,
        lambda_param: float = 25.0,
        mu_param: float = 25.0,
        nu_param: float = 1.0,
        alpha: float = 0.75,
        gather_distributed: bool = False,
        eps: float = 0.0001,
        num_matches: tuple[int, int] = (20, 4),
    ):
        super().__init__()
        check_gather("gather_distributed", gather_distributed)
        self.alpha = alpha
        self.num_matches = num_matches
        self.lambda_param = lambda_param
        self.mu_param = mu_param
        self.nu_param = nu_param
        self.eps = eps
        self.gather_distributed = gather_distributed
        self.vicreg_loss = VICRegLoss(
            lambda_param=lambda_param,
            mu_param=mu_param,
            nu_param=0.5 * nu_param,
            eps=eps,
            gather_distributed=gather_distributed,
        )

    def forward(
        self,
        global_view_features: Sequence[View],
        global_view_grids: Sequence[Tensor],
        local_view_features: Sequence[View] | None = None,
        local_view_grids: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """The loss, (1,).

        Args:
            global_view_features: (global, local) features (N, D), (N, height, width, D') a view.
            global_view_grids: (N, height, width, 2) places a view.
            local_view_features, local_view_grids: the same of small crops, both or neither.
        """
        _check_lengths("global", global_view_features, global_view_grids)
        if (local_view_features is None) != (local_view_grids is None):
            raise ValueError(
                "local_view_features and local_view_grids must either both be set or None but "
                f"found {type(local_view_features)} and {type(local_view_grids)}."
            )
        if local_view_features is not None and local_view_grids is not None:
            _check_lengths("local", local_view_features, local_view_grids)
        whole = self._global_loss(global_view_features, local_view_features)
        local = self._local_loss(
            global_view_features, global_view_grids, local_view_features, local_view_grids
        )
        return self.alpha * whole + (1 - self.alpha) * local

    def _global_loss(
        self,
        global_view_features: Sequence[View],
        local_view_features: Sequence[View] | None = None,
    ) -> Tensor:
        first = [features for features, _ in global_view_features]
        views = first + [features for features, _ in local_view_features or ()]
        pairs = [(a, b) for a in first for b in views if a is not b]
        invariance = _mean([invariance_loss(a, b) for a, b in pairs], first[0])
        group = world(self.gather_distributed)
        if group is None:
            spread = [(variance_loss(v, self.eps), covariance_loss(v)) for v in views]
        else:
            spread = [view_terms(v, 1.0, self.eps, group) for v in views]
        variance, covariance = (_mean(list(terms), first[0]) for terms in zip(*spread, strict=True))
        loss = self.lambda_param * invariance + self.mu_param * variance
        return loss + self.nu_param * covariance

    def _local_loss(
        self,
        global_view_features: Sequence[View],
        global_view_grids: Sequence[Tensor],
        local_view_features: Sequence[View] | None = None,
        local_view_grids: Sequence[Tensor] | None = None,
    ) -> Tensor:
        first = _maps(global_view_features, global_view_grids)
        maps = first + _maps(local_view_features or (), local_view_grids or ())
        pairs = [(a, b) for a in first for b in maps if a[0] is not b[0]]
        losses = [loss for a, b in pairs for loss in self._matched_losses(*a, *b)]
        return _mean(losses, global_view_features[0][0], len(pairs))

    def _matched_losses(
        self, z_a: Tensor, grid_a: Tensor, z_b: Tensor, grid_b: Tensor
    ) -> Iterator[Tensor]:
        """By distance of the features, then by distance on the grids."""
        for places in ((z_a, z_b), (grid_a, grid_b)):
            a, b = (place.detach().flatten(1, 2) for place in places)
            wide = product_dtype(a)
            distances = torch.cdist(a.to(wide), b.to(wide))
            maps = z_a.flatten(1, 2), z_b.flatten(1, 2)
            there = self.vicreg_loss(*_matches(*maps, distances, self.num_matches[0]))
            back = self.vicreg_loss(*_matches(*maps[::-1], distances.mT, self.num_matches[1]))
            yield 0.5 * (there + back)


def _matches(
    features: Tensor, candidates: Tensor, distances: Tensor, number: int | None
) -> tuple[Tensor, Tensor]:
    """The `number` features (N, P, D) that are nearest to a candidate, and those candidates."""
    positions = features.shape[1]
    number = positions if number is None or number == -1 else min(number, positions)
    nearest, index = distances.min(2)  # (N, P)
    chosen = nearest.topk(number, dim=1, largest=False).indices
    columns = features.shape[2]
    found = index.gather(1, chosen)
    return (
        features.gather(1, chosen[..., None].expand(-1, -1, columns)),
        candidates.gather(1, found[..., None].expand(-1, -1, columns)),
    )


def _maps(features: Sequence[View], grids: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    return [(local, grid) for (_, local), grid in zip(features, grids, strict=True)]


def _mean(losses: list[Tensor], like: Tensor, count: int | None = None) -> Tensor:
    """(1,), summed one after the other as in Lightly."""
    total = like.new_zeros(1)
    for loss in losses:
        total = total + as_lightly(loss, like.dtype)
    return total / (len(losses) if count is None else count)


def _check_lengths(which: str, features: Sequence, grids: Sequence) -> None:
    if len(features) != len(grids):
        raise ValueError(
            f"{which}_view_features and {which}_view_grids must have same length but found "
            f"{len(features)} and {len(grids)}."
        )
