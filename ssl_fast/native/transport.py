"""Transport in C++ (CPU): a pair of clouds over all threads, or one pair a thread."""

import torch
from torch import Tensor

from . import DTYPE_CODES, cpu


def distance(
    x: Tensor, y: Tensor, epsilon: float, p: int, iterations: int, tolerance: float
) -> tuple[Tensor, Tensor]:
    """As `reference.transport.distance`."""
    state = _wide(x).new_empty((2, len(x) + len(y)))
    value = _call(x, y, state, epsilon, p, iterations, tolerance, 0.0, 0, 0)
    return torch.tensor(value, dtype=torch.float64), state


def distance_backward(
    x: Tensor, y: Tensor, state: Tensor, epsilon: float, p: int, iterations: int, tolerance: float,
    d_value: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """As `reference.transport.distance_backward`."""
    d_x, d_y = (state.new_empty(cloud.shape) for cloud in (x, y))
    _call(
        x, y, state.clone(), epsilon, p, iterations, tolerance, float(d_value), d_x.data_ptr(),
        d_y.data_ptr(),
    )  # fmt: skip
    return d_x.to(x.dtype), d_y.to(y.dtype)


def distances(
    points: Tensor, starts: Tensor, pairs: Tensor, epsilon: float, p: int, iterations: int,
    tolerance: float,
) -> Tensor:  # fmt: skip
    """As `reference.transport.distances`."""
    points = _wide(points)
    columns, out = points.t().contiguous(), torch.empty(len(pairs), dtype=torch.float64)
    cpu().transport_pairs(
        _points(points, columns), starts.data_ptr(), pairs.data_ptr(), len(pairs), epsilon, p,
        iterations, tolerance, out.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return out


def _call(
    x: Tensor, y: Tensor, state: Tensor, epsilon: float, p: int, iterations: int, tolerance: float,
    d_value: float, d_x: int, d_y: int,
) -> float:  # fmt: skip
    x, y = _wide(x), _wide(y)
    x_columns, y_columns = x.t().contiguous(), y.t().contiguous()
    n = len(x)
    potentials, means = state
    return cpu().transport(
        _points(x, x_columns), _points(y, y_columns), epsilon, p, iterations, tolerance,
        potentials.data_ptr(), potentials[n:].data_ptr(), means.data_ptr(), means[n:].data_ptr(),
        d_value, d_x, d_y, torch.get_num_threads(),
    )  # fmt: skip


def _points(rows: Tensor, columns: Tensor) -> tuple[int, int, int, int, int]:
    """As the kernels take a cloud: both ways round."""
    return rows.data_ptr(), columns.data_ptr(), *rows.shape, DTYPE_CODES[rows.dtype]


def _wide(points: Tensor) -> Tensor:
    """Contiguous, in the type that is computed in."""
    return points.to(torch.promote_types(points.dtype, torch.float32)).contiguous()
