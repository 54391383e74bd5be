"""Calls every kernel of a backend, on small odd shapes: what compute-sanitizer watches.

compute-sanitizer --tool memcheck python -m ssl_fast.bench.every_kernel
"""

import sys
from collections.abc import Iterator

import torch
from torch import Tensor

import ssl_fast
from ssl_fast import backend
from ssl_fast.functional import (
    Assignment,
    info_nce,
    linear_soft_cross_entropy,
    nt_xent,
    sinkhorn,
    soft_cross_entropy,
)
from ssl_fast.losses import ReSALoss

from .cases import unit

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = ((1, 1), (7, 13), (67, 67), (130, 1031))
LARGE = (4099, 4099)  # more than a GPU holds on chip


def main(argv: list[str]) -> int:
    """Optional arguments: the backend (native), and --large for the streaming forms too."""
    name = next((each for each in argv if not each.startswith("-")), "native")
    shapes = (*SHAPES, LARGE) if "--large" in argv else SHAPES
    calls = 0
    with ssl_fast.set_backend(name), backend.trace() as ran:
        for shape in shapes:
            for dtype in DTYPES if shape != LARGE else DTYPES[:1]:
                for result in step(shape, dtype):
                    calls += 1
                    assert bool(torch.isfinite(result).all()), (shape, dtype)
    assert {each for _, each in ran} == {name}, set(ran)
    print(f"{calls} calls of {name} on {device_name()}: finite")
    return 0


def step(shape: tuple[int, int], dtype: torch.dtype) -> Iterator[Tensor]:
    """Results and gradients of every public function, on a padded (strided) score matrix."""
    rows, columns = shape
    device = torch.device(device_name())
    z, prototypes = unit(rows, 24, device).to(dtype), unit(columns, 24, device).to(dtype)
    scores = torch.zeros(rows, columns + 3, dtype=dtype, device=device)[:, :columns]
    scores.copy_(z @ prototypes.t())
    prior = torch.rand(columns, device=device) + 0.1
    prior /= prior.sum()
    yield sinkhorn(scores)
    yield sinkhorn(scores, prior=prior, iterations=1)
    yield sinkhorn(scores * 1e3)  # exponents beyond float32's range
    targets = [
        Assignment.sinkhorn(scores, start="softmax"),
        Assignment.sinkhorn((z, prototypes)),
        Assignment.softmax(scores, temperature=0.05, center=prior.to(dtype)),
        Assignment.from_dense(sinkhorn(scores)),
    ]
    for target in targets:
        yield target.dense()
        for options in options_of(rows, columns):
            logits = scores.detach().clone().requires_grad_()
            yield from with_gradients(soft_cross_entropy(logits, target, **options), logits)
            x, weight = z.clone().requires_grad_(), prototypes.clone().requires_grad_()
            loss = linear_soft_cross_entropy(x, weight, target, **options)
            yield from with_gradients(loss, x, weight)
    if rows > 1:
        x, other, weight = (t.clone().requires_grad_() for t in (z, 1 - z, prototypes))
        for temperature in (0.5, 0.01):
            yield from with_gradients(nt_xent(x, other, temperature=temperature), x, other)
        yield from with_gradients(info_nce(x, other), x, other)
        yield from with_gradients(info_nce(x, other, weight), x, other, weight)
    x = z.clone().requires_grad_()
    yield from with_gradients(ReSALoss()([x], [z, z], z, z), x)


def device_name() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def options_of(rows: int, columns: int) -> list[dict]:
    found = [{"temperature": 0.1}, {"reduction": "none"}]
    return [*found, {"symmetric": True}] if rows == columns else found


def with_gradients(loss: Tensor, *leaves: Tensor) -> Iterator[Tensor]:
    yield loss.detach()
    yield from torch.autograd.grad(loss, leaves, torch.rand_like(loss))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
