"""The CUDA C++ kernels, launchers, bindings and wrappers, run on the CPU by tests/emulation.

Shapes: one element; odd and prime (rows of half types unaligned); a multiple of the load width;
wider than a warp's columns in registers; more rows than blocks. The emulated GPU has three
multiprocessors with 64 KiB each, so that small matrices take the on-chip form.
"""

import contextlib
import importlib.util
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import oracles
import pytest
import torch
from checks import assert_right
from torch import Tensor

from ssl_fast import backend
from ssl_fast._polar import TorchKernels
from ssl_fast.functional import (
    covariance_penalty,
    cross_correlation_penalty,
    variance_hinge,
    vicreg,
)
from ssl_fast.functional._prior import divergence
from ssl_fast.native import matrix
from ssl_fast.native.cuda import (
    covariance,
    cross_correlation,
    cross_entropy,
    launch,
    prior,
    sinkhorn,
    wasserstein,
)
from ssl_fast.reference import contrastive as contrastive_reference
from ssl_fast.reference import cross_entropy as cross_entropy_reference
from ssl_fast.reference import prior as prior_reference
from ssl_fast.reference import sinkhorn as sinkhorn_reference
from ssl_fast.reference import wasserstein as wasserstein_reference

_spec = importlib.util.spec_from_file_location(
    "cuda_emulation", Path(__file__).parent / "emulation" / "harness.py"
)
assert _spec is not None and _spec.loader is not None
harness = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(harness)

pytestmark = [
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


@pytest.fixture(scope="module")
def machine():
    return harness.Machine(harness.build(sanitize=SANITIZED))


@pytest.fixture
def kernels(machine):
    """The emulated module behind `ssl_fast.native.cuda`."""
    with harness.installed(machine):
        yield


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


@pytest.mark.parametrize("on_chip", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("dtype", "size", "softmax_start", "prior"),
    [
        (torch.float32, 1.0, False, False),
        (torch.float32, 1e4, True, True),
        (torch.bfloat16, 1.0, True, True),
        (torch.float16, 1.0, False, True),
        (torch.float16, 1e3, False, False),
    ],
)
def test_sinkhorn(kernels, shape, dtype, size, softmax_start, prior, on_chip):
    scores = strided(random(*shape, dtype=dtype, size=size))
    log_prior = prior_with_zeros(shape[1]) if prior else None
    arguments = (scores, 5.0, log_prior, 3, softmax_start)
    q = torch.full(shape, math.nan)
    row, col, ran_on_chip = sinkhorn.run(*arguments, q, on_chip)
    assert ran_on_chip == on_chip
    expected_row, expected_col = sinkhorn_reference.potentials(*arguments)
    torch.testing.assert_close(row, expected_row, rtol=1e-12, atol=TOLERANCE)
    torch.testing.assert_close(col, expected_col, rtol=1e-12, atol=TOLERANCE)
    assert_near(q, sinkhorn_reference.dense(scores.double(), *arguments[1:]), TOLERANCE)
    again, col_again, _ = sinkhorn.run(*arguments, None, on_chip)
    assert torch.equal(col_again, col)
    torch.testing.assert_close(again, row, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [1.0, 1e3])
def test_more_columns_than_registers_hold(kernels, size):
    scores = random(5, 8800, size=size)
    arguments = (scores, 4.0, None, 2, True)
    q = sinkhorn.dense(*arguments)
    assert_near(q, sinkhorn_reference.dense(scores.double(), *arguments[1:]), TOLERANCE)


def test_dense_is_potentials_evaluated(kernels):
    scores = random(40, 72, dtype=torch.bfloat16)
    arguments = (scores, 20.0, prior_with_zeros(72), 3, False)
    row, col = sinkhorn.potentials(*arguments)
    q = sinkhorn.dense(*arguments)
    assert q.dtype == torch.float32
    assert_near(sinkhorn.evaluate(scores, 20.0, row, col), q, TOLERANCE)
    torch.testing.assert_close(q.sum(1), torch.ones(40), rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [1.0, 1e4])
@pytest.mark.parametrize("kind", ["none", "zeros", "random"])
def test_step_and_row_potential(kernels, shape, size, kind):
    scores = strided(random(*shape, size=size))
    col = None if kind == "none" else torch.zeros(shape[1], dtype=torch.float64)
    if kind == "random":
        col = random(1, shape[1], size=3).double()[0] - 5 * size
        col[1::3] = -math.inf
    for actual, expected in zip(
        (*sinkhorn.step(scores, 5.0, col), sinkhorn.row_potential(scores, 5.0, col)),
        (
            *sinkhorn_reference.step(scores, 5.0, col),
            sinkhorn_reference.row_potential(scores, 5.0, col),
        ),
        strict=True,
    ):
        torch.testing.assert_close(actual, expected, rtol=1e-11, atol=TOLERANCE)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("spread", [1.0, 200.0])
def test_evaluate(kernels, dtype, spread):
    scores = strided(random(29, 56, dtype=dtype))
    col = spread * random(1, 56, seed=1).double()[0]
    col[3] = -math.inf
    row = sinkhorn_reference.row_potential(scores, 30.0, col)
    expected = sinkhorn_reference.evaluate(scores.double(), 30.0, row, col)
    assert_near(sinkhorn.evaluate(scores, 30.0, row, col), expected, TOLERANCE)
    flat = sinkhorn_reference.row_potential(scores, 30.0, None)
    expected = sinkhorn_reference.evaluate(scores.double(), 30.0, flat, None)
    assert_near(sinkhorn.evaluate(scores, 30.0, flat, None), expected, TOLERANCE)


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


def check_cross_entropy(kernels, logits, targets, symmetric, tolerance):
    n = logits.shape[0]
    arguments = (logits, 7.0, targets, symmetric, 1 / n)
    expected, expected_rows, expected_cols = cross_entropy_reference.forward(*arguments)
    loss, rows, cols = cross_entropy.forward(*arguments)
    assert loss.dtype == torch.float32
    assert_near(loss[None], expected[None], tolerance)
    for i in (2, 3):
        assert_near(rows[i], expected_rows[i], tolerance)
    assert_near(rows[0] * 7.0 + rows[1], expected_rows[0] * 7.0 + expected_rows[1], 1e-6)
    if symmetric:
        assert_near(cols[2], expected_cols[2], tolerance)
        assert_near(cols[0] * 7.0 + cols[1], expected_cols[0] * 7.0 + expected_cols[1], 1e-6)
    upstream = [None, torch.tensor(0.7), random(1, n)[0], torch.tensor(0.3).expand(n)]
    rounding = {torch.float32: tolerance, torch.bfloat16: 2**-8, torch.float16: 2**-10}
    for d_loss in upstream:
        tail = (rows, cols, d_loss, 1 / n)
        actual = cross_entropy.backward(logits, 7.0, targets, *tail)
        exact = cross_entropy_reference.backward(logits.double(), 7.0, targets, *tail)
        assert actual.dtype == logits.dtype
        assert_near(actual, exact, rounding[logits.dtype])


@pytest.mark.parametrize("kind", ["dense", "softmax", "sinkhorn"])
@pytest.mark.parametrize(("dtype", "target_dtype"), PAIRS)
@pytest.mark.parametrize("shape", [(3, 2050), (19, 40)] + ([] if SANITIZED else [(1, 1), (70, 13)]))
def test_cross_entropy(kernels, shape, dtype, target_dtype, kind):
    logits = strided(random(*shape, dtype=dtype, seed=3))
    check_cross_entropy(kernels, logits, make_targets(shape, target_dtype, kind), False, TOLERANCE)


@pytest.mark.parametrize("kind", ["dense", "sinkhorn"])
@pytest.mark.parametrize(("dtype", "target_dtype"), PAIRS)
@pytest.mark.parametrize("n", [1, 24, 67])
def test_symmetric_cross_entropy(kernels, n, dtype, target_dtype, kind):
    logits = strided(random(n, n, dtype=dtype, seed=3))
    check_cross_entropy(kernels, logits, make_targets((n, n), target_dtype, kind), True, TOLERANCE)


@pytest.mark.parametrize("symmetric", [False, True])
def test_cross_entropy_of_large_logits(kernels, symmetric):
    logits = random(24, 24, size=1e4)
    check_cross_entropy(
        kernels, logits, make_targets((24, 24), torch.float32, "dense"), symmetric, TOLERANCE
    )


def test_gradient_in_place_and_in_another_type(kernels):
    logits, targets = (
        random(9, 48, dtype=torch.bfloat16),
        make_targets((9, 48), torch.float32, "dense"),
    )
    _, rows, _ = cross_entropy.forward(logits, 7.0, targets, False, 1.0)
    expected = cross_entropy.backward(logits, 7.0, targets, rows, None, None, 1.0)
    wide = cross_entropy.backward(logits, 7.0, targets, rows, None, None, 1.0, torch.empty(9, 48))
    assert torch.equal(wide, expected.float())
    assert cross_entropy.backward(logits, 7.0, targets, rows, None, None, 1.0, logits) is logits
    assert torch.equal(logits, expected)


@contextlib.contextmanager
def tiles_on_the_machine(kernels, rows: int, columns: int):
    """`ssl_fast.native.contrastive`, its tiles this small, with the CUDA epilogues."""
    from ssl_fast.native import contrastive

    with pytest.MonkeyPatch.context() as patch:
        for name in ("ROW_TILE", "PAIR_TILE"):
            patch.setattr(contrastive, name, {"cpu": (rows, columns)})
        patch.setattr(
            contrastive, "_run", lambda name, tile, *rest: launch(name, tile, matrix(tile), *rest)
        )
        yield contrastive


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "k"), [(19, 70)] if SANITIZED else [(1, 1), (19, 70), (70, 300)])
def test_contrastive_rows(kernels, n, k, dtype):
    """Factors, left-out ranges, a row without negatives; tiles of 32 x 40."""
    x, w = random(n, 12, dtype=dtype), random(k, 12, dtype=dtype, seed=1)
    a, b = random(1, n, seed=2)[0].abs() + 0.5, random(1, k, seed=3)[0].abs() + 0.5
    lo = torch.arange(n) % k
    hi = lo + min(3, k - 1)
    if n > 1:
        lo[n // 2], hi[n // 2] = 0, k
    weight = torch.arange(n).double() - 2
    with tiles_on_the_machine(kernels, 32, 40) as ours:
        for factors, ranges, scale in (((a, b), (lo, hi), 3.0), ((None, None), (None, None), 1.0)):
            arguments = (x, w, *factors, scale, *ranges)
            lse, pull = ours.rows_forward(*arguments, True)
            exact, exact_pull = contrastive_reference.rows_forward(*arguments, True)
            assert_near(lse, exact, TOLERANCE)
            assert_near(pull, exact_pull, 5 * TOLERANCE)
            assert torch.equal(ours.rows_forward(*arguments, False)[0], lse)
            push = ours.rows_backward(*arguments, exact, weight)
            expected = contrastive_reference.rows_backward(*arguments, exact, weight)
            assert_near(push, expected, 5 * TOLERANCE)


@pytest.mark.parametrize("scale", [5.0, 100.0])
@pytest.mark.parametrize(
    ("samples", "views"), [(21, 2)] if SANITIZED else [(2, 2), (50, 2), (31, 3)]
)
def test_contrastive_pairs(kernels, samples, views, scale):
    """One shift, and beyond 64 nats a maximum a row; the triangle in tiles of 32 x 40."""
    z = random(samples * views, 12)
    arguments = (z, 1 / z.norm(dim=1), scale, views)
    blocks = random(samples * views, views, seed=4)
    with tiles_on_the_machine(kernels, 32, 40) as ours:
        lse = contrastive_reference.pairs_forward(*arguments)
        assert_near(ours.pairs_forward(*arguments), lse, TOLERANCE)
        expected = contrastive_reference.pairs_backward(*arguments, lse, blocks)
        assert_near(ours.pairs_backward(*arguments, lse, blocks), expected, 5 * TOLERANCE)


def test_statistics_of_a_slice_of_rows(kernels):
    logits, targets = random(20, 24), make_targets((20, 24), torch.float32, "dense")
    _, rows, _ = cross_entropy.forward(logits, 7.0, targets, False, 1.0)
    expected = cross_entropy.backward(logits, 7.0, targets, rows, None, None, 1.0)[5:12]
    part = SimpleNamespace(values=targets.values[5:12], scale=None, row=None, col=None)
    actual = cross_entropy.backward(logits[5:12], 7.0, part, rows[:, 5:12], None, None, 1.0)
    assert torch.equal(actual, expected)


def check_prior(kernels, logits, targets, reverse: bool, d_loss: Tensor | None = None) -> None:
    """Statistics, log of the column sums, and the divergence's gradient, in place too."""
    n, k = logits.shape
    wide = logits.double()
    row_stats, log_mass = prior.forward(logits, 7.0, targets)
    exact_stats, exact_mass = prior_reference.forward(wide, 7.0, targets)
    assert_near(row_stats[2:3], exact_stats[2:3], TOLERANCE)
    assert_near(log_mass, exact_mass, TOLERANCE)
    log_prior = random(1, k, seed=5)[0].double().log_softmax(0)
    pulls = divergence(exact_mass, n, log_prior, reverse, 2.0)[1]
    tail = (pulls, d_loss, 1 / n)
    actual = prior.backward(logits, 7.0, targets, row_stats, *tail)
    exact = prior_reference.backward(wide, 7.0, targets, exact_stats, *tail)
    rounding = {torch.float32: 5 * TOLERANCE, torch.bfloat16: 2**-8, torch.float16: 2**-10}
    assert actual.dtype == logits.dtype
    largest, cancelled = float(exact.abs().max()), 1e-5 / n  # of terms up to 2 * 7 * 1.5 / n
    error = float((actual.double() - exact).abs().max())
    assert error <= rounding[logits.dtype] * largest + cancelled
    own = logits.clone()
    assert prior.backward(own, 7.0, targets, row_stats, *tail, own) is own
    assert torch.equal(own, actual)


@pytest.mark.parametrize("kind", ["none", "dense", "sinkhorn"])
@pytest.mark.parametrize(("dtype", "target_dtype"), PAIRS)
@pytest.mark.parametrize("shape", [(3, 2050), (19, 40)] + ([] if SANITIZED else [(1, 1), (70, 13)]))
def test_prior(kernels, shape, dtype, target_dtype, kind):
    logits = strided(random(*shape, dtype=dtype, seed=3))
    targets = None if kind == "none" else make_targets(shape, target_dtype, kind)
    check_prior(kernels, logits, targets, kind == "dense", torch.tensor(-1.5))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("case", ["1e4", "unused", "collapsed"])
def test_prior_of_unusual_logits(kernels, case, reverse):
    """Beyond 64 nats exponents are formed in float64; p may be exp(-500)."""
    logits = random(37, 70)
    if case == "1e4":
        logits *= 1e3
    elif case == "unused":
        logits[:, 3] -= 500 / 7.0
    else:
        logits = logits[:1].repeat(37, 1)
    check_prior(kernels, logits, make_targets((37, 70), torch.float32, "sinkhorn"), reverse)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(37, 13), (3, 70)] + ([] if SANITIZED else [(1, 1), (700, 33)]))
def test_polar_updates(kernels, shape, dtype):
    """Each step between the products, on rows further apart than their width."""
    ours, plain = wasserstein.PolarKernels, TorchKernels
    z = strided(random(*shape, dtype=dtype))
    mean = plain.column_sums(z) / len(z)
    assert_near(ours.column_sums(z), plain.column_sums(z), 1e-13)
    for row in (None, mean):
        assert torch.equal(ours.center(z, row), plain.center(z, row))
    x = plain.center(z, mean)
    gram = x.T @ x
    arguments = (8.5, -25.2, 18.7), gram, gram @ gram
    assert_near(ours.polynomial(*arguments), plain.polynomial(*arguments), 1e-13)
    for row, factor in ((None, None), (mean, torch.tensor(0.3, dtype=torch.float64))):
        assert_near(ours.finish(x, row, factor), plain.finish(x, row, factor), 1e-7)


@pytest.mark.parametrize("shape", [(30, 8), (8, 30)])
@pytest.mark.parametrize(("center", "distance"), [(False, False), (True, True)])
def test_polar_iteration(kernels, shape, center, distance):
    z = random(*shape)
    arguments = (center, 1e-6, distance, True, len(z), lambda value, op: value)
    value, gradient = wasserstein.forward(z, *arguments)
    exact, expected = wasserstein_reference.forward(z.double(), *arguments)
    assert_near(value[None], exact[None], 1e-6)
    assert_near(gradient, expected, 1e-6)


@pytest.fixture
def covariance_kernels(kernels, monkeypatch):
    """The public functions run the covariance kernels of the emulated module."""
    stems = {"covariance": covariance, "cross_correlation": cross_correlation}
    monkeypatch.setattr(backend, "implementation", lambda name, stem: stems[stem])


def vicreg_terms(z0: Tensor, z1: Tensor) -> Tensor:
    return torch.stack(vicreg(z0, z1))


def correlated(*shape: int, dtype=torch.float32) -> list[Tensor]:
    return [strided((random(*shape) + 0.7 * random(*shape, seed=s) + 3).to(dtype)) for s in (1, 2)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(37, 13), (9, 70)] + ([] if SANITIZED else [(3, 2), (300, 33)]))
def test_covariance(covariance_kernels, shape, dtype):
    """Values and gradients in both forms; values alone by triangular tiles."""
    z = correlated(*shape, dtype=dtype)
    assert_right(variance_hinge, oracles.variance_hinge, z[:1], wrt=1)
    for count in (0, 1):
        assert_right(covariance_penalty, oracles.covariance_penalty, z[:1], wrt=count)
    upstream = torch.tensor([0.7, -1.3, 0.4])
    assert_right(vicreg_terms, oracles.vicreg, z, wrt=2, upstream=upstream)
    assert_right(cross_correlation_penalty, oracles.barlow_twins, z, wrt=2)


@pytest.mark.parametrize("shape", [(16, 96), (40, 24)])
@pytest.mark.parametrize("kind", ["one huge column", "repeated rows", "constant"])
def test_hostile_covariances(covariance_kernels, kind, shape):
    z = random(*shape)
    if kind == "one huge column":
        z[:, 7] *= 1000
    else:
        z = z[torch.arange(len(z)) // (2 if kind == "repeated rows" else len(z))]
    assert_right(covariance_penalty, oracles.covariance_penalty, [z], wrt=1)
    half = z.bfloat16()
    assert_right(covariance_penalty, oracles.covariance_penalty, [half], wrt=1)


@pytest.mark.parametrize("on_chip", [True, False])
def test_order_of_threads_does_not_matter(machine, kernels, on_chip):
    scores, logits = random(45, 88), random(45, 45)
    targets = make_targets((45, 45), torch.float32, "sinkhorn")

    def run() -> list[Tensor]:
        row, col, _ = sinkhorn.run(scores, 20.0, None, 3, True, None, on_chip)
        loss, rows, cols = cross_entropy.forward(logits, 7.0, targets, True, 1.0)
        return [row, col, loss, rows, cols]

    forwards = run()
    machine.reset(backwards=True)
    assert all(torch.equal(a, b) for a, b in zip(forwards, run(), strict=True))


def test_too_large_for_the_chip_streams(kernels):
    _, _, ran_on_chip = sinkhorn.run(random(300, 200), 20.0, None, 1, False, None, True)
    assert not ran_on_chip


def test_a_missing_driver_is_explained(machine, kernels):
    machine.reset(driver=False)
    assert "insufficient" in machine.module.device_error()
    with pytest.raises(RuntimeError, match=r"driver.*update the driver, or use set_backend"):
        sinkhorn.dense(random(4, 4), 20.0, None, 1, False)


def test_float64_is_refused(kernels):
    with pytest.raises(RuntimeError, match="take float32, bfloat16 and float16"):
        sinkhorn.dense(random(4, 4).double(), 20.0, None, 1, False)


@pytest.mark.slow
@pytest.mark.skipif(SANITIZED, reason="this is the sanitized run")
def test_under_address_and_undefined_behaviour_sanitizers():
    # libstdc++ as well: else ASan cannot follow exceptions in a program that loads it late.
    libraries = [
        subprocess.check_output(["g++", f"-print-file-name={name}"], text=True).strip()
        for name in ("libasan.so", "libstdc++.so")
    ]
    if not all(Path(path).is_absolute() for path in libraries):
        pytest.skip("g++ has no libasan")
    environment = os.environ | {
        "SSL_FAST_EMULATION": "sanitize",
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0:halt_on_error=1",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, (run.stdout + run.stderr)[-4000:]
