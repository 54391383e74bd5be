"""Losses on whitened embeddings: W-MSE, CW-RGP, INTL, Zero-CL."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..functional import whitening
from ..functional._check import by_name, choice, count, share


class WMSELoss(torch.nn.Module):
    """W-MSE (Ermolov et al. 2021): 2 - 2 cos of views whitened by Cholesky factors.

        L = mean over pairs of views, and rows, of 2 - 2 cos(w, w'),   w = K^-1 (x - mean)
        K K^T = (1 - eps) C + eps I,   C: covariance of the row's sub-batch, with n - 1

    Random sub-batches are drawn on every call, the same rows in all views. The views are normalised
    after the whitening; gradients reach all of them. Sub-batches stay on their process: DDP's mean
    of the ranks' losses is the loss of all.

    Args:
        sub_batch: rows whitened together, more than the width; the code's w_size.
        iterations: partitions drawn on every call; the code's w_iter.
        eps: shrinkage towards the identity, 0 <= eps < 1.

    Source: htdt/self-supervised d9662c8. solo-learn's default stops the second view's gradient,
        this one does not.
    Cost: products of N D^2 operations a view and iteration, one Cholesky factor a sub-batch, all
        sub-batches and views in one call.
    """

    def __init__(self, sub_batch: int = 128, iterations: int = 1, eps: float = 0.0):
        super().__init__()
        self.sub_batch = count("sub_batch", sub_batch)
        self.iterations = count("iterations", iterations)
        self.eps = share("eps", eps)

    def forward(self, views: Sequence[Tensor]) -> Tensor:
        """The loss, 0-d, of two or more views (N, D)."""
        return whitening.wmse(
            views, sub_batch=self.sub_batch, iterations=self.iterations, eps=self.eps
        )

    def extra_repr(self) -> str:
        return f"sub_batch={self.sub_batch}, iterations={self.iterations}, eps={self.eps}"


class CWRGPLoss(torch.nn.Module):
    """CW-RGP (Weng et al. 2022): channel whitening with random group partition.

        L = mean over pairs of views, and rows, of 2 - 2 cos(w, w')
        w = S^(-1/2) x within a group,   S = (1 - eps) x x^T / (D/groups - 1) + eps I

    x (n, D/groups): a group of channels of n samples, each sample centred over all D. Samples are
    whitened against each other within random groups of channels, drawn for each view on every call;
    2 - 2 cos of the whitened views, normalised inside. Sub-batches stay on their process: DDP's
    mean of the ranks' losses is the loss of all.

    Args:
        groups: parts of the channels; divides D, and D / groups exceeds the sub-batch.
        sub_batch: samples whitened together; None takes the batch.
        iterations: partitions drawn on every call.
        eps: shrinkage towards the identity, 0 <= eps < 1.

    Source: winci-ai/CW-RGP 24f6a20, by ZCA, with a gradient that repeated eigenvalues leave finite.
    Cost: products of N n D operations, an eigendecomposition n wide for each sub-batch and group.
    """

    def __init__(
        self,
        groups: int = 2,
        sub_batch: int | None = None,
        iterations: int = 1,
        eps: float = 0.0,
    ):
        super().__init__()
        self.groups = count("groups", groups)
        self.sub_batch = None if sub_batch is None else count("sub_batch", sub_batch)
        self.iterations = count("iterations", iterations)
        self.eps = share("eps", eps)

    def forward(self, views: Sequence[Tensor]) -> Tensor:
        """The loss, 0-d, of two or more views (N, D)."""
        return whitening.cw_rgp(
            views,
            groups=self.groups,
            sub_batch=self.sub_batch,
            iterations=self.iterations,
            eps=self.eps,
        )

    def extra_repr(self) -> str:
        return (
            f"groups={self.groups}, sub_batch={self.sub_batch}, iterations={self.iterations}, "
            f"eps={self.eps}"
        )


class INTLLoss(torch.nn.Module):
    """INTL (Weng et al. 2024): iterative normalisation with trace loss.

        L = mean over i >= 1 of 2 - 2 cos(t_i, t_0) + trade_off (TL(t_i) + TL(t_0))
        t = IterNorm(z):   P <- (3 P - P^3 S / tr S) / 2 from P = I,   t = P z / sqrt(tr S)
        TL(t) = sum (var(t) - 1)^2

    z: centred along the axis, S its second moment, N x N for axis 0. View 0 is compared with every
    other by 2 - 2 cos after IterNorm (normalised inside); the trace loss keeps variances at one.
    Views may come from a momentum network: INTL-M's trace loss on the online views alone is not
    this class.

    Args:
        iterations: Newton's steps of IterNorm.
        trade_off: of the trace loss; None takes 0.01 (log2 n - 3), n the batch size of all
            ranks for axis 0, the width for axis 1.
        axis: 0 whitens samples (the code's default), 1 whitens channels.
        group: process group: views of all ranks are gathered, with gradients.

    Source: winci-ai/INTL 0aa69af.
    Cost: 3 products of 2 N^3 operations a step (2 D^3 for axis 1), and autograd's backward of each.
    """

    def __init__(
        self,
        iterations: int = 4,
        trade_off: float | None = None,
        axis: int = 0,
        group: Any = None,
    ):
        super().__init__()
        self.iterations = count("iterations", iterations)
        self.trade_off, self.axis, self.group = trade_off, axis, by_name(group)

    def forward(self, views: Sequence[Tensor]) -> Tensor:
        """The loss, 0-d, of two or more views (N, D)."""
        return whitening.intl(
            views,
            iterations=self.iterations,
            trade_off=self.trade_off,
            axis=self.axis,
            group=self.group,
        )

    def extra_repr(self) -> str:
        return f"iterations={self.iterations}, trade_off={self.trade_off}, axis={self.axis}"


class ZeroCLLoss(torch.nn.Module):
    """Zero-CL (Zhang et al. 2022): whitened views whose diagonal correlation should be one.

        L = sum_i (c_ii - 1)^2,   c_ii: mean product of row i of both whitened views
        whitened = ((1 - shrinkage) S + (shrinkage + eps) I)^(-1/2) z

    z: features as rows, (D, N), or instances as rows, (N, D); S its second moment. Both views are
    standardised inside, over the batch ("feature") or over the channels ("instance"). The whitening
    is a constant for the gradient.

    Args:
        mode: "feature" (FCL, the released CIFAR script with --whiten), "instance" (ICL), or "both".
        shrinkage: None takes 0.1 for features, 0 for instances.
        eps: added to the eigenvalues; None takes 1e-5 for features, 0.01 for instances.
        group: process group: views of all ranks are gathered, with gradients.

    Source: Sherrylone/Zero-CL 5ae44f8.
    Cost: an eigendecomposition D wide a view (N wide for instances), without backward; the
        off-diagonal correlations are not formed.
    """

    def __init__(
        self,
        mode: str = "feature",
        shrinkage: float | None = None,
        eps: float | None = None,
        group: Any = None,
    ):
        super().__init__()
        choice("mode", mode, ("feature", "instance", "both"))
        self.mode, self.shrinkage, self.eps, self.group = mode, shrinkage, eps, by_name(group)

    def forward(self, z0: Tensor, z1: Tensor) -> Tensor:
        """The loss, 0-d, of two views (N, D)."""
        return whitening.zero_cl(
            z0, z1, mode=self.mode, shrinkage=self.shrinkage, eps=self.eps, group=self.group
        )

    def extra_repr(self) -> str:
        return f"mode={self.mode!r}, shrinkage={self.shrinkage}, eps={self.eps}"
