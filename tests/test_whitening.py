"""W-MSE, CW-RGP, INTL, Zero-CL: the printed formulas, what whitening promises, what it refuses."""

import math

import pytest
import torch
from checks import DTYPES, assert_right, error, gradcheck, normal, same_bits, value_and_grads

from ssl_fast.functional import _whiten, whitening
from ssl_fast.losses import CWRGPLoss, INTLLoss, WMSELoss, ZeroCLLoss


def cosine_distance(x, y):
    return (2 - 2 * torch.nn.functional.cosine_similarity(x, y, dim=1)).mean()


def views(count=2, rows=24, width=5, dtype=torch.float32):
    return [normal(rows, width, dtype=dtype, seed=i) for i in range(count)]


def seeded(call):
    """Both sides draw the same partitions."""

    def run(*x):
        torch.manual_seed(3)
        return call(*x)

    return run


def cholesky_whitened(x, eps):
    """One row at a time: w = L^-1 (x - mean)."""
    x = x - x.mean(0)
    covariance = (1 - eps) * x.T @ x / (len(x) - 1) + eps * torch.eye(x.shape[1]).to(x)
    return x @ torch.linalg.inv(torch.linalg.cholesky(covariance)).T


def wmse(z, sub_batch, iterations=1, eps=0.0):
    total, pairs = 0.0, 0
    for _ in range(iterations):
        order = torch.randperm(len(z[0]))
        white = []
        for x in z:
            out = torch.empty_like(x)
            for index in order.view(-1, sub_batch):
                out = out.index_copy(0, index, cholesky_whitened(x[index], eps))
            white.append(out)
        for i in range(len(z)):
            for j in range(i):
                total, pairs = total + cosine_distance(white[i], white[j]), pairs + 1
    return total / pairs


@pytest.mark.parametrize("options", [{}, {"iterations": 3}, {"eps": 0.1}], ids=str)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_wmse(options, dtype):
    z = views(3, dtype=dtype)
    assert_right(
        seeded(lambda *z: WMSELoss(sub_batch=12, **options)(z)),
        seeded(lambda *z: wmse(z, 12, **options)),
        z,
        3,
    )


def test_wmse_whitens():
    """Unit covariance; repeated runs with one generator state agree, others differ."""
    white = _whiten.cholesky_whiten(normal(50, 6, dtype=torch.float64), 0.0)
    assert error(white.T @ white / 49, torch.eye(6)) < 1e-12
    generator = torch.Generator().manual_seed(1)
    first, second, third = (
        whitening.wmse(views(), sub_batch=8, generator=g)
        for g in (generator, generator, torch.Generator().manual_seed(1))
    )
    assert same_bits(first, third) and not same_bits(first, second)


def cw_rgp(z, groups, sub_batch):
    order = torch.randperm(len(z[0]))
    white = []
    for x in z:
        x = x - x.mean(1, keepdim=True)
        out = torch.empty_like(x)
        for index in order.view(-1, sub_batch):
            columns = torch.randperm(x.shape[1])
            part = x[index][:, columns]
            pieces = []
            for piece in part.chunk(groups, 1):
                gram = piece @ piece.T / (piece.shape[1] - 1)
                values, vectors = torch.linalg.eigh(gram)
                pieces.append(vectors @ torch.diag(values.rsqrt()) @ vectors.T @ piece)
            out = out.index_copy(0, index, torch.cat(pieces, 1)[:, columns.argsort()])
        white.append(out)
    return cosine_distance(*white)


@pytest.mark.parametrize(("groups", "sub_batch"), [(1, 8), (2, 8), (4, 4)])
def test_cw_rgp(groups, sub_batch):
    z = views(rows=16, width=48)
    assert_right(
        seeded(lambda *z: CWRGPLoss(groups, sub_batch)(z)),
        seeded(lambda *z: cw_rgp(z, groups, sub_batch)),
        z,
        2,
    )


def test_cw_rgp_of_repeated_eigenvalues():
    """Orthogonal samples of one norm: the official SVD gives NaN there."""
    z = torch.linalg.qr(normal(16, 4)).Q.T.contiguous()
    z = z - z.mean(1, keepdim=True)
    q = torch.linalg.qr(z.T).Q.T.contiguous() * 3
    grads = value_and_grads(lambda x, y: CWRGPLoss(1)([x, y]), [q, views(rows=4, width=16)[0]], 2)
    assert all(bool(g.isfinite().all()) for g in grads)


def test_inverse_root():
    """V diag(1 / l) V^T and its gradient, where eigenvalues repeat."""
    matrix = 3 * torch.eye(4, dtype=torch.float64)
    root, *spectrum = _whiten.inverse_root(matrix)
    grad = _whiten.through_inverse_root(torch.eye(4).double(), *spectrum)
    assert error(root, torch.eye(4).double() / math.sqrt(3)) < 1e-15
    assert error(grad, -0.5 * 3**-1.5 * torch.eye(4).double()) < 1e-15


@pytest.mark.parametrize("eps", [0.0, 0.2])
def test_gradients_of_whitening(eps):
    x = normal(2, 3, 4, 12, dtype=torch.float64)
    shuffle = torch.stack([torch.randperm(12) for _ in range(6)]).view(2, 3, 12)
    gradcheck(lambda x: _whiten.zca_whiten(x, shuffle, 2, eps), x)
    gradcheck(lambda x: _whiten.zca_whiten(x, None, 2, eps), x)
    gradcheck(lambda x: _whiten.cholesky_whiten(x.mT, eps), x)


def iterative_norm(x, iterations):
    """INTL's IterNorm of samples over channels, as the code composes it."""
    x = x - x.mean(1, keepdim=True)
    gram = x @ x.T / (x.shape[1] - 1)
    trace = gram.trace()
    p = torch.eye(len(x)).to(x)
    for _ in range(iterations):
        p = 1.5 * p - 0.5 * p @ p @ p @ (gram / trace)
    return p / trace.sqrt() @ x


def trace_loss(t):
    return (t.var(1) - 1).square().sum()


def intl(z, iterations=4, beta=None, axis=0):
    if axis:
        t = [iterative_norm(x.T, iterations) for x in z]
        traces = [trace_loss(x) for x in t]
        t = [x.T for x in t]
    else:
        t = [iterative_norm(x, iterations) for x in z]
        traces = [trace_loss(x) for x in t]
    size = z[0].shape[axis]
    beta = 0.01 * (math.log2(size) - 3) if beta is None else beta
    terms = [cosine_distance(t[i], t[0]) + beta * (traces[i] + traces[0]) for i in range(1, len(z))]
    return sum(terms) / len(terms)


@pytest.mark.parametrize(
    "options",
    [{}, {"axis": 1}, {"iterations": 2, "beta": 0.3}],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_intl(options, dtype):
    z = views(3, rows=16, width=40, dtype=dtype)
    ours = {("trade_off" if k == "beta" else k): v for k, v in options.items()}
    assert_right(lambda *z: INTLLoss(**ours)(z), lambda *z: intl(z, **options), z, 3)


def zca(x, divisor, shrinkage, eps):
    gram = (1 - shrinkage) * x.detach() @ x.detach().T / divisor + shrinkage * torch.eye(len(x)).to(
        x
    )
    u, s, _ = torch.linalg.svd(gram)
    return u @ torch.diag(1 / (s + eps).sqrt()) @ u.T @ x


def zero_features(x, y):
    x, y = (torch.nn.functional.batch_norm(v, None, None, training=True) for v in (x, y))
    x, y = (zca(v.T, len(v) - 1, 0.1, 1e-5) for v in (x, y))
    return ((x @ y.T).diagonal() / x.shape[1] - 1).square().sum()


def zero_instances(x, y):
    x, y = ((v - v.mean(1, keepdim=True)) / (v.std(1, keepdim=True) + 1e-4) for v in (x, y))
    x, y = (zca(v, v.shape[1], 0.0, 1e-2) for v in (x, y))
    return ((x @ y.T).diagonal() / x.shape[1] - 1).square().sum()


@pytest.mark.parametrize(
    ("mode", "formula"),
    [
        ("feature", zero_features),
        ("instance", zero_instances),
        ("both", lambda x, y: zero_features(x, y) + zero_instances(x, y)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
def test_zero_cl(mode, formula, dtype):
    width = 12 if mode == "feature" else 40  # a Gram of rows without full rank is all rounding
    assert_right(ZeroCLLoss(mode), formula, views(rows=20, width=width, dtype=dtype), 2)


@pytest.mark.parametrize("features", [True, False])
def test_gradient_of_standardisation(features):
    gradcheck(lambda x: _whiten.standardised(x, features), normal(2, 3, 7))


def test_zero_cl_of_large_embeddings():
    """Squares that do not fit float32: the loss hardly depends on the scale."""
    x, y = normal(20, 12), normal(20, 12, seed=1)
    value, *grads = value_and_grads(ZeroCLLoss("both"), [1e25 * x, y], 2)
    expected, *expected_grads = value_and_grads(ZeroCLLoss("both"), [x, y], 2)
    assert error(value, expected) < 0.1
    assert error(1e25 * grads[0], expected_grads[0]) < 0.1
    assert error(grads[1], expected_grads[1]) < 0.1


LOSSES = {
    "wmse": lambda x, y: WMSELoss(sub_batch=12)([x, y]),
    "cw_rgp": lambda x, y: CWRGPLoss(2, 4)([x, y]),
    "intl": lambda x, y: INTLLoss()([x, y]),
    "zero_cl": ZeroCLLoss("both"),
}


@pytest.mark.parametrize("name", ["wmse", "cw_rgp", "zero_cl"])
def test_backward_under_autocast(name):
    x, y = normal(24, 10).requires_grad_(), normal(24, 10, seed=1)
    (expected,) = torch.autograd.grad(seeded(LOSSES[name])(x, y), x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (grad,) = torch.autograd.grad(seeded(LOSSES[name])(x, y), x)
    assert same_bits(grad, expected)


@pytest.mark.parametrize("name", LOSSES)
def test_same_views_are_the_optimum_of_the_distance(name):
    """Identical views: no distance is left. INTL has its trace loss, Zero-CL its shrinkage."""
    x = normal(24, 10)
    value = float(seeded(LOSSES[name])(x, x.clone()))
    other = float(seeded(LOSSES[name])(x, normal(24, 10, seed=1)))
    assert value < other
    if name == "wmse":
        assert abs(value) < 1e-5


@pytest.mark.parametrize("name", ["intl", "zero_cl"])
def test_collapse_is_finite(name):
    """Equal rows, zeros and a repeated row: no eigenvalue is divided by."""
    for x in (torch.ones(12, 6), torch.zeros(12, 6), normal(1, 6).expand(12, -1).contiguous()):
        value, *grads = value_and_grads(LOSSES[name], [x, normal(12, 6)], 2)
        assert bool(value.isfinite()) and all(bool((g.abs() < 1e6).all()) for g in grads)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: WMSELoss(8)(views(width=8)), "8 rows cannot be whitened in 8 dimensions"),
        (lambda: WMSELoss(7)(views()), "24 rows do not divide into sub-batches of 7"),
        (lambda: WMSELoss(eps=1.0), "eps must be at least 0 and less than 1"),
        (lambda: WMSELoss(12)([torch.ones(24, 5)] * 2), "5 x 5 covariance.*collapsed"),
        (lambda: WMSELoss(12)(torch.ones(24, 5)), r"write \[z0, z1\]"),
        (lambda: WMSELoss(12)(views(1)), "at least two views, got 1"),
        (lambda: CWRGPLoss(3)(views()), "groups must divide the width 5, got 3"),
        (lambda: CWRGPLoss(1, 8)(views()), "group of 5 channels cannot whiten 8 samples"),
        (lambda: CWRGPLoss(1, 4)([torch.ones(24, 6)] * 2), "4 x 4 Gram.*collapsed"),
        (lambda: CWRGPLoss(1, 5)(views(width=48)), "do not divide"),
        (
            lambda: INTLLoss(axis=2)(views()),
            r"0 \(whiten samples\) or 1 \(whiten channels\), got 2",
        ),
        (lambda: INTLLoss(trade_off=-1.0)(views()), "trade_off must be finite and >= 0, got -1.0"),
        (lambda: INTLLoss()([torch.ones(4, 1)] * 2), "variance over at least 2"),
        (lambda: ZeroCLLoss("rows"), "'feature', 'instance', 'both'"),
        (lambda: ZeroCLLoss()(torch.ones(1, 4), torch.ones(1, 4)), "at least 2 rows"),
        (lambda: ZeroCLLoss()(torch.ones(3, 4), torch.ones(4, 4)), "one shape"),
        (lambda: INTLLoss()([torch.ones(3, 4), 5]), r"views\[1\] must be a torch.Tensor"),
    ],
)
def test_refusals(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()


@pytest.mark.parametrize("name", LOSSES)
def test_what_is_not_finite_propagates(name):
    x, y = normal(24, 10), normal(24, 10, seed=1)
    x[3, 2] = math.nan
    assert bool(seeded(LOSSES[name])(x, y).isnan())
