"""Property tests: any shape, type, temperature and layout, against the formulas."""

import oracles
import pytest
import torch
from checks import DTYPES, LAYOUTS, assert_relative, assert_right, normal, probabilities, unit

from ssl_fast.functional import (
    Assignment,
    linear_soft_cross_entropy,
    sinkhorn,
    soft_cross_entropy,
)

hypothesis = pytest.importorskip("hypothesis", reason="hypothesis is not installed")
from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

pytestmark = [pytest.mark.cpu_kernels, pytest.mark.usefixtures("poisoned")]

sizes = st.integers(1, 70)
widths = st.integers(1, 20)
dtypes = st.sampled_from(list(DTYPES.values()))
layouts = st.sampled_from([lambda t: t, *LAYOUTS.values()])
temperatures = st.floats(0.05, 5.0)
reductions = st.sampled_from(["mean", "sum", "none"])


def cosines(n: int, k: int, dtype: torch.dtype) -> torch.Tensor:
    return (unit(n, 8, dtype=torch.float64) @ unit(k, 8, seed=1).double().T).to(dtype)


@given(sizes, sizes, dtypes, layouts, st.floats(0.04, 2.0), st.integers(1, 6), st.booleans())
def test_sinkhorn(backend, n, k, dtype, layout, epsilon, iterations, prior) -> None:
    """Right, rows sum to one, and permuting prototypes permutes columns."""
    marginal = probabilities(k, seed=3, dtype=torch.float64) if prior else None
    options = {"epsilon": epsilon, "iterations": iterations, "prior": marginal}
    scores = layout(cosines(n, k, dtype))
    assert_right(lambda s: sinkhorn(s, **options), lambda s: oracles.swav(s, **options), [scores])
    q = sinkhorn(scores, **options)
    assert_relative(q.sum(1), torch.ones(n).double(), 2e-6)
    flipped = None if marginal is None else marginal.flip(0)
    mirrored = sinkhorn(scores.flip(1), **{**options, "prior": flipped})
    assert_relative(mirrored.flip(1), q.double(), 2e-5)


@given(sizes, sizes, dtypes, layouts, temperatures, reductions)
def test_soft_cross_entropy(backend, n, k, dtype, layout, temperature, reduction) -> None:
    options = {"temperature": temperature, "reduction": reduction}
    assert_right(
        lambda x, s: soft_cross_entropy(x, Assignment.sinkhorn(s), **options),
        lambda x, s: oracles.cross_entropy(x, oracles.swav(s), **options),
        [layout(normal(n, k, dtype=dtype)), layout(cosines(n, k, dtype))],
        wrt=1,
        upstream=normal(n, seed=7) if reduction == "none" else torch.tensor(1.5),
    )


@given(sizes, dtypes, layouts, temperatures)
def test_symmetric(backend, n, dtype, layout, temperature) -> None:
    options = {"temperature": temperature, "symmetric": True}
    assert_right(
        lambda x, q: soft_cross_entropy(x, q, **options),
        lambda x, q: oracles.cross_entropy(x, q, **options),
        [layout(normal(n, n, dtype=dtype)), layout(probabilities(n, n, dtype=dtype))],
        wrt=1,
    )


@given(sizes, sizes, widths, dtypes, layouts, temperatures, reductions)
def test_linear(backend, n, k, d, dtype, layout, temperature, reduction) -> None:
    options = {"temperature": temperature, "reduction": reduction}
    assert_right(
        lambda x, w, q: linear_soft_cross_entropy(x, w, q, **options),
        lambda x, w, q: oracles.linear_cross_entropy(x, w, q, **options),
        [
            layout(unit(n, d, dtype=dtype)),
            layout(unit(k, d, dtype=dtype, seed=1)),
            layout(probabilities(n, k, dtype=dtype)),
        ],
        wrt=2,
        upstream=normal(n, seed=7) if reduction == "none" else torch.tensor(-0.5),
    )


@given(sizes, sizes, st.floats(-1e4, 1e4), st.floats(1.0, 1e4))
def test_any_magnitude_is_finite(backend, n, k, offset, scale) -> None:
    """Scores and logits anywhere within 1e4: finite, normalised, and zero-sum gradients."""
    far = offset + scale * normal(n, k)
    q = sinkhorn(far)
    assert bool(q.isfinite().all()) and bool((q >= 0).all())
    assert_relative(q.sum(1), torch.ones(n).double(), 2e-6)
    logits = far.clone().requires_grad_()
    soft_cross_entropy(logits, Assignment.sinkhorn(far), reduction="sum").backward()
    assert bool(logits.grad.isfinite().all())
    assert float(logits.grad.sum(1).abs().max()) < 1e-5


@given(sizes, sizes, temperatures)
def test_loss_is_least_at_its_target(backend, n, k, temperature) -> None:
    """The gradient vanishes where the logits' softmax is the target: loss equals entropy."""
    scores = cosines(n, k, torch.float32)
    held = Assignment.softmax(scores, temperature=temperature)
    logits = scores.clone().requires_grad_()
    loss = soft_cross_entropy(logits, held, temperature=temperature, reduction="sum")
    loss.backward()
    q = oracles.centred(scores.double(), temperature)
    assert_relative(loss.detach(), -(q * q.log()).sum(), 3e-6, tiny=1e-5)
    assert float(logits.grad.abs().max()) < 2e-6 / temperature
