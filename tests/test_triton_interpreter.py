"""The Triton kernels' numbers, on the CPU: TRITON_INTERPRET=1 pytest -m interpreter.

The interpreter multiplies float32 exactly as IEEE asks, knows no tensor cores and no races;
bfloat16 operands are upcast for it. Grids are tiny on purpose.
"""

import os

import oracles
import pytest
import torch
from checks import assert_right, normal, probabilities, same_bits, unit
from triton_harness import (
    SCALE,
    assignment,
    balanced,
    check_contrast,
    check_cross_entropy,
    check_linear,
    check_pairs,
    check_prior,
    check_sinkhorn,
    factored,
    kernels,
    single_entry_tables,
)

import ssl_fast
import ssl_fast.losses
from ssl_fast import backend, functional, reference
from ssl_fast._polar import TorchKernels

pytestmark = [
    pytest.mark.interpreter,
    pytest.mark.skipif(
        os.environ.get("TRITON_INTERPRET") != "1",
        reason="Triton decides when it is imported: TRITON_INTERPRET=1 pytest -m interpreter",
    ),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # numpy, on lanes that are masked
    pytest.mark.usefixtures("poisoned"),
]
HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}
DTYPES = {"float32": torch.float32, **HALF}
dtypes = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
# One, odd, prime; more rows and more columns than a block of any table's entry.
SHAPES = [(1, 1), (1, 17), (7, 1), (67, 131)]


def scores(n: int, k: int, dtype: torch.dtype = torch.float32, size: float = 0.2) -> torch.Tensor:
    """Some 1.5 / epsilon = 30 nats from smallest to largest."""
    return (normal(n, k) * size).to(dtype)


def prior(k: int) -> torch.Tensor:
    """Its logarithm; every third prototype gets nothing."""
    weights = torch.arange(1, k + 1, dtype=torch.float64) * (torch.arange(k) % 3 != 1)
    return (weights / weights.sum()).log()


@dtypes
@pytest.mark.parametrize("shape", [*SHAPES, (5, 1031)], ids=str)
def test_sinkhorn(shape, dtype):
    check_sinkhorn(scores(*shape, dtype))


def test_sinkhorn_with_more_partial_sums_than_a_block(monkeypatch):
    for name, table in (("sinkhorn", "ROWS"), ("_sinkhorn_columns", "COLUMNS")):
        monkeypatch.setattr(kernels(name), table, ((1 << 62, 2, 128, 4),))
        monkeypatch.setattr(kernels(name), "processors", lambda device: 20)
    check_sinkhorn(scores(83, 20), prior(20))


def test_sinkhorn_with_an_empty_prototype():
    check_sinkhorn(scores(37, 70), prior(70))


@pytest.mark.parametrize("size", [1.0, 30.0, 1e4], ids=str)
def test_sinkhorn_of_large_scores(size):
    """Beyond 64 nats exponents are formed in float64: nothing is lost at 2e5 nats."""
    check_sinkhorn(scores(35, 131, size=size), prior(131))


@pytest.mark.parametrize("nats", [63.0, 65.0, 129.0])
def test_sinkhorn_around_the_bound(nats):
    values = torch.rand(33, 67) * (nats / SCALE)
    values[0, 0], values[1, 1] = 0.0, nats / SCALE
    check_sinkhorn(values)


def test_sinkhorn_far_from_zero():
    """A constant added to all scores changes no assignment: what counts is the span."""
    shifted = scores(21, 40) + 512.0
    check_sinkhorn(shifted)
    q, expected = (
        kernels("sinkhorn").dense(s, SCALE, None, 3, False) for s in (shifted, shifted - 512)
    )
    torch.testing.assert_close(q, expected, atol=1e-7, rtol=3e-5)


def test_sinkhorn_of_collapsed_rows():
    row = scores(1, 70)
    check_sinkhorn(row.expand(33, 70).contiguous())
    check_sinkhorn(torch.zeros(33, 70))
    check_sinkhorn(scores(33, 1).expand(33, 70).contiguous())


def test_sinkhorn_of_a_column_that_underflows():
    """exp(scale s + row + col) is 0 in every row, its column's sum is not."""
    values = scores(33, 70)
    values[:, 3] -= 100.0
    check_sinkhorn(values)
    col = torch.zeros(70, dtype=torch.float64)
    col[4] = -500.0
    actual = kernels("sinkhorn").step(values, SCALE, col)
    expected = reference.sinkhorn.step(values, SCALE, col)
    torch.testing.assert_close(actual, expected, atol=3e-5, rtol=0)


def test_sinkhorn_when_maxima_of_col_lie_apart():
    """The reference of a row's sum moves by more than float32's exponent holds."""
    for step in (80.0, 120.0, 170.0, 400.0):
        col = torch.arange(5, dtype=torch.float64).repeat_interleave(64)[:300] * step
        values = scores(9, 300)
        values[:, :64] += 2.5
        actual = kernels("sinkhorn").row_potential(values, SCALE, col)
        expected = reference.sinkhorn.row_potential(values, SCALE, col)
        torch.testing.assert_close(actual, expected, atol=3e-5, rtol=0)


def test_strided_rows():
    base = torch.full((66, 150), float("nan"))
    view = base[::2, 9:140]
    view.copy_(scores(33, 131))
    check_sinkhorn(view)
    logits = torch.full((33, 200), float("nan"))[:, 40:171].copy_(normal(33, 131) * 5)
    check_cross_entropy(logits, 2.0, balanced(view))
    out = torch.full((33, 200), float("nan"))
    stats = kernels("cross_entropy").forward(logits, 2.0, balanced(view), False, 1.0)[1]
    arguments = 2.0, balanced(view), stats, None, None, 1.0
    kernels("cross_entropy").backward(logits, *arguments, out=out[:, 7:138])
    assert same_bits(
        out[:, 7:138].contiguous(), kernels("cross_entropy").backward(logits, *arguments)
    )
    assert bool(out[:, :7].isnan().all()) and bool(out[:, 138:].isnan().all())


@dtypes
@pytest.mark.parametrize("shape", [*SHAPES, (5, 2053)], ids=str)
def test_cross_entropy(shape, dtype):
    logits = (normal(*shape) * 5).to(dtype)
    dense = assignment(values=probabilities(*shape, seed=1).to(dtype))
    check_cross_entropy(logits, 2.5, dense)
    check_cross_entropy(logits, 2.5, balanced(scores(*shape, dtype)), d_loss=torch.tensor(1.7))


@pytest.mark.parametrize("n", [1, 7, 70, 131])
def test_symmetric_cross_entropy(n):
    logits, d_loss = normal(n, n) * 5, torch.rand(n)
    check_cross_entropy(logits, 2.5, assignment(values=torch.rand(n, n)), True, d_loss)
    check_cross_entropy(logits, 2.5, balanced(scores(n, n)), True)


def test_targets_of_any_sign_and_mass():
    targets = assignment(values=normal(33, 70, seed=1) * 3)
    check_cross_entropy(normal(33, 70), 1.0, targets, d_loss=torch.rand(33) * 4)


@pytest.mark.parametrize("size", [1e2, 1e4], ids=str)
def test_cross_entropy_of_large_numbers(size):
    logits = normal(34, 131) * size
    check_cross_entropy(logits, 1.0, assignment(values=probabilities(34, 131)))
    check_cross_entropy(logits, 1.0, balanced(scores(34, 131, size=size)))
    # All mass on the largest logit: the loss is minus its log-probability, no difference of 1e4s.
    one_hot = torch.nn.functional.one_hot(logits.argmax(1), 131).float()
    loss = kernels("cross_entropy").forward(logits, 1.0, assignment(values=one_hot), False, 1.0)[0]
    exact = -logits.double().log_softmax(1).amax(1).sum()
    torch.testing.assert_close(loss.double(), exact, atol=1e-6, rtol=1e-6)


def test_assignment_with_an_empty_prototype_and_without_col():
    values = scores(33, 70)
    row, col = reference.sinkhorn.potentials(values.double(), SCALE, prior(70), 3, False)
    check_cross_entropy(
        normal(33, 70), 1.0, assignment(values=values, scale=SCALE, row=row, col=col)
    )
    row = reference.sinkhorn.row_potential(values.double(), SCALE, None)
    check_cross_entropy(normal(33, 70), 1.0, assignment(values=values, scale=SCALE, row=row))


def test_assignment_whose_rows_lie_apart():
    """A row whose potential is far from its neighbour's: exponents have to be float64."""
    values = scores(16, 2100)
    values[1::2, 2090] += 1e4
    check_cross_entropy(normal(16, 2100), 1.0, balanced(values))


LINEAR = [(1, 1, 1, 1), (35, 70, 24, 17), (131, 67, 40, 130), (20, 40, 300, 33)]


@dtypes
@pytest.mark.parametrize("sizes", LINEAR, ids=str)
def test_linear_cross_entropy(sizes, dtype):
    n, k, d, h = sizes
    x, weight = (normal(n, d) / d**0.5).to(dtype), normal(k, d, seed=1).to(dtype)
    targets = assignment(values=probabilities(n, k, seed=2).to(dtype))
    check_linear(x, weight, 10.0, targets, d_loss=torch.rand(n))
    z, prototypes = (normal(n, h) / (5 * h**0.5)).to(dtype), normal(k, h, seed=1).to(dtype)
    check_linear(x, weight, 10.0, *factored(z, prototypes), d_loss=torch.tensor(0.7))


@pytest.mark.parametrize("n", [1, 70])
def test_symmetric_linear_cross_entropy(n):
    x, weight = normal(n, 24) / 5, normal(n, 24, seed=1)
    for d_loss in (None, torch.rand(n)):
        check_linear(x, weight, 5.0, balanced(scores(n, n)), symmetric=True, d_loss=d_loss)
    pair = factored(normal(n, 30) / 30, normal(n, 30, seed=1))
    check_linear(x, weight, 5.0, *pair, symmetric=True)


def test_linear_gradients_of_float16_keep_small_and_large_ones():
    """d_logits of 1e-7 and of 1e6 have no place in float16."""
    x, weight = (
        normal(33, 24, dtype=torch.float16) / 10,
        normal(70, 24, dtype=torch.float16, seed=1),
    )
    for size in (1e-7, 1e-3):
        check_linear(
            x,
            weight,
            1.0,
            assignment(values=torch.rand(33, 70) * size),
            d_loss=torch.tensor(1 / size),
        )
    targets = assignment(values=torch.rand(33, 70) * 1e6)
    stats = kernels("cross_entropy").linear_forward(x, weight, 1.0, targets, False, 1.0)[1]
    d_x, _ = kernels("cross_entropy").linear_backward(
        x, weight, 1.0, targets, stats, None, None, 1e-6, True, False
    )
    logits = x.double() @ weight.double().T
    expected = reference.cross_entropy.backward(logits, 1.0, targets, stats, None, None, 1e-6)
    torch.testing.assert_close(d_x.double(), expected @ weight.double(), atol=1e-3, rtol=2e-3)


def test_only_the_gradient_asked_for():
    x, weight = normal(5, 8), normal(9, 8)
    targets = assignment(values=torch.rand(5, 9))
    stats = kernels("cross_entropy").linear_forward(x, weight, 1.0, targets, False, 1.0)[1]
    arguments = x, weight, 1.0, targets, stats, None, None, 1.0
    d_x, d_weight = kernels("cross_entropy").linear_backward(*arguments, True, False)
    assert d_x.shape == x.shape and d_weight is None
    d_x, d_weight = kernels("cross_entropy").linear_backward(*arguments, False, True)
    assert d_x is None and d_weight.shape == weight.shape


@dtypes
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_prior(shape, dtype):
    """Alone, and with the cross-entropy of dense targets and of an assignment."""
    (n, k), reverse = shape, dtype != torch.float32
    logits, log_prior = scores(n, k, dtype, 1.0), normal(k, seed=3).double().log_softmax(0)
    check_prior(logits, 7.0, None, log_prior, reverse)
    check_prior(logits, 7.0, balanced(scores(n, k, dtype)), None, reverse, torch.tensor(-1.5))
    targets = assignment(values=probabilities(n, k, dtype=dtype))
    check_prior(logits, 7.0, targets, log_prior, reverse)


@pytest.mark.parametrize("case", ["1e4", "unused", "collapsed", "strided"])
def test_prior_of_unusual_logits(case):
    """Beyond 64 nats exponents are formed in float64; p may be exp(-500)."""
    logits = scores(37, 70, size=1.0)
    if case == "1e4":
        logits *= 1e4
    elif case == "unused":
        logits[:, 3] -= 500.0
    elif case == "collapsed":
        logits = logits[:1].expand(37, 70).contiguous()
    else:
        logits = torch.nn.functional.pad(logits, (3, 5), value=float("nan"))[:, 3:-5]
    log_prior = normal(70, seed=3).double().log_softmax(0)
    for reverse in (False, True):
        check_prior(logits, 1.0, balanced(scores(37, 70)), log_prior, reverse)


def test_prior_runs_in_msn():
    """The losses take it: value and gradients of PMSN under the Triton backend."""
    inputs = [normal(14, 5), normal(7, 5, seed=1), normal(31, 5, seed=2)]
    with ssl_fast.set_backend("triton"), backend.trace() as ran:
        assert_right(
            lambda a, c: functional.msn(a, inputs[1], c, sinkhorn_iterations=2),
            lambda a, c: oracles.msn_loss(a, inputs[1].to(a), c, sinkhorn_iterations=2),
            [inputs[0], inputs[2]], 2,
        )  # fmt: skip
    assert {name for _, name in ran} == {"triton"} and "prior" in {stem for stem, _ in ran}


def test_every_table_entry(monkeypatch):
    """Each entry alone, on a problem of more than one of its tiles."""
    names = "sinkhorn", "_sinkhorn_columns", "cross_entropy", "prior", "_linear_cross_entropy"
    modules = [kernels(name) for name in names]
    entries = [entry for entry in single_entry_tables() if entry[0] in modules]  # others: their own
    assert len(entries) == 28
    for module, name, table in entries:
        with monkeypatch.context() as patch:
            patch.setattr(module, name, table)
            _check_entry(module, name, table)


def _check_entry(module, name, table) -> None:
    if module in (kernels("sinkhorn"), kernels("_sinkhorn_columns")):
        values = scores(35, table[0][2] + 5 if name == "ROWS" else 131)
        assert_close(kernels("sinkhorn").dense(values, SCALE, None, 2, False), exact_dense(values))
    elif module is kernels("prior"):
        n, k = (table[0][2] + 5, 67) if name == "SUMS" else (17, table[0][2] + 5)
        check_prior(normal(n, k), 2.0, balanced(scores(n, k)))
    elif module is kernels("cross_entropy"):
        n, k = (67, 67) if name == "COLUMNS" else (17, table[0][2] + 5)
        check_cross_entropy(normal(n, k), 2.0, balanced(scores(n, k)), name == "COLUMNS")
    else:
        size = next(size for size, entries in table.items() if len(entries) == 1)
        _, rows, columns, width, *_ = table[size][0]
        n, k, d = rows + 3, columns + 3, 24 if width is None else width + 5
        dtype = torch.float16 if size == 2 else torch.float32
        x, weight = (normal(n, d) / d**0.5).to(dtype), normal(k, d, seed=1).to(dtype)
        check_linear(x, weight, 5.0, assignment(values=torch.rand(n, k)))
        check_linear(x, weight, 5.0, *factored(x / 5, weight))


def exact_dense(values: torch.Tensor) -> torch.Tensor:
    row, col = reference.sinkhorn.potentials(values.double(), SCALE, None, 2, False)
    return reference.sinkhorn.evaluate(values, SCALE, row, col)


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-7, rtol=3e-5)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_public_functions(reduction):
    """Twice PyTorch's own float32 error at most, through autograd, and Triton alone has run."""
    n, k, d = 21, 37, 8
    logits, q = normal(n, k) * 3, probabilities(n, k, seed=1)
    x, weight = normal(n, d), normal(k, d, seed=1)
    options = {"temperature": 0.5, "reduction": reduction}
    upstream = torch.rand(n) if reduction == "none" else torch.tensor(1.3)
    with ssl_fast.set_backend("triton"), backend.trace() as ran:
        assert_right(
            lambda s: functional.sinkhorn(s, epsilon=0.05), oracles.sinkhorn, [scores(n, k)]
        )
        assert_right(
            lambda s, t: functional.soft_cross_entropy(s, t, **options),
            lambda s, t: oracles.cross_entropy(s, t, **options),
            [logits, q], 1, upstream,
        )  # fmt: skip
        assert_right(
            lambda a, b, t: functional.linear_soft_cross_entropy(a, b, t, **options),
            lambda a, b, t: oracles.linear_cross_entropy(a, b, t, **options),
            [x, weight, q], 2, upstream,
        )  # fmt: skip
    assert {name for _, name in ran} == {"triton"}
    assert {stem for stem, _ in ran} >= {"sinkhorn", "cross_entropy"}


def test_resa_runs_here():
    """Symmetric, from embeddings, targets in factors."""
    h, momentum = unit(9, 6, seed=2), unit(9, 6, seed=3)
    views, others = [unit(9, 4), unit(9, 4, seed=4)], [unit(9, 4, seed=5), unit(9, 4, seed=6)]
    with ssl_fast.set_backend("triton"), backend.trace() as ran:
        loss = ssl_fast.losses.ReSALoss()(views, others, h, momentum)
    assert {name for _, name in ran} == {"triton"}
    expected = oracles.resa(
        *([v.double() for v in views], [v.double() for v in others]), h.double(), momentum.double()
    )
    torch.testing.assert_close(loss.double(), expected, atol=1e-6, rtol=1e-6)


@dtypes
@pytest.mark.parametrize("sizes", [(1, 1, 1), (35, 70, 24), (131, 67, 40), (20, 40, 300)], ids=str)
def test_contrastive_rows(sizes, dtype):
    """With and without norms as factors and left-out ranges; a row without any negative."""
    n, k, d = sizes
    x, w = (normal(n, d) / d**0.5).to(dtype), normal(k, d, seed=1).to(dtype)
    check_contrast(x, w, 5.0)
    first = torch.arange(n) % k
    count = torch.where(torch.arange(n) == 2, k, 2)
    lo = torch.where(torch.arange(n) == 2, 0, first)
    check_contrast(x, w, 3.0, (torch.rand(n) + 0.5, torch.rand(k) + 0.5), (lo, lo + count))


@dtypes
@pytest.mark.parametrize("sizes", [(2, 2, 3), (67, 2, 24), (30, 5, 40), (11, 3, 300)], ids=str)
def test_contrastive_pairs(sizes, dtype):
    """Blocks of an odd number of views meet the tiles' edges."""
    samples, views, d = sizes
    z = normal(samples * views, d, dtype=dtype)
    check_pairs(z, 1 / z.float().norm(dim=1), 5.0, views)
    check_pairs(z / d**0.5, None, 2.0, views)


def test_contrastive_of_large_similarities():
    z = normal(70, 24) * 30
    check_pairs(z, None, 1.0, 2)


def test_contrastive_functions():
    """Twice PyTorch's own float32 error at most, and Triton alone has run."""
    a, b, queue = normal(21, 8), normal(21, 8, seed=1), normal(37, 8, seed=2)
    index, phi = torch.arange(21), torch.rand(37) + 0.2
    with ssl_fast.set_backend("triton"), backend.trace() as ran:
        assert_right(functional.nt_xent, lambda *z: oracles.nt_xent(list(z), 0.5), [a, b], 2)
        assert_right(functional.decoupled_nt_xent, lambda *z: oracles.decoupled(*z, 0.1), [a, b], 2)
        assert_right(
            lambda *z: functional.info_nce(*z), lambda *z: oracles.one_of_many(*z, 0.2),
            [a, b, queue], 3,
        )  # fmt: skip
        assert_right(functional.info_nce, lambda *z: oracles.one_of_many(*z, None, 0.2), [a, b], 2)
        assert_right(
            lambda z, c: functional.proto_nce(z, c, phi, index),
            lambda z, c: oracles.proto_nce(z, c, phi, index), [a, queue], 2,
        )  # fmt: skip
    assert set(ran) == {("contrastive", "triton")}


def test_not_a_number_is_passed_on():
    a, b = normal(7, 5), normal(7, 5, seed=1)
    b[3, 2] = float("nan")
    with ssl_fast.set_backend("triton"):
        assert functional.nt_xent(a, b).isnan()
        assert functional.info_nce(a, b).isnan()
        assert functional.proto_nce(a, b, torch.ones(7), torch.zeros(7, dtype=torch.long)).isnan()


def test_bitwise_repeatable():
    values, logits = scores(67, 131), normal(67, 131)
    targets = balanced(values)
    x, weight = normal(67, 24), normal(131, 24)

    def outputs():
        loss, stats, _ = kernels("cross_entropy").forward(logits, 2.0, targets, False, 1.0)
        return (
            kernels("sinkhorn").dense(values, SCALE, None, 3, False), loss, stats,
            *kernels("cross_entropy").linear_backward(
                x, weight, 1.0, targets, stats, None, None, 1.0, True, True
            ),
        )  # fmt: skip

    assert all(same_bits(a, b) for a, b in zip(outputs(), outputs(), strict=True))


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
