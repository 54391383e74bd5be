"""Nuclear norm and Wasserstein uniformity: C++ around torch's products and decomposition (CPU)."""

import math

import torch
from torch import Tensor

from . import DTYPE_CODES, cpu, matrix, pointer
from ._eigen import Reduce, Spectrum
from .cuda import wasserstein as cuda

# A Gram at most this wide is decomposed in float64: that costs no more than overheads do, or, where
# rows and columns are nearly as many, than taking small directions again. Measured on 2 cores.
_DOUBLE, _DOUBLE_SQUARE = 32, 56


def forward(
    z: Tensor, center: bool, eps: float, distance: bool, want_grad: bool, rows: int, reduce: Reduce
) -> tuple[Tensor, Tensor | None]:
    """As `reference.wasserstein.forward`; z may be this rank's rows where rows > D.

    The norm is float64 throughout, since its rival, an SVD, does not square the condition number;
    the distance costs no more than its rival, the eigenvalues of a float32 covariance.
    """
    if z.is_cuda:
        return cuda.forward(z, center, eps, distance, want_grad, rows, reduce)
    wide = torch.promote_types(z.dtype, torch.float32)
    mean = reduce(column_means(z, rows), "sum") if center else None
    dtype = wide if distance and _is_wide(rows, z.shape[1]) else torch.float64
    x = z.to(dtype) if mean is None else centered(z, mean, dtype)
    spectrum = Spectrum(x, center, rows, reduce)
    if not spectrum.finite:
        nan = torch.full((), math.nan, dtype=wide)
        return nan, nan.expand(z.shape).clone() if want_grad else None
    value, weight, row = spectral_weights(spectrum, mean, rows, z.shape[1], eps, distance, wide)
    if not want_grad:
        return value, None
    d_z = spectrum.combine(weight, row).to(wide)
    if not center and not spectrum.tall:
        d_z *= (z != 0).any(1, keepdim=True)  # exactly 0 for rows of zeros
    return value, d_z


def _is_wide(rows: int, columns: int) -> bool:
    less, more = sorted((rows, columns))
    return less > (_DOUBLE_SQUARE if 10 * less > 9 * more else _DOUBLE)


def column_means(z: Tensor, rows: int) -> Tensor:
    """This rank's share of the means over `rows`, (D,) float64."""
    means = torch.empty(z.shape[1], dtype=torch.float64)
    cpu().column_means(matrix(z), rows, means.data_ptr(), torch.get_num_threads())
    return means


def centered(z: Tensor, mean: Tensor, dtype: torch.dtype) -> Tensor:
    """z - mean, (N, D) float32 or float64."""
    x, threads = torch.empty(z.shape, dtype=dtype), torch.get_num_threads()
    cpu().subtract_mean(matrix(z), mean.data_ptr(), x.data_ptr(), DTYPE_CODES[dtype], threads)
    return x


def spectral_weights(
    spectrum: Spectrum, mean: Tensor | None, rows: int, width: int, eps: float, distance: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
    """Value (0-d, `dtype`), weights (float64), the row that is added everywhere (in X's type)."""
    squares = spectrum.squares
    value, weight = torch.empty((), dtype=dtype), torch.empty_like(squares)
    row = spectrum.a.new_empty(width) if distance else None
    cpu().spectral_weights(
        squares.data_ptr(), squares.shape[0], spectrum.scale, spectrum.stranger, pointer(mean),
        rows, width, eps, distance, value.data_ptr(), DTYPE_CODES[dtype],
        weight.data_ptr(), pointer(row), DTYPE_CODES[spectrum.a.dtype],
    )  # fmt: skip
    return value, weight, row
