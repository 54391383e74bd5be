"""Nuclear norm and Wasserstein uniformity in CUDA C++, around the products of `_polar`."""

import torch
from torch import Tensor

from ... import _polar
from .. import matrix, pointer
from . import double, launch, rows


def forward(
    z: Tensor, center: bool, eps: float, distance: bool, want_grad: bool, total_rows: int, reduce
) -> tuple[Tensor, Tensor | None]:
    """As `reference.wasserstein.forward`, for eps of at least 1e-7."""
    return _polar.forward(
        PolarKernels, rows(z), center, eps, distance, want_grad, total_rows, reduce
    )


class PolarKernels:
    """The steps between the products."""

    @staticmethod
    def column_sums(z: Tensor) -> Tensor:
        parts = max(1, min(64, z.shape[0] // 256))
        partial, sums = double(z, parts, z.shape[1]), double(z, z.shape[1])
        launch("column_sums", z, matrix(z), parts, partial.data_ptr(), sums.data_ptr())
        return sums

    @staticmethod
    def center(z: Tensor, mean: Tensor | None) -> Tensor:
        x = double(z, *z.shape)
        launch("center", z, matrix(z), pointer(mean), x.data_ptr())
        return x

    @staticmethod
    def polynomial(coefficients: _polar.Coefficients, r: Tensor, square: Tensor) -> Tensor:
        out = torch.empty_like(r)
        launch(
            "polynomial", r, r.data_ptr(), square.data_ptr(), r.shape[0], *coefficients,
            out.data_ptr(),
        )  # fmt: skip
        return out

    @staticmethod
    def finish(product: Tensor, row: Tensor | None, factor: Tensor | None) -> Tensor:
        out = product.new_empty(product.shape, dtype=torch.float32)
        launch(
            "finish", product, product.data_ptr(), *product.shape, pointer(row), pointer(factor),
            out.data_ptr(),
        )  # fmt: skip
        return out
