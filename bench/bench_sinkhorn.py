"""Sinkhorn-Knopp from scores to the dense assignment; 3 iterations, epsilon 0.05."""

import dataclasses

import torch
from torch import Tensor

from ssl_fast.functional import sinkhorn

from .cases import Bar, Case, Floor, Limit, Problem, Skip, full, nbytes, unit
from .pytest_cases import parametrize, run

EPSILON = 0.05
ITERATIONS = 3
WIDTH = 64  # of the embeddings whose cosine similarities are the scores


def inputs(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    rows, prototypes = shape
    scores = unit(rows, WIDTH, device) @ unit(prototypes, WIDTH, device).t()
    return [scores.to(dtype)]


def eager(scores: Tensor) -> Tensor:
    """As SwAV's code has it, in place: (N, K) -> (N, K)."""
    rows, prototypes = scores.shape
    q = torch.exp(full(scores) / EPSILON).t()
    q /= q.sum()
    for _ in range(ITERATIONS):
        q /= q.sum(1, keepdim=True)
        q /= prototypes
        q /= q.sum(0, keepdim=True)
        q /= rows
    q *= rows
    return q.t()


def ours(scores: Tensor) -> Tensor:
    return sinkhorn(scores, epsilon=EPSILON, iterations=ITERATIONS)


def streaming(scores: Tensor) -> Floor:
    written = scores.numel() * max(4, scores.element_size())
    label = f"{ITERATIONS + 1} reads + 1 write"
    return Floor(label, (ITERATIONS + 1) * nbytes(scores) + written)


def on_chip(scores: Tensor) -> Floor:
    written = scores.numel() * max(4, scores.element_size())
    return Floor("1 read + 1 write", nbytes(scores) + written)


def lightly():
    try:
        from lightly.loss.swav_loss import sinkhorn as rival
    except ImportError:
        raise Skip("lightly is not installed: pip install lightly") from None
    return lambda scores: rival(full(scores), iterations=ITERATIONS, epsilon=EPSILON)


PROBLEM = Problem(
    "sinkhorn", "sinkhorn", inputs, eager, ours, streaming, rivals=(("lightly", lightly),)
)
RESIDENT = dataclasses.replace(PROBLEM, floor=on_chip)

CASES = [
    Case(PROBLEM, (1024, 3000), bar=Bar(3)),
    Case(PROBLEM, (256, 65536), bar=Bar(4)),
    Case(PROBLEM, (100, 777), bar=Bar(4)),
]
for _dtype in ("bfloat16", "float32"):
    _gpu = {"dtype": _dtype, "device": "cuda", "bar": Bar(1)}
    CASES += [
        Case(RESIDENT, (512, 3000), **_gpu, limit=Limit(1.5, plus_ms=0.010)),
        Case(PROBLEM, (4096, 3000), **_gpu, limit=Limit(1 / 0.8)),
        Case(PROBLEM, (32768, 3000), **_gpu, limit=Limit(1 / 0.8)),
        Case(PROBLEM, (4096, 65536), **_gpu, limit=Limit(1 / 0.8)),
    ]

pytest_generate_tests = parametrize(CASES)


def test_sinkhorn(benchmark, case, contender):
    run(benchmark, case, contender)
