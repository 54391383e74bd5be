"""Soft cross-entropy, from logits and from embeddings, against the printed formula and autograd."""

import math

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
    probabilities,
    same_bits,
    spread,
    unit,
    value_and_grads,
)
from torch.utils.flop_counter import FlopCounterMode

from ssl_fast.functional import Assignment, linear_soft_cross_entropy, soft_cross_entropy
from ssl_fast.functional._linear_cross_entropy import Products

pytestmark = [pytest.mark.cpu_kernels, pytest.mark.usefixtures("poisoned")]

SHAPES = [(1, 1), (1, 17), (7, 1), (7, 3), (67, 777), (1031, 64), (5, 5003)]
# N, K, D: the last two recompute most of their logits in backward, in one tile and in several.
LINEAR_SHAPES = [(1, 1, 1), (7, 3, 5), (67, 777, 16), (131, 257, 32), (67, 1031, 2)]

# How targets come: ours, and the same probabilities by formula, from teacher scores (N, K).
TARGETS = {
    "dense": (lambda s: s.detach().abs(), lambda s: s.abs()),
    "sinkhorn": (lambda s: Assignment.sinkhorn(s), lambda s: oracles.swav(s)),
    "centred": (
        lambda s: Assignment.softmax(s, temperature=0.1, center=s[0]),
        lambda s: oracles.centred(s, 0.1, s[0]),
    ),
    "from_dense": (lambda s: Assignment.from_dense(s.detach()), lambda s: s),
}


def teacher(n: int, k: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Teacher scores (N, K), cosines of 16-dimensional vectors."""
    scores = unit(n, 16, dtype=torch.float64, seed=5) @ unit(k, 16, seed=6).double().T
    return scores.to(dtype)


def upstream(reduction: str, n: int) -> torch.Tensor:
    """A gradient that is neither one nor uniform nor positive."""
    return normal(n, seed=7) if reduction == "none" else torch.tensor(-2.5)


@pytest.mark.parametrize(
    ("shape", "dtype", "targets", "reduction"),
    spread(SHAPES, list(DTYPES), list(TARGETS), REDUCTIONS),
    ids=str,
)
def test_right(backend, shape, dtype, targets, reduction) -> None:
    """Every shape and type; targets, and reductions with their upstream gradients, take turns."""
    ours, formula = TARGETS[targets]
    options = {"temperature": 0.1, "reduction": reduction}
    assert_right(
        lambda logits, s: soft_cross_entropy(logits, ours(s), **options),
        lambda logits, s: oracles.cross_entropy(logits, formula(s), **options),
        [normal(*shape, dtype=DTYPES[dtype]), teacher(*shape, DTYPES[dtype])],
        wrt=1,
        upstream=upstream(reduction, shape[0]),
    )


def test_right_when_large(backend) -> None:
    assert_right(
        lambda logits, s: soft_cross_entropy(logits, Assignment.sinkhorn(s)),
        lambda logits, s: oracles.cross_entropy(logits, oracles.swav(s)),
        [normal(257, 3000), teacher(257, 3000)],
        wrt=1,
    )


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_reductions(backend, dtype, reduction) -> None:
    options = {"temperature": 0.3, "reduction": reduction}
    assert_right(
        lambda logits, q: soft_cross_entropy(logits, q, **options),
        lambda logits, q: oracles.cross_entropy(logits, q, **options),
        [normal(67, 129, dtype=dtype), probabilities(67, 129, dtype=dtype)],
        wrt=1,
        upstream=upstream(reduction, 67),
    )


@pytest.mark.parametrize(
    ("n", "dtype", "targets", "reduction"),
    spread([1, 7, 67, 131], list(DTYPES), list(TARGETS), ["mean", "sum"]),
)
def test_symmetric(backend, n, dtype, targets, reduction) -> None:
    ours, formula = TARGETS[targets]
    options = {"temperature": 0.2, "symmetric": True, "reduction": reduction}
    assert_right(
        lambda logits, s: soft_cross_entropy(logits, ours(s), **options),
        lambda logits, s: oracles.cross_entropy(logits, formula(s), **options),
        [normal(n, n, dtype=DTYPES[dtype]), teacher(n, n, DTYPES[dtype])],
        wrt=1,
        upstream=torch.tensor(0.3),
    )


@pytest.mark.parametrize(
    ("shape", "dtype", "targets", "reduction"),
    [
        *spread(LINEAR_SHAPES, list(DTYPES), list(TARGETS), REDUCTIONS),
        ((300, 5003, 4), "float32", "sinkhorn", "none"),
        ((300, 5003, 4), "bfloat16", "dense", "mean"),
    ],
    ids=str,
)
def test_linear(backend, shape, dtype, targets, reduction) -> None:
    (n, k, d), dtype = shape, DTYPES[dtype]
    ours, formula = TARGETS[targets]
    options = {"temperature": 0.1, "reduction": reduction}
    assert_right(
        lambda x, w, s: linear_soft_cross_entropy(x, w, ours(s), **options),
        lambda x, w, s: oracles.linear_cross_entropy(x, w, formula(s), **options),
        [unit(n, d, dtype=dtype), unit(k, d, dtype=dtype, seed=1), teacher(n, k, dtype)],
        wrt=2,
        upstream=upstream(reduction, n),
    )


@pytest.mark.parametrize(
    ("shape", "dtype", "targets", "reduction"),
    spread([(1, 1), (7, 5), (67, 32), (257, 3)], list(DTYPES), list(TARGETS), ["mean", "sum"]),
    ids=str,
)
def test_linear_symmetric(backend, shape, dtype, targets, reduction) -> None:
    (n, d), dtype = shape, DTYPES[dtype]
    ours, formula = TARGETS[targets]
    options = {"temperature": 0.4, "symmetric": True, "reduction": reduction}
    assert_right(
        lambda x, w, s: linear_soft_cross_entropy(x, w, ours(s), **options),
        lambda x, w, s: oracles.linear_cross_entropy(x, w, formula(s), **options),
        [unit(n, d, dtype=dtype), unit(n, d, dtype=dtype, seed=1), teacher(n, n, dtype)],
        wrt=2,
        upstream=torch.tensor(-0.7),
    )


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_pair_targets(backend, dtype, symmetric) -> None:
    """Targets whose scores are never formed whole, under both losses."""
    n, k, d = 131, 131 if symmetric else 1031, 4
    pair = [unit(n, d, dtype=dtype, seed=2), unit(k, d, dtype=dtype, seed=3)]
    x, weight = unit(n, d, dtype=dtype), unit(k, d, dtype=dtype, seed=1)
    options = {"temperature": 0.1, "symmetric": symmetric}
    assert Assignment.sinkhorn(pair).values is None
    assert_right(
        lambda x, w, *p: linear_soft_cross_entropy(x, w, Assignment.sinkhorn(p), **options),
        lambda x, w, z, c: oracles.linear_cross_entropy(x, w, oracles.swav(z @ c.T), **options),
        [x, weight, *pair],
        wrt=2,
    )
    assert_right(
        lambda logits, *p: soft_cross_entropy(logits, Assignment.sinkhorn(p), **options),
        lambda logits, z, c: oracles.cross_entropy(logits, oracles.swav(z @ c.T), **options),
        [(x.double() @ weight.double().T).to(dtype), *pair],
        wrt=1,
    )


@pytest.mark.parametrize(
    ("symmetric", "reduction"),
    [(False, "mean"), (False, "sum"), (False, "none"), (True, "mean"), (True, "sum")],
)
@pytest.mark.parametrize("targets", [*TARGETS, "pair"])
def test_gradcheck(backend, targets, symmetric, reduction) -> None:
    n, k = (4, 4) if symmetric else (5, 4)
    options = {"temperature": 0.7, "symmetric": symmetric, "reduction": reduction}
    scores = teacher(n, k, torch.float64)
    pair = (unit(n, 1, dtype=torch.float64), unit(k, 1, dtype=torch.float64, seed=1))
    held = Assignment.sinkhorn(pair) if targets == "pair" else TARGETS[targets][0](scores)
    gradcheck(lambda logits: soft_cross_entropy(logits, held, **options), normal(n, k))
    gradcheck(
        lambda x, w: linear_soft_cross_entropy(x, w, held, **options), normal(n, 3), normal(k, 3)
    )


def test_gradcheck_beyond_the_cache(backend) -> None:
    """Width 1: a few rows of logits stay in memory, the others are recomputed."""
    x, weight = normal(9, 1), normal(23, 1, seed=1)
    q = probabilities(9, 23, dtype=torch.float64)
    gradcheck(lambda x, w: linear_soft_cross_entropy(x, w, q, reduction="none"), x, weight)


@pytest.mark.parametrize("logits_type", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("targets_type", DTYPES.values(), ids=DTYPES)
def test_mixed_types(backend, logits_type, targets_type) -> None:
    """Targets come in any type; the logits' one rules the results."""
    q = probabilities(37, 23, dtype=targets_type)
    held = Assignment.sinkhorn(teacher(37, 23, targets_type))
    logits = normal(37, 23, dtype=logits_type)
    for targets, dense in ((q, q), (held, oracles.swav(teacher(37, 23, targets_type).double()))):
        value, grad = value_and_grads(lambda x, t=targets: soft_cross_entropy(x, t), [logits], 1)
        exact = value_and_grads(
            lambda x, t=dense: oracles.cross_entropy(x, t.double()), [logits.double()], 1
        )
        assert value.dtype == torch.promote_types(logits_type, torch.float32)
        assert grad.dtype == logits_type
        assert_relative(value, exact[0], 2e-6)
        scale = float(exact[1].abs().max())
        assert_relative(grad, exact[1], torch.finfo(logits_type).eps, tiny=2e-6 * scale)


@pytest.mark.parametrize("symmetric", [False, True])
def test_targets_need_no_unit_mass(backend, symmetric) -> None:
    """Any finite targets: masses of rows differ, some entries are negative, one row is zero."""
    q = normal(33, 33, seed=3) * torch.linspace(0, 3, 33)[:, None]
    assert_right(
        lambda logits, q: soft_cross_entropy(logits, q, symmetric=symmetric, reduction="sum"),
        lambda logits, q: oracles.cross_entropy(logits, q, symmetric=symmetric, reduction="sum"),
        [normal(33, 33), q],
        wrt=1,
    )


def test_zero_targets_give_zero(backend) -> None:
    """A row without mass has loss 0 and gradient 0, exactly."""
    q = probabilities(9, 33)
    q[4] = 0
    value, grad = value_and_grads(
        lambda x: soft_cross_entropy(x, q, reduction="none"), [1e4 * normal(9, 33)], 1
    )
    assert value[4] == 0 and bool((grad[4] == 0).all())
    assert bool((grad[3] != 0).any())


def far() -> dict[str, torch.Tensor]:
    """Logits whose exponentials overflow or vanish; the losses and gradients are ordinary."""
    noise = normal(67, 67)
    dominated = normal(67, 67)
    dominated[:, 5] += 1e4
    return {
        "offset 1e4": 1e4 + noise,
        "offset -1e4": -1e4 + noise,
        "offsets of rows": 1e4 * normal(67, 1, seed=1) + noise,
        "offsets of columns": 1e4 * normal(1, 67, seed=1) + noise,
        "normal 1e4": 1e4 * noise,
        "one column dominates": dominated,
        "zeros": torch.zeros(67, 67),
        "zero rows": noise * (torch.arange(67) % 3 > 0)[:, None],
        "collapsed": normal(1, 67).repeat(67, 1),
        "repeated rows at 1e4": (1e4 * normal(7, 67)).repeat(10, 1)[:67],
    }


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("case", far())
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
def test_far_logits(backend, case, dtype, symmetric) -> None:
    """Loss within 1e-6 of exact, gradient within 4e-6 of the probabilities it is made of."""
    logits, scores = far()[case].to(dtype), teacher(67, 67)
    options = {"temperature": 0.5, "symmetric": symmetric, "reduction": "sum"}
    q = oracles.swav(scores.double())
    exact = value_and_grads(lambda x: oracles.cross_entropy(x, q, **options), [logits.double()], 1)
    for targets in (Assignment.sinkhorn(scores), q.float()):
        value, grad = value_and_grads(
            lambda x, t=targets: soft_cross_entropy(x, t, **options), [logits], 1
        )
        assert_relative(value, exact[0], 1e-6)
        assert_relative(grad, exact[1], max(1e-6, torch.finfo(dtype).eps), tiny=4e-6)


@pytest.mark.parametrize("symmetric", [False, True])
def test_far_products(backend, symmetric) -> None:
    """Products of small integers are exact in float32: so must loss and gradients be at 1e4."""
    x, weight = normal(67, 8).mul(20).round(), normal(67, 8, seed=1).mul(20).round()
    assert float((x @ weight.T).abs().max()) > 3e3
    q = probabilities(67, 67)
    value, *grads = value_and_grads(
        lambda x, w: linear_soft_cross_entropy(x, w, q, symmetric=symmetric), [x, weight], 2
    )
    exact_value, *exact = value_and_grads(
        lambda x, w: oracles.linear_cross_entropy(x, w, q.double(), symmetric=symmetric),
        [x.double(), weight.double()],
        2,
    )
    assert_relative(value, exact_value, 1e-6)
    for grad, e in zip(grads, exact, strict=True):
        assert_relative(grad, e, 1e-6, tiny=1e-6 * float(e.abs().max()))


@pytest.mark.parametrize("temperature", [1e-4, 0.05, 1.0, 1e4])
def test_temperatures(backend, temperature) -> None:
    assert_right(
        lambda logits, q: soft_cross_entropy(logits, q, temperature=temperature),
        lambda logits, q: oracles.cross_entropy(logits, q, temperature),
        [normal(37, 129), probabilities(37, 129)],
        wrt=1,
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_layouts(backend, layout, dtype) -> None:
    lay = LAYOUTS[layout]
    logits, scores = normal(67, 131, dtype=dtype), teacher(67, 131, dtype)
    for ours, formula in TARGETS.values():
        assert_right(
            lambda logits, s, t=ours: soft_cross_entropy(logits, t(s), temperature=0.1),
            lambda logits, s, t=formula: oracles.cross_entropy(logits, t(s), 0.1),
            [lay(logits), lay(scores)],
            wrt=1,
        )
    assert_right(
        lambda x, w, s: linear_soft_cross_entropy(x, w, s, temperature=0.1),
        lambda x, w, s: oracles.linear_cross_entropy(x, w, s, temperature=0.1),
        [lay(unit(67, 6, dtype=dtype)), lay(unit(131, 6, dtype=dtype, seed=1)), lay(scores)],
        wrt=2,
    )


def test_expanded(backend) -> None:
    """Rows and columns of stride 0, in logits, targets and upstream gradients."""
    q = probabilities(1, 131).expand(67, -1)
    for logits in (normal(1, 131).expand(67, -1), normal(67, 1).expand(-1, 131)):
        assert_right(
            lambda x, q: soft_cross_entropy(x, q, reduction="none"),
            lambda x, q: oracles.cross_entropy(x, q, reduction="none"),
            [logits, q],
            wrt=1,
            upstream=torch.tensor(0.7).expand(67),
        )
    strided = normal(134)[::2]
    assert_right(
        lambda x, w, q: linear_soft_cross_entropy(x, w, q, reduction="none"),
        lambda x, w, q: oracles.linear_cross_entropy(x, w, q, reduction="none"),
        [normal(1, 4).expand(67, -1), normal(131, 4), q],
        wrt=2,
        upstream=strided,
    )
    assert_right(
        lambda x, q: soft_cross_entropy(x, q, reduction="none"),
        lambda x, q: oracles.cross_entropy(x, q, reduction="none"),
        [normal(67, 131), q],
        wrt=1,
        upstream=strided,
    )


ROWS = {
    "tail": slice(-20, None),
    "steps": slice(1, 60, 3),
    "index": torch.tensor([5, 5, 0, 66]),
    "mask": torch.arange(67) % 7 == 2,
}


@pytest.mark.parametrize("rows", ROWS)
def test_rows_of_an_assignment(backend, rows) -> None:
    """A queue's targets: some rows of a larger assignment."""
    rows = ROWS[rows]
    scores = teacher(67, 131)
    q = oracles.swav(scores.double())[rows]
    for held in (Assignment.sinkhorn(scores), Assignment.from_dense(q.new_zeros(67, 131).index_put(
        (torch.arange(67)[rows],), q))):  # fmt: skip
        logits = normal(len(q), 131)
        value = soft_cross_entropy(logits, held[rows], reduction="none")
        exact = oracles.cross_entropy(logits.double(), q, reduction="none")
        assert_relative(value, exact, 2e-6)


def losses(n: int, k: int, d: int) -> dict:
    """Each form of the loss with its inputs: what repeats, what is kept, what is needed."""
    x, weight, scores = unit(n, d), unit(k, d, seed=1), teacher(n, k)
    held = Assignment.sinkhorn(scores)
    forms = {
        "logits": (lambda x: soft_cross_entropy(x, held), [10 * scores]),
        "rows": (lambda x: soft_cross_entropy(x, held, reduction="none"), [10 * scores]),
        "linear": (lambda x, w: linear_soft_cross_entropy(x, w, held), [x, weight]),
        "linear rows": (
            lambda x, w: linear_soft_cross_entropy(x, w, held, reduction="none"), [x, weight]
        ),
    }  # fmt: skip
    if n == k:
        forms["symmetric"] = (
            lambda x: soft_cross_entropy(x, held, symmetric=True), [10 * scores]
        )  # fmt: skip
        forms["linear symmetric"] = (
            lambda x, w: linear_soft_cross_entropy(x, w, held, symmetric=True), [x, weight]
        )  # fmt: skip
    return forms


@pytest.mark.parametrize("form", losses(2, 2, 1))
def test_same_bits_every_run(backend, form) -> None:
    function, inputs = losses(131, 131, 8)[form]
    runs = [value_and_grads(function, inputs, len(inputs)) for _ in range(3)]
    for run in runs[1:]:
        assert all(same_bits(a, b) for a, b in zip(run, runs[0], strict=True))


@pytest.mark.parametrize("form", losses(2, 2, 1))
@pytest.mark.parametrize("shape", [(67, 67, 64), (67, 67, 1)], ids=["all kept", "few kept"])
def test_backward_twice(backend, form, shape) -> None:
    """retain_graph: the second backward pass equals the first, the cache included."""
    function, inputs = losses(*shape)[form]
    inputs = [x.requires_grad_() for x in inputs]
    value = function(*inputs)
    d_value = torch.full_like(value, 0.5)
    first = torch.autograd.grad(value, inputs, d_value, retain_graph=True)
    between = torch.autograd.grad(value, inputs, -3 * d_value, retain_graph=True)
    second = torch.autograd.grad(value, inputs, d_value)
    assert all(same_bits(a, b) for a, b in zip(first, second, strict=True))
    for a, b in zip(first, between, strict=True):
        assert_relative(b, -3 * a.double(), 1e-6, tiny=2e-6 * float(a.abs().max()))


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("width", [64, 1], ids=["all kept", "few kept"])
def test_one_gradient_alone(backend, symmetric, width) -> None:
    """x frozen, or weight frozen (prototypes at warm-up): the other gradient is the same."""
    x, weight, q = unit(67, width), unit(67, width, seed=1), probabilities(67, 67)

    def loss(x, weight):
        return linear_soft_cross_entropy(x, weight, q, temperature=0.2, symmetric=symmetric)

    _, d_x, d_weight = value_and_grads(loss, [x, weight], 2)
    assert same_bits(value_and_grads(loss, [x, weight], 1)[1], d_x)
    swapped = value_and_grads(lambda weight, x: loss(x, weight), [weight, x], 1)
    assert same_bits(swapped[1], d_weight)


@pytest.mark.parametrize("form", losses(2, 2, 1))
def test_without_grad(backend, form) -> None:
    """Under no_grad, and for inputs that need none: the same value, nothing kept."""
    function, inputs = losses(67, 67, 8)[form]
    expected = value_and_grads(function, inputs, len(inputs))[0]
    with Saved() as saved:
        assert same_bits(function(*inputs), expected)
        with torch.no_grad():
            value = function(*[x.clone().requires_grad_() for x in inputs])
    assert same_bits(value, expected) and not value.requires_grad
    assert saved.nbytes() == 0


def test_upstream_selects_rows(backend) -> None:
    """A row whose upstream gradient is zero gets exactly zero."""
    q, d_value = probabilities(9, 33), torch.zeros(9)
    d_value[4] = 1
    _, grad = value_and_grads(
        lambda x: soft_cross_entropy(x, q, reduction="none"), [normal(9, 33)], 1, d_value
    )
    assert bool((grad[[0, 1, 2, 3, 5, 6, 7, 8]] == 0).all()) and bool((grad[4] != 0).any())


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("targets", ["dense", "pair"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_memory_of_linear(backend, symmetric, targets, dtype) -> None:
    """math.md, section 3: kept for backward at most the bytes of inputs and gradients, beside
    N-vectors; nothing of N x K is formed on the way there or back."""
    n, k, d = (2048, 2048, 4) if symmetric else (1024, 4096, 4)
    x, weight = unit(n, d, dtype=dtype), unit(k, d, dtype=dtype, seed=1)
    x, weight = x.requires_grad_(), weight.requires_grad_()
    if targets == "pair":
        held = Assignment.sinkhorn((unit(n, d, seed=2), unit(k, d, seed=3)), iterations=1)
        given = [x, weight, held.z, held.prototypes, held.row, held.col]
    else:
        q = probabilities(1, k).expand(n, -1)
        held, given = Assignment.from_dense(q), [x, weight, q]
    with Allocations() as watch:
        with Saved(*given) as saved:
            value = linear_soft_cross_entropy(x, weight, held, symmetric=symmetric)
        value.backward()
    operands = 2 * (x.numel() + weight.numel()) * x.element_size()
    statistics = 8 * (4 * n + 3 * k + 64)
    assert 0 < saved.nbytes() <= operands + statistics
    assert any("mm" in name for name, *_ in watch.results)
    assert watch.largest() <= n * k // 4
    assert bool(x.grad.isfinite().all()) and bool(weight.grad.isfinite().all())


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_native_has_no_product_left_for_a_number(backend, reduction) -> None:
    x, weight = unit(9, 4).requires_grad_(), unit(7, 4, seed=1).requires_grad_()
    value = linear_soft_cross_entropy(x, weight, probabilities(9, 7), reduction=reduction).sum()
    with FlopCounterMode(display=False) as products:
        value.backward()
    left = backend == "reference" or reduction == "none"
    assert (products.get_total_flops() > 0) == left


def test_without_grad_one_product_is_taken(backend) -> None:
    x, weight = unit(9, 4).requires_grad_(), unit(7, 4, seed=1).requires_grad_()
    with torch.no_grad(), FlopCounterMode(display=False) as products:
        linear_soft_cross_entropy(x, weight, probabilities(9, 7))
    assert products.get_total_flops() == 2 * 9 * 7 * 4


def test_half_gradient_whose_sum_half_cannot_hold(backend) -> None:
    x, weight = torch.ones(160, 2, dtype=torch.float16), torch.zeros(3, 2, dtype=torch.float16)
    q = torch.tensor([1.0, 0.0, 0.0]).expand(160, -1)
    _, gradient = value_and_grads(
        lambda w: linear_soft_cross_entropy(x, w, q, temperature=1e-3), [weight], 1
    )
    assert_relative(gradient, 1e3 * torch.tensor([[-2], [1], [1]]).expand(-1, 2) / 3.0, 1e-3)


def test_memory_of_logits(backend) -> None:
    """Kept beside logits and scores: 4 N + 3 K numbers. Formed: the gradient alone."""
    logits, scores = normal(128, 1031).requires_grad_(), teacher(128, 1031)
    held = Assignment.sinkhorn(scores)
    with Saved(logits, scores, held.row, held.col) as saved:
        value = soft_cross_entropy(logits, held)
    assert saved.nbytes() <= 8 * (4 * 128 + 64)
    if backend == "native":  # the reference forms its float64 matrices
        with Allocations() as watch:
            value.backward()
        whole = [name for name, shape, _ in watch.results if shape.numel() >= 128 * 1031]
        assert len(whole) == 1  # the gradient


L, Q = torch.zeros(4, 3), torch.full((4, 3), 1 / 3)
X, W = torch.zeros(4, 2), torch.zeros(3, 2)
SQUARE = torch.zeros(3, 3)
REFUSED = {
    "logits a list": (lambda: soft_cross_entropy([[0.0]], Q), TypeError, ["logits", "list"]),
    "logits of integers": (
        lambda: soft_cross_entropy(L.long(), Q), TypeError, ["logits", "int64", "float"]
    ),
    "logits a cube": (
        lambda: soft_cross_entropy(L[None], Q), ValueError, ["logits", r"\(1, 4, 3\)"]
    ),
    "logits a vector": (lambda: soft_cross_entropy(L[0], Q), ValueError, ["logits", r"\(3,\)"]),
    "no rows": (lambda: soft_cross_entropy(L[:0], Q[:0]), ValueError, ["logits", r"\(0, 3\)"]),
    "no columns": (
        lambda: soft_cross_entropy(L[:, :0], Q[:, :0]), ValueError, ["logits", r"\(4, 0\)"]
    ),
    "sparse logits": (
        lambda: soft_cross_entropy(torch.eye(3).to_sparse(), SQUARE), TypeError,
        ["logits", "sparse"],
    ),
    "targets of class numbers": (
        lambda: soft_cross_entropy(L, torch.zeros(4, dtype=torch.long)), TypeError,
        ["targets", "int64"],
    ),
    "targets None": (lambda: soft_cross_entropy(L, None), TypeError, ["targets", "NoneType"]),
    "targets transposed": (
        lambda: soft_cross_entropy(L, Q.T), ValueError, ["targets", r"\(3, 4\)", r"\(4, 3\)"]
    ),
    "targets broadcast": (
        lambda: soft_cross_entropy(L, Q[:1]), ValueError, ["targets", r"\(1, 3\)", r"\(4, 3\)"]
    ),
    "assignment of other rows": (
        lambda: soft_cross_entropy(L, Assignment.sinkhorn(Q[:2])), ValueError,
        ["targets", r"\(2, 3\)", r"\(4, 3\)"],
    ),
    "targets with grad": (
        lambda: soft_cross_entropy(L, Q.clone().requires_grad_()), ValueError,
        ["targets", "requires grad", "detach"],
    ),
    "targets elsewhere": (
        lambda: soft_cross_entropy(L, Q.to("meta")), ValueError, ["targets", "meta", "cpu"]
    ),
    "temperature 0": (
        lambda: soft_cross_entropy(L, Q, temperature=0.0), ValueError, ["temperature", "> 0", "0.0"]
    ),
    "temperature -1": (
        lambda: soft_cross_entropy(L, Q, temperature=-1), ValueError, ["temperature", "-1"]
    ),
    "temperature nan": (
        lambda: soft_cross_entropy(L, Q, temperature=math.nan), ValueError, ["temperature", "nan"]
    ),
    "temperature inf": (
        lambda: soft_cross_entropy(L, Q, temperature=math.inf), ValueError, ["temperature", "inf"]
    ),
    "temperature tensor": (
        lambda: soft_cross_entropy(L, Q, temperature=torch.tensor(0.1)), TypeError,
        ["temperature", "tensor", "float"],
    ),
    "temperature text": (
        lambda: soft_cross_entropy(L, Q, temperature="0.1"), TypeError, ["temperature", "str"]
    ),
    "reduction": (
        lambda: soft_cross_entropy(L, Q, reduction="avg"), ValueError, ["reduction", "avg", "mean"]
    ),
    "reduction None": (
        lambda: soft_cross_entropy(L, Q, reduction=None), ValueError, ["reduction", "None"]
    ),
    "symmetric, not square": (
        lambda: soft_cross_entropy(L, Q, symmetric=True), ValueError, ["square", r"\(4, 3\)"]
    ),
    "symmetric, none": (
        lambda: soft_cross_entropy(SQUARE, SQUARE, symmetric=True, reduction="none"), ValueError,
        ["none", "symmetric"],
    ),
    "a group that is not there": (
        lambda: soft_cross_entropy(L, Q, group="0"), ValueError, ["group", "init_process_group"]
    ),
    "x a vector": (
        lambda: linear_soft_cross_entropy(X[0], W, Q), ValueError, ["x must", r"\(2,\)"]
    ),
    "weight transposed": (
        lambda: linear_soft_cross_entropy(X, W.T, Q), ValueError,
        ["x", "weight", r"\(4, 2\)", r"\(2, 3\)"],
    ),
    "weight of another type": (
        lambda: linear_soft_cross_entropy(X, W.double(), Q), TypeError,
        ["weight", "float64", "float32"],
    ),
    "weight elsewhere": (
        lambda: linear_soft_cross_entropy(X, W.to("meta"), Q), ValueError, ["weight", "meta", "cpu"]
    ),
    "weight a list": (
        lambda: linear_soft_cross_entropy(X, [W], Q), TypeError, ["weight", "list"]
    ),
    "no width": (
        lambda: linear_soft_cross_entropy(X[:, :0], W[:, :0], Q), ValueError,
        ["x must", r"\(4, 0\)"],
    ),
    "no prototypes": (
        lambda: linear_soft_cross_entropy(X, W[:0], Q[:, :0]), ValueError, ["weight", r"\(0, 2\)"]
    ),
    "linear targets": (
        lambda: linear_soft_cross_entropy(X, W, Q.T), ValueError,
        ["targets", r"\(3, 4\)", r"\(4, 3\)"],
    ),
    "linear targets elsewhere": (
        lambda: linear_soft_cross_entropy(X, W, Q.to("meta")), ValueError, ["targets", "meta"]
    ),
    "linear temperature": (
        lambda: linear_soft_cross_entropy(X, W, Q, temperature=0), ValueError,
        ["temperature", "> 0"],
    ),
    "linear reduction": (
        lambda: linear_soft_cross_entropy(X, W, Q, reduction="max"), ValueError,
        ["reduction", "max"],
    ),
    "linear symmetric": (
        lambda: linear_soft_cross_entropy(X, W, Q, symmetric=True), ValueError,
        ["square", r"\(4, 3\)"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case) -> None:
    call, kind, words = REFUSED[case]
    with pytest.raises(kind) as caught:
        call()
    for word in words:
        caught.match(word)


def test_products_take_a_number_or_one_g_a_row() -> None:
    """On a GPU a number goes the way of rows, which its host does not read."""
    x, weight, d_logits = normal(7, 3), normal(5, 3, seed=1), normal(7, 5, seed=2)
    for d_loss in (torch.tensor(3.0), torch.full((7,), 3.0)):
        sums = Products(x, weight, True, True, d_loss=d_loss, factor=0.5)
        for rows in (slice(0, 4), slice(4, 7)):
            sums.add(rows, d_logits[rows])
        d_x, d_weight = sums.result()
        torch.testing.assert_close(d_x, 1.5 * d_logits @ weight)
        torch.testing.assert_close(d_weight, 1.5 * d_logits.T @ x)
