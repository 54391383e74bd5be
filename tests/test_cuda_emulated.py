"""The CUDA C++ kernels, launchers, bindings and wrappers, run on the CPU by tests/emulation.

Sinkhorn, cross-entropy and prior; what stands around products is in test_cuda_emulated_products.py.
"""

import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from cuda_harness import (
    DTYPES,
    EMULATED,
    PAIRS,
    SANITIZED,
    SHAPES,
    TOLERANCE,
    assert_near,
    make_targets,
    prior_with_zeros,
    random,
    strided,
)
from torch import Tensor

from ssl_fast.functional._prior import divergence
from ssl_fast.native.cuda import cross_entropy, prior, sinkhorn
from ssl_fast.reference import cross_entropy as cross_entropy_reference
from ssl_fast.reference import prior as prior_reference
from ssl_fast.reference import sinkhorn as sinkhorn_reference

pytestmark = EMULATED


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


def test_symmetric_gradient_takes_the_place_of_the_logits(kernels):
    targets = make_targets((24, 24), torch.float32, "sinkhorn")
    logits = random(24, 24)
    exact = logits.double()
    expected = cross_entropy_reference.at_once(exact, 7.0, targets, 0.5)
    loss = cross_entropy.at_once(logits, 7.0, targets, 0.5)
    assert_near(loss[None], expected[None], TOLERANCE)
    assert_near(logits, exact, TOLERANCE)


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
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    command += map(str, Path(__file__).parent.glob("test_cuda_emulated*.py"))
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, (run.stdout + run.stderr)[-4000:]
