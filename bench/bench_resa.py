"""A ReSA step: Sinkhorn assignment of the encodings and the symmetric loss of one pair of views."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ssl_fast.losses import ReSALoss

from . import bench_sinkhorn
from .cases import Bar, Case, Floor, Problem, full, unit
from .pytest_cases import parametrize, run

TEMPERATURE = 0.4


def inputs(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Embedding and momentum embedding (N, D), encodings of both networks (N, H)."""
    rows, width, hidden = shape
    widths = (width, width, hidden, hidden)
    return [unit(rows, each, device).to(dtype) for each in widths]


def eager(z: Tensor, z_m: Tensor, h: Tensor, h_m: Tensor) -> Tensor:
    with torch.no_grad():
        assignment = bench_sinkhorn.eager(h @ h_m.t())
    logits = full(z @ z_m.t()) / TEMPERATURE
    log_p = F.log_softmax(logits, 1) + F.log_softmax(logits, 0)
    return -(assignment * log_p).sum() / (2 * len(z))


_loss = ReSALoss(temperature=TEMPERATURE, epsilon=bench_sinkhorn.EPSILON)


def ours(z: Tensor, z_m: Tensor, h: Tensor, h_m: Tensor) -> Tensor:
    return _loss([z], [z_m, z_m], h, h_m)  # one pair: momentum view 1 for embedding 0


def one_gradient(z: Tensor, z_m: Tensor, h: Tensor, h_m: Tensor) -> Floor:
    (rows, width), hidden = z.shape, h.shape[1]
    forward = ((rows, hidden, rows), (rows, width, rows))
    return Floor("3 products", forward, ((rows, rows, width),))


def two_gradients(*arguments: Tensor) -> Floor:
    floor = one_gradient(*arguments)
    return Floor("4 products", floor.forward, floor.backward * 2)


STEP = Problem("resa", "ReSA", inputs, eager, ours, one_gradient, differentiable=(0,))
BOTH = Problem(
    "resa", "ReSA, both views", inputs, eager, ours, two_gradients, differentiable=(0, 1)
)

CASES = [
    Case(problem, shape, bar=Bar(times))
    for problem in (STEP, BOTH)
    for shape, times in (((1024, 512, 512), 1.15), ((256, 128, 512), 1.35))
]
CASES += [
    Case(STEP, (rows, 512, 512), dtype, "cuda", Bar(5, against="eager"))
    for dtype in ("bfloat16", "float32")
    for rows in (256, 512, 1024)
]

pytest_generate_tests = parametrize(CASES)


def test_resa(benchmark, case, contender):
    run(benchmark, case, contender)
