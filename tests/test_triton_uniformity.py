"""Triton's uniformity and transport: numbers under the interpreter, and cubins ahead of time."""

import multiprocessing
import os

import oracles
import pytest
import torch
from checks import assert_right, error, normal, same_bits, unit, value_and_grads
from triton_harness import DTYPES, INTERPRETER, kernels
from triton_launches import recorded

import ssl_fast
import ssl_fast.reference.transport
import ssl_fast.reference.uniformity
from ssl_fast import backend, functional, metrics, reference

interpreted = os.environ.get("TRITON_INTERPRET") == "1"
UPSTREAM = torch.tensor(-2.5)
PAIRWISE = {
    "gaussian_uniformity": oracles.gaussian_uniformity,
    "prototype_uniformity": oracles.prototype_uniformity,
    "prototype_correlation": oracles.prototype_correlation,
}


def mark(*marks):
    def decorate(function):
        for one in marks:
            function = one(function)
        return function

    return decorate


@pytest.fixture
def triton():
    """Triton alone has run."""
    with ssl_fast.set_backend("triton"), backend.trace() as ran:
        yield
    assert {name for _, name in ran} == {"triton"}


@mark(*INTERPRETER)
class TestNumbers:
    @pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
    @pytest.mark.parametrize("name", PAIRWISE)
    def test_pairwise(self, triton, name, dtype):
        """More rows than a block, a rest of columns."""
        ours = getattr(functional, name)
        for shape in ((2, 1), (67, 17), (70, 131)):
            x = unit(*shape)
            x[0] *= 0.5  # rows of one column would be 1 and -1 alone
            if dtype == torch.float32:
                assert_right(ours, PAIRWISE[name], [x], 1, UPSTREAM)
                continue
            actual = value_and_grads(ours, [x.to(dtype)], 1)
            exact = value_and_grads(PAIRWISE[name], [x.to(dtype).double()], 1)
            assert error(actual[0], exact[0]) <= 1e-6 * max(1, abs(float(exact[0])))
            # The interpreter truncates to bfloat16: one unit in the last place, not half.
            unit_in_last = 2 * torch.finfo(dtype).eps
            assert error(actual[1], exact[1]) <= unit_in_last * float(exact[1].abs().max()) + 1e-6

    def test_far_and_repeated_rows(self, triton):
        far = torch.tensor([[0.0, 0.0], [46.28174585, 0.0], [0.0, 60.0]])
        assert_right(functional.gaussian_uniformity, oracles.gaussian_uniformity, [far], 1)
        same = unit(1, 5).expand(7, 5).contiguous()
        for name in PAIRWISE:
            value, grad = value_and_grads(getattr(functional, name), [same], 1)
            assert bool(value.isfinite()) and float(grad.abs().max()) < 1e-6

    def test_not_a_number_is_passed_on(self, triton):
        x = unit(7, 5)
        x[3, 2] = float("nan")
        for name in PAIRWISE:
            value, grad = value_and_grads(getattr(functional, name), [x], 1)
            assert bool(value.isnan()) and bool(grad.isnan().any())

    def test_collapsed_batch(self, triton):
        x = (unit(1, 20, dtype=torch.float64) + 1e-3 * normal(20, 20, dtype=torch.float64)).float()
        for name, formula in PAIRWISE.items():
            assert_right(getattr(functional, name), formula, [x], 1)

    def test_rows_of_a_rank(self):
        x = unit(70, 9)
        for first, last in ((0, 13), (13, 70)):
            ours = kernels("uniformity").potential(x, first, last, 2.0, True)
            exact = reference.uniformity.potential(x.double(), first, last, 2.0, True)
            assert error(ours[0], exact[0]) < 1e-6
            assert error(ours[1], exact[1]) < 1e-6 * float(exact[1].abs().max())

    @pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
    def test_alignment(self, triton, alpha):
        x, y = unit(37, 131), unit(37, 131, seed=1)
        assert_right(
            lambda a, b: functional.alignment(a, b, alpha=alpha),
            lambda a, b: oracles.alignment(a, b, alpha),
            [x, y], 2, UPSTREAM,
        )  # fmt: skip
        y[3] = x[3]
        _, d_x, _ = value_and_grads(lambda a, b: functional.alignment(a, b, alpha=alpha), [x, y], 2)
        assert bool(d_x.isfinite().all()) and not bool(d_x[3].any())

    @pytest.mark.parametrize("p", [1, 2])
    def test_transport(self, triton, p):
        x, y = unit(20, 3), 0.8 * unit(33, 3, seed=1)
        actual = value_and_grads(
            lambda a, b: functional.sinkhorn_distance(a, b, epsilon=0.5, p=p, iterations=25),
            [x, y], 2,
        )  # fmt: skip
        exact = value_and_grads(
            lambda a, b: oracles.sinkhorn_distance(a, b, 0.5, p), [x.double(), y.double()], 2
        )
        for a, e in zip(actual, exact, strict=True):
            assert error(a, e) <= 1e-5 * float(e.abs().max())

    def test_transport_of_one_point_and_of_equal_ones(self, triton):
        for x in (torch.zeros(1, 2), torch.ones(5, 2)):
            value, d_x, d_y = value_and_grads(
                lambda a, b: functional.sinkhorn_distance(a, b, iterations=2), [x, x], 2
            )
            assert float(value) == 0 and not bool(d_x.any()) and not bool(d_y.any())

    def test_nemd_in_one_launch_a_step(self, triton, monkeypatch):
        rows, labels = unit(40, 2), torch.arange(40) % 3
        launches, launch = [], kernels("transport").launch
        monkeypatch.setattr(
            kernels("transport"), "launch", lambda *a, **k: (launches.append(a[1]), launch(*a, **k))
        )
        found = metrics.nemd(rows, labels, epsilon=0.3, iterations=6)
        assert launches == [(1, 3)] * (2 * 16 + 2)
        with ssl_fast.set_backend("reference"):
            expected = reference.transport.distances(
                rows[labels.argsort(stable=True)], torch.tensor([0, 14, 27, 40]),
                torch.tensor([[0, 1], [0, 2], [1, 2]]), 0.3, 1, 6, 0.0,
            ).mean()  # fmt: skip
        assert abs(found - float(expected)) < 1e-6

    def test_bitwise_repeatable(self, triton):
        for name in PAIRWISE:
            first, second = (
                value_and_grads(getattr(functional, name), [unit(40, 9)], 1) for _ in range(2)
            )
            assert all(same_bits(a, b) for a, b in zip(first, second, strict=True))


def launches(dtype: torch.dtype) -> list:
    """What the public launchers make of tensors on the meta device."""

    def meta(*shape, dtype=dtype):
        return torch.empty(shape, dtype=dtype, device="meta")

    with recorded() as found:
        uniformity, transport = kernels("uniformity"), kernels("transport")
        for d in (64, 128, 256):
            uniformity.potential(meta(4096, d), 0, 4096, 2.0, True)
        uniformity.potential(meta(4096, 128), 0, 1024, 2.0, False)
        x = meta(1000, 128)
        uniformity.distance_power(x, x, 1.5)
        uniformity.distance_power_backward(x, x, 1.5, meta(dtype=torch.float32), 0.5)
        _, row, col = uniformity.correlation(x, 2.0)
        uniformity.correlation_backward(x, 2.0, row, col, meta(dtype=torch.float32), 0.5)
        for p in (1, 2):
            y = meta(777, 128)
            value = meta(dtype=torch.float32)
            transport.distance(x, y, 0.05, p, 1, 1e-5)
            transport.distance_backward(
                x, y, meta(2, 1777, dtype=torch.float32), 0.05, p, 1, 1e-5, value
            )
    return list(dict.fromkeys(found))


@pytest.mark.aot
@pytest.mark.skipif(interpreted, reason="interpreted kernels are not compiled")
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_kernels_compile(capability):
    """To a cubin, within the shared memory and the stack of each architecture."""
    import test_triton_aot as aot

    dtypes = (torch.float32, torch.bfloat16) if capability == 90 else (torch.float32,)
    aot._todo = [(launch, capability) for dtype in dtypes for launch in launches(dtype)]
    assert len({launch.kernel.fn for launch, _ in aot._todo}) == 8
    with multiprocessing.get_context("fork").Pool(min(8, os.cpu_count() or 1)) as pool:
        faults = [f for f in pool.map(aot._compile, range(len(aot._todo)), chunksize=1) if f]
    assert not faults, "\n".join(faults)
