"""MMCR, FroSSL, MEC: the formulas, Lightly's values, one loss for any number of rows."""

import math
from functools import partial

import pytest
import torch
from checks import (
    DTYPES,
    LAYOUTS,
    assert_right,
    error,
    normal,
    same_bits,
    unit,
    value_and_grads,
)

from ssl_fast.losses import FroSSLLoss, MECLoss, MMCRLoss


def mmcr(online, momentum, weight=5e-3):
    z = torch.cat([online, momentum], 1)
    manifolds = torch.linalg.svdvals(z).sum() / len(z)
    return -torch.linalg.svdvals(z.mean(1)).sum() + weight * manifolds


@pytest.mark.parametrize("shape", [(20, 2, 7), (7, 3, 20), (9, 1, 4), (1, 2, 5)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_mmcr(backend, shape, dtype):
    rows, count, width = shape
    z = [normal(rows, count * width, seed=i).view(shape).to(dtype) for i in range(2)]
    if dtype in (torch.bfloat16, torch.float16):
        value, *grads = value_and_grads(MMCRLoss(), z, 2)
        exact, *expected = value_and_grads(mmcr, [x.double() for x in z], 2)
        assert float(value) == pytest.approx(float(exact), rel=1e-5)
        for g, e in zip(grads, expected, strict=True):
            assert error(g, e) <= 8e-3 * float(e.abs().max())
    else:
        assert_right(MMCRLoss(), mmcr, z, 2)
        assert_right(MMCRLoss(0.3), lambda a, b: mmcr(a, b, 0.3), z, 1)


def test_mmcr_of_equal_views(backend):
    """Every manifold has rank one, all singular values of the rest are null: Lightly gives NaN."""
    z = unit(6, 9)[:, None].expand(-1, 2, -1).contiguous()
    value, *grads = value_and_grads(MMCRLoss(), [z, z.clone()], 2)
    assert bool(value.isfinite()) and all(bool(g.isfinite().all()) for g in grads)
    assert error(grads[0], grads[1]) < 1e-7


def frossl(*views, invariance_weight=1.0):
    """Skean et al. 2024, the covariances D x D whatever N is; zeros stay zeros, without entropy."""
    norms = [torch.linalg.vector_norm(v, dim=0) for v in views]
    z = [v / n.clamp_min(1e-12).where(n > 0, math.inf) for v, n in zip(views, norms, strict=True)]
    mean = torch.stack(z).mean(0)
    total = 0.0
    for v in z:
        if bool(v.any()):
            covariance = v.T @ v / (v.T @ v).trace()
            total = total + covariance.square().sum().log()
        spread = (v - mean).square().mean() * len(z) * v.shape[1]
        total = total + invariance_weight * spread
    return total


SHAPES = [(20, 7), (7, 20), (2, 3), (6, 6), (300, 150), (130, 260)]


@pytest.mark.parametrize("views", [2, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_frossl(backend, shape, dtype, views):
    z = [normal(*shape, dtype=dtype, seed=i) for i in range(views)]
    upstream = torch.tensor(-0.7)
    assert_right(lambda *z: FroSSLLoss()(z), frossl, z, views, upstream)


@pytest.mark.parametrize("views", [2, 3])
@pytest.mark.parametrize("shape", [(20, 7), (7, 20)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_frossl_of_zeros(backend, shape, dtype, views):
    """A view of zeros, a column of zeros, and one view that needs no gradient."""
    z = [normal(*shape, dtype=dtype, seed=i) for i in range(views)]
    z[0][:, 3], z[1] = 0, torch.zeros_like(z[1])
    assert_right(lambda *z: FroSSLLoss(0.3)(z), partial(frossl, invariance_weight=0.3), z, 1)
    _, *grads = value_and_grads(lambda *z: FroSSLLoss()(z), z, views)
    assert not bool(grads[0][:, 3].any()) and not bool(grads[1].any())


@pytest.mark.parametrize("views", [2, 3])
@pytest.mark.parametrize("shape", [(20, 7), (7, 20)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_frossl_of_short_columns(backend, shape, dtype, views):
    """Below 1e-12, where columns are multiplied by 1e12: their gradient has a part along them."""
    z = [normal(*shape, dtype=dtype, seed=i) for i in range(views)]
    z[0][:, 2] *= 1e-13
    z[1] *= 3e-14
    _, *grads = value_and_grads(lambda *z: FroSSLLoss()(z), z, views)
    _, *exact = value_and_grads(frossl, [x.double() for x in z], views)
    for g, e in zip(grads, exact, strict=True):
        largest = e.abs().amax(0)
        assert bool(((g - e).abs().amax(0) <= 100 * torch.finfo(dtype).eps * largest).all())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_frossl_layouts(backend, layout):
    z = [normal(9, 6, seed=i) for i in range(2)]
    expected = value_and_grads(lambda *z: FroSSLLoss()(z), z, 2)
    found = value_and_grads(lambda *z: FroSSLLoss()(z), [LAYOUTS[layout](x) for x in z], 2)
    assert all(same_bits(a, b) for a, b in zip(found, expected, strict=True))


def test_frossl_weight_and_collapse():
    z = [normal(9, 4, seed=i) for i in range(2)]
    plain = frossl(*z, invariance_weight=0.0)
    assert float(FroSSLLoss(0.0)(z)) == pytest.approx(float(plain), rel=1e-6)
    for x in (torch.zeros(9, 4), torch.ones(9, 4)):
        value, *grads = value_and_grads(lambda *z: FroSSLLoss()(z), [x, normal(9, 4)], 2)
        assert bool(value.isfinite()) and all(bool(g.isfinite().all()) for g in grads)


def mec(p0, p1, z0, z1, eps=64.0, slack=1.0):
    """Three products of C = P Z^T / l, N x N, as the code forms them."""
    p0, p1, z0, z1 = (torch.nn.functional.normalize(v) for v in (p0, p1, z0, z1))
    rows, width = p0.shape
    scale = rows * eps / width * slack
    total = 0.0
    for p, z in ((p0, z1), (p1, z0)):
        c = p @ z.T / scale
        total = total + (c - c @ c / 2 + c @ c @ c / 3 - c @ c @ c @ c / 4).trace()
    return -scale / rows * total / 2


@pytest.mark.parametrize("shape", [(20, 7), (7, 20), (1, 4)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("eps", [64.0, 2.0])
def test_mec(shape, dtype, eps):
    z = [normal(*shape, dtype=dtype, seed=i) for i in range(4)]
    loss = MECLoss(eps)
    assert_right(
        lambda a, b, c, d: loss([a, b], [c, d], slack=1.5),
        lambda *z: mec(*z, eps=eps, slack=1.5),
        z,
        4,
    )


def test_mec_follows_the_logarithm():
    """For small C, the polynomial is log det(I + C)."""
    p = unit(12, 6, dtype=torch.float64)
    loss = MECLoss(eps=64.0)([p, p], [p, p])
    scale = 12 * 64.0 / 6
    exact = -scale / 12 * torch.logdet(torch.eye(12) + p @ p.T / scale)
    assert float(loss) == pytest.approx(float(exact), rel=1e-6)


def lightly(name):
    return getattr(pytest.importorskip("lightly.loss", reason="lightly is not installed"), name)


def test_lightly_mmcr():
    online, momentum = (normal(16, 3 * 10, seed=i).view(16, 3, 10) for i in range(2))
    assert_right(MMCRLoss(), lightly("MMCRLoss")(), [online, momentum], 2)


def test_lightly_frossl():
    rival = lightly("FroSSLLoss")(0.7)
    for shape in ((30, 8), (8, 30)):
        z = [normal(*shape, seed=i) for i in range(2)]
        assert_right(lambda *z: FroSSLLoss(0.7)(z), lambda *z: rival(list(z)), z, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MMCRLoss(-1), "weight must be finite and >= 0, got -1"),
        (lambda: MMCRLoss()(torch.ones(3, 4), torch.ones(3, 4)), r"online must be .*\(B, K, D\)"),
        (lambda: MMCRLoss()(torch.ones(3, 1, 4), torch.ones(3, 2, 4)), "one shape"),
        (lambda: MMCRLoss()(5, torch.ones(3, 2, 4)), "online must be a torch.Tensor, got int"),
        (lambda: FroSSLLoss(-0.1), "invariance_weight"),
        (lambda: FroSSLLoss()([torch.ones(3, 4)]), "at least two views, got 1"),
        (lambda: FroSSLLoss()([torch.ones(3, 4), torch.ones(4, 4)]), "one shape"),
        (lambda: MECLoss(eps=0), "eps must be finite and > 0"),
        (lambda: MECLoss()([torch.ones(3, 4)] * 2, [torch.ones(3, 5)] * 2), "MEC compares two"),
        (lambda: MECLoss()([torch.ones(3, 4)] * 3, [torch.ones(3, 4)] * 2), "MEC compares two"),
    ],
)
def test_refusals(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()


def test_what_is_zero_gets_no_gradient():
    """A zero row of MEC, a dead column of FroSSL: not 1e12 times what its unit vector gets."""
    x, y, z = normal(9, 4), normal(9, 4, seed=1), normal(9, 4, seed=2)
    x[3] = 0
    _, gradient = value_and_grads(lambda p: MECLoss()([p, y], [y, z]), [x], 1)
    assert not bool(gradient[3].any()) and bool(gradient[2].any())
    y[:, 1] = 0
    _, gradient = value_and_grads(lambda v: FroSSLLoss()([v, z]), [y], 1)
    assert not bool(gradient[:, 1].any()) and bool(gradient[:, 2].any())


def test_what_is_not_finite_propagates():
    x = normal(9, 4)
    x[2, 1] = math.nan
    assert bool(FroSSLLoss()([x, normal(9, 4)]).isnan())
    assert bool(MECLoss()([x, x], [x, x]).isnan())
    assert bool(MMCRLoss()(x[:, None], x[:, None]).isnan())
