"""How evenly embeddings fill the sphere: W2 and L_U, alignment, spectrum, effective rank.

Lower W2 and lower L_U are more uniform; papers plot -W2 and -L_U. Everything is float64, on whole
sets, without gradients; the losses of the same names are in `ssl_fast.functional`.
"""

import math

import torch
from torch import Tensor

_BLOCK_ROWS = 1024


def wasserstein_uniformity(x: Tensor, *, normalize: bool = True, jitter: float = 1e-8) -> float:
    """Quadratic Wasserstein distance between N(mean, covariance) of the rows and N(0, I / D).

        W2^2 = |mean|^2 + 1 + tr C - (2 / sqrt(D)) sum_i sqrt(s_i + jitter),   C with 1 / N

    Args:
        x: (N, D), any floating-point type, N >= 1.
        normalize: scale rows to unit norm first; zero rows stay zero.
        jitter: added to the eigenvalues s_i of C under the root, as the released metric does.
            It makes W2 of a collapsed batch smaller by up to D * sqrt(jitter / D).

    Returns:
        W2 >= 0; 0 is uniform.

    Raises:
        TypeError, ValueError: x is no floating-point matrix, or empty.

    Source: Fang et al. 2024 (arXiv 2403.00642); statsle/WassersteinSSL a16a931, metric.py.
    """
    x = _rows("x", x, normalize)
    mean = x.mean(0)
    centred = x - mean
    eigenvalues = _eigenvalues(centred, divisor=len(x))
    missing = x.shape[1] - len(eigenvalues)
    roots = float((eigenvalues + jitter).sqrt().sum()) + missing * math.sqrt(jitter)
    squared = (
        float(mean.square().sum())
        + 1
        + float(centred.square().sum()) / len(x)
        - 2 / math.sqrt(x.shape[1]) * roots
    )
    return math.sqrt(max(squared, 0.0))


def gaussian_uniformity(x: Tensor, *, t: float = 2.0, normalize: bool = True) -> float:
    """L_U = log of the mean of exp(-t |x_i - x_j|^2) over pairs i < j.

    Args:
        x: (N, D), N >= 2.
        t: > 0.
        normalize: scale rows to unit norm first.

    Returns:
        L_U, at most 0; -t * 4 at the lowest.

    Source: Wang & Isola 2020; SsnL/align_uniform e256d47, uniform_loss with t = 2.
    Cost: N^2 D operations by blocks of rows; nothing of size N^2 is stored.
    """
    x = _rows("x", x, normalize, least=2)
    if not t > 0:
        raise ValueError(f"t must be > 0, got {t}")
    squares = x.square().sum(1)
    parts = []
    for first in range(0, len(x), _BLOCK_ROWS):
        rows = slice(first, first + _BLOCK_ROWS)
        distances = squares[rows, None] + squares[first:] - 2 * x[rows] @ x[first:].T
        exponents = distances.clamp(min=0).mul(-t)
        above = torch.ones_like(exponents, dtype=torch.bool).triu(1)
        parts.append(exponents.masked_fill(~above, -math.inf).logsumexp((0, 1)))
    pairs = len(x) * (len(x) - 1) / 2
    return float(torch.stack(parts).logsumexp(0)) - math.log(pairs)


def alignment(x: Tensor, y: Tensor, *, alpha: float = 2.0, normalize: bool = True) -> float:
    """mean_i |x_i - y_i|^alpha over pairs of rows (two views of one image).

    Source: Wang & Isola 2020; SsnL/align_uniform e256d47, align_loss with alpha = 2.
    """
    x, y = _rows("x", x, normalize), _rows("y", y, normalize)
    if x.shape != y.shape:
        raise ValueError(
            f"x and y must pair up row by row, got {tuple(x.shape)} and {tuple(y.shape)}"
        )
    if not alpha > 0:
        raise ValueError(f"alpha must be > 0, got {alpha}")
    return float((x - y).norm(dim=1).pow(alpha).mean())


def spectrum(x: Tensor, *, normalize: bool = True) -> Tensor:
    """The D eigenvalues of the covariance of the rows (1 / N), largest first, float64 on the CPU.

    A dimensional collapse shows as eigenvalues at zero.
    """
    x = _rows("x", x, normalize)
    found = _eigenvalues(x - x.mean(0), divisor=len(x)).flip(0)
    return torch.cat([found, found.new_zeros(x.shape[1] - len(found))])


def effective_rank(x: Tensor, *, center: bool = False, normalize: bool = False) -> float:
    """exp of the entropy of the singular values, divided by their sum (Roy & Vetterli 2007).

    Between 1 and min(N, D); 0 for a matrix of zeros. `center` takes the column means off first.
    """
    x = _rows("x", x, normalize)
    values = torch.linalg.svdvals(x - x.mean(0) if center else x)
    total = values.sum()
    if total == 0:
        return 0.0
    return float(torch.special.entr(values / total).sum().exp())


def _rows(name: str, x: Tensor, normalize: bool, least: int = 1) -> Tensor:
    """Float64 rows on the CPU, of unit norm if asked for."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        given = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"{name} must be a floating-point torch.Tensor, got {given}")
    if x.dim() != 2 or len(x) < least or x.shape[1] == 0:
        raise ValueError(
            f"{name} must be a matrix of at least {least} rows, got shape {tuple(x.shape)}"
        )
    x = x.detach().cpu().double()
    return torch.nn.functional.normalize(x) if normalize else x


def _eigenvalues(centred: Tensor, divisor: int) -> Tensor:
    """Of centred.T @ centred / divisor by the smaller Gram: min(N, D) of them, ascending."""
    tall = len(centred) >= centred.shape[1]
    gram = centred.T @ centred if tall else centred @ centred.T
    return torch.linalg.eigvalsh(gram / divisor).clamp(min=0)
