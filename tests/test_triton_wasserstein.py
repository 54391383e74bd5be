"""The polar iteration in Triton, on the CPU: TRITON_INTERPRET=1 pytest -m interpreter."""

import oracles
import pytest
import torch
from checks import normal, unit
from triton_harness import (
    INTERPRETER,
    SHAPES,
    dtypes,
    kernels,
)

import ssl_fast
from ssl_fast import backend, functional
from ssl_fast._polar import TorchKernels

pytestmark = INTERPRETER


@dtypes
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_wasserstein_updates(shape, dtype):
    """Each step of the polar iteration against plain PyTorch, strided input too."""
    ours, plain = kernels("wasserstein"), TorchKernels
    z = normal(shape[0], 2 * shape[1], dtype=dtype)[:, ::2]
    mean = plain.column_sums(z) / len(z)
    torch.testing.assert_close(ours.column_sums(z), plain.column_sums(z), atol=1e-12, rtol=1e-12)
    for row in (None, mean):
        torch.testing.assert_close(ours.center(z, row), plain.center(z, row), atol=0, rtol=0)
    x = plain.center(z, mean)
    gram = x.T @ x
    arguments = (8.5, -25.2, 18.7), gram, gram @ gram
    torch.testing.assert_close(
        ours.polynomial(*arguments), plain.polynomial(*arguments), atol=1e-9, rtol=1e-12
    )
    for row, factor in ((None, None), (mean, torch.tensor(0.3, dtype=torch.float64))):
        torch.testing.assert_close(ours.finish(x, row, factor), plain.finish(x, row, factor))


@pytest.mark.parametrize("shape", [(1, 1), (40, 9), (9, 40), (17, 17)], ids=str)
def test_wasserstein(shape):
    """From the public functions: value and gradient by the iteration, null directions and all."""
    for function, center, distance in (
        (functional.nuclear_norm, False, False),
        (functional.wasserstein_uniformity, True, True),
    ):
        z = unit(*shape).requires_grad_()
        with ssl_fast.set_backend("triton"), backend.trace() as ran:
            value = function(z)
            (grad,) = torch.autograd.grad(value, z)
        assert ran == [("wasserstein", "triton")]
        formula = oracles.wasserstein_svd if distance else oracles.nuclear_norm
        exact = oracles.spectral_gradient(z.detach(), center, 1e-6, distance)
        torch.testing.assert_close(value.detach().double(), formula(z.detach().double()))
        torch.testing.assert_close(grad.double(), exact, atol=1e-6, rtol=1e-5)


def test_wasserstein_refuses_what_the_iteration_cannot_resolve():
    z = unit(6, 4)
    with (
        ssl_fast.set_backend("triton"),
        pytest.raises(ValueError, match="at least 1e-07"),
    ):
        functional.wasserstein_uniformity(z, eps=1e-9)


@pytest.mark.parametrize("table", ["FLAT", "SUMS"])
def test_every_entry_of_the_wasserstein_tables(table, monkeypatch):
    module, z = kernels("wasserstein"), normal(37, 70)
    for entry in getattr(module, table):
        monkeypatch.setattr(module, table, (entry,))
        mean = module.column_sums(z) / 37
        torch.testing.assert_close(mean, z.double().mean(0))
        torch.testing.assert_close(module.center(z, mean), z.double() - mean)
