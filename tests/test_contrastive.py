"""InfoNCE, NT-Xent, DCL and ProtoNCE against the printed formulas and autograd."""

import oracles
import pytest
import torch
from checks import (
    DTYPES,
    LAYOUTS,
    REDUCTIONS,
    Allocations,
    Saved,
    assert_relative,
    assert_right,
    gradcheck,
    normal,
    same_bits,
    spread,
    value_and_grads,
)
from torch.utils._python_dispatch import TorchDispatchMode

from ssl_fast import backend as dispatch
from ssl_fast.functional import (
    _contrastive_pairs,
    decoupled_nt_xent,
    info_nce,
    multi_view_nt_xent,
    nt_xent,
    proto_nce,
)
from ssl_fast.native import contrastive as native
from ssl_fast.reference import contrastive as reference

pytestmark = [pytest.mark.cpu_kernels, pytest.mark.usefixtures("poisoned")]

# Two samples, odd, prime; more rows than a tile's height, than its width; wider than long.
SHAPES = [(2, 3), (7, 3), (67, 16), (31, 257), (521, 4), (1031, 3)]
# N, negatives, D: one, prime, more than a tile.
QUEUES = [(1, 1, 3), (7, 13, 5), (67, 131, 16), (521, 67, 4), (5, 4099, 3)]
# The last span more than 64 nats: a maximum per row, and two exponentials in backward.
TEMPERATURES = [0.5, 0.07, 0.01]


@pytest.fixture(params=["at once", "by tiles"])
def pairs(request, monkeypatch) -> None:
    """Both ways that the native backend has, whatever the size of the batch."""
    limit = 1 << 62 if request.param == "at once" else 0
    monkeypatch.setattr(_contrastive_pairs, "_TILE_BYTES", limit)


def index_of(rows: int, clusters: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(clusters, (rows,), generator=generator)


def upstream(reduction: str, n: int) -> torch.Tensor:
    return normal(n, seed=7) if reduction == "none" else torch.tensor(-2.5)


@pytest.mark.parametrize(
    ("shape", "dtype", "temperature", "normalize"),
    spread(SHAPES, list(DTYPES), TEMPERATURES, [True, True, False]),
    ids=str,
)
def test_nt_xent(backend, pairs, shape, dtype, temperature, normalize) -> None:
    views = [normal(*shape, dtype=DTYPES[dtype], seed=seed) for seed in (0, 1)]
    temperature *= 1 if normalize else shape[1]
    assert_right(
        lambda *z: nt_xent(*z, temperature=temperature, normalize=normalize),
        lambda *z: oracles.nt_xent(list(z), temperature, normalize),
        views,
        wrt=2,
        upstream=torch.tensor(-1.5),
    )


@pytest.mark.parametrize(
    ("count", "shape", "temperature"),
    [(3, (5, 4), 0.5), (4, (67, 8), 0.1), (5, (131, 3), 0.01), (7, (300, 2), 0.5)],
    ids=str,
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_more_views(backend, pairs, count, shape, temperature, dtype) -> None:
    """Blocks of an odd number of views meet the tiles' edges."""
    assert_right(
        lambda *z: multi_view_nt_xent(z, temperature=temperature),
        lambda *z: oracles.nt_xent(list(z), temperature),
        [normal(*shape, dtype=DTYPES[dtype], seed=seed) for seed in range(count)],
        wrt=count,
        upstream=torch.tensor(0.3),
    )


@pytest.mark.parametrize(("dtype", "weights"), spread(list(DTYPES), [None, 1, 2]))
@pytest.mark.parametrize("shape", [(2, 3), (67, 16), (521, 4)], ids=str)
def test_decoupled(backend, pairs, shape, dtype, weights) -> None:
    w = None if weights is None else normal(*((shape[0], 2) if weights == 2 else shape[:1]))
    both = w if w is None or weights == 2 else w[:, None].expand(-1, 2)
    assert_right(
        lambda *z: decoupled_nt_xent(*z, temperature=0.1, weights=w),
        lambda *z: oracles.decoupled(*z, 0.1, both),
        [normal(*shape, dtype=DTYPES[dtype], seed=seed) for seed in (0, 1)],
        wrt=2,
    )


@pytest.mark.parametrize(
    ("shape", "dtype", "temperature", "reduction", "normalize"),
    spread(SHAPES, list(DTYPES), TEMPERATURES, REDUCTIONS, [True, False]),
    ids=str,
)
def test_in_batch(backend, shape, dtype, temperature, reduction, normalize) -> None:
    temperature *= 1 if normalize else shape[1]
    options = {"temperature": temperature, "normalize": normalize, "reduction": reduction}
    assert_right(
        lambda q, k: info_nce(q, k, **options),
        lambda q, k: oracles.one_of_many(q, k, None, **options),
        [normal(*shape, dtype=DTYPES[dtype], seed=seed) for seed in (0, 1)],
        wrt=2,
        upstream=upstream(reduction, shape[0]),
    )


@pytest.mark.parametrize(
    ("sizes", "dtype", "temperature", "reduction", "normalize"),
    spread(QUEUES, list(DTYPES), TEMPERATURES, REDUCTIONS, [True, False]),
    ids=str,
)
def test_queue(backend, sizes, dtype, temperature, reduction, normalize) -> None:
    (n, k, d), dtype = sizes, DTYPES[dtype]
    temperature *= 1 if normalize else d
    options = {"temperature": temperature, "normalize": normalize, "reduction": reduction}
    assert_right(
        lambda *x: info_nce(*x, **options),
        lambda *x: oracles.one_of_many(*x, **options),
        [normal(n, d, dtype=dtype), normal(n, d, dtype=dtype, seed=1),
         normal(k, d, dtype=dtype, seed=2)],
        wrt=3,
        upstream=upstream(reduction, n),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("sizes", "dtype", "reduction", "negatives"),
    spread(QUEUES, list(DTYPES), REDUCTIONS, [None, "count", "ignore"]),
    ids=str,
)
def test_proto_nce(backend, sizes, dtype, reduction, negatives) -> None:
    (n, k, d), dtype = sizes, DTYPES[dtype]
    concentration = normal(k, seed=5).abs() + 0.1
    index, chosen = index_of(n, k), None if negatives is None else index_of(k + 3, k, seed=1)
    assert_right(
        lambda z, c: proto_nce(
            z, c, concentration, index, negatives=chosen, reduction=reduction,
            duplicates=negatives or "count",
        ),
        lambda z, c: oracles.proto_nce(
            z, c, concentration, index, chosen, reduction, negatives == "ignore"
        ),
        [normal(n, d, dtype=dtype), normal(k, d, dtype=dtype, seed=1)],
        wrt=2,
        upstream=upstream(reduction, n),
    )  # fmt: skip


def test_published_negatives_of_pcl(backend) -> None:
    """[the batch's centroids, sampled ones] with class i is `proto_nce` on those columns."""
    z, c, phi = normal(9, 4), normal(30, 4, seed=1), normal(30, seed=2).abs() + 0.2
    index, sampled = index_of(9, 20), torch.arange(20, 30)
    chosen = torch.cat([index, sampled])
    logits = z @ c[chosen].T / phi[chosen]
    expected = torch.nn.functional.cross_entropy(logits, torch.arange(9))
    ours = proto_nce(z, c[chosen], phi[chosen], torch.arange(9))
    assert_relative(ours, expected.double(), 1e-6)


def test_two_views_of_more_views(backend, pairs) -> None:
    a, b = normal(17, 5), normal(17, 5, seed=1)
    assert same_bits(multi_view_nt_xent([a, b], temperature=0.5), nt_xent(a, b))


def test_gradcheck(backend, pairs) -> None:
    a, b, c, queue = (normal(4, 3, seed=seed) for seed in range(4))
    for normalize in (True, False):
        gradcheck(lambda *z: nt_xent(*z, normalize=normalize), a, b)  # noqa: B023
        gradcheck(lambda *z: info_nce(*z, reduction="none", normalize=normalize), a, b)  # noqa: B023
        gradcheck(lambda *z: info_nce(*z, normalize=normalize), a, b, queue)  # noqa: B023
    gradcheck(lambda *z: multi_view_nt_xent(z, temperature=0.02), a, b, c)
    gradcheck(lambda *z: decoupled_nt_xent(*z, weights=torch.arange(4.0)), a, b)
    index, phi = torch.tensor([0, 3, 3]), torch.rand(4) + 0.5
    for chosen in (None, torch.tensor([3, 1, 1])):
        gradcheck(
            lambda z, p: proto_nce(z, p, phi, index, negatives=chosen, duplicates="ignore"),  # noqa: B023
            normal(3, 2), queue[:, :2],
        )  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(backend, pairs, layout) -> None:
    view = LAYOUTS[layout]
    a, b, queue = normal(31, 6), normal(31, 6, seed=1), normal(53, 6, seed=2)
    index, phi = index_of(31, 53), torch.rand(53) + 0.5
    for function, inputs in (
        (nt_xent, [a, b]),
        (info_nce, [a, b]),
        (info_nce, [a, b, queue]),
        (lambda z, c: proto_nce(z, c, phi, index), [a, queue]),
    ):
        expected = value_and_grads(function, inputs, len(inputs))
        actual = value_and_grads(function, [view(x) for x in inputs], len(inputs))
        for i, (x, y) in enumerate(zip(actual, expected, strict=True)):
            assert_relative(x, y.double(), 1e-5, tiny=1e-7 * (1 + i))


@pytest.mark.parametrize("temperature", [0.5, 0.01])
@pytest.mark.parametrize("size", [1e4, 1.0, 0.0])
def test_degenerate_batches(backend, pairs, size, temperature) -> None:
    """Identical rows, zero rows, rows of 1e4 unnormalised: finite values and gradients."""
    a, b = normal(40, 6) * size, normal(40, 6, seed=1) * size
    a[3] = b[7] = 0
    a[10:20] = a[10]
    collapsed = torch.ones(40, 6) * size
    index, phi = index_of(40, 40), torch.full((40,), temperature)
    for normalize in (True, False):
        options = {"temperature": temperature, "normalize": normalize}
        for x, y in ((a, b), (collapsed, collapsed), (a, a)):
            for function, inputs in (
                (lambda *z: nt_xent(*z, **options), [x, y]),  # noqa: B023
                (lambda *z: info_nce(*z, **options), [x, y]),  # noqa: B023
                (lambda *z: info_nce(*z, **options), [x, y, x]),  # noqa: B023
                (lambda z, c: proto_nce(z, c, phi, index), [x, y]),
            ):
                results = value_and_grads(function, inputs, len(inputs))
                assert all(bool(r.isfinite().all()) for r in results)


def test_zero_rows_get_zero_gradients(backend, pairs) -> None:
    a, b, queue = normal(9, 4), normal(9, 4, seed=1), normal(7, 4, seed=2)
    a[3], b[5], queue[2] = 0, 0, 0
    for function, inputs in (
        (nt_xent, [a, b]), (info_nce, [a, b]), (info_nce, [a, b, queue]),
        (decoupled_nt_xent, [a, b]), (lambda *z: multi_view_nt_xent(z), [a, b, a]),
    ):  # fmt: skip
        _, *grads = value_and_grads(function, inputs, len(inputs))
        for x, grad in zip(inputs, grads, strict=True):
            zero = (x == 0).all(1)
            assert not bool(grad[zero].any()) and bool(grad.any(1).sum() > 5)


@pytest.mark.parametrize("shape", [(33, 4), (5, 6)])  # of 10 x 6, MKL's u @ u.T is not symmetric
@pytest.mark.parametrize("scale", [1e4, 1e2])
def test_large_unnormalised_rows(backend, pairs, scale, shape) -> None:
    a, b = (normal(*shape, seed=seed) * scale**0.5 for seed in (0, 1))
    options = {"temperature": 1.0, "normalize": False}
    assert_right(
        lambda *z: nt_xent(*z, **options),
        lambda *z: oracles.nt_xent(list(z), **options), [a, b], wrt=2,
    )  # fmt: skip
    assert_right(
        lambda *z: info_nce(*z, **options),
        lambda *z: oracles.one_of_many(*z, **options), [a, b, a.flip(0)], wrt=3,
    )  # fmt: skip


def test_repeatable(backend) -> None:
    a, b, queue = normal(600, 8), normal(600, 8, seed=1), normal(2100, 8, seed=2)
    for function, inputs in ((nt_xent, [a, b]), (info_nce, [a, b]), (info_nce, [a, b, queue])):
        first, second = (value_and_grads(function, inputs, len(inputs)) for _ in range(2))
        assert all(same_bits(x, y) for x, y in zip(first, second, strict=True))


def test_retain_graph(backend, pairs) -> None:
    a, b = (normal(20, 4, seed=seed).requires_grad_() for seed in (0, 1))
    for loss in (nt_xent(a, b), info_nce(a, b), info_nce(a, b.detach(), normal(9, 4))):
        (first,) = torch.autograd.grad(loss, a, retain_graph=True)
        kept = first.clone()
        first.fill_(9)
        assert same_bits(torch.autograd.grad(loss, a)[0], kept)


def test_gradients_reach_what_requires_them(backend) -> None:
    """Each operand alone gets the gradient that it gets among all."""
    inputs = [normal(9, 4), normal(9, 4, seed=1), normal(30, 4, seed=2)]
    _, *expected = value_and_grads(info_nce, inputs, 3)
    for i in range(3):
        leaves = [x.clone().requires_grad_(i == j) for j, x in enumerate(inputs)]
        (grad,) = torch.autograd.grad(info_nce(*leaves), leaves[i])
        assert_relative(grad, expected[i].double(), 1e-5, tiny=1e-8)


class Products(TorchDispatchMode):
    """Counts library products."""

    count = 0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        self.count += "mm" in op.name()
        return op(*args, **(kwargs or {}))


@pytest.mark.parametrize(("constant", "count"), [(False, 3), (True, 2)])
def test_in_batch_takes_no_product_twice(constant, count) -> None:
    """Logits and one product an operand that requires a gradient, all of them forward."""
    if reason := dispatch.why_not("native", "cpu", torch.float32):
        pytest.skip(reason)
    a, b = normal(70, 8).requires_grad_(), normal(70, 8, seed=1).requires_grad_(not constant)
    with Products() as products:
        loss = info_nce(a, b)
        forward = products.count
        loss.backward()
    assert forward == products.count == count


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_in_batch_tile(dtype) -> None:
    """Rows 3 to 9 of 40, one sure of its positive, one sure of another, against the reference."""
    if reason := dispatch.why_not("native", "cpu", dtype):
        pytest.skip(reason)
    tile = normal(6, 40, dtype=dtype)
    tile[1, 4], tile[2, 0], tile[3] = 50, 1e4, 0
    exact = tile.double().clone()
    total = reference.in_batch(exact, 3, 2.0, 0.7, True)
    got = tile.clone()
    assert native.in_batch(tile.clone(), 3, 2.0, 0.7, False) == pytest.approx(total, rel=1e-6)
    assert native.in_batch(got, 3, 2.0, 0.7, True) == pytest.approx(total, rel=1e-6)
    assert_relative(got, exact, 1e-6 if dtype is torch.float32 else 1e-14, tiny=1e-16)
    alone = torch.full((1, 1), 3.0, dtype=dtype)
    assert native.in_batch(alone, 0, 2.0, 1.0, True) == 0 == float(alone)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_queue_rows(dtype) -> None:
    """Five rows against 300, one sure of its positive, one sure of another, and the reference."""
    if reason := dispatch.why_not("native", "cpu", dtype):
        pytest.skip(reason)
    u, v, w = (normal(n, 7, seed=n, dtype=dtype) for n in (5, 5, 300))
    v = v.contiguous()
    v[0], v[1] = 20 * u[0], -20 * u[1]
    b = normal(300, seed=1, dtype=dtype).abs()
    exact = reference.queue(u, v, w, b, 1.5, 0.7, True, True)
    got = native.queue(u, v, w, b, 1.5, 0.7, True, True)
    assert got[0] == pytest.approx(exact[0], rel=1e-6)
    for actual, expected in zip(got[1:], exact[1:], strict=True):
        assert_relative(actual, expected.double(), 1e-5 if dtype is torch.float32 else 1e-12, 1e-6)
    alone = native.queue(u, v, w, b, 1.5, 0.7, False, True)
    assert alone[1] is None and alone[0] == got[0] and torch.equal(alone[2], got[2])


@pytest.mark.parametrize("views", [2, 3])
@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pairs_at_once(dtype, decoupled, views) -> None:
    """Rows of 1e-2 to 20, either sign of the temperature, and the reference."""
    if reason := dispatch.why_not("native", "cpu", dtype):
        pytest.skip(reason)
    u = normal(12 * views, 5, dtype=dtype)
    u[3], u[5] = 20 * u[3], 0.01 * u[5]
    weights = normal(12, views, dtype=torch.float64) if decoupled else None
    for scale in (1.5, -0.7, 0.01):
        rest = scale, views, weights, decoupled
        exact, expected = reference.pairs_at_once(u, *rest, True)
        total, gradient = native.pairs_at_once(u, *rest, True)
        assert total == pytest.approx(exact, rel=1e-6)
        assert native.pairs_at_once(u, *rest, False)[0] == total
        assert_relative(gradient, expected, 2e-5 if dtype is torch.float32 else 1e-12, 1e-7)


def test_in_batch_of_several_tiles(backend) -> None:
    """1200 rows are more than one tile of whole rows."""
    assert_right(
        lambda q, k: info_nce(q, k, temperature=0.1),
        lambda q, k: oracles.one_of_many(q, k, None, 0.1),
        [normal(1200, 4, seed=seed) for seed in (0, 1)],
        wrt=2,
        upstream=torch.tensor(3.0),
    )


def test_nothing_quadratic_is_kept() -> None:
    """NT-Xent: some numbers a row. A queue: the query's gradient, and nothing of the queue.

    In the batch: the gradients.
    """
    a, b = (normal(1024, 16, seed=seed).requires_grad_() for seed in (0, 1))
    with Saved(a, b) as saved:
        loss = nt_xent(a, b)
    assert 0 < saved.nbytes() <= 4 * 8 * 2048
    torch.autograd.grad(loss, [a, b])
    queue = normal(65536, 8)
    for function in (info_nce, lambda *z: info_nce(*z, normalize=False)):
        with Saved(a, b) as saved:
            function(a[:, :8], b[:, :8].detach(), queue)
        assert 0 < saved.nbytes() < 3 * a.nbytes
    with Saved(a, b) as saved:
        info_nce(a, b)
    assert 0 < saved.nbytes() <= 2 * a.nbytes
    with Saved(a, b) as saved:
        info_nce(a, b.detach())
    assert 0 < saved.nbytes() <= a.nbytes


@pytest.mark.parametrize("wanted", [2, 1, 0])
def test_few_pairs_take_two_products(wanted) -> None:
    """And none of them in backward; the gradients are kept, and nothing where none is wanted."""
    if reason := dispatch.why_not("native", "cpu", torch.float32):
        pytest.skip(reason)
    a, b = (normal(256, 16, seed=i).requires_grad_(i < wanted) for i in (0, 1))
    with Products() as products, Saved(a, b) as saved:
        loss = nt_xent(a, b)
    assert products.count == (2 if wanted else 1)
    assert saved.nbytes() == (2 * a.nbytes if wanted else 0)
    if wanted:
        with Products() as products:
            torch.autograd.grad(loss, [a, b][:wanted])
        assert products.count == 0


def test_nothing_quadratic_is_formed() -> None:
    a, b = (normal(2000, 4, seed=seed).requires_grad_() for seed in (0, 1))
    with Allocations() as watch:
        torch.autograd.grad(nt_xent(a, b), [a, b])
        torch.autograd.grad(info_nce(a, b, normal(20000, 4)), [a, b])
    assert watch.largest() <= 512 * 2048


def test_a_queue_may_change_before_backward(backend) -> None:
    """What MoCo does: logits, enqueue, backward. The gradient is that of the old queue."""
    q, k, queue = normal(9, 4).requires_grad_(), normal(9, 4, seed=1), normal(30, 4, seed=2)
    (expected,) = torch.autograd.grad(info_nce(q, k, queue), q)
    loss = info_nce(q, k, queue)
    queue.copy_(normal(30, 4, seed=3))
    assert same_bits(torch.autograd.grad(loss, q)[0], expected)


def test_mixed_types_of_a_queue(backend) -> None:
    """A float32 queue serves half and double queries, a half queue float32 ones."""
    half, single, double = torch.bfloat16, torch.float32, torch.float64
    for dtype, queue_dtype, most in (
        (half, single, 1e-6), (single, half, 1e-6), (double, single, 1e-13)
    ):  # fmt: skip
        q, k = normal(9, 4, dtype=dtype), normal(9, 4, dtype=dtype, seed=1)
        queue = normal(30, 4, dtype=queue_dtype, seed=2)
        expected = oracles.one_of_many(q.double(), k.double(), queue.double(), 0.2)
        assert_relative(info_nce(q, k, queue), expected, most)


def test_autocast_rounds_embeddings(backend) -> None:
    a, b = normal(9, 4), normal(9, 4, seed=1)
    for function in (nt_xent, info_nce):
        with torch.autocast("cpu", torch.bfloat16):
            actual = value_and_grads(function, [a, b], 2)
        rounded = value_and_grads(lambda *z: function(*[x.bfloat16() for x in z]), [a, b], 2)  # noqa: B023
        assert [x.dtype for x in actual] == [torch.float32] * 3
        assert all(same_bits(x, y) for x, y in zip(actual, rounded, strict=True))


def test_refusals() -> None:
    """Each message names the argument, what came, and what to do."""
    z, one, long = torch.randn(4, 3), torch.randn(1, 3), torch.tensor([0, 1, 2, 3])
    phi = torch.ones(4)
    cases = [
        (lambda: nt_xent(z, z, temperature=0), "temperature must be finite and > 0, got 0"),
        (lambda: nt_xent(z, z, temperature=-0.1), "temperature must be .* > 0, got -0.1"),
        (lambda: nt_xent(one, one), "one sample alone has no samples"),
        (lambda: info_nce(one, one), "pass negatives="),
        (lambda: nt_xent(z, z[:3]), r"views of the same samples, got \(4, 3\) and \(3, 3\)"),
        (lambda: info_nce(z, z[:3]), r"views of the same samples, got \(4, 3\) and \(3, 3\)"),
        (lambda: info_nce(z, z, z[:, :2]), r"negatives must have query's width 3, got \(4, 2\)"),
        (lambda: info_nce(z, z, reduction="sums"), "reduction must be one of"),
        (lambda: nt_xent(z[:0], z[:0]), "z0 must be a non-empty matrix"),
        (lambda: multi_view_nt_xent([z]), r"at least two .* write \[z0, z1\]"),
        (lambda: multi_view_nt_xent(z), "views must be a list .* got Tensor"),
        (lambda: multi_view_nt_xent(x for x in (z, z)), "views must be a list .* got generator"),
        (lambda: proto_nce(z, z, phi.to("meta"), long), "concentration is on meta, z on cpu"),
        (lambda: proto_nce(z, z, phi, long.to("meta")), "index is on meta, z on cpu"),
        (lambda: proto_nce(z, z, phi, long, negatives=long.to("meta")), "negatives is on meta"),
        (lambda: decoupled_nt_xent(z, z, weights=phi.to("meta")), "weights is on meta, z0 on cpu"),
        (lambda: decoupled_nt_xent(z, z, weights=torch.ones(3)), r"weights must have shape \(4,\)"),
        (lambda: decoupled_nt_xent(z, z, weights=torch.ones(4).requires_grad_()), "weights.detach"),
        (lambda: proto_nce(z, z, phi, long + 1), r"index must lie in \[0, 4\), .* from 1 to 4"),
        (lambda: proto_nce(z, z, phi, long[:2]), r"index must have shape \(4,\), got \(2,\)"),
        (lambda: proto_nce(z, z, phi * 0, long), "concentration must be finite and > 0, .* clamp"),
        (lambda: proto_nce(z, z, phi[:3], long), r"concentration must have shape \(4,\)"),
        (lambda: proto_nce(z, z, phi, long, negatives=long - 1), "negatives must lie in"),
        (lambda: proto_nce(z, z, phi, long, duplicates="drop"), "duplicates must be one of"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
    for call, message in (
        (lambda: nt_xent(z, z.double()), "convert one of them"),
        (lambda: proto_nce(z, z, phi, long.float()), r"call index.long\(\)"),
        (lambda: info_nce(z.int(), z.int()), r"call query.float\(\)"),
        (lambda: decoupled_nt_xent(z, z, weights=2.0), "weights must be a torch.Tensor"),
        (lambda: proto_nce(z, z, phi.to_sparse(), long), "concentration must be a dense tensor"),
    ):
        with pytest.raises(TypeError, match=message):
            call()


def test_not_a_number_is_passed_on(backend, pairs) -> None:
    """A NaN row in either operand, also the last of its tile."""
    for call in (info_nce, nt_xent, decoupled_nt_xent):
        for row in (0, 2, 16):
            for argument in (0, 1):
                views = [normal(17, 5), normal(17, 5, seed=1)]
                views[argument][row] = torch.nan
                loss, *gradients = value_and_grads(call, views, 2)
                assert loss.isnan()
                assert any(d.isnan().any() for d in gradients)
    for dtype in (torch.float32, torch.float64):
        centroids = normal(17, 5, dtype=dtype)
        centroids[16] = torch.nan
        ones, index = torch.ones(17), torch.arange(7)
        chosen = torch.tensor([3, 16])
        assert proto_nce(
            normal(7, 5, dtype=dtype), centroids, ones, index, negatives=chosen
        ).isnan()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_gradients_add_up_in_float32(backend, dtype) -> None:
    """Keys are positive and negative, a centroid serves thousands of rows: rounded once."""
    q, k, c = (normal(n, 3, dtype=dtype, seed=n) for n in (40, 41, 2))
    k, z = k[:40], normal(4096, 3, dtype=dtype)
    index, phi, scale = index_of(4096, 2), torch.full((2,), 0.1), torch.full((40,), 8e3)
    calls = [
        (lambda *x: info_nce(*x, reduction="none") @ scale.to(x[0]).to(torch.float32), q, k),
        (lambda *x: proto_nce(*x, phi, index), z, c),
        (lambda *x: proto_nce(*x, phi, index, negatives=torch.tensor([0, 0, 1])), z, c),
    ]
    for call, *inputs in calls:
        _, _, ours = value_and_grads(call, inputs, 2)
        _, _, expected = value_and_grads(call, [x.float() for x in inputs], 2)
        assert_relative(ours, expected, 1.01 * torch.finfo(dtype).eps)
