"""What the tests of the emulated CUDA kernels share: the machine, matrices, targets, tolerances.

Shapes: one element; odd and prime (rows of half types unaligned); a multiple of the load width;
wider than a warp's columns in registers; more rows than blocks. The emulated GPU has three
multiprocessors with 64 KiB each, so that small matrices take the on-chip form.
"""

import functools
import importlib.util
import math
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from ssl_fast.reference import sinkhorn as sinkhorn_reference

_spec = importlib.util.spec_from_file_location(
    "cuda_emulation", Path(__file__).parent / "emulation" / "harness.py"
)
assert _spec is not None and _spec.loader is not None
harness = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(harness)

EMULATED = [
    pytest.mark.emulated,
    pytest.mark.skipif(harness.why_not() is not None, reason=str(harness.why_not())),
]

# Sanitizers look at indices, not at figures: under them, the shapes and types that differ in code.
SANITIZED = os.environ.get("SSL_FAST_EMULATION") == "sanitize"
# Half a unit in the last place of a float32 exponent of 64 nats.
TOLERANCE = 4e-6
SHAPES = [(5, 600), (37, 13)] if SANITIZED else [(1, 1), (2, 600), (37, 64), (131, 37)]
DTYPES = [torch.float32, torch.bfloat16] + ([] if SANITIZED else [torch.float16])
PAIRS = [(a, a) for a in DTYPES] + [(a, torch.float32) for a in DTYPES[1:]]


@functools.cache
def the_machine():
    """Built once a run; `machine` and `kernels` of conftest.py are the fixtures around it."""
    return harness.Machine(harness.build(sanitize=SANITIZED))


def random(*shape: int, dtype=torch.float32, size: float = 1.0, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + 1000 * shape[0] + shape[-1])
    return (size * torch.randn(shape, generator=generator)).to(dtype)


def strided(tensor: Tensor, gap: int = 16) -> Tensor:
    """The same values in rows further apart, NaN between them."""
    wide = torch.full((tensor.shape[0], tensor.shape[1] + gap), math.nan, dtype=tensor.dtype)
    wide[:, : tensor.shape[1]] = tensor
    return wide[:, : tensor.shape[1]]


def prior_with_zeros(columns: int) -> Tensor:
    prior = torch.arange(columns, dtype=torch.float64) % 5
    return (prior / prior.sum()).log() if columns > 1 else torch.zeros(1, dtype=torch.float64)


def assert_near(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Within `tolerance` of the largest expected value, infinities in the same places."""
    finite = expected.isfinite()
    assert torch.equal(actual[~finite].double(), expected[~finite].double())
    error = (actual.double() - expected.double())[finite].abs().max()
    assert error <= tolerance * max(1e-30, float(expected[finite].abs().max())), float(error)


def make_targets(shape, dtype, kind: str) -> SimpleNamespace:
    values = strided(random(*shape, dtype=dtype, seed=7), gap=32)
    if kind == "dense":
        return SimpleNamespace(values=values, scale=None, row=None, col=None)
    if kind == "softmax":
        row = sinkhorn_reference.row_potential(values, 10.0, None)
        return SimpleNamespace(values=values, scale=10.0, row=row, col=None)
    log_prior = prior_with_zeros(shape[1])
    row, col = sinkhorn_reference.potentials(values, 10.0, log_prior, 3, False)
    return SimpleNamespace(values=values, scale=10.0, row=row, col=col)
