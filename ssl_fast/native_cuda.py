"""The CUDA kernels behind the backend protocol: tensors in, pointers and the current stream down.

float32, bfloat16 and float16. Scratch comes from torch's allocator: a CUDA graph can hold it.
"""

import functools
from types import SimpleNamespace

import torch
from torch import Tensor

from . import _polar, native
from .native import DTYPE_CODES, matrix, pointer


def step(scores: Tensor, scale: float, col: Tensor | None) -> tuple[Tensor, Tensor]:
    """As `reference.sinkhorn.step`."""
    scores = _rows(scores)
    row, column_lse = _double(scores, scores.shape[0]), _double(scores, scores.shape[1])
    _launch(
        "sinkhorn_step", scores, _sinkhorn_scratch(scores),
        *matrix(scores), scale, pointer(col), row.data_ptr(), column_lse.data_ptr(),
    )  # fmt: skip
    return row, column_lse


def row_potential(scores: Tensor, scale: float, col: Tensor | None) -> Tensor:
    """As `reference.sinkhorn.row_potential`."""
    scores = _rows(scores)
    row = _double(scores, scores.shape[0])
    _launch(
        "row_potential", scores, _sinkhorn_scratch(scores),
        *matrix(scores), scale, pointer(col), row.data_ptr(),
    )  # fmt: skip
    return row


def potentials(
    scores: Tensor, scale: float, log_prior: Tensor | None, iterations: int, softmax_start: bool
) -> tuple[Tensor, Tensor]:
    """As `reference.sinkhorn.potentials`."""
    row, col, _ = _sinkhorn(_rows(scores), scale, log_prior, iterations, softmax_start, None)
    return row, col


def dense(
    scores: Tensor, scale: float, log_prior: Tensor | None, iterations: int, softmax_start: bool
) -> Tensor:
    """As `reference.sinkhorn.dense`."""
    q = scores.new_empty(scores.shape, dtype=torch.float32)
    _sinkhorn(_rows(scores), scale, log_prior, iterations, softmax_start, q)
    return q


def evaluate(scores: Tensor, scale: float, row: Tensor, col: Tensor | None) -> Tensor:
    """As `reference.sinkhorn.evaluate`."""
    scores = _rows(scores)
    q = scores.new_empty(scores.shape, dtype=torch.float32)
    _launch(
        "evaluate", scores, _cross_entropy_scratch(scores, False),
        *matrix(scores), scale, pointer(row), pointer(col), q.data_ptr(),
    )  # fmt: skip
    return q


def forward(
    logits: Tensor, inv_temperature: float, targets, symmetric: bool, factor: float
) -> tuple[Tensor, Tensor, Tensor | None]:
    """As `reference.cross_entropy.forward`."""
    logits = _rows(logits)
    loss = logits.new_empty((), dtype=torch.float32)
    row_stats = _double(logits, 4, logits.shape[0])
    col_stats = _double(logits, 3, logits.shape[1]) if symmetric else None
    values = _target_values(targets, logits)
    _launch(
        "cross_entropy_forward", logits, _cross_entropy_scratch(logits, symmetric),
        *matrix(logits), inv_temperature, *_target(targets, values), factor, row_stats.data_ptr(),
        pointer(col_stats), loss.data_ptr(),
    )  # fmt: skip
    return loss, row_stats, col_stats


def backward(
    logits: Tensor,
    inv_temperature: float,
    targets,
    row_stats: Tensor,
    col_stats: Tensor | None,
    d_loss: Tensor | None,
    factor: float,
    out: Tensor | None = None,
) -> Tensor:
    """As `reference.cross_entropy.backward`."""
    fits = out is not None and out.dtype == logits.dtype and _has_rows(out)
    d_logits = out if fits else torch.empty_like(logits, memory_format=torch.contiguous_format)
    assert d_logits is not None
    logits = _rows(logits)
    values = _target_values(targets, logits)
    d_loss = None if d_loss is None else d_loss.float()
    d_loss_stride = d_loss.stride(0) if d_loss is not None and d_loss.dim() else 0
    _launch(
        "cross_entropy_backward", logits, _cross_entropy_scratch(logits, False),
        *matrix(logits), inv_temperature, *_target(targets, values), row_stats.data_ptr(),
        row_stats.stride(0), pointer(col_stats), pointer(d_loss), d_loss_stride, factor,
        d_logits.data_ptr(), d_logits.stride(0),
    )  # fmt: skip
    return d_logits if out is None or fits else out.copy_(d_logits)


def contrastive(name: str, tile: Tensor, *arguments) -> None:
    """One epilogue on a float32 tile, in place."""
    getattr(native.cuda(), name)(*matrix(tile), *arguments, *_place(tile))


def prior_forward(logits: Tensor, inv_temperature: float, targets) -> tuple[Tensor, Tensor]:
    """As `reference.prior.forward`."""
    logits = _rows(logits)
    given = SimpleNamespace(values=logits, scale=None, row=None, col=None)
    given = given if targets is None else targets
    row_stats = forward(logits, inv_temperature, given, False, 1.0)[1]
    if targets is None:
        row_stats[2:].zero_()
    log_mass = _double(logits, logits.shape[1])
    _launch(
        "prior_columns", logits, _prior_scratch(logits),
        *matrix(logits), inv_temperature, row_stats.data_ptr(), row_stats.stride(0),
        log_mass.data_ptr(),
    )  # fmt: skip
    return row_stats, log_mass


def prior_backward(
    logits: Tensor,
    inv_temperature: float,
    targets,
    row_stats: Tensor,
    prior: Tensor,
    d_loss: Tensor | None,
    factor: float,
    out: Tensor | None = None,
) -> Tensor:
    """As `reference.prior.backward`."""
    fits = out is not None and out.dtype == logits.dtype and _has_rows(out)
    d_logits = out if fits else torch.empty_like(logits, memory_format=torch.contiguous_format)
    assert d_logits is not None
    logits = _rows(logits)
    none = 0, logits.stride(0), DTYPE_CODES[torch.float32], 0.0, 0, 0
    target = none if targets is None else _target(targets, _target_values(targets, logits))
    d_loss = None if d_loss is None else d_loss.float()
    _launch(
        "prior_backward", logits, _prior_scratch(logits),
        *matrix(logits), inv_temperature, *target, row_stats.data_ptr(), row_stats.stride(0),
        prior.data_ptr(), pointer(d_loss), factor, d_logits.data_ptr(), d_logits.stride(0),
    )  # fmt: skip
    return d_logits if out is None or fits else out.copy_(d_logits)


def wasserstein(
    z: Tensor, center: bool, eps: float, distance: bool, want_grad: bool, rows: int, reduce
) -> tuple[Tensor, Tensor | None]:
    """As `reference.wasserstein.forward`, for eps of at least 1e-7."""
    return _polar.forward(PolarKernels, _rows(z), center, eps, distance, want_grad, rows, reduce)


class PolarKernels:
    """The steps between the products of `_polar.forward`."""

    @staticmethod
    def column_sums(z: Tensor) -> Tensor:
        parts = max(1, min(64, z.shape[0] // 256))
        partial, sums = _double(z, parts, z.shape[1]), _double(z, z.shape[1])
        native.cuda().column_sums(
            *matrix(z), parts, partial.data_ptr(), sums.data_ptr(), *_place(z)
        )
        return sums

    @staticmethod
    def center(z: Tensor, mean: Tensor | None) -> Tensor:
        x = _double(z, *z.shape)
        native.cuda().center(*matrix(z), pointer(mean), x.data_ptr(), *_place(z))
        return x

    @staticmethod
    def polynomial(coefficients: _polar.Coefficients, r: Tensor, square: Tensor) -> Tensor:
        out = torch.empty_like(r)
        native.cuda().polynomial(
            r.data_ptr(), square.data_ptr(), r.shape[0], *coefficients, out.data_ptr(), *_place(r)
        )
        return out

    @staticmethod
    def finish(product: Tensor, row: Tensor | None, factor: Tensor | None) -> Tensor:
        out = product.new_empty(product.shape, dtype=torch.float32)
        native.cuda().finish(
            product.data_ptr(), *product.shape, pointer(row), pointer(factor), out.data_ptr(),
            *_place(product),
        )  # fmt: skip
        return out


def _sinkhorn(
    scores: Tensor,
    scale: float,
    log_prior: Tensor | None,
    iterations: int,
    softmax_start: bool,
    q: Tensor | None,
    on_chip: bool = True,
) -> tuple[Tensor, Tensor, bool]:
    """row, col, and whether the scores stayed on chip; `q` is filled when given."""
    row, col = _double(scores, scores.shape[0]), _double(scores, scores.shape[1])
    ran_on_chip = _launch(
        "sinkhorn", scores, _sinkhorn_scratch(scores),
        *matrix(scores), scale, pointer(log_prior), iterations, softmax_start, pointer(q),
        row.data_ptr(), col.data_ptr(), on_chip,
    )  # fmt: skip
    return row, col, ran_on_chip


def _double(like: Tensor, *shape: int) -> Tensor:
    return like.new_empty(shape, dtype=torch.float64)


def _has_rows(tensor: Tensor) -> bool:
    return tensor.stride(1) == 1 or tensor.shape[1] == 1


def _rows(tensor: Tensor) -> Tensor:
    """Rows as the kernels read them: elements side by side, any stride between rows."""
    return tensor if _has_rows(tensor) else tensor.contiguous()


def _target_values(targets, logits: Tensor) -> Tensor:
    """float32 or of the logits' type: the pairs that are compiled."""
    values = _rows(targets.values)
    return values if values.dtype in (torch.float32, logits.dtype) else values.float()


def _target(targets, values: Tensor) -> tuple:
    """values, stride, dtype, scale (0: probabilities), row, col, as the bindings take them."""
    return (
        values.data_ptr(),
        values.stride(0),
        DTYPE_CODES[values.dtype],
        targets.scale or 0.0,
        pointer(targets.row),
        pointer(targets.col),
    )


def _launch(name: str, like: Tensor, scratch: Tensor, *arguments):
    """One binding, with the scratch alive until its kernels are enqueued."""
    return getattr(native.cuda(), name)(*arguments, scratch.data_ptr(), *_place(like))


def _sinkhorn_scratch(scores: Tensor) -> Tensor:
    dtype, (device, _) = DTYPE_CODES[scores.dtype], _place(scores)
    size = _sinkhorn_scratch_bytes(*scores.shape, dtype, device)
    return scores.new_empty(size, dtype=torch.uint8)


def _cross_entropy_scratch(logits: Tensor, symmetric: bool) -> Tensor:
    size = _cross_entropy_scratch_bytes(*logits.shape, symmetric, _place(logits)[0])
    return logits.new_empty(size, dtype=torch.uint8)


def _prior_scratch(logits: Tensor) -> Tensor:
    size = _prior_scratch_bytes(*logits.shape, _place(logits)[0])
    return logits.new_empty(size, dtype=torch.uint8)


def _place(tensor: Tensor) -> tuple[int, int]:
    return tensor.device.index, torch.cuda.current_stream(tensor.device).cuda_stream


@functools.lru_cache(maxsize=1024)
def _sinkhorn_scratch_bytes(n: int, k: int, dtype: int, device: int) -> int:
    return native.cuda().sinkhorn_scratch_bytes(n, k, dtype, device)


@functools.lru_cache(maxsize=1024)
def _cross_entropy_scratch_bytes(n: int, k: int, symmetric: bool, device: int) -> int:
    return native.cuda().cross_entropy_scratch_bytes(n, k, symmetric, device)


@functools.lru_cache(maxsize=1024)
def _prior_scratch_bytes(n: int, k: int, device: int) -> int:
    return native.cuda().prior_scratch_bytes(n, k, device)
