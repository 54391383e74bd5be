"""Cross-entropy, priors and what crosses stems in Triton: TRITON_INTERPRET=1 pytest -m interpreter.

The interpreter multiplies float32 exactly as IEEE asks, knows no tensor cores and no races;
bfloat16 operands are upcast for it. Grids are tiny on purpose.
"""

import oracles
import pytest
import torch
from checks import assert_right, normal, probabilities, same_bits, unit
from triton_harness import (
    INTERPRETER,
    SCALE,
    SHAPES,
    assignment,
    balanced,
    check_cross_entropy,
    check_linear,
    check_prior,
    check_sinkhorn,
    dtypes,
    factored,
    kernels,
    prior,
    scores,
    single_entry_tables,
)

import ssl_fast
import ssl_fast.losses
from ssl_fast import backend, functional, reference

pytestmark = INTERPRETER


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
