"""`lightly.loss.vicreg_loss`."""

from collections.abc import Callable

import torch
from torch import Tensor

from ...functional import alignment, variance_hinge, vicreg
from ...functional.covariance import covariance_term, view_terms
from ._common import as_lightly, check_gather, world

_FEW = 64  # entries of what Lightly's tests compare bit for bit; beyond, the second look costs


class VICRegLoss(torch.nn.Module):
    """Variance, invariance and covariance, as Lightly's class of that name.

        loss = lambda_param * mean (z_a - z_b)^2 + mu_param / 2 * (v(z_a) + v(z_b))
             + nu_param * (c(z_a) + c(z_b))
        v(z) = mean_d relu(1 - sqrt(var_d + eps)),   c(z) = sum_{d != e} C_de^2 / D,  with N - 1

    Args:
        lambda_param, mu_param, nu_param: weights.
        gather_distributed: variances and covariances over the rows of all processes; the
            invariance stays this process's.
        eps: added to the variances.

    Source: lightly 1.6.0 (the same in 1.5.26). Batches of at most 64 entries in float32 have
        PyTorch's last bit too.
    """

    def __init__(
        self,
        lambda_param: float = 25.0,
        mu_param: float = 25.0,
        nu_param: float = 1.0,
        gather_distributed: bool = False,
        eps: float = 0.0001,
    ):
        super().__init__()
        check_gather("gather_distributed", gather_distributed)
        self.lambda_param = lambda_param
        self.mu_param = mu_param
        self.nu_param = nu_param
        self.gather_distributed = gather_distributed
        self.eps = eps

    def forward(self, z_a: Tensor, z_b: Tensor) -> Tensor:
        """The loss, 0-d, of two views (N, D), or (N, ..., D) with a covariance a position."""
        check_views(z_a, z_b)
        group = world(self.gather_distributed)
        if group is None:
            terms = vicreg(z_a, z_b, eps=self.eps)
        else:
            terms = _over_processes(z_a, z_b, self.eps, group)
        loss = as_lightly(self._total(*terms), z_a.dtype)
        return loss if group is not None else _rounded(loss, self._as_pytorch, z_a, z_b)

    def _total(self, invariance: Tensor, variance: Tensor, covariance: Tensor) -> Tensor:
        loss = self.lambda_param * invariance + self.mu_param * variance
        return loss + self.nu_param * covariance

    def _as_pytorch(self, z_a: Tensor, z_b: Tensor) -> Tensor:
        variance = 0.5 * (_hinge(z_a, self.eps) + _hinge(z_b, self.eps))
        return self._total(_squares(z_a, z_b), variance, _penalty(z_a) + _penalty(z_b))


def check_views(z_a: Tensor, z_b: Tensor) -> None:
    """Lightly's assertions."""
    if z_a.shape[0] <= 1 or z_b.shape[0] <= 1:
        raise AssertionError(
            f"z_a and z_b must have batch size > 1 but found {z_a.shape[0]} and {z_b.shape[0]}"
        )
    if z_a.shape != z_b.shape:
        raise AssertionError(
            f"z_a and z_b must have same shape but found {z_a.shape} and {z_b.shape}."
        )


def invariance_loss(x: Tensor, y: Tensor) -> Tensor:
    """Mean of (x - y)^2, 0-d."""
    loss = alignment(x.flatten(1), y.flatten(1)) / x[0].numel()
    return _rounded(as_lightly(loss, x.dtype), _squares, x, y)


def variance_loss(x: Tensor, eps: float = 0.0001) -> Tensor:
    """Mean over all columns of relu(1 - sqrt(var + eps)), 0-d, of x (N, ..., D)."""
    loss = as_lightly(variance_hinge(x.flatten(1), eps=eps), x.dtype)
    return _rounded(loss, lambda few: _hinge(few, eps), x)


def covariance_loss(x: Tensor) -> Tensor:
    """Mean over positions of sum_{d != e} C_de^2 / D, 0-d, of x (N, ..., D)."""
    return _rounded(as_lightly(covariance_term(x), x.dtype), _penalty, x)


def _over_processes(z_a: Tensor, z_b: Tensor, eps: float, group) -> tuple[Tensor, Tensor, Tensor]:
    invariance = alignment(z_a.flatten(1), z_b.flatten(1)) / z_a[0].numel()
    terms = [view_terms(z, 1.0, eps, group) for z in (z_a, z_b)]
    return invariance, (terms[0][0] + terms[1][0]) / 2, terms[0][1] + terms[1][1]


def _rounded(loss: Tensor, value: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """`loss`; where the inputs are few, with the bits of value(*inputs): PyTorch's roundings.

    Lightly's tests compare a few rows bit for bit. A value summed in float64 and rounded once is
    nearer to the truth, and differs in the last bit.
    """
    if torch.compiler.is_compiling() or max(x.numel() for x in inputs) > _FEW:
        return loss
    if any(x.is_cuda or x.dtype != torch.float32 for x in inputs):
        return loss
    with torch.no_grad():  # no step of the graph: the gradient is that of `loss`
        return loss.copy_(value(*(x.detach() for x in inputs)))


def _squares(x: Tensor, y: Tensor) -> Tensor:
    return torch.nn.functional.mse_loss(x, y)


def _hinge(x: Tensor, eps: float) -> Tensor:
    return (1.0 - torch.sqrt(x.var(dim=0) + eps)).relu().mean()


def _penalty(x: Tensor) -> Tensor:
    x = x - x.mean(dim=0)
    columns = x.shape[-1]
    products = torch.einsum("n...d,n...e->...de", x, x) / (len(x) - 1)
    # Rows of one more: the diagonal is their first column.
    rest = products.flatten(-2)[..., :-1].unflatten(-1, (columns - 1, columns + 1))
    return (rest[..., 1:].flatten(-2).pow(2).sum(-1) / columns).mean()
