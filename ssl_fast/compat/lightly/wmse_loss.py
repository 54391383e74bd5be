"""`lightly.loss.wmse_loss`."""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from ...functional._operator import full_precision
from ...functional.cosine import mean_cosine
from ._common import as_lightly


def norm_mse_loss(x0: Tensor, x1: Tensor) -> Tensor:
    """2 - 2 mean cos(x0_i, x1_i), 0-d, of (N, D)."""
    return as_lightly(2 - 2 * mean_cosine(x0, x1, eps=1e-12), x0.dtype)


class Whitening2d(torch.nn.Module):
    """Cholesky whitening of a batch, as Lightly's class of that name.

        w = L^-1 (x - mean),   L L^T = (1 - eps) C + eps I,   C with 1 / (N - 1)

    In evaluation, and where tracked, mean and C are the moving averages.

    Args:
        num_features: D.
        momentum: of the moving averages.
        track_running_stats: keep them, as buffers.
        eps: shrinkage.

    Source: lightly 1.6.0 (the same in 1.5.26).
    """

    running_mean: Tensor
    running_variance: Tensor

    def __init__(
        self,
        num_features: int,
        momentum: float = 0.01,
        track_running_stats: bool = True,
        eps: float = 0,
    ):
        super().__init__()
        self.num_features = num_features
        self.momentum = momentum
        self.track_running_stats = track_running_stats
        self.eps = eps
        if track_running_stats:
            self.register_buffer("running_mean", torch.zeros(1, num_features, 1, 1))
            self.register_buffer("running_variance", torch.eye(num_features))

    def forward(self, x: Tensor) -> Tensor:
        """(N, D) whitened."""
        return self.batches(x[None])[0]

    def batches(self, x: Tensor) -> Tensor:
        """(S, n, D): each batch on its own; moving averages take them in one after the other."""
        return full_precision(self._batches, (x,))

    def _batches(self, x: Tensor) -> Tensor:
        tracked = self.track_running_stats
        if tracked and not self.training:
            mean, covariance = self.running_mean.view(1, -1), self.running_variance
            centred = x - mean
        else:
            mean = x.mean(1)
            centred = x - mean[:, None]
            covariance = centred.mT @ centred / (x.shape[1] - 1)
        eye = torch.eye(self.num_features, dtype=x.dtype, device=x.device)
        factor = torch.linalg.cholesky((1 - self.eps) * covariance + self.eps * eye)
        whitened = torch.linalg.solve_triangular(factor, centred.mT, upper=False).mT
        if tracked and self.training:
            self._take_in(mean.detach(), covariance.detach())
        return whitened

    @torch.no_grad()
    def _take_in(self, means: Tensor, covariances: Tensor) -> None:
        """What `running <- momentum * new + (1 - momentum) * running` over all S gives at once."""
        kept = (1 - self.momentum) ** torch.arange(len(means), -1, -1, dtype=torch.float64)
        shares = (self.momentum * kept[1:]).to(means)
        for running, new in (
            (self.running_mean, means), (self.running_variance, covariances)
        ):  # fmt: skip
            total = torch.tensordot(shares, new, 1).view(running.shape)
            running.mul_(float(kept[0])).add_(total)


class WMSELoss(torch.nn.Module):
    """Whitened squared error, as Lightly's class of that name.

    Views are whitened in random sub-batches of `w_size` rows, the same rows in every view, by
    `Whitening2d`; the loss is the mean over pairs of views and `w_iter` draws of loss_fn.

    Args:
        embedding_dim: D; w_size must be twice as much.
        momentum, eps, track_running_stats: of the whitening.
        w_iter: draws of sub-batches, from PyTorch's CPU generator as in Lightly.
        w_size: rows of a sub-batch.
        loss_fn: of two whitened views (N, D).
        num_samples: V, views in the input.

    Source: lightly 1.6.0 (the same in 1.5.26).
    """

    def __init__(
        self,
        embedding_dim: int = 128,
        momentum: float = 0.01,
        eps: float = 0.0,
        track_running_stats: bool = True,
        w_iter: int = 1,
        w_size: int = 256,
        loss_fn: Callable[[Tensor, Tensor], Tensor] = norm_mse_loss,
        num_samples: int = 2,
    ):
        super().__init__()
        self.whitening = Whitening2d(
            num_features=embedding_dim,
            momentum=momentum,
            eps=eps,
            track_running_stats=track_running_stats,
        )
        if embedding_dim * 2 > w_size:
            raise ValueError(
                "w_size should be at least twice the size of embedding_dim to avoid instabiliy"
            )
        self.w_iter = w_iter
        self.w_size = w_size
        self.loss_f = loss_fn
        self.num_samples = num_samples
        self.num_pairs = num_samples * (num_samples - 1) // 2

    def forward(self, input: Tensor) -> Tensor:
        """The loss, 0-d, of V views (V N, D), view by view; w_size divides N."""
        samples = len(input) // self.num_samples
        if len(input) % self.num_samples:
            raise RuntimeError("input batch size must be divisible by num_samples")
        if samples < self.w_size:
            raise ValueError("batch size must be greater than or equal to w_size")
        views = input.view(self.num_samples, samples, -1)
        losses = []
        for _ in range(self.w_iter):
            order = torch.randperm(samples).view(-1, self.w_size).to(input.device)
            parts = views[:, order].transpose(0, 1).flatten(0, 1)  # (S V, n, D)
            whitened = self.whitening.batches(parts).unflatten(0, (-1, self.num_samples))
            whitened = whitened.transpose(0, 1).flatten(1, 2)  # (V, N, D)
            if self.loss_f is not norm_mse_loss:  # which does not look at the order
                whitened = whitened[:, order.flatten().argsort()]
            pairs = itertools.combinations(whitened, 2)
            losses += [self.loss_f(x0, x1) for x0, x1 in pairs]
        return torch.stack(losses).sum() / (self.w_iter * self.num_pairs)
