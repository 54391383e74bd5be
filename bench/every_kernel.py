"""Calls every kernel of a backend, on small odd shapes: what compute-sanitizer watches.

compute-sanitizer --tool memcheck python -m ssl_fast.bench.every_kernel
"""

import sys
from collections.abc import Callable, Iterator
from itertools import chain

import torch
from torch import Tensor

import ssl_fast
from ssl_fast import backend
from ssl_fast.functional import (
    Assignment,
    alignment,
    covariance_penalty,
    cross_correlation_penalty,
    gaussian_uniformity,
    info_nce,
    linear_soft_cross_entropy,
    msn,
    nt_xent,
    nuclear_norm,
    prototype_correlation,
    sinkhorn,
    sinkhorn_distance,
    soft_cross_entropy,
    vicreg,
    wasserstein_uniformity,
)
from ssl_fast.functional.cosine import mean_cosine
from ssl_fast.losses import ReSALoss

from .cases import unit

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = ((1, 1), (7, 13), (67, 67), (130, 1031))
LARGE = (4099, 4099)  # more than a GPU holds on chip
# Stems that some backend lacks -> functions of two views (N, D) and prototypes (K, D).
OTHERS: dict[str, list[Callable[..., Tensor]]] = {
    "prior": [lambda x, y, c: msn(x, y, c), lambda x, y, c: msn(x, y, c, reverse=True)],
    "covariance": [
        lambda x, y, c: torch.stack(vicreg(x, y)),
        lambda x, y, c: cross_correlation_penalty(x, y),
        lambda x, y, c: covariance_penalty(skewed(x)),
        lambda x, y, c: covariance_penalty(y.detach()),  # the value alone
    ],
    "wasserstein": [lambda x, y, c: wasserstein_uniformity(x), lambda x, y, c: nuclear_norm(y)],
    "uniformity": [
        lambda x, y, c: gaussian_uniformity(x),
        lambda x, y, c: alignment(x, y, alpha=1.5),
        lambda x, y, c: prototype_correlation(c),
    ],
    "transport": [lambda x, y, c: sinkhorn_distance(x, y, iterations=3)],
    "cosine": [lambda x, y, c: mean_cosine(x, y)],
}


def main(argv: list[str]) -> int:
    """Optional arguments: the backend (native), and --large for the streaming forms too."""
    name = next((each for each in argv if not each.startswith("-")), "native")
    shapes = (*SHAPES, LARGE) if "--large" in argv else SHAPES
    calls = 0
    with ssl_fast.set_backend(name), backend.trace() as ran:
        for shape in shapes:
            for dtype in DTYPES if shape != LARGE else DTYPES[:1]:
                for result in chain(step(shape, dtype), others(shape, dtype, name)):
                    calls += 1
                    assert bool(torch.isfinite(result).all()), (shape, dtype)
    assert {each for _, each in ran} == {name}, set(ran)
    print(f"{calls} calls of {name} on {device_name()}: finite")
    return 0


def step(shape: tuple[int, int], dtype: torch.dtype) -> Iterator[Tensor]:
    """Results and gradients on a padded (strided) score matrix, of what every backend has."""
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


def others(shape: tuple[int, int], dtype: torch.dtype, name: str) -> Iterator[Tensor]:
    """The same of the stems that the backend has here, from two views on."""
    rows, columns = shape
    device = torch.device(device_name())
    z, prototypes = unit(rows, 24, device), unit(columns, 24, device)
    for stem, functions in OTHERS.items():
        if min(shape) > 1 and name in backend.PREFERENCE[device.type, stem]:
            for function in functions:
                leaves = [t.to(dtype).requires_grad_() for t in (z, 1 - z, prototypes)]
                yield from with_gradients(function(*leaves), *leaves)


def skewed(x: Tensor) -> Tensor:
    """One column a thousand times the rest: the covariance cancels digits and is formed again."""
    return x * torch.where(torch.arange(x.shape[1], device=x.device) == 7, 1000, 1).to(x.dtype)


def device_name() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def options_of(rows: int, columns: int) -> list[dict]:
    found = [{"temperature": 0.1}, {"reduction": "none"}]
    return [*found, {"symmetric": True}] if rows == columns else found


def with_gradients(loss: Tensor, *leaves: Tensor) -> Iterator[Tensor]:
    yield loss.detach()
    if not loss.requires_grad:
        return
    found = torch.autograd.grad(loss, leaves, torch.rand_like(loss), allow_unused=True)
    yield from (each for each in found if each is not None)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
